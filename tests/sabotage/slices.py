"""Faults of tiles that leave wave by wave: the last k-block, which stands behind the loop, and the slices."""

from __future__ import annotations

from xdsl.dialects.builtin import UnitAttr

from gemmir.dialects import hopper
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import (
    Ir,
    all_of,
    change,
    erase,
    get,
    in_peeled,
    loop,
    move_after,
    move_before,
    one,
    peeled,
    put,
)

SLICES = Collection()
fault = SLICES.add


# The last k-block


@fault("fp8", "fp8-waves-2x1", rule="R0")
def last_block_told_in_the_loop(ir: Ir) -> None:
    """The k-block before the last one does not wait for the last, which waits for one after it."""
    one(loop(ir.math), hopper.WaitOp).properties["unless_last"] = UnitAttr()
    del in_peeled(ir.math, hopper.WaitOp).properties["unless_last"]


@fault("fp8", "fp8-waves-2x1", rule="R5")
def last_block_not_awaited(ir: Ir) -> None:
    """The last k-block of the last tile is not waited for."""
    one(loop(ir.math), hopper.WaitOp).properties["unless_last"] = UnitAttr()


@fault("fp8", "fp8-waves-2x1", rule="R5")
def next_tile_not_awaited(ir: Ir) -> None:
    """The first k-block of the next tile is not waited for."""
    erase(in_peeled(ir.math, hopper.WaitOp))


@fault("fp8", rule="R5")
def last_slot_released_before_its_wave(ir: Ir) -> None:
    """The last slot of a tile is given back while its last wave may still read it."""
    release = in_peeled(ir.math, hopper.ReleaseOp)
    move_before(release, all_of(ir.math, hopper.WgmmaWaitOp)[-2])


@fault("fp8", "fp8-waves-2x1", rule="R2")
def math_stays_in_its_last_slot(ir: Ir) -> None:
    """A math warpgroup does not advance behind the last k-block of a tile."""
    release = in_peeled(ir.math, hopper.ReleaseOp)
    erase(next(op for op in peeled(ir.math) if isinstance(op, hopper.AdvanceOp) and op.cursor is release.cursor))


@fault("fp8", "fp8-waves-2x1", rule="R0")
def last_block_counted_twice(ir: Ir) -> None:
    """A math warpgroup peels the last k-block and then counts it again."""
    put(loop(ir.math), "last", get(loop(ir.math), "last") + 1)


@fault("fp8", "fp8-waves-2x1", rule="R5a")
def last_partial_sum_used_in_flight(ir: Ir) -> None:
    """A partial sum of the last k-block is used while its WGMMA may still run."""
    erase(in_peeled(ir.math, hopper.WgmmaWaitOp))


@fault("fp8", rule="R5a")
def next_wave_issued_too_early(ir: Ir) -> None:
    """The last k-block's second wave overwrites the first one's partial sum, which has not been used."""
    move_after(in_peeled(ir.math, hopper.PromoteOp), in_peeled(ir.math, hopper.WgmmaCommitOp))


@fault("fp8", caught_by="simulator")
def next_tile_not_begun(ir: Ir) -> None:
    """The first wave of the next tile is not issued."""
    erase(in_peeled(ir.math, hopper.WgmmaOp, -1))


@fault("fp8", caught_by="simulator")
def next_tile_with_old_scales(ir: Ir) -> None:
    """The first k-block of a tile is scaled like the last one of the tile before."""
    erase(in_peeled(ir.math, hopper.MoveScalesOp))


# The slices


@fault("fp8", "fp8-waves-2x1", caught_by="simulator")
def slice_staged_too_early(ir: Ir) -> None:
    """A wave is staged, then the last k-block is added to it."""
    promote = in_peeled(ir.math, hopper.PromoteOp)
    for kind in (hopper.AcquireOp, hopper.StageFragmentOp):
        move_before(in_peeled(ir.math, kind), promote)


@fault("fp8", rule="R5a")
def partial_sum_staged(ir: Ir) -> None:
    """A partial sum is staged that the next wave is being multiplied into."""
    stage = in_peeled(ir.math, hopper.StageFragmentOp)
    change(stage, stage.fragment, in_peeled(ir.math, hopper.PromoteOp).partial)


@fault("fp8", "fp8-waves-2x1", rule="R2")
def second_slice_not_acquired(ir: Ir) -> None:
    """A slice is staged while the store thread may still read the one before."""
    erase(in_peeled(ir.math, hopper.AcquireOp, 1))


