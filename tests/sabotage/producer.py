"""Faults of the producer warp."""

from __future__ import annotations

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IndexType, IntegerAttr
from xdsl.rewriter import Rewriter

from gemmir.dialects import hopper
from gemmir.dialects.hopper.types import AxisName
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import (
    Ir,
    after,
    again,
    all_of,
    before,
    change,
    erase,
    get,
    loop,
    move_after,
    move_before,
    one,
    put,
    turned,
)

PRODUCER = Collection()
fault = PRODUCER.add


@fault("fp8", "bf16-2x1", rule="R5")
def slot_not_acquired(ir: Ir) -> None:
    """The producer does not wait for a free slot."""
    erase(one(ir.producer, hopper.AcquireOp))


@fault("fp8", "bf16", rule="R0")
def acquire_with_the_wrong_parity(ir: Ir) -> None:
    """The producer waits for the phase that only it can bring about."""
    turned(one(ir.producer, hopper.AcquireOp))


@fault("fp8", rule="R5")
def acquire_after_the_loads(ir: Ir) -> None:
    """The producer loads, then waits for the slot to be free."""
    move_after(one(ir.producer, hopper.AcquireOp), all_of(ir.producer, hopper.TmaLoadOp)[-1])


@fault("fp8", "fp8-1x2", "bf16", rule="R0")
def bytes_not_expected(ir: Ir) -> None:
    """Nobody tells the full barrier what is coming."""
    erase(one(ir.producer, hopper.ExpectOp))


@fault("fp8", "bf16-2x1", rule="R0")
def bytes_of_two_stages_expected(ir: Ir) -> None:
    """Twice the bytes of a stage are expected."""
    expect = one(ir.producer, hopper.ExpectOp)
    put(expect, "bytes", 2 * get(expect, "bytes"))


@fault("fp8", "fp8-2x1", rule="R0")
def bytes_of_the_scales_forgotten(ir: Ir) -> None:
    """The bytes of the row scales are loaded, but not expected."""
    expect, load = one(ir.producer, hopper.ExpectOp), all_of(ir.producer, hopper.TmaLoadOp)[-1]
    rows, columns = load.map.type.dims
    put(expect, "bytes", get(expect, "bytes") - rows * columns * 4)


@fault("bf16", rule="R0")
def bytes_too_many_by_one_box_row(ir: Ir) -> None:
    """One row of a box too many is expected."""
    expect = one(ir.producer, hopper.ExpectOp)
    put(expect, "bytes", get(expect, "bytes") + 128)


@fault("bf16-2x1", rule="R2")
def own_half_expected_only(ir: Ir) -> None:
    """Only the bytes that this CTA loads itself are expected, not the peer's half."""
    expect, load = one(ir.producer, hopper.ExpectOp), all_of(ir.producer, hopper.TmaLoadOp)[1]
    rows, columns = load.map.type.dims
    put(expect, "bytes", get(expect, "bytes") - rows * columns * 2)


@fault("fp8", rule="R2")
def expected_twice(ir: Ir) -> None:
    """A stage is announced twice."""
    again(one(ir.producer, hopper.ExpectOp))


@fault("fp8", "bf16", rule="R0")
def load_missing(ir: Ir) -> None:
    """A is not loaded, but expected."""
    erase(one(ir.producer, hopper.TmaLoadOp))


@fault("fp8", rule="R5")
def load_doubled(ir: Ir) -> None:
    """A is loaded twice into one slot."""
    again(one(ir.producer, hopper.TmaLoadOp))


@fault("fp8-turns", rule="R5")
def load_into_the_other_ring(ir: Ir) -> None:
    """B lands in the slot of A."""
    change(all_of(ir.producer, hopper.TmaLoadOp)[1], ir.storage("ring_b"), ir.storage("ring_a"))


