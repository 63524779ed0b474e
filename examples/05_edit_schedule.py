"""
Edit what the compiler decided, and feed the IR back.

The schedule is part of the IR. Passes fill only what is open, so what a person writes, stays.
"""

import argparse
import re
from pathlib import Path

import gemmir

LAYER = Path(__file__).with_name("01_down_proj.mlir")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=2, help="the number of pipeline stages to ask for (default: 2)")
    args = parser.parse_args()

    chosen = gemmir.compile(LAYER)
    show("what the passes chose", chosen)

    text = chosen.ir("schedule")
    edited = re.sub(r"stages = \d+", f"stages = {args.stages}", text)
    show(f"with stages = {args.stages}, written by hand", gemmir.compile(edited))

    # Removing a choice gives it back to the passes; a schedule that cannot work is refused with the arithmetic.
    show("with the stages left open again", gemmir.compile(re.sub(r",? stages = \d+", "", text)))
    try:
        gemmir.compile(re.sub(r"stages = \d+", "stages = 5", text))
    except gemmir.errors.ScheduleError as error:
        print(f"== with stages = 5\n{error}")


def show(title: str, kernel: gemmir.CompiledKernel) -> None:
    """Print the schedule, and what the passes had to decide for it."""
    schedule = re.search(r"schedule <.*>", kernel.ir("schedule"))
    print(f"== {title}\n{schedule and schedule.group()}\n{kernel.manifest.shared_bytes} bytes of shared memory")
    for decision in kernel.decisions:
        print(f"  {decision}")
    print()


if __name__ == "__main__":
    main()
