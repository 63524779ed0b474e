"""Lowering builds what the schedule says, and decides nothing."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import numpy as np
import pytest
from xdsl.ir import Block, Operation

from gemmir.dialects import hopper
from gemmir.dialects.gemm import set_schedule, the_matmul
from gemmir.errors import ScheduleError
from gemmir.ir_text import make_context, parse_module
from gemmir.passes.gemm_lower_to_hopper import GemmLowerToHopperPass
from gemmir.schedule import Schedule, Split
from gemmir.testing.strategies import program_text
from gemmir.tile import tile_geometry
from tests.kernels import BF16_SCHEDULE, FP8_SCHEDULE, lowered
from tests.schedules import completed, fp8_problem, half_problem

FP8, BF16 = fp8_problem(None, 7168, 2048), half_problem(None, 7168, 2048)


def ops(kernel: Operation, kind: type[Operation]) -> list[Operation]:
    return [op for op in kernel.walk() if isinstance(op, kind)]


def arrivals(kernel: hopper.KernelOp) -> dict[str | None, int]:
    return {op.result.name_hint: op.arrivals.value.data for op in kernel.walk() if isinstance(op, hopper.BarriersOp)}


@pytest.mark.parametrize(
    ("cluster", "empty"), [((1, 1), 8), ((2, 1), 16), ((1, 2), 16)], ids=["alone", "along m", "along n"]
)
def test_slots_are_released_by_every_warp_that_read_them(cluster: tuple[int, int], empty: int) -> None:
    schedule = replace(FP8_SCHEDULE, cluster_m=cluster[0], cluster_n=cluster[1])
    kernel = lowered(FP8, schedule).kernel
    assert arrivals(kernel) == {"full": 1, "empty": empty, "staged": 4, "drained": 1}
    multicast = {op.map.name_hint: op.multicast.data.value for op in ops(kernel, hopper.TmaLoadOp) if op.multicast}  # type: ignore[attr-defined]
    assert multicast == {(1, 1): {}, (2, 1): {"map_b": "m"}, (1, 2): {"map_a": "n"}}[cluster]


def test_the_bytes_that_are_expected_are_those_that_are_loaded() -> None:
    kernel = lowered(FP8, FP8_SCHEDULE).kernel
    (expect,) = ops(kernel, hopper.ExpectOp)
    assert expect.bytes.value.data == 128 * 128 + 256 * 128 + 128 * 4  # type: ignore[attr-defined]
    (expect,) = ops(lowered(BF16, BF16_SCHEDULE).kernel, hopper.ExpectOp)
    assert expect.bytes.value.data == (128 + 256) * 64 * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(("slices", "rows", "times"), [(1, [0, 64], 1), (2, [0, 0], 2)])
def test_every_product_is_promoted_and_every_wave_staged(slices: int, rows: list[int], times: int) -> None:
    schedule = replace(FP8_SCHEDULE, block_m=256, block_n=128, split=Split.ALONG_M, cluster_m=1)
    kernel = lowered(FP8, replace(schedule, store_slices=slices, num_stages=3)).kernel
    assert [op.wave.value.data for op in ops(kernel, hopper.PromoteOp)] == [0, 1] * times  # type: ignore[attr-defined]
    assert [op.row.value.data for op in ops(kernel, hopper.StageFragmentOp)] == rows  # type: ignore[attr-defined]
    waves = [op.a_row.value.data for op in ops(kernel, hopper.WgmmaOp)]  # type: ignore[attr-defined]
    assert waves == [0, *[64, 0] * times], "the first wave ahead of the loop, then two a k-block"


SLICED = {
    "2 waves, along n": FP8_SCHEDULE,
    "2 waves, along m": replace(FP8_SCHEDULE, block_m=256, block_n=128, split=Split.ALONG_M, num_stages=3),
    "3 waves, along n": replace(FP8_SCHEDULE, block_m=192, block_n=96, num_stages=2),
    "1 wave, along m": replace(FP8_SCHEDULE, block_n=112, split=Split.ALONG_M),
    "2 waves, alone": replace(FP8_SCHEDULE, block_n=48, math_warpgroups=1, cluster_m=1),
}
"""Tiles of one to three waves a warpgroup, divided along m and n."""


def math_of(kernel: hopper.KernelOp) -> hopper.TilesOp:
    """The loop over tiles of the math warpgroups."""
    return next(op for op in ops(kernel, hopper.TilesOp) if any(isinstance(o, hopper.WgmmaOp) for o in op.walk()))  # type: ignore[return-value]


def steps(block: Block) -> list[str]:
    """What a math warpgroup does, in words: waves that are issued, promoted and staged, and loops."""
    found: list[str] = []
    for op in block.ops:
        if isinstance(op, hopper.KBlocksOp):
            found.append(f"loop {op.first.value.data}..{op.last.value.data}")
        elif isinstance(op, hopper.WgmmaOp):
            found.append(f"issue {op.a_row.value.data // 64}")
        elif isinstance(op, hopper.PromoteOp):
            found.append(f"promote {op.wave.value.data}")
        elif isinstance(op, hopper.StageFragmentOp):
            found.append(f"stage {op.fragment.name_hint} at {op.row.value.data}")
        elif isinstance(op, hopper.WaitOp):
            found.append("wait unless last" if op.unless_last is not None else "wait")
    return found


TWO_WAVES = ["promote 0", "issue 1", "wait", "promote 1", "issue 0"]
TWO_WAVES_SLICED = [
    *("promote 0", "issue 1", "stage total0 at 0", "wait unless last"),
    *("promote 1", "issue 0", "stage total1 at 0"),
]


@pytest.mark.parametrize("k_blocks", [1, 2, 3])
def test_the_last_k_block_is_peeled_and_stages_each_wave_while_the_next_runs(k_blocks: int) -> None:
    kernel = lowered(fp8_problem(None, 7168, 128 * k_blocks), FP8_SCHEDULE).kernel
    tile = math_of(kernel)
    loop = [] if k_blocks == 1 else [f"loop 0..{k_blocks - 1}"]
    assert steps(tile.body.block) == [*loop, *TWO_WAVES_SLICED]
    assert [steps(op.body.block) for op in tile.body.block.ops if isinstance(op, hopper.KBlocksOp)] == [
        TWO_WAVES for _ in loop
    ]
    assert len(ops(kernel, hopper.KBlocksOp)) == len(loop) + 1, "and the producer's"


@pytest.mark.parametrize("k_blocks", [1, 2, 3])
def test_a_whole_tile_has_no_peeled_block(k_blocks: int) -> None:
    whole = replace(FP8_SCHEDULE, store_slices=1, num_stages=3)
    tile = math_of(lowered(fp8_problem(None, 7168, 128 * k_blocks), whole).kernel)
    assert steps(tile.body.block) == [f"loop 0..{k_blocks}", "stage total0 at 0", "stage total1 at 64"]
    (loop,) = (op for op in tile.body.block.ops if isinstance(op, hopper.KBlocksOp))
    assert steps(loop.body.block) == ["promote 0", "issue 1", "wait unless last", "promote 1", "issue 0"]


def test_three_waves_are_staged_one_after_the_other() -> None:
    tile = math_of(lowered(FP8, SLICED["3 waves, along n"]).kernel)
    assert steps(tile.body.block) == [
        "loop 0..15",
        *("promote 0", "issue 1", "stage total0 at 0", "promote 1", "issue 2", "stage total1 at 0"),
        *("wait unless last", "promote 2", "issue 0", "stage total2 at 0"),
    ]


@pytest.mark.parametrize("name", SLICED)
def test_each_slice_is_acquired_and_reported_once_by_every_role(name: str) -> None:
    kernel = lowered(FP8, SLICED[name]).kernel
    waves, groups = tile_geometry(SLICED[name]).waves, SLICED[name].math_warpgroups
    assert groups is not None
    arrays = {op.result.name_hint: op.result for op in ops(kernel, hopper.BarriersOp)}  # type: ignore[attr-defined]

    def count(kind: type[Operation], barriers: str) -> int:
        return sum(op.barriers is arrays[barriers] for op in ops(kernel, kind))  # type: ignore[attr-defined]

    assert count(hopper.AcquireOp, "drained") == count(hopper.ArriveOp, "staged") == waves
    assert count(hopper.WaitOp, "staged") == count(hopper.ArriveOp, "drained") == waves * groups
    cursors = [op for op in ops(kernel, hopper.AdvanceOp) if op.cursor.type.dims == (1,)]  # type: ignore[attr-defined]
    assert len(cursors) == 2 * waves, "after each slice: the math warpgroups' and the store warp's"


@pytest.mark.parametrize("slices", ["one a wave", "one"])
@pytest.mark.parametrize("name", SLICED)
def test_boxes_cover_a_tile_once(name: str, slices: str) -> None:
    """Rows by columns of the tile, each of them in exactly one box; a box lies in its warpgroup's staging area."""
    schedule = SLICED[name] if slices == "one a wave" else replace(SLICED[name], store_slices=1, num_stages=2)
    kernel = lowered(FP8, schedule).kernel
    covered = np.zeros((schedule.block_m or 0, schedule.block_n or 0), int)
    rows_of_a_box = 64 if slices == "one a wave" else tile_geometry(schedule).wg_rows
    (staging,) = ops(kernel, hopper.StagingOp)
    groups, rows, columns = staging.result.type.dims  # type: ignore[attr-defined]
    assert (rows, columns) == (rows_of_a_box, tile_geometry(schedule).wg_columns)
    for op in ops(kernel, hopper.TmaStoreOp):
        assert isinstance(op, hopper.TmaStoreOp)
        height, width = op.map.type.dims
        assert height == rows_of_a_box
        row, column = op.row_offset.value.data, op.column_offset.value.data
        covered[row : row + height, column : column + width] += 1
        assert op.offset.value.data + height * width * 2 <= groups * staging.pitch.value.data  # type: ignore[attr-defined]
    assert covered.min() == covered.max() == 1


