"""
One layer of DeepSeek-V3, from its IR to a checked result: on a Hopper GPU if there is one, else on the CPU.

`make demo` runs this.
"""

import argparse
import time
from pathlib import Path

import torch

import gemmir
from gemmir.backends.cuda import nvrtc
from gemmir.backends.reference import random_inputs
from gemmir.cli.check import check_result
from gemmir.cli.explain import table
from gemmir.cli.run import duration, on_cpu, on_gpu, rate
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.ir_text import parse_module

LAYER = Path(__file__).with_name("01_down_proj.mlir")
ROWS_ON_GPU, ROWS_ON_CPU = 4096, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--m", type=int, help=f"rows (default: {ROWS_ON_GPU} on a GPU, {ROWS_ON_CPU} on the CPU)")
    parser.add_argument("file", type=Path, nargs="?", default=LAYER, help="the program (default: the layer above)")
    args = parser.parse_args()

    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    rows = args.m or (ROWS_ON_GPU if hopper else ROWS_ON_CPU)
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

    inputs = random_inputs(module, rows, seed=0)
    outcome = on_gpu(module, inputs) if hopper else on_cpu(module, inputs)
    print(f"ran       on {outcome.where}: {duration(outcome.seconds)}{rate(op, outcome)}")

    worst = check_result(op, inputs, outcome.result)
    state = "every element is within its bound" if worst.holds else "FAILED"
    print(f"check     {state}; worst {worst}")
    if not worst.holds:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
