"""Faults of the warp that fills slots of the ring with scales, one or several at a time, beside the producer."""

from __future__ import annotations

from gemmir.dialects import hopper
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import (
    Ir,
    again,
    all_of,
    change,
    erase,
    get,
    loop,
    move_after,
    move_before,
    one,
    put,
)
from tests.sabotage.scales import following

SLOT_SCALES = Collection()
fault = SLOT_SCALES.add


# What it waits for


@fault("fp8-scales", rule="R5")
def slot_for_scales_not_acquired(ir: Ir) -> None:
    """The scales warp does not wait for a free slot."""
    erase(one(ir.slot_scales, hopper.AcquireOp))


@fault("fp8-scales-4", rule="R5")
def last_of_several_slots_not_acquired(ir: Ir) -> None:
    """The scales warp waits for all slots that it fills at a time but the last one."""
    erase(all_of(ir.slot_scales, hopper.AcquireOp)[-1])


@fault("fp8-scales-4", rule="R5")
def first_slot_acquired_only(ir: Ir) -> None:
    """The scales warp waits for the first slot of those that it fills at a time."""
    for acquire in all_of(ir.slot_scales, hopper.AcquireOp)[1:]:
        erase(acquire)


@fault("fp8-scales", "fp8-scales-4", rule="R5")
def slot_acquired_after_its_scales(ir: Ir) -> None:
    """The scales warp loads the last scales, then waits for their slot."""
    acquire, load = all_of(ir.slot_scales, hopper.AcquireOp)[-1], all_of(ir.slot_scales, hopper.TmaLoadOp)[-1]
    follows = acquire.next_op
    move_after(acquire, load)
    if isinstance(follows, hopper.AdvanceOp):
        move_after(follows, acquire)


@fault("fp8-scales", rule="R5")
def weights_stored_before_the_acquire(ir: Ir) -> None:
    """Lanes store weight scales to a slot that is still in use."""
    move_before(one(ir.slot_scales, hopper.PutScalesOp), one(ir.slot_scales, hopper.AcquireOp))


@fault("fp8-scales-4", rule="R5")
def same_slot_acquired_twice(ir: Ir) -> None:
    """Of several slots at a time, the scales warp waits for one twice, and never for the one after."""
    free = one(ir.slot_scales, hopper.AcquireOp).cursor
    advances = [op for op in all_of(ir.slot_scales, hopper.AdvanceOp) if op.cursor is free]
    move_after(advances[2], advances[3])


# Fences


@fault("fp8-scales", "fp8-scales-4", rule="R6")
def scales_warp_does_not_fence(ir: Ir) -> None:
    """TMA may overwrite scales that are being read: the scales warp has no fence."""
    erase(one(ir.slot_scales, hopper.FenceProxyAsyncOp))


@fault("fp8-scales", "fp8-scales-4", rule="R6")
def scales_warp_fences_before_its_last_wait(ir: Ir) -> None:
    """The scales warp fences, then waits for the last slot that it fills."""
    move_before(one(ir.slot_scales, hopper.FenceProxyAsyncOp), all_of(ir.slot_scales, hopper.AcquireOp)[-1])


@fault("fp8-scales", "fp8-scales-4", rule="R6")
def scales_warp_fences_after_its_loads(ir: Ir) -> None:
    """The scales warp loads, then fences."""
    move_after(one(ir.slot_scales, hopper.FenceProxyAsyncOp), all_of(ir.slot_scales, hopper.TmaLoadOp)[-1])


@fault("fp8-scales", "fp8-scales-4", rule="R6")
def scales_warp_fences_once_a_tile(ir: Ir) -> None:
    """The scales warp fences before the k-blocks of a tile, not in each step."""
    move_before(one(ir.slot_scales, hopper.FenceProxyAsyncOp), loop(ir.slot_scales))


@fault("fp8-scales", "fp8-scales-4", rule="R6")
def producer_fences_for_the_scales_warp(ir: Ir) -> None:
    """The producer fences, for loads that another warp issues."""
    move_after(one(ir.slot_scales, hopper.FenceProxyAsyncOp), one(ir.producer, hopper.AcquireOp))


# What it says


