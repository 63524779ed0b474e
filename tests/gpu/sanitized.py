"""
One small product, to be run under compute-sanitizer: `python -m tests.gpu.sanitized NAME`.

The tools add registers to every thread, which setmaxnreg does not expect: the kernel is compiled without it, and with a
tile that needs none.
"""

from __future__ import annotations

import sys

import torch

import gemmir
from gemmir.backends.reference.data import exact_inputs
from gemmir.backends.reference.interpreter import run
from gemmir.bench.grouped import GroupedCase
from gemmir.compiler import lower
from gemmir.ir_text import parse_module
from tests.gpu.problems import Case

FP8, BF16 = Case("f8E4M3FN", 200, 264, 656), Case("bf16", 200, 264, 328)
OFFS, COUNTS = (GroupedCase("f8E4M3FN", form, 3, 70, 264, 656) for form in ("offs", "counts"))
STREAM, SPLIT = Case("f8E4M3FN", 40, 264, 656), Case("bf16", 40, 264, 328, 2)
ALONG_K = GroupedCase("bf16", "k_offs", 3, 200, 264, 192)
KERNELS = {
    "fp8": (FP8, "block=64,64,128 warpgroups=1 split=m turns=false chunk=1 cluster=1,1"),
    "fp8-turns": (FP8, "block=128,64,128 warpgroups=2 split=m turns=true chunk=1 cluster=1,1"),
    "fp8-chunk": (FP8, "block=128,64,128 warpgroups=2 split=m turns=false chunk=4 cluster=1,1"),
    "fp8-cluster": (FP8, "block=64,64,128 warpgroups=1 split=m turns=false chunk=1 cluster=2,1"),
    "fp8-offs": (OFFS, "block=64,64,128 warpgroups=1 split=m turns=false chunk=1 cluster=1,1"),
    "fp8-counts": (COUNTS, "block=64,64,128 warpgroups=1 split=m turns=false chunk=1 cluster=1,1"),
    "bf16-k-offs": (ALONG_K, "block=64,64,64 warpgroups=1 split=m turns=false cluster=1,1"),
    "fp8-offs-cluster": (OFFS, "block=64,64,128 warpgroups=1 split=m turns=false chunk=1 cluster=2,1"),
    "fp8-counts-cluster": (COUNTS, "block=64,64,128 warpgroups=1 split=m turns=false chunk=1 cluster=1,2"),
    "bf16-k-offs-cluster": (ALONG_K, "block=64,64,64 warpgroups=1 split=m turns=false cluster=2,1"),
    "bf16": (BF16, "block=64,64,64 warpgroups=1 split=m turns=false cluster=1,1"),
    "bf16-cluster": (BF16, "block=128,64,64 warpgroups=2 split=m turns=false cluster=1,2"),
    "fp8-stream": (STREAM, "block=16,64,128 warpgroups=1 split=n chunk=1 cluster=1,1"),
    "bf16-split-stream": (SPLIT, "block=16,128,64 warpgroups=2 split=n cluster=1,1"),
    "fp8-counts-stream": (COUNTS, "block=16,64,128 warpgroups=1 split=n chunk=1 cluster=1,1"),
}
"""
Name -> product and tile; one per kind of kernel. One weight scale a stage: where several lanes store one each,
racecheck reports their stores, since it does not carry `__syncwarp` over to the arrival of lane 0 (docs/proof.md).
"""


def kernel_text(name: str) -> str:
    """The IR of one of `KERNELS`, without setmaxnreg."""
    case, blocks = KERNELS[name]
    family = "stream" if name.endswith("stream") else "tiles"
    pipeline = (
        f"gemm-select-family{{family={family}}},gemm-select-blocks{{{blocks}}},gemm-fit-tail,gemm-rasterize,gemm-balance,"
        "gemm-plan-pipeline{scale-slots=0 stages=3},gemm-lower-to-hopper"
    )
    text = lower(case.text, pipeline=pipeline, until="hopper").ir["hopper"]
    return "\n".join(line for line in text.splitlines() if "hopper.setmaxnreg" not in line)


def main() -> None:
    name = sys.argv[1]
    case, _ = KERNELS[name]
    kernel = gemmir.compile(kernel_text(name), cache=False)
    module = parse_module(case.text)
    inputs = exact_inputs(module, case.m, 1, "cuda")
    expected = run(module, list(inputs.values()))
    assert isinstance(expected, torch.Tensor)
    got = kernel(*inputs.values(), out=torch.zeros_like(expected))  # not all rows belong to a group
    torch.cuda.synchronize()
    assert torch.equal(got, expected)
    sys.stdout.write("right\n")


if __name__ == "__main__":
    main()
