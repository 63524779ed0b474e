"""Faults of what differs from form to form: f32 results, an operand C, a scale a column, operands in panels."""

from __future__ import annotations

from gemmir.dialects import hopper
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import Ir, again, all_of, erase, get, move_after, move_before, one, put, turned

FORMS = Collection()
fault = FORMS.add


# f32 results, which lanes stage one by one


@fault("bf16-f32", rule="R6")
def f32_rows_not_fenced(ir: Ir) -> None:
    """TMA may send f32 rows that have not arrived in shared memory: no fence after the second slice's stores."""
    erase(all_of(ir.math, hopper.FenceProxyAsyncOp)[-1])


@fault("bf16-f32", rule="R5")
def lanes_do_not_meet_after_f32_rows(ir: Ir) -> None:
    """One lane reports f32 rows as staged while others still store theirs."""
    erase(all_of(ir.math, hopper.SyncWarpOp)[0])


@fault("bf16-f32", rule="R5")
def f32_rows_staged_before_the_area_is_free(ir: Ir) -> None:
    """The second slice of f32 rows is staged, then the staging area is waited for."""
    move_after(all_of(ir.math, hopper.AcquireOp)[1], all_of(ir.math, hopper.StageFragmentOp)[1])


@fault("bf16-f32", rule="R2")
def f32_slices_do_not_wait_for_one_another(ir: Ir) -> None:
    """The second slice of f32 rows does not wait until the first one has left."""
    erase(all_of(ir.math, hopper.AcquireOp)[1])


@fault("bf16-f32", rule="R5a")
def f32_rows_staged_before_the_wait(ir: Ir) -> None:
    """The first slice of f32 rows is staged, then its WGMMAs are waited for."""
    move_before(one(ir.math, hopper.StageFragmentOp), all_of(ir.math, hopper.WgmmaWaitOp)[-1])


@fault("bf16-f32", caught_by="verifier")
def second_wave_staged_below_the_slice(ir: Ir) -> None:
    """The second wave of f32 rows is staged where the whole tile would have it, past the slice's area."""
    put(all_of(ir.math, hopper.StageFragmentOp)[1], "row", 64)


# Slices of the columns of one wave


@fault("bf16-columns", rule="R5")
def columns_staged_before_the_area_is_free(ir: Ir) -> None:
    """The second slice of columns is staged, then the staging area is waited for."""
    move_after(all_of(ir.math, hopper.AcquireOp)[1], all_of(ir.math, hopper.StageFragmentOp)[1])


@fault("bf16-columns", rule="R5a")
def columns_staged_before_the_wait(ir: Ir) -> None:
    """The first slice of columns is staged, then its WGMMAs are waited for."""
    move_before(one(ir.math, hopper.StageFragmentOp), all_of(ir.math, hopper.WgmmaWaitOp)[-1])


@fault("bf16-columns", caught_by="simulator")
def the_same_columns_staged_twice(ir: Ir) -> None:
    """The second slice holds the columns of the first one again."""
    put(all_of(ir.math, hopper.StageFragmentOp)[1], "column", 0)


@fault("bf16-columns", caught_by="verifier")
def columns_staged_that_no_fragment_has(ir: Ir) -> None:
    """The second slice begins where the fragment ends."""
    put(all_of(ir.math, hopper.StageFragmentOp)[1], "column", 128)


@fault("bf16-columns", caught_by="verifier")
def columns_staged_that_leave_apart(ir: Ir) -> None:
    """The second slice begins within columns that one instruction takes together."""
    put(all_of(ir.math, hopper.StageFragmentOp)[1], "column", 8)


# Operand C, which comes to where the rows of D leave from


@fault("bf16-c", rule="R6")
def c_loaded_over_rows_that_nobody_fenced(ir: Ir) -> None:
    """C comes to where rows were staged and read with no fence in between."""
    erase(all_of(ir.math, hopper.FenceProxyAsyncOp)[-1])


@fault("f32-c", rule="R5")
def c_loaded_before_the_rows_have_left(ir: Ir) -> None:
    """C comes while TMA still reads the rows that leave: the store thread does not wait for that."""
    erase(one(ir.store, hopper.StoreWaitReadOp))


@fault("bf16-c", rule="R5")
def c_of_the_next_tile_loaded_too_early(ir: Ir) -> None:
    """C of the first warpgroup's next tile is loaded before its rows have been staged."""
    move_after(one(ir.store, hopper.WaitOp), all_of(ir.store, hopper.StoreCommitOp)[0])


@fault("f32-c", rule="R5")
def c_of_the_second_slice_loaded_over_the_first(ir: Ir) -> None:
    """C of the second slice is loaded, then the first slice is waited for."""
    move_after(one(ir.store, hopper.WaitOp), all_of(ir.store, hopper.ExpectOp)[2])


@fault("bf16-c", "f32-c", rule="R5")
def c_not_waited_for(ir: Ir) -> None:
    """C is added before it has arrived."""
    erase(one(ir.math, hopper.WaitOp, on=ir.storage("drained")))


@fault("bf16-c", rule="R0")
def c_waited_for_with_the_wrong_parity(ir: Ir) -> None:
    """A math warpgroup waits for the C of the tile after."""
    turned(one(ir.math, hopper.WaitOp, on=ir.storage("drained")))


@fault("bf16-c", rule="R0")
def c_not_announced(ir: Ir) -> None:
    """Nobody says how many bytes of C come."""
    erase(one(ir.store, hopper.ExpectOp))


