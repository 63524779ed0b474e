"""Kernels for tests: a problem and a schedule in, hopper IR and CUDA source out."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp

from gemmir.backends.cuda.printer import print_kernel
from gemmir.backends.cuda.target import the_kernel
from gemmir.dialects.hopper import KernelOp
from gemmir.ir_text import make_context, parse_module
from gemmir.passes.gemm_lower_to_hopper import GemmLowerToHopperPass
from gemmir.problem import GemmProblem
from gemmir.schedule import Evict, Family, RasterAxis, Schedule, Split
from gemmir.testing.strategies import completed, program_text

FP8_SCHEDULE = Schedule(
    family=Family.TILES,
    block_m=128,
    block_n=256,
    block_k=128,
    math_warpgroups=2,
    split=Split.ALONG_N,
    turns=False,
    cluster_m=2,
    cluster_n=1,
    raster_axis=RasterAxis.ALONG_M,
    raster_group=8,
    tail_n=0,
    tail_after=0,
    evict=Evict.NEITHER,
    scale_slots=0,
    num_stages=4,
    promote_chunk=1,
)
"""
The default of the large FP8 layers, but that the producer fills in the scales. What it leaves open, passes choose
(`lowered`).
"""

BF16_SCHEDULE = Schedule(
    family=Family.TILES,
    block_m=128,
    block_n=256,
    block_k=64,
    math_warpgroups=2,
    split=Split.ALONG_M,
    turns=False,
    cluster_m=2,
    cluster_n=1,
    raster_axis=RasterAxis.ALONG_M,
    raster_group=8,
    tail_n=0,
    tail_after=0,
    evict=Evict.NEITHER,
    num_stages=3,
    promote_chunk=1,
)
"""The default of the large BF16 layers."""


STREAM_SCHEDULE = Schedule(
    family=Family.STREAM,
    block_m=16,
    block_n=64,
    block_k=128,
    math_warpgroups=1,
    split=Split.ALONG_N,
    turns=False,
    cluster_m=1,
    cluster_n=1,
    promote_chunk=2,
)
"""Of a layer for few rows, FP8."""


@dataclass(frozen=True)
class Lowered:
    module: ModuleOp
    kernel: KernelOp
    source: str
    entry: str


def lowered(problem: GemmProblem, schedule: Schedule) -> Lowered:
    """Lower with what `schedule` fixes and the passes choose, and print."""
    module = parse_module(program_text(problem, completed(problem, schedule), "layer"))
    GemmLowerToHopperPass().apply(make_context(), module)
    module.verify()
    kernel = the_kernel(module)
    printed = print_kernel(kernel)
    return Lowered(module, kernel, printed.source, printed.entry)
