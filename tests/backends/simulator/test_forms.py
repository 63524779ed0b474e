"""Forms of a dense product beside the usual ones, simulated: the bits of the model, and exact data exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from xdsl.rewriter import InsertPoint, Rewriter

from gemmir.backends.reference import random_inputs
from gemmir.backends.simulator import simulate
from gemmir.compiler import lower, module_of
from gemmir.dialects import hopper
from gemmir.dtypes import BF16, F16, F32, DType
from gemmir.errors import SyncError
from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule, Split
from gemmir.testing import check_bits, check_exact, simulated
from gemmir.testing.strategies import columns_problem, fp8_problem, half_problem, program_text

EDGES = [(1, 1), (65, 1), (130, 2), (150, 3)]
"""M and k-blocks, the last one with a tail."""

TILES = {
    "two warpgroups along m": Schedule(block_m=128, block_n=64, math_warpgroups=2, split=Split.ALONG_M, num_stages=2),
    "two along n in slices": Schedule(
        block_m=128, block_n=96, math_warpgroups=2, split=Split.ALONG_N, store_slices=2, num_stages=2
    ),
    "cluster along m": Schedule(block_m=64, block_n=128, math_warpgroups=1, cluster_m=2, cluster_n=1, num_stages=3),
    "cluster along n": Schedule(block_m=128, block_n=64, math_warpgroups=2, cluster_m=1, cluster_n=2, num_stages=2),
}


def check(problem: GemmProblem, tile: Schedule, seed: int) -> None:
    """Random data (T1) and exact data (T0), with `tile` and what the passes choose beside it."""
    text = program_text(problem, tile)
    kernel = lower(text, until="hopper").module
    check_bits(simulated(kernel, seed=seed, clusters=1), text, seed=seed)
    check_exact(simulated(kernel, seed=seed + 1, clusters=1), text, seed=seed)


def sized(problem: GemmProblem, m: int, k_blocks: int) -> GemmProblem:
    """`problem` with so many rows and k-blocks, of which the last one is short."""
    return replace(problem, m=m, k=problem.block_k * k_blocks - 16)


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize(("m", "k_blocks"), EDGES)
def test_f32_results(tile: Schedule, m: int, k_blocks: int) -> None:
    for problem in (fp8_problem(m, 100, 128, d=F32), half_problem(m, 100, 64, d=F32)):
        check(sized(problem, m, k_blocks), tile, m)


@pytest.mark.parametrize("columns", [16, 48, 112])
def test_f32_boxes_of_every_width(columns: int) -> None:
    """Boxes of 32 columns, and of the 16 that are left."""
    tile = Schedule(block_m=64, block_n=columns, math_warpgroups=1, num_stages=2, promote_chunk=1)
    check(fp8_problem(70, 132, 144, d=F32), tile, columns)


def test_f32_results_of_special_values() -> None:
    text = program_text(half_problem(70, 64, 96, d=F32), TILES["two warpgroups along m"])
    a, b = torch.ones(70, 96).bfloat16(), torch.ones(96, 64).bfloat16()
    a[3, 5], a[4, 7], b[5, 9] = torch.inf, torch.nan, 0.0
    check_bits(simulated(text), text, inputs=[a, b])
    result = simulated(text)(a, b)
    assert result.dtype is torch.float32
    assert result[3, 9].isnan()
    assert result[3, 8] == torch.inf


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize(("m", "k_blocks"), EDGES)
def test_an_operand_c(tile: Schedule, m: int, k_blocks: int) -> None:
    for d in (BF16, F32):
        sums = half_problem(m, 104, 64, d=d)
        slices = tile.store_slices if d == F32 else 1
        check(sized(replace(sums, has_c=True), m, k_blocks), replace(tile, store_slices=slices), m)
    for d in (F16, F32):
        check(sized(replace(fp8_problem(m, 104, 128, d=d), has_c=True), m, k_blocks), tile, m)


def test_chunks_and_an_operand_c() -> None:
    tile = Schedule(block_m=64, block_n=32, math_warpgroups=1, num_stages=2, promote_chunk=2)
    check(replace(fp8_problem(130, 72, 656, d=F32), has_c=True), tile, 7)


def test_no_seed_changes_a_bit_of_sums_with_c() -> None:
    text = program_text(replace(fp8_problem(131, 72, 400, d=F32), has_c=True), TILES["two along n in slices"])
    for seed in range(12):
        check_bits(simulated(text, seed=seed, clusters=1), text, seed=3)


@pytest.mark.parametrize("d", [BF16, F32], ids=str)
def test_sums_of_no_products_are_c(d: DType) -> None:
    text = program_text(replace(half_problem(3, 16, 0, d=d), has_c=True))
    c = torch.arange(48).reshape(3, 16).to(getattr(torch, d.torch_name))
    c[0, 0], c[1, 1] = -0.0, torch.nan
    empty = torch.zeros(3, 0).bfloat16(), torch.zeros(0, 16).bfloat16()
    check_bits(simulated(text), text, inputs=[*empty, c])
    result = simulated(text)(*empty, c)
    assert torch.equal(result[2], c[2])
    assert not result[0, 0].signbit()


def test_c_is_not_read_where_d_has_been_stored() -> None:
    """D may lie where C does. A second load of a tile's C, after it has left, is found."""
    text = program_text(
        replace(half_problem(64, 64, 64), has_c=True), Schedule(block_m=64, block_n=64, math_warpgroups=1)
    )
    kernel = next(op for op in lower(text, until="hopper").module.walk() if isinstance(op, hopper.KernelOp))
    fill = next(op for op in kernel.walk() if isinstance(op, hopper.TmaFillOp))
    expect = next(op for op in kernel.walk() if isinstance(op, hopper.ExpectOp) and op.group is not None)
    wait = next(op for op in kernel.walk() if isinstance(op, hopper.StoreWaitReadOp))
    for op in (fill, expect):
        op.detach()
    late = (fill.clone(), expect.clone())
    Rewriter.insert_op((fill, expect), InsertPoint.before(next(op for op in wait.parent_block().ops)))
    Rewriter.insert_op(late, InsertPoint.after(wait))
    tensors = [torch.zeros(64, 64).bfloat16()] * 3
    with pytest.raises(SyncError, match=r"is read from .* after out was stored there"):
        simulate(kernel, tensors, 64)