@fault("fp8", rule="R0")
def load_signals_the_empty_barrier(ir: Ir) -> None:
    """A load counts its bytes on the barrier of the free slots."""
    change(one(ir.producer, hopper.TmaLoadOp), ir.storage("full"), ir.storage("empty"))


@fault("fp8", rule="R0")
def load_into_the_next_slot(ir: Ir) -> None:
    """A goes to the slot after the one that was acquired."""
    load = one(ir.producer, hopper.TmaLoadOp)
    following = hopper.NextOp.build(operands=[load.cursor], result_types=[load.cursor.type])
    before(load, following)
    change(load, load.cursor, following.result)


@fault("fp8", rule="R0")
def expect_on_the_empty_barrier(ir: Ir) -> None:
    """The producer announces its bytes on the barrier of the free slots."""
    change(one(ir.producer, hopper.ExpectOp), ir.storage("full"), ir.storage("empty"))


@fault("fp8", rule="R0")
def acquire_on_the_full_barrier(ir: Ir) -> None:
    """The producer waits for the wrong ring of barriers."""
    change(one(ir.producer, hopper.AcquireOp), ir.storage("empty"), ir.storage("full"))


@fault("fp8", "bf16-1x2", rule="R5")
def producer_stays_in_its_slot(ir: Ir) -> None:
    """The producer does not advance."""
    erase(one(ir.producer, hopper.AdvanceOp))


@fault("fp8", "bf16", rule="R0")
def producer_skips_slots(ir: Ir) -> None:
    """The producer advances twice."""
    again(one(ir.producer, hopper.AdvanceOp))


@fault("fp8", "bf16-2x1", rule="R0")
def producer_misses_the_last_block(ir: Ir) -> None:
    """The producer loads one k-block fewer than the math warpgroups use."""
    put(loop(ir.producer), "last", get(loop(ir.producer), "last") - 1)


@fault("fp8", rule="R0")
def producer_misses_the_first_block(ir: Ir) -> None:
    """The producer begins with the second k-block."""
    put(loop(ir.producer), "first", 1)


@fault("fp8", rule="R5")
@fault("fp8-whole", rule="R8")
def producer_loads_a_block_too_many(ir: Ir) -> None:
    """The producer loads one k-block more than the math warpgroups use."""
    put(loop(ir.producer), "last", get(loop(ir.producer), "last") + 1)


@fault("fp8", "fp8-2x1", rule="R5")
def lanes_do_not_meet(ir: Ir) -> None:
    """The stage is announced before all lanes have stored their scale, or are through their wait."""
    erase(one(ir.producer, hopper.SyncWarpOp))


@fault("fp8", rule="R5")
def scales_after_the_expect(ir: Ir) -> None:
    """The stage is announced, then its column scales are stored."""
    move_after(one(ir.producer, hopper.PutScalesOp), one(ir.producer, hopper.ExpectOp))


@fault("fp8", rule="R5")
def scales_before_the_acquire(ir: Ir) -> None:
    """Column scales are stored to a slot that is still in use."""
    move_before(one(ir.producer, hopper.PutScalesOp), one(ir.producer, hopper.AcquireOp))


@fault("fp8", rule="R5")
def scales_after_the_lanes_meet(ir: Ir) -> None:
    """The lanes meet, then store their scales."""
    move_after(one(ir.producer, hopper.PutScalesOp), one(ir.producer, hopper.SyncWarpOp))


@fault("fp8", "fp8-turns", "fp8-chunk", "fp8-batch", rule="R6")
def producer_does_not_fence(ir: Ir) -> None:
    """TMA may overwrite scales that are being read: the producer waits and loads with no fence in between."""
    erase(one(ir.producer, hopper.FenceProxyAsyncOp))


@fault("fp8", "fp8-chunk", rule="R6")
def producer_fences_before_the_acquire(ir: Ir) -> None:
    """The producer fences, then waits for the slot to be read."""
    move_before(one(ir.producer, hopper.FenceProxyAsyncOp), one(ir.producer, hopper.AcquireOp))


