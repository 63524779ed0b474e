"""`gemm-lower-to-hopper`: the warp that fills in scales, slot by slot, or loads those of a whole tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.problem import Recipe
from gemmir.schedule import SCALES_OF_TILE, Split
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


FLAT = replace(OWN_WARP, block_m=128, block_n=64, split=Split.ALONG_M, store_slices=1)
WHOLE_TILES = replace(FLAT, promote_chunk=4, scale_slots=SCALES_OF_TILE, num_stages=4)


def each_tile(where: hopper.WarpOp | hopper.WarpgroupsOp) -> list[str]:
    """What it does for a tile, in its one loop over them."""
    (loop,) = ops(where, hopper.TilesOp)
    return [op.name.removeprefix("hopper.") for op in loop.body.block.ops]  # type: ignore[attr-defined]


def math_of(kernel: hopper.KernelOp) -> hopper.WarpgroupsOp:
    return ops(kernel, hopper.WarpgroupsOp)[0]  # type: ignore[return-value]


def only(kernel: hopper.KernelOp, name: str) -> SSAValue:
    """Storage by name."""
    (found,) = [value for op in kernel.walk() for value in op.results if value.name_hint == name]
    return found


@pytest.mark.parametrize("cluster", [(1, 1), (2, 1), (1, 2)], ids=["alone", "along m", "along n"])
def test_the_scales_of_a_whole_tile_come_at_once(cluster: tuple[int, int]) -> None:
    """The scales warp goes tile by tile; slots of the ring hold operands only, which the producer alone announces."""
    kernel = lowered(FP8, replace(WHOLE_TILES, cluster_m=cluster[0], cluster_n=cluster[1])).kernel
    of_ring = {"full": 1, "empty": 8 * cluster[0] * cluster[1], "staged": 4, "drained": 1}
    assert arrivals(kernel) == of_ring | {"scaled": 1, "unscaled": 8}
    producer, scales = warp_of(kernel, 0), warp_of(kernel, 2)
    assert each_block(producer) == ["acquire", "tma_load", "tma_load", "sync_warp", "expect", "advance"]
    assert each_tile(scales) == [
        *("acquire", "fence_proxy_async", "tma_load", "copy_scales"),
        *("sync_warp", "expect", "advance"),
    ]
    assert (loaded(producer), loaded(scales)) == (["map_a", "map_b"], ["map_scale_a"])
    assert (expected(producer), expected(scales)) == ([(128 + 64) * 128], [16 * 128 * 4])
    assert [op.multicast for op in ops(scales, hopper.TmaLoadOp)] == [None]  # type: ignore[attr-defined]
    assert scales.elected is None, "all lanes copy weight scales"
    assert not ops(warp_of(kernel, 0), hopper.FenceProxyAsyncOp)


@pytest.mark.parametrize("k", [2048, 1920, 256])
@pytest.mark.parametrize("chunk", [2, 4])
def test_scales_of_a_whole_tile_are_awaited_and_given_back_once(chunk: int, k: int) -> None:
    """Each is read once, by the number of its k-block, from where the tile's scales are."""
    kernel = lowered(fp8_problem(None, 7168, k), replace(WHOLE_TILES, promote_chunk=chunk)).kernel
    math, blocks = math_of(kernel), k // 128
    chunk = min(chunk, blocks)
    left = blocks % chunk
    scaled, unscaled = (only(kernel, name) for name in ("scaled", "unscaled"))
    (wait,) = [op for op in ops(math, hopper.WaitOp) if op.barriers is scaled]  # type: ignore[attr-defined]
    (release,) = [op for op in ops(math, hopper.ReleaseOp) if op.barriers is unscaled]  # type: ignore[attr-defined]
    assert [op.parent_op() for op in (wait, release)] == ops(math, hopper.TilesOp) * 2
    of_tile = each_tile(math)
    assert of_tile[:3] == ["zero", "wait", "k_blocks"]
    assert [type(op) for op in (release.prev_op, release.next_op)] == [hopper.SyncWarpOp, hopper.AdvanceOp]
    assert release.peers.value.data == 1, "no peer has them too"  # type: ignore[attr-defined]
    loads = ops(math, hopper.LoadScalesOp)
    assert {op.cursor for op in loads} == {wait.cursor} == {release.cursor}  # type: ignore[attr-defined]
    (loop,) = ops(math, hopper.KBlocksOp)
    assert (loop.last.value.data, loop.blocks) == (blocks - left, chunk)  # type: ignore[attr-defined]
    numbers = [(op.k, op.ahead.value.data) for op in loads]  # type: ignore[attr-defined]
    k_of_chunk = loop.regions[0].block.args[0]
    assert numbers[:chunk] == [(k_of_chunk, i) for i in range(chunk)]
    assert [ahead for _, ahead in numbers[chunk:]] == list(range(left))
    assert {k.owner.value.value.data for k, _ in numbers[chunk:]} <= {blocks - left}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("k", "tiles"), [(2048, 2), (7168, 1)])
def test_scales_of_two_tiles_are_held_where_they_are_small(k: int, tiles: int) -> None:
    kernel = lowered(fp8_problem(None, 7168, k), WHOLE_TILES).kernel
    types = [str(only(kernel, name).type) for name in ("scaled", "unscaled", "ring_scale_a")]
    assert types == [f"!hopper.barriers<{tiles}x1>"] * 2 + [f"!hopper.ring<{tiles}x{k // 128}x128xf32>"]