COLUMN_TILES = {
    **TILES,
    "chunks": Schedule(block_m=64, block_n=32, math_warpgroups=1, num_stages=2, promote_chunk=2),
    "chunks in a cluster": Schedule(
        block_m=128, block_n=64, math_warpgroups=2, num_stages=3, promote_chunk=4, cluster_m=2, cluster_n=1
    ),
    "in turn": Schedule(block_m=64, block_n=128, math_warpgroups=2, split=Split.ALONG_N, turns=True, num_stages=2),
}


@pytest.mark.parametrize("tile", COLUMN_TILES.values(), ids=COLUMN_TILES)
@pytest.mark.parametrize(("m", "k_blocks"), [*EDGES, (66, 5)])
def test_a_scale_a_column(tile: Schedule, m: int, k_blocks: int) -> None:
    problem = sized(columns_problem(m, 104, 128), m, k_blocks)
    check(problem, tile, m)
    check(replace(problem, d=F32, has_c=True), tile, m + 1)


def test_column_scales_may_be_anything() -> None:
    text = program_text(columns_problem(70, 64, 256), TILES["two warpgroups along m"])
    tensors = list(random_inputs(module_of(text), 70, 3).values())
    tensors[2][2, 1], tensors[3][0, 5], tensors[3][1, 6], tensors[3][0, 7] = torch.inf, torch.nan, 0.0, 2.0**-140
    check_bits(simulated(text), text, inputs=tensors)


def test_no_seed_changes_a_bit_of_column_scales() -> None:
    text = program_text(columns_problem(131, 72, 400), COLUMN_TILES["chunks in a cluster"])
    for seed in range(8):
        check_bits(simulated(text, seed=seed, clusters=1), text, seed=3)


@pytest.mark.parametrize("problem", [fp8_problem(3, 16, 0), columns_problem(3, 16, 0), half_problem(3, 16, 0)], ids=str)
def test_products_of_nothing_are_zero(problem: GemmProblem) -> None:
    text = program_text(problem)
    check_bits(simulated(text), text)
    check_bits(simulated(program_text(replace(problem, has_c=True))), program_text(replace(problem, has_c=True)))


MAJORS = [("m", "k"), ("k", "n"), ("m", "n")]
PANEL_TILES = {
    "two warpgroups along m": Schedule(block_m=128, block_n=64, math_warpgroups=2, split=Split.ALONG_M, num_stages=2),
    "two along n": Schedule(block_m=64, block_n=128, math_warpgroups=2, split=Split.ALONG_N, num_stages=3),
    "wide": Schedule(block_m=64, block_n=192, math_warpgroups=1, num_stages=2),
    "three waves": Schedule(block_m=192, block_n=64, math_warpgroups=1, num_stages=2),
    "cluster along m": Schedule(block_m=64, block_n=128, math_warpgroups=1, cluster_m=2, cluster_n=1, num_stages=3),
    "cluster along n": Schedule(block_m=128, block_n=64, math_warpgroups=2, cluster_m=1, cluster_n=2, num_stages=2),
}


@pytest.mark.parametrize("tile", PANEL_TILES.values(), ids=PANEL_TILES)
@pytest.mark.parametrize("majors", MAJORS, ids="".join)
def test_operands_that_are_not_k_major(tile: Schedule, majors: tuple[str, str]) -> None:
    """Panels of M and of N, cut off by the ends of both and of K."""
    a, b = majors
    for m, k_blocks in ((8, 1), (136, 3)):
        check(sized(replace(half_problem(m, 200, 64, F16, F16), a_major=a, b_major=b), m, k_blocks), tile, m)
    odd = replace(half_problem(72, 104, 83 if majors == ("m", "n") else 88, d=F32), a_major=a, b_major=b, has_c=True)
    check(odd, tile, 5)


def test_no_seed_changes_a_bit_of_panels() -> None:
    problem = replace(half_problem(136, 136, 200), a_major="m", b_major="n")
    text = program_text(problem, PANEL_TILES["cluster along n"])
    for seed in range(8):
        check_bits(simulated(text, seed=seed, clusters=1), text, seed=3)
