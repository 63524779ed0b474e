"""
Time the dense layers on a Hopper GPU, next to cuBLASLt in the same run.

    python -m tests.gpu.measure_dense [--rows 4096] [--json out.json]

GPU time of the kernel alone, from torch's profiler: median of 20 launches, L2 flushed before each by zeroing 512 MB,
random data, 0.25 s of rest before each series. cuBLASLt runs FP8 with one scale per tensor (no fine-grained scaling),
and BF16.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import gemmir
from gemmir.backends.reference.data import random_inputs
from gemmir.ir_text import parse_module
from tests.gpu.problems import LAYERS, Case

LAUNCHES = 20
REST_SECONDS = 0.25


@functools.cache
def flush_buffer() -> torch.Tensor:
    return torch.empty(128_000_000, dtype=torch.int32, device="cuda")


def kernel_us(launch: Callable[[], object]) -> float:
    """Median GPU time of `launch` in microseconds, with a cold L2."""
    for _ in range(3):
        launch()
    torch.cuda.synchronize()
    time.sleep(REST_SECONDS)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(LAUNCHES):
            flush_buffer().zero_()
            launch()
        torch.cuda.synchronize()
    events = [e for e in profiler.events() if e.device_type == DeviceType.CUDA]
    events = [e for e in events if "memset" not in e.name.lower() and "FillFunctor" not in e.name]
    events.sort(key=lambda e: e.time_range.start)
    per_launch = len(events) // LAUNCHES
    groups = [events[i : i + per_launch] for i in range(0, len(events), per_launch)]
    return statistics.median(sum(e.time_range.elapsed_us() for e in group) for group in groups)


def cublas(case: Case, inputs: dict[str, torch.Tensor]) -> Callable[[], object]:
    x, w = inputs["x"], inputs["w"]
    if not case.dtype.startswith("f8"):
        return lambda: torch.mm(x, w)
    one = torch.ones((), device="cuda")
    return lambda: torch._scaled_mm(x, w, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)


def measure(case: Case, kernel: gemmir.CompiledKernel | None = None) -> dict[str, float | str]:
    kernel = kernel or gemmir.compile(case.text, m=case.m)
    inputs = random_inputs(parse_module(case.text), case.m, 1, "cuda")
    out = kernel(*inputs.values())
    us = kernel_us(lambda: kernel(*inputs.values(), out=out))
    peer = kernel_us(cublas(case, inputs))
    return {
        "case": str(case),
        "us": us,
        "tflops": 2 * case.m * case.n * case.k / us / 1e6,
        "cublas_us": peer,
        "cublas/ours": peer / us,
        "kernel": kernel.manifest.entry,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[4096])
    parser.add_argument("--dtypes", nargs="+", default=["f8E4M3FN", "bf16"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    for dtype in args.dtypes:
        for m in args.rows:
            for n, k in LAYERS:
                found = measure(Case(dtype, m, n, k))
                results.append(found)
                sys.stdout.write(
                    f"{found['case']:28} {found['us']:9.2f} us {found['tflops']:7.0f} TFLOP/s   cuBLASLt "
                    f"{found['cublas_us']:9.2f} us  x{found['cublas/ours']:.2f}  {found['kernel']}\n"
                )
                sys.stdout.flush()
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
