"""Lowering builds what the schedule says, and decides nothing."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from xdsl.ir import Block, Operation

from gemmir.dialects import hopper
from gemmir.dialects.gemm import set_schedule, the_matmul
from gemmir.errors import ScheduleError
from gemmir.ir_text import make_context, parse_module
from gemmir.passes.gemm_lower_to_hopper import GemmLowerToHopperPass
from gemmir.schedule import Schedule, Split
from gemmir.testing.strategies import program_text
from tests.kernels import BF16_SCHEDULE, FP8_SCHEDULE, lowered
from tests.schedules import fp8_problem, half_problem

FP8, BF16 = fp8_problem(None, 7168, 2048), half_problem(None, 7168, 2048)


def ops(kernel: hopper.KernelOp, kind: type[Operation]) -> list[Operation]:
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


def test_every_product_is_promoted_and_every_wave_staged() -> None:
    schedule = replace(FP8_SCHEDULE, block_m=256, block_n=128, split=Split.ALONG_M, cluster_m=1)
    kernel = lowered(FP8, schedule).kernel
    assert [op.wave.value.data for op in ops(kernel, hopper.PromoteOp)] == [0, 1]  # type: ignore[attr-defined]
    assert [op.row.value.data for op in ops(kernel, hopper.StageFragmentOp)] == [0, 64]  # type: ignore[attr-defined]
    assert len(ops(kernel, hopper.WgmmaOp)) == 3, "the first wave ahead of the loop, and two in it"


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
    assert {op.last.value.data for op in ops(kernel, hopper.KBlocksOp)} == {9}  # type: ignore[attr-defined]


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
hopper.fence_proxy_async
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
hopper.fence_proxy_async
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


def test_an_open_choice_is_refused() -> None:
    module = parse_module(program_text(FP8))
    set_schedule(the_matmul(module), replace(FP8_SCHEDULE, num_stages=None))
    with pytest.raises(ScheduleError, match="num_stages") as error:
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
    set_schedule(matmul, FP8_SCHEDULE)
    location = matmul.location
    GemmLowerToHopperPass().apply(make_context(), module)
    assert {op.location for op in module.body.block.first_op.walk()} == {location}  # type: ignore[union-attr]


def test_k_of_nothing_is_one_block_outside_the_operands() -> None:
    schedule: Schedule = replace(BF16_SCHEDULE, block_n=128)
    kernel = lowered(half_problem(None, 128, 0), schedule).kernel
    assert kernel.depth.value.data == 0