def test_a_slice_takes_every_warpgroup_in_turn() -> None:
    """Slice by slice, so that no warpgroup waits for two stores of another."""
    stores = [
        (op.row_offset.value.data, op.column_offset.value.data, op.offset.value.data)  # type: ignore[attr-defined]
        for op in ops(lowered(FP8, FP8_SCHEDULE).kernel, hopper.TmaStoreOp)
    ]
    areas = (0, 0), (64, 8192), (128, 16384), (192, 24576)
    assert stores == [(row, *area) for row in (0, 64) for area in areas]


def test_bf16_accumulates_in_place() -> None:
    kernel = lowered(BF16, BF16_SCHEDULE).kernel
    assert not ops(kernel, hopper.PromoteOp)
    assert [op.fresh is not None for op in ops(kernel, hopper.WgmmaOp)] == [True, False]  # type: ignore[attr-defined]
    assert [op.pending.value.data for op in ops(kernel, hopper.WgmmaWaitOp)] == [1, 0]  # type: ignore[attr-defined]


def test_one_k_block_needs_no_loop() -> None:
    kernel = lowered(half_problem(None, 128, 64), replace(BF16_SCHEDULE, block_n=128)).kernel
    loops = [op.last.value.data for op in ops(kernel, hopper.KBlocksOp)]  # type: ignore[attr-defined]
    assert loops == [1], "the producer's"


