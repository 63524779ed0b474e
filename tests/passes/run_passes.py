"""Runs passes on one product, as the `-p` command line does."""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import PassPipeline

from gemmir.decisions import Decision, collect
from gemmir.dialects.gemm import schedule_of, the_matmul
from gemmir.ir_text import make_context, parse_module
from gemmir.passes.gemm_balance import GemmBalancePass
from gemmir.passes.gemm_fit_tail import GemmFitTailPass
from gemmir.passes.gemm_plan_pipeline import GemmPlanPipelinePass
from gemmir.passes.gemm_rasterize import GemmRasterizePass
from gemmir.passes.gemm_select_blocks import GemmSelectBlocksPass
from gemmir.passes.gemm_select_family import GemmSelectFamilyPass
from gemmir.schedule import Schedule

ALL = "gemm-select-family,gemm-select-blocks,gemm-fit-tail,gemm-rasterize,gemm-balance,gemm-plan-pipeline"


def fp8_text(m: int | str, n: int, k: int, clauses: str = "", d: str = "bf16", a: str = "f8E4M3FN") -> str:
    """FP8 with scales 1x128 x 128x128; `m` may be `?`, `clauses` e.g. `schedule <...>`."""
    blocks_k, blocks_n = -(-k // 128), -(-n // 128)
    x, w, y = f"tensor<{m}x{k}x{a}>", f"tensor<{k}x{n}xf8E4M3FN>", f"tensor<{m}x{n}x{d}>"
    xs, ws = f"tensor<{m}x{blocks_k}xf32>", f"tensor<{blocks_k}x{blocks_n}xf32>"
    return f"""
func.func @layer(%x: {x}, %xs: {xs}, %w: {w}, %ws: {ws}) -> {y} {{
  %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128) {clauses} : ({x}, {w}, {xs}, {ws}) -> {y}
  func.return %y : {y}
}}"""


def plain_text(m: int | str, n: int, k: int, clauses: str = "", a: str = "bf16", d: str = "bf16") -> str:
    """Operands without scales."""
    x, w, y = f"tensor<{m}x{k}x{a}>", f"tensor<{k}x{n}x{a}>", f"tensor<{m}x{n}x{d}>"
    return f"""
func.func @layer(%x: {x}, %w: {w}) -> {y} {{
  %y = gemm.matmul %x, %w {clauses} : ({x}, {w}) -> {y}
  func.return %y : {y}
}}"""


def run(text: str, pipeline: str = ALL) -> tuple[ModuleOp, Schedule, list[Decision]]:
    """The module after `pipeline`, verified, its schedule, and what was decided on the way."""
    passes = (
        GemmSelectFamilyPass,
        GemmSelectBlocksPass,
        GemmFitTailPass,
        GemmRasterizePass,
        GemmBalancePass,
        GemmPlanPipelinePass,
    )
    module = parse_module(text)
    with collect() as decisions:
        PassPipeline.parse_spec({p.name: lambda p=p: p for p in passes}, pipeline).apply(make_context(), module)
    module.verify()
    return module, schedule_of(the_matmul(module)), decisions
