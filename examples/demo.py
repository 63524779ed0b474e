"""
One layer of DeepSeek-V3, from its IR to a checked result: on a Hopper GPU if there is one, else in the simulator, which
runs the same kernel on the CPU.

`make demo` runs this.
"""

import argparse
import time
from pathlib import Path

import torch
from xdsl.dialects.builtin import ModuleOp

import gemmir
from gemmir.backends.cuda import nvrtc
from gemmir.backends.reference import random_inputs
from gemmir.cli.backends import Options, Outcome, has_hopper, on_gpu, run_on
from gemmir.cli.check import check_result
from gemmir.cli.explain import table
from gemmir.cli.run import duration, rate
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.ir_text import parse_module

LAYER = Path(__file__).with_name("01_down_proj.mlir")
ROWS_ON_GPU, ROWS_SIMULATED = 4096, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--m", type=int, help=f"rows (default: {ROWS_ON_GPU} on a GPU, {ROWS_SIMULATED} in the simulator)"
    )
    parser.add_argument("file", type=Path, nargs="?", default=LAYER, help="the program (default: the layer above)")
    args = parser.parse_args()

    rows = args.m or (ROWS_ON_GPU if has_hopper() else ROWS_SIMULATED)
    module = parse_module(args.file.read_text(), str(args.file))
    op = the_matmul(module)
    print(f"program   {args.file.name}\nproblem   {problem_of(op)}, run with M = {rows}\n")

    start = time.perf_counter()
    kernel = gemmir.compile(args.file)
    seconds = time.perf_counter() - start
    print(f"{table(kernel.decisions)}")
    version = ".".join(map(str, nvrtc.version()))
    print(f"kernel    ready in {seconds:.2f} s, by NVRTC {version} or from the cache; {len(kernel.cubin):,} bytes")
    print(f"source    {kernel.source_path or 'in memory only'}, {len(kernel.source.splitlines())} lines of CUDA")

    print("proven    it neither hangs nor races: hopper-check-sync refuses every kernel of which it cannot say so")

    inputs = random_inputs(module, rows, seed=0)
    outcome = run(module, inputs)
    print(f"ran       on {outcome.where}: {duration(outcome.seconds)}{rate(op, inputs, outcome)}")

    worst = check_result(op, inputs, outcome.result)
    state = "every element is within its bound" if worst.holds else "FAILED"
    print(f"check     {state}; worst {worst}")
    if not worst.holds:
        raise SystemExit(1)


def run(module: ModuleOp, inputs: dict[str, torch.Tensor]) -> Outcome:
    if has_hopper():
        return on_gpu(module, inputs, Options())
    print(
        "run       no Hopper GPU: the kernel itself is simulated, bit for bit; M = 16 takes some 15 s ...", flush=True
    )
    return run_on("simulator", module, inputs, Options())


if __name__ == "__main__":
    main()