def test_a_tail_of_k_is_a_block_of_its_own() -> None:
    kernel = lowered(fp8_problem(None, 128, 1040), replace(FP8_SCHEDULE, block_n=128)).kernel
    loops = [op.last.value.data for op in ops(kernel, hopper.KBlocksOp)]  # type: ignore[attr-defined]
    assert loops == [8, 9], "the math warpgroups', whose last block is peeled, and the producer's"


def test_boxes_of_the_result_cover_its_columns() -> None:
    schedule = replace(FP8_SCHEDULE, block_n=112, split=Split.ALONG_M, cluster_m=1, turns=True)
    kernel = lowered(FP8, schedule).kernel
    stores = [(op.map.type.dims[1], op.column_offset.value.data) for op in ops(kernel, hopper.TmaStoreOp)]  # type: ignore[attr-defined]
    assert stores == [(64, 0), (32, 64), (16, 96)] * 2


def test_turns_are_passed_as_often_as_taken() -> None:
    schedule = replace(FP8_SCHEDULE, block_n=192, split=Split.ALONG_M, turns=True)
    kernel = lowered(FP8, schedule).kernel
    assert len(ops(kernel, hopper.TakeTurnOp)) == len(ops(kernel, hopper.PassTurnOp)) == 3


CHUNKED = replace(FP8_SCHEDULE, block_n=128, split=Split.ALONG_M, cluster_m=1, num_stages=4, promote_chunk=2)