@fault("f32-c", rule="R0")
def c_of_the_second_slice_not_loaded(ir: Ir) -> None:
    """One box of the second slice of C is expected, but not loaded."""
    erase(all_of(ir.store, hopper.TmaFillOp)[-1])


@fault("bf16-c", rule="R2")
def c_announced_twice(ir: Ir) -> None:
    """C is announced twice."""
    again(one(ir.store, hopper.ExpectOp))


@fault("bf16-c", rule="R5")
def c_loaded_into_the_other_warpgroups_area(ir: Ir) -> None:
    """C of the second warpgroup comes to the first one's area."""
    first, second = all_of(ir.store, hopper.TmaFillOp)[0], all_of(ir.store, hopper.TmaFillOp)[-1]
    put(second, "offset", get(first, "offset"))


@fault("bf16-c", caught_by="simulator")
def c_of_the_first_rows_added_everywhere(ir: Ir) -> None:
    """The second warpgroup adds the C of the first one's rows."""
    for fill in all_of(ir.store, hopper.TmaFillOp)[2:]:
        put(fill, "row_offset", 0)


@fault("bf16-c", caught_by="verifier")
def c_of_another_tile(ir: Ir) -> None:
    """C is loaded from rows of the next tile, where D may have been stored already."""
    put(all_of(ir.store, hopper.TmaFillOp)[-1], "row_offset", 128)


@fault("f32-c", caught_by="simulator")
def c_not_added(ir: Ir) -> None:
    """C is loaded, but the first slice is staged over it."""
    del one(ir.math, hopper.StageFragmentOp).properties["accumulate"]


# A scale for each column, read from the slot while sums are promoted


@fault("fp8-columns", "fp8-columns-2x1", "fp8-columns-chunk", rule="R5")
def slot_given_back_before_its_columns_are_read(ir: Ir) -> None:
    """A slot is given back, then the column scales in it are read."""
    promote = all_of(ir.math, hopper.PromoteColumnsOp)[-1]
    release = all_of(ir.math, hopper.ReleaseOp)[-1]
    move_before(release, promote)


@fault("fp8-columns", "fp8-columns-chunk", rule="R5")
def lanes_do_not_meet_after_reading_columns(ir: Ir) -> None:
    """One lane gives a slot back while others still read its scales."""
    erase(next(op for op in all_of(ir.math, hopper.SyncWarpOp) if isinstance(op.next_op, hopper.ReleaseOp)))


@fault("fp8-columns", rule="R6")
def column_scales_overwritten_without_a_fence(ir: Ir) -> None:
    """TMA may overwrite column scales that are being read: the producer loads with no fence."""
    erase(one(ir.producer, hopper.FenceProxyAsyncOp))


@fault("fp8-columns-2x1", rule="R6")
def column_scales_not_fenced_by_their_reader(ir: Ir) -> None:
    """In a cluster, a math warp does not fence the scales that it has read."""
    for fence in all_of(ir.math, hopper.FenceProxyAsyncOp):
        if isinstance(fence.next_op, hopper.SyncWarpOp) and isinstance(fence.next_op.next_op, hopper.ReleaseOp):
            erase(fence)


@fault("fp8-columns", rule="R0")
def columns_read_before_the_slot_is_full(ir: Ir) -> None:
    """The first slot is not waited for, and its scales are read."""
    erase(one(ir.math, hopper.WaitOp))


@fault("fp8-columns", rule="R0")
def column_scales_not_loaded(ir: Ir) -> None:
    """The column scales of a stage are expected, but not loaded."""
    erase(one(ir.producer, hopper.TmaLoadOp, on=ir.storage("ring_scale_b")))


@fault("fp8-columns", caught_by="simulator")
def columns_of_the_first_warpgroup_for_both(ir: Ir) -> None:
    """The second warpgroup scales its columns by the first one's scales."""
    for promote in all_of(ir.math, hopper.PromoteColumnsOp):
        put(promote, "group_columns", 0)


@fault("fp8-columns", caught_by="verifier")
def rows_of_a_wave_too_many(ir: Ir) -> None:
    """Row scales are read past those of the slot."""
    put(all_of(ir.math, hopper.PromoteColumnsOp)[-1], "wave", 2)


# Operands that are not k-major, which come in panels


@fault("bf16-mn", rule="R5")
def panels_in_one_place(ir: Ir) -> None:
    """Both panels of A land where the first one does."""
    put(all_of(ir.producer, hopper.TmaLoadOp)[1], "panel", 0)


@fault("bf16-mn", rule="R0")
def panel_not_loaded(ir: Ir) -> None:
    """One panel of A is expected, but not loaded."""
    erase(all_of(ir.producer, hopper.TmaLoadOp)[1])


@fault("bf16-mn", caught_by="verifier")
def panel_past_the_slot(ir: Ir) -> None:
    """A panel of B lands in the part that the peer loads, or past the slot."""
    put(all_of(ir.producer, hopper.TmaLoadOp)[-1], "panel", 1)


@fault("bf16-mn", caught_by="simulator")
def panels_read_as_rows(ir: Ir) -> None:
    """B lies in panels, but is read as if it were k-major."""
    for wgmma in all_of(ir.math, hopper.WgmmaOp):
        del wgmma.properties["b_panels"]


@fault("bf16-mn", caught_by="verifier")
def wave_inside_a_panel(ir: Ir) -> None:
    """A wave starts in the middle of a panel."""
    put(one(ir.math, hopper.WgmmaOp), "a_row", 32)
