"""`gemm-lower-to-hopper`: the warp that fills in scales, slot by slot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gemmir.dialects import hopper
from gemmir.problem import Recipe
from gemmir.schedule import Split
from tests.kernels import FP8_SCHEDULE, lowered
from tests.passes.test_gemm_lower_to_hopper import arrivals, ops
from tests.schedules import fp8_problem, half_problem

FP8, BF16 = fp8_problem(None, 7168, 2048), half_problem(None, 7168, 2048)


def warp_of(kernel: hopper.KernelOp, index: int) -> hopper.WarpOp:
    """A warp beside the math warpgroups: 0 loads operands, 1 stores tiles, 2 fills in scales if 0 does not."""
    return next(op for op in ops(kernel, hopper.WarpOp) if op.index.value.data == index)  # type: ignore[attr-defined,return-value]


def each_block(warp: hopper.WarpOp) -> list[str]:
    """What it does in a step of its one loop over k-blocks."""
    (loop,) = ops(warp, hopper.KBlocksOp)
    return [op.name.removeprefix("hopper.") for op in loop.body.block.ops]  # type: ignore[attr-defined]


def loaded(warp: hopper.WarpOp) -> list[str | None]:
    return [op.map.name_hint for op in ops(warp, hopper.TmaLoadOp)]  # type: ignore[attr-defined]


def expected(warp: hopper.WarpOp) -> list[int]:
    return [op.bytes.value.data for op in ops(warp, hopper.ExpectOp)]  # type: ignore[attr-defined]


OWN_WARP = replace(FP8_SCHEDULE, cluster_m=1, scale_slots=1)


def test_scales_may_have_a_warp_of_their_own() -> None:
    """The producer has no scales and no fence left; a slot is full when both warps have said what is coming."""
    kernel = lowered(FP8, OWN_WARP).kernel
    assert arrivals(kernel) == {"full": 2, "empty": 8, "staged": 4, "drained": 1}
    producer, scales = warp_of(kernel, 0), warp_of(kernel, 2)
    assert each_block(producer) == ["acquire", "tma_load", "tma_load", "sync_warp", "expect", "advance"]
    assert each_block(scales) == [
        *("fetch_scales", "acquire", "fence_proxy_async"),
        *("tma_load", "put_scales", "sync_warp", "expect", "advance"),
    ]
    assert (loaded(producer), loaded(scales)) == (["map_a", "map_b"], ["map_scale_a"])
    assert (expected(producer), expected(scales)) == ([(128 + 256) * 128], [128 * 4])
    assert scales.elected is None, "all lanes store weight scales"


def test_scales_that_the_producer_fills_in_have_no_warp() -> None:
    kernel = lowered(FP8, replace(OWN_WARP, scale_slots=0)).kernel
    assert arrivals(kernel)["full"] == 1
    assert [op.index.value.data for op in ops(kernel, hopper.WarpOp)] == [0, 1]  # type: ignore[attr-defined]
    assert loaded(warp_of(kernel, 0)) == ["map_a", "map_b", "map_scale_a"]
    assert expected(warp_of(kernel, 0)) == [(128 + 256) * 128 + 128 * 4]


@pytest.mark.parametrize("cluster", [(2, 1), (1, 2)], ids=["along m", "along n"])
def test_the_warp_of_scales_has_no_fence_in_a_cluster(cluster: tuple[int, int]) -> None:
    """Math warps fence what they have read, for whoever fills the slot. Each CTA loads its own scales."""
    kernel = lowered(FP8, replace(OWN_WARP, cluster_m=cluster[0], cluster_n=cluster[1])).kernel
    scales = warp_of(kernel, 2)
    assert each_block(scales)[1:3] == ["acquire", "tma_load"]
    assert not ops(warp_of(kernel, 0), hopper.FenceProxyAsyncOp) + ops(scales, hopper.FenceProxyAsyncOp)
    assert [op.multicast for op in ops(scales, hopper.TmaLoadOp)] == [None]  # type: ignore[attr-defined]
    assert isinstance(ops(kernel, hopper.LoadScalesOp)[0].next_op, hopper.FenceProxyAsyncOp)


def test_the_scales_of_columns_come_with_those_of_rows() -> None:
    problem = replace(FP8, scale_b=Recipe.BLOCK_WISE_1X128)
    scales = warp_of(lowered(problem, replace(OWN_WARP, num_stages=None)).kernel, 2)
    assert each_block(scales)[:4] == ["acquire", "fence_proxy_async", "tma_load", "tma_load"]
    assert loaded(scales) == ["map_scale_a", "map_scale_b"]
    assert expected(scales) == [(128 + 256) * 4]


def test_narrower_tiles_have_scales_of_the_same_warp() -> None:
    """A loop over the tiles and one over those of the last columns, with one cursor."""
    tail = replace(OWN_WARP, block_n=192, split=Split.ALONG_M, tail_n=128, tail_after=36)
    scales = warp_of(lowered(FP8, tail).kernel, 2)
    assert len(ops(scales, hopper.TilesOp)) == len(ops(scales, hopper.ExpectOp)) == 2
    assert len(ops(scales, hopper.CursorOp)) == 1
    assert expected(scales) == [128 * 4] * 2


@pytest.mark.parametrize(("slots", "stages"), [(2, 6), (4, 7)])
@pytest.mark.parametrize("k", [2048, 1008])
def test_several_slots_at_a_time_have_one_fence(slots: int, stages: int, k: int) -> None:
    """All of them are waited for, then fenced for, then filled one after the other."""
    deep = replace(OWN_WARP, block_m=64, block_n=128, math_warpgroups=1, split=Split.ALONG_M, promote_chunk=2)
    schedule = replace(deep, scale_slots=slots, scale_batch=32, num_stages=stages)
    kernel = lowered(fp8_problem(None, 7168, k), schedule).kernel
    scales = warp_of(kernel, 2)
    assert each_block(scales) == [
        *["block_ahead"] * (slots - 1),
        *["next_scales"] * slots,
        *["acquire", "advance"] * slots,
        "fence_proxy_async",
        *["tma_load", "put_scales", "sync_warp", "expect", "advance"] * slots,
    ]
    (loop,) = ops(scales, hopper.KBlocksOp)
    assert (loop.last.value.data, loop.blocks) == (-(-k // 128), slots)  # type: ignore[attr-defined]
    ahead = ops(scales, hopper.BlockAheadOp)
    assert [op.ahead.value.data for op in ahead] == list(range(1, slots))  # type: ignore[attr-defined]
    numbers = [loop.regions[0].block.args[0], *(op.results[0] for op in ahead)]
    assert [op.row for op in ops(scales, hopper.TmaLoadOp)] == numbers  # type: ignore[attr-defined]
    assert [op.k for op in ops(scales, hopper.NextScalesOp)] == numbers  # type: ignore[attr-defined]
    at, free = (op.results[0] for op in ops(scales, hopper.CursorOp))
    assert {op.cursor for op in ops(scales, hopper.AcquireOp)} == {free}  # type: ignore[attr-defined]
    filled = ops(scales, hopper.TmaLoadOp) + ops(scales, hopper.PutScalesOp) + ops(scales, hopper.ExpectOp)
    assert {op.cursor for op in filled} == {at}  # type: ignore[attr-defined]
    assert expected(scales) == [64 * 4] * slots
    assert each_block(warp_of(kernel, 0)) == ["acquire", "tma_load", "tma_load", "sync_warp", "expect", "advance"]
    assert arrivals(kernel)["full"] == 2