CHUNK_OF_TWO = """
hopper.wait %full[%at]
hopper.wgmma_fence
hopper.wgmma [%at] -> %partial0
hopper.wgmma_commit
hopper.next %at
hopper.wait %full[%ahead]
hopper.wgmma_fence
hopper.wgmma [%ahead] -> %partial1
hopper.wgmma_commit
hopper.load_scales [%at] -> %scales0
hopper.load_scales [%ahead] -> %scales1
hopper.sync_warp
hopper.wgmma_wait 1, %partial0
hopper.release %empty[%at]
hopper.promote %partial0 -> %total0 by %scales0
hopper.advance %at
hopper.wgmma_wait 0, %partial1
hopper.release %empty[%at]
hopper.promote %partial1 -> %total0 by %scales1
hopper.advance %at
"""
CHUNK_OF_ONE = """
hopper.wait %full[%at]
hopper.wgmma_fence
hopper.wgmma [%at] -> %partial0
hopper.wgmma_commit
hopper.load_scales [%at] -> %scales0
hopper.sync_warp
hopper.wgmma_wait 0, %partial0
hopper.release %empty[%at]
hopper.promote %partial0 -> %total0 by %scales0
hopper.advance %at
"""


_UNVARIED = re.compile(r" :.*| for .*| wave .*| peers .*|^%\w+ = |%ring\w*,? ?|(?<=%ahead)_\d+")


def gist(block: Block) -> str:
    """One line an op, without types and what never varies."""
    lines = ["LOOP" if op.regions else _UNVARIED.sub("", str(op)) for op in block.ops]
    return "\n" + "\n".join(lines) + "\n"


def chunked_tile(k_blocks: int, chunk: int) -> tuple[hopper.KBlocksOp, str]:
    """The loop of the math role, and all that a tile does beside it."""
    kernel = lowered(fp8_problem(None, 1024, 128 * k_blocks), replace(CHUNKED, promote_chunk=chunk)).kernel
    loop = next(op for op in kernel.walk() if isinstance(op, hopper.KBlocksOp))
    tile = loop.parent_block()
    assert tile is not None
    return loop, gist(tile)


def test_two_k_blocks_of_a_chunk_are_in_flight() -> None:
    loop, tile = chunked_tile(8, 2)
    assert (loop.first.value.data, loop.last.value.data, loop.blocks) == (0, 8, 2)
    assert gist(loop.body.block) == CHUNK_OF_TWO
    assert "hopper.wgmma" not in tile.partition("LOOP")[2], "nothing is left over"


def test_k_blocks_that_are_left_over_follow_the_loop() -> None:
    loop, tile = chunked_tile(9, 2)
    assert (loop.last.value.data, loop.blocks) == (8, 2)
    assert CHUNK_OF_ONE in tile
    loop, tile = chunked_tile(10, 4)
    assert (loop.last.value.data, loop.blocks) == (8, 4)
    assert CHUNK_OF_TWO in tile


