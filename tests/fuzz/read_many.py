"""Read mutated texts number `first` to `first + count`: `python read_many.py first count` prints what came of them."""

import json
import sys
import time
from collections import Counter
from pathlib import Path

from gemmir.compiler import lower
from gemmir.errors import GemmirError, IRError, ScheduleError, UnsupportedError
from gemmir.ir_text import parse_module
from tests.fuzz.mutations import corpus, mutated

LOWERED_EACH = 8
"""Of so many texts that are right, one is taken down to CUDA source."""


def read(number: int) -> tuple[str, bool]:
    """What came of text `number`: the class of an error, "right" or, taken further, "lowered"; whether that may be."""
    text = mutated(number)
    try:
        module = parse_module(text)
        printed = str(module)
        if str(parse_module(printed)) != printed:
            return "printed differently", False
    except (IRError, ScheduleError, UnsupportedError) as error:
        return type(error).__name__, True
    if number % LOWERED_EACH:
        return "right", True
    try:
        lower(module, m=64)
    except GemmirError as error:
        return type(error).__name__, error.code != "GMR-C005"
    return "lowered", True


def main(first: int, count: int) -> None:
    corpus()
    found: Counter[str] = Counter()
    wrong: list[tuple[int, str]] = []
    slowest = (0.0, first)
    for number in range(first, first + count):
        start = time.process_time()
        try:
            outcome, right = read(number)
        except BaseException as error:
            outcome, right = type(error).__name__, False
        slowest = max(slowest, (time.process_time() - start, number))
        found[outcome] += 1
        if not right:
            wrong.append((number, outcome))
    json.dump({"found": found, "wrong": wrong[:20], "slowest": slowest, "bytes": most_bytes()}, sys.stdout)


def most_bytes() -> int:
    """The most memory that this process had at once; `ru_maxrss` would be its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