@fault("fp8-scales", "fp8-scales-4", rule="R0")
def scales_not_announced(ir: Ir) -> None:
    """The scales warp never says that a slot has its scales."""
    for expect in all_of(ir.slot_scales, hopper.ExpectOp):
        erase(expect)


@fault("fp8-scales", "fp8-scales-4", rule="R0")
def operands_not_announced(ir: Ir) -> None:
    """Where a slot has two that fill it, the producer does not say what is coming."""
    erase(one(ir.producer, hopper.ExpectOp))


@fault("fp8-scales", rule="R2")
@fault("fp8-scales-4", rule="R0")
def full_with_one_arrival(ir: Ir) -> None:
    """A slot counts as full once one of the two that fill it has said so."""
    owner = ir.storage("full").owner
    assert isinstance(owner, hopper.BarriersOp)
    put(owner, "arrivals", 1)


@fault("fp8-scales", "fp8-scales-4", rule="R0")
def full_with_three_arrivals(ir: Ir) -> None:
    """A slot counts as full after three arrivals, and has two."""
    owner = ir.storage("full").owner
    assert isinstance(owner, hopper.BarriersOp)
    put(owner, "arrivals", 3)


@fault("fp8-scales", "fp8-scales-4", rule="R0")
def producer_expects_the_scales_as_well(ir: Ir) -> None:
    """The bytes of row scales are expected by both warps."""
    expect = one(ir.producer, hopper.ExpectOp)
    put(expect, "bytes", get(expect, "bytes") + get(one(ir.slot_scales, hopper.ExpectOp), "bytes"))


@fault("fp8-scales", "fp8-scales-4", rule="R0")
def row_scales_not_loaded_by_their_warp(ir: Ir) -> None:
    """The scales warp expects row scales that it does not load."""
    erase(one(ir.slot_scales, hopper.TmaLoadOp))


@fault("fp8-scales", "fp8-scales-4", rule="R5")
def lanes_of_the_scales_warp_do_not_meet(ir: Ir) -> None:
    """A slot is announced before all lanes have stored their scale."""
    for meeting in all_of(ir.slot_scales, hopper.SyncWarpOp):
        erase(meeting)


@fault("fp8-scales", rule="R5")
def weights_stored_after_they_are_announced(ir: Ir) -> None:
    """The scales warp announces a slot, then stores the weight scales."""
    move_after(one(ir.slot_scales, hopper.PutScalesOp), one(ir.slot_scales, hopper.ExpectOp))


@fault("fp8-scales-4", rule="R5")
def last_weights_stored_after_they_are_announced(ir: Ir) -> None:
    """Of several slots at a time, the last one is announced before its weight scales are stored."""
    move_after(all_of(ir.slot_scales, hopper.PutScalesOp)[-1], all_of(ir.slot_scales, hopper.ExpectOp)[-1])


# Which slot


@fault("fp8-scales", "fp8-scales-4", rule="R0")
def slot_ahead_filled(ir: Ir) -> None:
    """The scales warp fills, and announces, the slot after the one that it waited for."""
    cursor = one(ir.slot_scales, hopper.ExpectOp).cursor
    for kind in (hopper.TmaLoadOp, hopper.PutScalesOp, hopper.ExpectOp):
        for op in all_of(ir.slot_scales, kind):
            following(op, cursor)


@fault("fp8-scales", rule="R5")
def weights_stored_to_the_slot_ahead(ir: Ir) -> None:
    """Weight scales go to the slot after the one that was waited for."""
    store = one(ir.slot_scales, hopper.PutScalesOp)
    following(store, store.cursor)


@fault("fp8-scales-4", caught_by="simulator")
def weights_of_several_slots_stored_one_ahead(ir: Ir) -> None:
    """Of several slots at a time, each gets the weight scales of the one before, and the very first one gets none."""
    for store in all_of(ir.slot_scales, hopper.PutScalesOp):
        following(store, store.cursor)


@fault("fp8-scales", "fp8-scales-4", rule="R0")
def row_scales_to_the_slot_ahead(ir: Ir) -> None:
    """Row scales go to the slot after the one that was waited for, and count there."""
    for load in all_of(ir.slot_scales, hopper.TmaLoadOp):
        following(load, load.cursor)