@pytest.mark.parametrize("k_blocks", [1, 2, 3])
def test_fewer_k_blocks_than_a_chunk_are_one_chunk(k_blocks: int) -> None:
    loop, tile = chunked_tile(k_blocks, 4)
    assert (loop.last.value.data, loop.blocks) == (k_blocks, k_blocks)
    assert "hopper.wgmma" not in tile.partition("LOOP")[2]
    if k_blocks < 3:
        assert gist(loop.body.block) == {1: CHUNK_OF_ONE, 2: CHUNK_OF_TWO}[k_blocks]


@pytest.mark.parametrize("chunk", [2, 4])
@pytest.mark.parametrize("k_blocks", range(1, 10))
def test_every_k_block_of_a_chunked_tile_is_done_once(chunk: int, k_blocks: int) -> None:
    """At most two waves at a time, none where the loop goes round, each promoted by its own scales and given back."""
    loop, _ = chunked_tile(k_blocks, chunk)
    tile = loop.parent_block()
    assert tile is not None
    rounds = (loop.last.value.data - loop.first.value.data) // loop.blocks
    straight = [op for op in tile.ops if op is not loop]
    before = [op for op in straight if op.is_before_in_block(loop)]
    events = [*before, *[*loop.body.block.ops] * rounds, *straight[len(before) :]]
    flying, done = 0, 0
    for op in events:
        flying += isinstance(op, hopper.WgmmaCommitOp)
        if isinstance(op, hopper.WgmmaWaitOp):
            flying = min(flying, op.pending.value.data)
        if isinstance(op, hopper.PromoteOp):
            assert op.partial.name_hint == f"partial{done % chunk % 2}"
            assert op.scales.name_hint == f"scales{done % chunk % 2}"
            done += 1
        assert flying <= 2
    assert (flying, done) == (0, k_blocks)
    for kind in (hopper.WaitOp, hopper.WgmmaOp, hopper.LoadScalesOp, hopper.ReleaseOp):
        assert sum(isinstance(op, kind) for op in events) == k_blocks


def producer_of(kernel: hopper.KernelOp) -> hopper.TilesOp:
    """The loop over tiles of the producer warp."""
    return next(op for op in ops(kernel, hopper.TilesOp) if any(isinstance(o, hopper.TmaLoadOp) for o in op.walk()))  # type: ignore[return-value]


BATCHED = replace(FP8_SCHEDULE, cluster_m=1, scale_batch=16)


def test_a_batch_of_scales_is_started_with_a_tile_and_goes_on_with_each_k_block() -> None:
    tile = producer_of(lowered(FP8, BATCHED).kernel)
    start, loop = tile.body.block.ops
    assert isinstance(start, hopper.StartScalesOp)
    assert isinstance(loop, hopper.KBlocksOp)
    assert start.result.type.dims == (16, 2)
    assert (start.column, start.step.value.data, start.blocks.value.data) == (tile.body.block.args[1], 128, 16)
    first, *rest = loop.body.block.ops
    assert isinstance(first, hopper.NextScalesOp)
    assert (first.batch, first.k) == (start.result, loop.body.block.args[0])
    (put,) = (op for op in rest if isinstance(op, hopper.PutScalesOp))
    assert (put.value, put.steps.value.data) == (first.result, 2)
    assert not ops(lowered(FP8, BATCHED).kernel, hopper.FetchScalesOp)


def test_the_scales_of_one_k_block_at_a_time_need_no_batch() -> None:
    kernel = lowered(FP8, replace(BATCHED, scale_batch=1)).kernel
    assert len(ops(kernel, hopper.FetchScalesOp)) == 1
    assert not ops(kernel, hopper.StartScalesOp) + ops(kernel, hopper.NextScalesOp)


