"""Faults of the math warpgroups, up to the way out."""

from __future__ import annotations

from xdsl.dialects.builtin import UnitAttr

from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import count
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import (
    Ir,
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

MATH = Collection()
fault = MATH.add


@fault("fp8", "bf16", rule="R0")
def first_slot_not_awaited(ir: Ir) -> None:
    """The first slot is read without waiting for it."""
    erase(one(ir.math, hopper.WaitOp))


@fault("fp8", "fp8-turns", "bf16-2x1", rule="R5")
def next_slot_not_awaited(ir: Ir) -> None:
    """Slots after the first are read without waiting for them."""
    erase(one(loop(ir.math), hopper.WaitOp))


@fault("fp8", "bf16", rule="R0")
def wait_with_the_wrong_parity(ir: Ir) -> None:
    """A math warpgroup waits for the phase before the one that fills the slot."""
    turned(one(loop(ir.math), hopper.WaitOp))


@fault("fp8", rule="R5")
def wait_for_the_slot_in_hand(ir: Ir) -> None:
    """A math warpgroup waits for the slot that it has, then reads the next one."""
    wait, ahead = one(loop(ir.math), hopper.WaitOp), one(ir.math, hopper.NextOp)
    change(wait, ahead.result, ahead.cursor)


@fault("fp8", rule="R5")
def scales_loaded_before_the_wait(ir: Ir) -> None:
    """Scales are read, then the slot is waited for."""
    body = loop(ir.math)
    move_before(one(body, hopper.LoadScalesOp), one(body, hopper.WaitOp))


@fault("fp8", "fp8-whole", "fp8-1x2", "fp8-waves-2x1", rule="R0")
def wait_in_the_very_last_block(ir: Ir) -> None:
    """A math warpgroup waits for a k-block after the last one."""
    del all_of(ir.math, hopper.WaitOp)[-1].properties["unless_last"]


@fault("bf16", rule="R2")
def no_wait_in_the_very_last_block(ir: Ir) -> None:
    """A math warpgroup does not wait for the last k-block."""
    one(loop(ir.math), hopper.WaitOp).properties["unless_last"] = UnitAttr()


@fault("fp8-2x1", "fp8-1x2", "fp8-2x2", "fp8-waves-2x1", rule="R6")
def fence_after_scales_missing(ir: Ir) -> None:
    """TMA may overwrite scales that are being read: no math warp of a cluster fences, nor does the producer."""
    erase(one(loop(ir.math), hopper.FenceProxyAsyncOp))


@fault("fp8", "fp8-1x2", rule="R5")
def lanes_do_not_meet_after_scales(ir: Ir) -> None:
    """One lane releases the slot while others may still read its scales."""
    erase(one(loop(ir.math), hopper.SyncWarpOp))


@fault("fp8", "fp8-turns", "bf16-1x2", rule="R0")
def slot_not_released(ir: Ir) -> None:
    """Slots are never given back."""
    erase(one(loop(ir.math), hopper.ReleaseOp))


@fault("fp8", "fp8-waves-2x1", "bf16", rule="R0")
def last_slot_of_a_tile_not_released(ir: Ir) -> None:
    """The last slot of a tile is never given back."""
    erase(all_of(ir.math, hopper.ReleaseOp)[-1])


@fault("fp8", "fp8-1x2", "bf16", rule="R5")
def slot_released_before_the_wait(ir: Ir) -> None:
    """A slot is given back while a WGMMA may still read it."""
    body = loop(ir.math)
    move_before(one(body, hopper.ReleaseOp), all_of(body, hopper.WgmmaWaitOp)[-1])


@fault("fp8", rule="R2")
@fault("fp8-whole", rule="R0")
def next_slot_released(ir: Ir) -> None:
    """The slot that comes next is given back instead of the one that is done."""
    body = loop(ir.math)
    release = one(body, hopper.ReleaseOp)
    change(release, release.cursor, one(body, hopper.NextOp).result)


@fault("fp8", "bf16", rule="R2")
def slot_released_twice(ir: Ir) -> None:
    """A slot is given back twice."""
    again(one(loop(ir.math), hopper.ReleaseOp))


@fault("fp8", rule="R3")
def released_on_the_full_barrier(ir: Ir) -> None:
    """A slot is given back on the barrier of the filled ones."""
    change(one(loop(ir.math), hopper.ReleaseOp), ir.storage("empty"), ir.storage("full"))


@fault("fp8-2x1", "bf16-1x2", "fp8-2x2", "bf16-4x1", rule="R3")
def peer_not_told(ir: Ir) -> None:
    """A slot that the peer writes, too, is given back to this CTA only."""
    for op in all_of(ir.math, hopper.ReleaseOp):
        put(op, "peers", 1)


@fault("fp8", rule="R8")
def peer_that_does_not_exist(ir: Ir) -> None:
    """A slot is given back to a second CTA where there is one."""
    put(one(ir.math, hopper.ReleaseOp), "peers", 2)


@fault("fp8", "fp8-turns", rule="R5a")
def wgmma_left_in_flight(ir: Ir) -> None:
    """A partial sum is used while its WGMMA may still run: one group is left in flight."""
    put(one(loop(ir.math), hopper.WgmmaWaitOp), "pending", 1)


@fault("bf16", "bf16-2x1", rule="R5")
def two_groups_left_in_flight(ir: Ir) -> None:
    """A slot is given back when two groups of WGMMAs may still run."""
    put(one(loop(ir.math), hopper.WgmmaWaitOp), "pending", 2)


@fault("bf16", rule="R5")
def no_wait_for_wgmma_in_the_loop(ir: Ir) -> None:
    """A slot is given back without waiting for its WGMMAs."""
    erase(one(loop(ir.math), hopper.WgmmaWaitOp))


@fault("fp8", "fp8-1x2", rule="R5a")
def no_wait_for_wgmma(ir: Ir) -> None:
    """A partial sum is used without waiting for its WGMMA."""
    erase(one(loop(ir.math), hopper.WgmmaWaitOp))


@fault("bf16", rule="R5a")
def total_used_in_flight(ir: Ir) -> None:
    """A tile is staged when its last WGMMA may still run."""
    put(all_of(ir.math, hopper.WgmmaWaitOp)[-1], "pending", 1)


@fault("fp8", rule="R5a")
def wgmma_not_committed(ir: Ir) -> None:
    """A WGMMA belongs to no group when it is waited for."""
    erase(one(loop(ir.math), hopper.WgmmaCommitOp))


@fault("bf16", rule="R5a")
def wgmma_not_committed_in_place(ir: Ir) -> None:
    """WGMMAs of one k-block join the group of the next."""
    erase(one(loop(ir.math), hopper.WgmmaCommitOp))


@fault("fp8", "bf16", rule="R5a")
def no_wgmma_fence(ir: Ir) -> None:
    """Registers are handed to a WGMMA without a fence."""
    for op in all_of(ir.math, hopper.WgmmaFenceOp):
        erase(op)


@fault("fp8", rule="R5a")
def no_wgmma_fence_after_promotion(ir: Ir) -> None:
    """A partial sum is overwritten by the next WGMMA with no fence after its use."""
    erase(one(loop(ir.math), hopper.WgmmaFenceOp))


@fault("fp8", rule="R5a")
def promoted_before_the_wait(ir: Ir) -> None:
    """A partial sum is used, then waited for."""
    body = loop(ir.math)
    move_before(one(body, hopper.PromoteOp), one(body, hopper.WgmmaWaitOp))


@fault("fp8", rule="R5a")
def promoted_after_the_next_wgmma(ir: Ir) -> None:
    """The next WGMMA overwrites a partial sum that has not been used."""
    body = loop(ir.math)
    move_after(one(body, hopper.PromoteOp), one(body, hopper.WgmmaCommitOp))


@fault("fp8", "bf16", rule="R5a")
def wait_names_nothing(ir: Ir) -> None:
    """The compiler may move the use of an accumulator above the wait."""
    for op in all_of(ir.math, hopper.WgmmaWaitOp):
        op.operands = []


@fault("fp8", "fp8-turns", rule="R8")
def last_wgmma_not_awaited(ir: Ir) -> None:
    """The CTA may end while its last WGMMA reads a slot."""
    erase(all_of(ir.math, hopper.WgmmaWaitOp)[-1])


@fault("fp8", rule="R5")
def wgmma_of_a_slot_given_back(ir: Ir) -> None:
    """The first wave of the next k-block reads the slot that was just given back."""
    body = loop(ir.math)
    wgmma = all_of(body, hopper.WgmmaOp)[-1]
    change(wgmma, wgmma.cursor, one(body, hopper.NextOp).cursor)


@fault("fp8", "bf16-2x1", rule="R2")
def math_stays_in_its_slot(ir: Ir) -> None:
    """A math warpgroup does not advance."""
    erase(one(loop(ir.math), hopper.AdvanceOp))


@fault("fp8", rule="R5")
def math_skips_slots(ir: Ir) -> None:
    """A math warpgroup advances twice."""
    again(one(loop(ir.math), hopper.AdvanceOp))


@fault("fp8", rule="R5")
@fault("fp8-whole", "bf16", "bf16-2x1", rule="R8")
def math_misses_the_last_block(ir: Ir) -> None:
    """A math warpgroup uses one k-block fewer than the producer loads."""
    put(loop(ir.math), "last", get(loop(ir.math), "last") - 1)


@fault("bf16", rule="R0")
def math_uses_a_block_too_many(ir: Ir) -> None:
    """A math warpgroup peels a k-block and then counts it again."""
    put(loop(ir.math), "first", 0)


@fault("fp8-turns", rule="R0")
def nobody_begins(ir: Ir) -> None:
    """No warpgroup lets the first one begin."""
    erase(one(ir.math, hopper.PassTurnOp))


@fault("fp8-turns", rule="R0")
def turn_not_passed(ir: Ir) -> None:
    """A warpgroup keeps its turn."""
    erase(one(loop(ir.math), hopper.PassTurnOp))


@fault("fp8-turns", rule="R4")
def turn_not_taken(ir: Ir) -> None:
    """A warpgroup issues without its turn."""
    erase(one(loop(ir.math), hopper.TakeTurnOp))


@fault("fp8-turns", rule="R4")
def last_turn_left_over(ir: Ir) -> None:
    """Threads are left at a named barrier."""
    erase(all_of(ir.math, hopper.TakeTurnOp)[-1])


@fault("fp8-turns", rule="R0")
def last_turn_taken_by_the_wrong_one(ir: Ir) -> None:
    """The wrong warpgroup takes the turn that is left over."""
    put(all_of(ir.math, hopper.TakeTurnOp)[-1], "only", 1)


@fault("fp8-turns", rule="R0")
def turn_passed_to_oneself(ir: Ir) -> None:
    """A turn is passed among one warpgroup instead of two."""
    for op in all_of(ir.math, hopper.PassTurnOp):
        put(op, "groups", 1)


@fault("fp8-turns", rule="R4")
def turn_passed_before_it_is_taken(ir: Ir) -> None:
    """A turn is passed on, then taken."""
    body = loop(ir.math)
    move_before(one(body, hopper.PassTurnOp), one(body, hopper.TakeTurnOp))


@fault("fp8", caught_by="simulator")
def column_scales_of_the_other_warpgroup(ir: Ir) -> None:
    """Both warpgroups read the first one's column scales."""
    for op in all_of(ir.math, hopper.LoadScalesOp):
        put(op, "group_steps", 0)


@fault("fp8", caught_by="simulator")
def row_scales_of_the_other_wave(ir: Ir) -> None:
    """The second wave is scaled like the first."""
    put(all_of(ir.math, hopper.PromoteOp)[1], "wave", 0)


@fault("fp8", caught_by="simulator")
def rows_of_the_other_wave(ir: Ir) -> None:
    """The second wave multiplies the first one's rows of A."""
    put(all_of(ir.math, hopper.WgmmaOp)[1], "a_row", 0)


@fault("bf16", caught_by="simulator")
def rows_of_the_other_warpgroup(ir: Ir) -> None:
    """Both warpgroups multiply the first one's rows of A."""
    for op in all_of(ir.math, hopper.WgmmaOp):
        put(op, "a_group_rows", 0)


@fault("fp8", caught_by="simulator")
def columns_of_the_other_warpgroup(ir: Ir) -> None:
    """Both warpgroups multiply the first one's columns of B."""
    for op in all_of(ir.math, hopper.WgmmaOp):
        put(op, "b_group_rows", 0)


@fault("fp8", caught_by="simulator")
def partial_sum_not_fresh(ir: Ir) -> None:
    """A partial sum is added to the one before."""
    del all_of(ir.math, hopper.WgmmaOp)[-1].properties["fresh"]


@fault("bf16", caught_by="simulator")
def total_always_fresh(ir: Ir) -> None:
    """A total forgets the k-blocks before."""
    one(loop(ir.math), hopper.WgmmaOp).properties["fresh"] = UnitAttr()


@fault("fp8", caught_by="simulator")
def totals_not_zeroed(ir: Ir) -> None:
    """A tile begins with the totals of the one before."""
    erase(one(ir.math, hopper.ZeroOp))


@fault("fp8", caught_by="simulator")
def scales_of_the_first_block_for_all(ir: Ir) -> None:
    """Scales are loaded and never moved to where they are used."""
    erase(one(ir.math, hopper.MoveScalesOp))


@fault("fp8", caught_by="simulator")
def scales_moved_too_early(ir: Ir) -> None:
    """The last wave is scaled with the next k-block's scales."""
    body = loop(ir.math)
    move_after(one(body, hopper.MoveScalesOp), one(body, hopper.SyncWarpOp))


@fault("fp8-turns", caught_by="verifier")
def registers_that_do_not_exist(ir: Ir) -> None:
    """setmaxnreg takes multiples of 8."""
    put(one(ir.math, hopper.SetMaxRegistersOp), "registers", 228)


@fault("fp8", rule="R0")
def registers_over_budget(ir: Ir) -> None:
    """The math warpgroups ask for more registers than there are, and wait for them for ever."""
    put(one(ir.math, hopper.SetMaxRegistersOp), "registers", 240)


@fault("fp8-1x2", rule="R0")
def cursor_of_another_warpgroup(ir: Ir) -> None:
    """A math warpgroup moves the producer's cursor."""
    advance = one(loop(ir.math), hopper.AdvanceOp)
    change(advance, advance.cursor, one(ir.producer, hopper.CursorOp).result)


@fault("bf16-1x2", rule="R5")
def slot_awaited_after_its_use(ir: Ir) -> None:
    """A slot is multiplied, then waited for."""
    body = loop(ir.math)
    move_after(one(body, hopper.WaitOp), one(body, hopper.WgmmaCommitOp))


@fault("fp8", rule="R5")
def scales_read_from_the_next_slot(ir: Ir) -> None:
    """The first scales are read from a slot that was not waited for."""
    load = one(ir.math, hopper.LoadScalesOp)
    following = hopper.NextOp.build(operands=[load.cursor], result_types=[load.cursor.type])
    before(load, following)
    change(load, load.cursor, following.result)


@fault("bf16", rule="R0")
def turns_without_a_partner(ir: Ir) -> None:
    """A warpgroup waits for a turn that nobody passes."""
    wgmma = one(ir.math, hopper.WgmmaOp)
    take = hopper.TakeTurnOp.build(operands=[wgmma.group], properties={"groups": count(2)})
    before(wgmma, take)