@fault("fp8", "fp8-batch", rule="R6")
def producer_fences_after_the_loads(ir: Ir) -> None:
    """The producer loads, then fences."""
    move_after(one(ir.producer, hopper.FenceProxyAsyncOp), all_of(ir.producer, hopper.TmaLoadOp)[-1])


@fault("fp8-turns", rule="R6")
def producer_fences_once_a_tile(ir: Ir) -> None:
    """The producer fences before the k-blocks of a tile, not in each."""
    move_before(one(ir.producer, hopper.FenceProxyAsyncOp), loop(ir.producer))


@fault("fp8", rule="R6")
def another_thread_fences(ir: Ir) -> None:
    """The store thread fences instead of the producer, and no wait of the producer's knows of it."""
    fence = one(ir.producer, hopper.FenceProxyAsyncOp)
    move_after(fence, one(ir.store, hopper.WaitOp))


def share_row_scales(ir: Ir) -> None:
    """In a cluster along N each CTA loads half of the row scales, for both: no fault, if every reader fences."""
    load = all_of(ir.producer, hopper.TmaLoadOp)[-1]
    box = load.map.type
    rows, columns = box.dims
    half = hopper.TensorMapType((rows, columns // 2), box.element, box.swizzle_mode)
    Rewriter.replace_value_with_new_type(load.map, half)
    load.properties["multicast"] = hopper.AxisAttr(AxisName.N)


@fault("fp8-1x2", rule="R6")
def producer_fences_for_its_peer(ir: Ir) -> None:
    """Row scales are shared in a cluster, and each producer fences, for its own CTA's shared memory only."""
    share_row_scales(ir)
    for load in all_of(ir.math, hopper.LoadScalesOp):
        fence = load.next_op
        assert isinstance(fence, hopper.FenceProxyAsyncOp)
        erase(fence)
    after(one(ir.producer, hopper.AcquireOp), hopper.FenceProxyAsyncOp.build())


@fault("fp8-2x1", "bf16-2x1", "fp8-offs-2x1", "bf16-k-offs-2x1", rule="R0")
def multicast_missing(ir: Ir) -> None:
    """B's halves are not sent to the peer."""
    del all_of(ir.producer, hopper.TmaLoadOp)[1].properties["multicast"]


@fault("bf16-1x2", "bf16-counts-1x2", rule="R0")
def multicast_of_a_missing(ir: Ir) -> None:
    """A's halves are not sent to the peer."""
    del one(ir.producer, hopper.TmaLoadOp).properties["multicast"]


@fault("fp8-2x1", rule="R0")
def multicast_along_the_wrong_axis(ir: Ir) -> None:
    """B's halves are shared along N, where the cluster has one CTA."""
    all_of(ir.producer, hopper.TmaLoadOp)[1].properties["multicast"] = hopper.AxisAttr(AxisName.N)


@fault("fp8-2x1", rule="R0")
def multicast_of_what_is_not_shared(ir: Ir) -> None:
    """A is sent to the peer, whose A is another one."""
    one(ir.producer, hopper.TmaLoadOp).properties["multicast"] = hopper.AxisAttr(AxisName.M)


@fault("bf16", rule="R1")
def producer_lanes_left_alone(ir: Ir) -> None:
    """Lanes that only wait are not held back: they may miss a phase, and wait for ever."""
    for op in all_of(ir.producer, hopper.SyncWarpOp):
        erase(op)


@fault("fp8", rule="R5")
def one_lane_writes_all_scales(ir: Ir) -> None:
    """Only the first lane stores and no lanes meet, but the slot is read before it is announced."""
    expect, put_scales = one(ir.producer, hopper.ExpectOp), one(ir.producer, hopper.PutScalesOp)
    move_after(put_scales, expect)
    after(put_scales, hopper.SyncWarpOp.build())


@fault("fp8-1x2", caught_by="simulator")
def producer_starts_a_column_too_far(ir: Ir) -> None:
    """A is loaded from half a k-block further."""
    put(one(ir.producer, hopper.TmaLoadOp), "column_step", 64)


@fault("bf16", caught_by="simulator")
def every_role_misses_the_last_block(ir: Ir) -> None:
    """All roles agree on one k-block too few."""
    for blocks in all_of(ir.kernel, hopper.KBlocksOp):
        put(blocks, "last", get(blocks, "last") - 1)


@fault("fp8", caught_by="simulator")
def scales_of_the_wrong_columns(ir: Ir) -> None:
    """The producer fetches one weight scale for 64 columns where it is one for 128."""
    put(one(ir.producer, hopper.FetchScalesOp), "step", 64)


@fault("fp8-batch", caught_by="simulator")
def batch_started_once_for_all_tiles(ir: Ir) -> None:
    """Weight scales are started once, before the tiles, with the first column."""
    start, zero = one(ir.producer, hopper.StartScalesOp), ConstantOp(IntegerAttr(0, IndexType()))
    move_before(start, one(ir.producer, hopper.TilesOp))
    before(start, zero)
    change(start, start.column, zero.result)


@fault("fp8-batch", caught_by="simulator")
def batch_started_in_each_k_block(ir: Ir) -> None:
    """Weight scales are started anew in each k-block, so that only the first one of a batch has any."""
    move_before(one(ir.producer, hopper.StartScalesOp), one(ir.producer, hopper.NextScalesOp))


@fault("fp8-batch", caught_by="simulator")
def batch_moves_on_twice(ir: Ir) -> None:
    """The first k-block of a batch takes two batches, the second one too early."""
    follows = one(ir.producer, hopper.NextScalesOp)
    before(follows, follows.clone())


@fault("fp8-batch", caught_by="simulator")
def batch_of_the_wrong_columns(ir: Ir) -> None:
    """Lanes fetch scales of column steps that are twice as far apart."""
    start = one(ir.producer, hopper.StartScalesOp)
    put(start, "step", 2 * get(start, "step"))


@fault("fp8-batch", caught_by="simulator")
def half_the_lanes_for_a_k_block(ir: Ir) -> None:
    """A k-block of a batch has half the lanes that it needs: its last column steps get the first ones' scales."""
    start = one(ir.producer, hopper.StartScalesOp)
    blocks, lanes = start.result.type.dims
    Rewriter.replace_value_with_new_type(start.result, hopper.ScaleBatchType(2 * blocks, lanes // 2))


@fault("fp8-batch", caught_by="verifier")
def batch_of_too_few_k_blocks(ir: Ir) -> None:
    """The scales of the last k-block are never fetched, but used."""
    start = one(ir.producer, hopper.StartScalesOp)
    put(start, "blocks", get(start, "blocks") - 1)


@fault("fp8-batch", caught_by="verifier")
def batch_of_more_k_blocks_than_there_are(ir: Ir) -> None:
    """Scales are fetched behind the end of their tensor."""
    start = one(ir.producer, hopper.StartScalesOp)
    put(start, "blocks", get(start, "blocks") + 1)


@fault("bf16-2x1", rule="", caught_by="verifier")
def cursor_of_another_ring(ir: Ir) -> None:
    """The producer's cursor runs through two stages, its barriers have four."""
    cursor = one(ir.producer, hopper.CursorOp)
    new = hopper.CursorOp.build(result_types=[hopper.CursorType(2)])
    Rewriter.replace_op(cursor, new, new.results)


@fault("fp8", rule="R0")
def producer_waits_for_nothing_at_the_end(ir: Ir) -> None:
    """The producer acquires a slot after its last tile, with the parity of the last fill but one, and never gets it."""
    tiles, cursor = one(ir.producer, hopper.TilesOp), one(ir.producer, hopper.CursorOp)
    wait = hopper.WaitOp.build(operands=[ir.storage("empty"), cursor.result, []])
    after(tiles, wait)