@pytest.mark.parametrize(
    ("schedule", "batch"),
    [
        (replace(FP8_SCHEDULE, block_n=128, split=Split.ALONG_M, scale_batch=32), (32, 1)),
        (replace(FP8_SCHEDULE, block_n=192, split=Split.ALONG_M, scale_batch=8), (8, 4)),
        (replace(FP8_SCHEDULE, block_n=112, split=Split.ALONG_M, scale_batch=4), (4, 8)),
        (replace(FP8_SCHEDULE, block_n=96, scale_batch=4), (4, 8)),
    ],
)
def test_lanes_of_a_k_block_are_a_power_of_two(schedule: Schedule, batch: tuple[int, int]) -> None:
    (start,) = ops(lowered(FP8, schedule).kernel, hopper.StartScalesOp)
    assert start.result.type.dims == batch  # type: ignore[attr-defined]
    assert start.step.value.data == tile_geometry(schedule).column_step  # type: ignore[attr-defined]


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("cluster", [(1, 1), (2, 1), (1, 2)], ids=["alone", "along m", "along n"])
def test_who_fences_scales_before_they_are_overwritten(cluster: tuple[int, int], chunk: int) -> None:
    """Alone, the producer warp between its wait and its loads; in a cluster, every math warp after it has read."""
    schedule = replace(
        FP8_SCHEDULE, block_n=128, split=Split.ALONG_M, cluster_m=cluster[0], cluster_n=cluster[1], promote_chunk=chunk
    )
    kernel = lowered(FP8, schedule).kernel
    (loop,) = ops(producer_of(kernel), hopper.KBlocksOp)
    names = [op.name.removeprefix("hopper.") for op in loop.body.block.ops]  # type: ignore[attr-defined]
    alone = cluster == (1, 1)
    fence = ["fence_proxy_async"] if alone else []
    assert names[1 : 3 + alone] == ["acquire", *fence, "tma_load"]
    assert names.count("fence_proxy_async") == alone
    after = [op.next_op for op in ops(kernel, hopper.LoadScalesOp)]
    fenced = [isinstance(op, hopper.FenceProxyAsyncOp) for op in after if not isinstance(op, hopper.LoadScalesOp)]
    assert len(fenced) == {1: 2, 2: 1}[chunk], "the very first scales, and those of the loop"
    assert set(fenced) == {not alone}


def test_what_is_summed_in_the_tensor_core_has_no_scales_to_fence() -> None:
    for slices in (1, 2, 4):
        kernel = lowered(BF16, replace(BF16_SCHEDULE, cluster_m=1, store_slices=slices)).kernel
        assert not ops(producer_of(kernel), hopper.FenceProxyAsyncOp)
        assert len(ops(kernel, hopper.FenceProxyAsyncOp)) == slices, "behind what is staged"


@pytest.mark.parametrize("field", [f.name for f in fields(Schedule)])
def test_an_open_choice_is_refused(field: str) -> None:
    module = parse_module(program_text(FP8))
    set_schedule(the_matmul(module), replace(completed(FP8, FP8_SCHEDULE), **{field: None}))
    with pytest.raises(ScheduleError, match=f"leaves {field} open") as error:
        GemmLowerToHopperPass().apply(make_context(), module)
    assert error.value.code == "GMR-S005"


def test_it_can_be_run_again() -> None:
    found = lowered(FP8, FP8_SCHEDULE)
    before = str(found.module)
    GemmLowerToHopperPass().apply(make_context(), found.module)
    assert str(found.module) == before


def test_locations_are_kept() -> None:
    module = parse_module(program_text(FP8))
    matmul = the_matmul(module)
    set_schedule(matmul, completed(FP8, FP8_SCHEDULE))
    location = matmul.location
    GemmLowerToHopperPass().apply(make_context(), module)
    assert {op.location for op in module.body.block.first_op.walk()} == {location}  # type: ignore[union-attr]


def test_k_of_nothing_is_one_block_outside_the_operands() -> None:
    schedule: Schedule = replace(BF16_SCHEDULE, block_n=128)
    kernel = lowered(half_problem(None, 128, 0), schedule).kernel
    assert kernel.depth.value.data == 0