@fault("fp8-scales", "fp8-scales-4", rule="R5")
def scales_warp_stays_in_its_slot(ir: Ir) -> None:
    """The scales warp does not advance."""
    for advance in all_of(ir.slot_scales, hopper.AdvanceOp):
        erase(advance)


@fault("fp8-scales", rule="R0")
def scales_warp_skips_slots(ir: Ir) -> None:
    """The scales warp advances twice."""
    again(one(ir.slot_scales, hopper.AdvanceOp))


@fault("fp8-scales-4", rule="R5")
def slots_filled_before_those_that_are_free(ir: Ir) -> None:
    """Of its two places in the ring, the scales warp fills where it has waited up to, not where it began to."""
    free = one(ir.slot_scales, hopper.AcquireOp).cursor
    at = one(ir.slot_scales, hopper.ExpectOp).cursor
    for kind in (hopper.TmaLoadOp, hopper.PutScalesOp, hopper.ExpectOp):
        for op in all_of(ir.slot_scales, kind):
            change(op, at, free)


@fault("fp8-scales", "fp8-scales-4", rule="R0")
def scales_warp_misses_the_last_blocks(ir: Ir) -> None:
    """The scales warp fills fewer slots of a tile than the producer does."""
    blocks = loop(ir.slot_scales)
    put(blocks, "last", get(blocks, "last") - blocks.blocks)


@fault("fp8-scales-4", rule="R0")
def one_slot_of_a_step_left_out(ir: Ir) -> None:
    """The scales warp goes through K four blocks at a time, and fills three slots."""
    at = one(ir.slot_scales, hopper.ExpectOp).cursor
    advances = [op for op in all_of(ir.slot_scales, hopper.AdvanceOp) if op.cursor is at]
    for op in (
        all_of(ir.slot_scales, hopper.TmaLoadOp)[-1],
        all_of(ir.slot_scales, hopper.PutScalesOp)[-1],
        all_of(ir.slot_scales, hopper.ExpectOp)[-1],
        advances[-1],
    ):
        erase(op)


# Which scales


@fault("fp8-scales-4", caught_by="simulator")
def every_slot_has_the_row_scales_of_the_first(ir: Ir) -> None:
    """All slots of a step get the row scales of its first k-block."""
    for load in all_of(ir.slot_scales, hopper.TmaLoadOp)[1:]:
        change(load, load.row, loop(ir.slot_scales).body.block.args[0])


@fault("fp8-scales-4", caught_by="simulator")
def weight_scales_of_two_slots_swapped(ir: Ir) -> None:
    """Two slots of a step have each other's weight scales."""
    first, second = all_of(ir.slot_scales, hopper.PutScalesOp)[:2]
    values = first.value, second.value
    change(first, values[0], values[1])
    change(second, values[1], values[0])


@fault("fp8-scales-4", caught_by="simulator")
def blocks_of_a_step_numbered_wrongly(ir: Ir) -> None:
    """The third slot of a step gets the scales of the fourth k-block."""
    put(one(ir.slot_scales, hopper.BlockAheadOp, 1), "ahead", 3)


@fault("fp8-scales-4", caught_by="verifier")
def block_ahead_of_the_next_step(ir: Ir) -> None:
    """A slot gets the scales of a k-block of the step after."""
    put(one(ir.slot_scales, hopper.BlockAheadOp, 2), "ahead", 4)


@fault("fp8-scales-4", caught_by="verifier")
def block_ahead_of_another_one(ir: Ir) -> None:
    """The number of a k-block is counted from that of one that is ahead, not from the loop's."""
    first, second = all_of(ir.slot_scales, hopper.BlockAheadOp)[:2]
    change(second, second.k, first.result)


@fault("fp8-scales-4", caught_by="verifier")
def block_ahead_outside_a_loop(ir: Ir) -> None:
    """A k-block ahead is that of no loop over K: it is counted from the tile's first column."""
    ahead = one(ir.slot_scales, hopper.BlockAheadOp)
    change(ahead, ahead.k, one(ir.slot_scales, hopper.TilesOp).body.block.args[1])