@fault("fp8", rule="R5")
def second_slice_acquired_too_late(ir: Ir) -> None:
    """The second slice is staged, then the staging area is waited for."""
    move_after(in_peeled(ir.math, hopper.AcquireOp, 1), in_peeled(ir.math, hopper.StageFragmentOp, 1))


@fault("fp8", "fp8-waves-2x1", rule="R0")
def second_slice_acquired_too_early(ir: Ir) -> None:
    """A math warpgroup waits until a slice has left that it has not yet reported."""
    move_after(in_peeled(ir.math, hopper.ArriveOp), in_peeled(ir.math, hopper.AcquireOp, 1))


@fault("fp8", "fp8-waves-2x1", rule="R6")
def first_slice_not_fenced(ir: Ir) -> None:
    """TMA may send a slice that has not arrived in shared memory: no fence after its stmatrix."""
    stage = in_peeled(ir.math, hopper.StageFragmentOp)
    fence = stage.next_op
    assert isinstance(fence, hopper.FenceProxyAsyncOp)
    erase(fence)


@fault("fp8", "fp8-waves-2x1", rule="R0")
def second_slice_not_reported(ir: Ir) -> None:
    """The store thread is never told of the second slice."""
    erase(in_peeled(ir.math, hopper.ArriveOp, 1))


@fault("fp8", "fp8-waves-2x1", rule="R2")
def slices_not_counted(ir: Ir) -> None:
    """A math warpgroup does not advance from slice to slice."""
    out = in_peeled(ir.math, hopper.ArriveOp).cursor
    erase(next(op for op in peeled(ir.math) if isinstance(op, hopper.AdvanceOp) and op.cursor is out))


@fault("fp8", "fp8-waves-2x1", rule="R2")
def slices_not_counted_by_the_store_thread(ir: Ir) -> None:
    """The store thread does not advance from slice to slice."""
    erase(one(ir.store, hopper.AdvanceOp))


@fault("fp8", "fp8-waves-2x1", rule="R0")
def slice_not_stored(ir: Ir) -> None:
    """The store thread sends one slice fewer than are staged."""
    ops = list(one(ir.store, hopper.TilesOp).body.block.ops)
    last = [i for i, op in enumerate(ops) if isinstance(op, hopper.AdvanceOp)][-2]
    for op in reversed(ops[last + 1 :]):
        erase(op)


@fault("fp8", "fp8-waves-2x1", rule="R0")
def slice_stored_that_there_is_not(ir: Ir) -> None:
    """The store thread waits for one slice more than are staged."""
    block = one(ir.store, hopper.TilesOp).body.block
    ops = list(block.ops)
    last = [i for i, op in enumerate(ops) if isinstance(op, hopper.AdvanceOp)][-2]
    for op in ops[last + 1 :]:
        block.add_op(op.clone())


@fault("fp8", rule="R5")
def second_slice_sent_before_it_is_staged(ir: Ir) -> None:
    """The store thread sends the second slice, then waits for it."""
    waits, stores = all_of(ir.store, hopper.WaitOp), all_of(ir.store, hopper.TmaStoreOp)
    move_after(waits[2], stores[5])


@fault("fp8", rule="R5")
def first_slice_given_back_too_early(ir: Ir) -> None:
    """A slice is given back, then its stores are waited for."""
    move_before(all_of(ir.store, hopper.ArriveOp)[2], all_of(ir.store, hopper.StoreWaitReadOp)[2])


@fault("fp8", "fp8-waves-2x1", rule="R0")
def second_slice_not_given_back(ir: Ir) -> None:
    """The staging area is not given back after the second slice."""
    groups = len(all_of(ir.store, hopper.WaitOp)) // len(all_of(ir.math, hopper.AcquireOp))
    erase(all_of(ir.store, hopper.ArriveOp)[groups])


@fault("fp8", caught_by="simulator")
def slices_change_places(ir: Ir) -> None:
    """The second wave is staged in the first slice, the first in the second."""
    first, second = all_of(ir.math, hopper.StageFragmentOp)
    totals = first.fragment, second.fragment
    change(first, totals[0], totals[1])
    change(second, totals[1], totals[0])


@fault("fp8", "fp8-waves-2x1", caught_by="simulator")
def slices_stored_to_the_same_rows(ir: Ir) -> None:
    """Every slice is stored to the rows of the first."""
    for op in all_of(ir.store, hopper.TmaStoreOp):
        put(op, "row_offset", 0)
