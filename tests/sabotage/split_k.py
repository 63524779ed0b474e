"""Faults of kernels that split K: who may send when, what is sent, and which half of a tile each CTA finishes."""

from __future__ import annotations

from xdsl.ir import Block
from xdsl.rewriter import Rewriter

from gemmir.dialects import hopper
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
    in_peeled,
    move_after,
    move_before,
    one,
    peeled,
    put,
)

SPLIT_K = Collection()
fault = SPLIT_K.add


def exchange_wait(where: Block) -> hopper.WaitOp:
    """Where the math warpgroups wait for the first of the peer's sums."""
    wait = one(where, hopper.AddSumsOp).prev_op
    assert isinstance(wait, hopper.WaitOp)
    return wait


# The grant


@fault("fp8-split", "bf16-split", rule="R0")
def slots_not_granted(ir: Ir) -> None:
    """The peer is never told that it may send its sums."""
    erase(one(ir.producer, hopper.GrantOp))


@fault("fp8-split", "fp8-split-tall", rule="R5")
def slots_granted_too_early(ir: Ir) -> None:
    """The peer may send its sums to slots that are still in use."""
    move_before(one(ir.producer, hopper.GrantOp), in_peeled(ir.producer, hopper.AcquireOp))


@fault("fp8-split", "bf16-split", rule="R2")
def last_slot_not_acquired(ir: Ir) -> None:
    """The producer grants two slots, and waits for one of them to be free."""
    erase(in_peeled(ir.producer, hopper.AcquireOp, 1))


@fault("fp8-split", rule="R8")
def grant_not_awaited(ir: Ir) -> None:
    """Sums are sent to slots that the peer has not granted."""
    erase(one(ir.math, hopper.WaitOp, on=ir.storage("room")))


@fault("fp8-split-tall", rule="R2")
def sent_then_granted(ir: Ir) -> None:
    """Sums are sent, then the grant is waited for."""
    move_after(one(ir.math, hopper.WaitOp, on=ir.storage("room")), one(ir.math, hopper.SendSumsOp))


@fault("fp8-split", "fp8-split-tall", rule="R5")
def grant_awaited_in_the_own_cta(ir: Ir) -> None:
    """The wait for the grant orders nothing that the peer has done."""
    del one(ir.math, hopper.WaitOp, on=ir.storage("room")).properties["of_peer"]


@fault("fp8-split", rule="R5")
def exchanges_not_counted(ir: Ir) -> None:
    """A math warpgroup waits for the first tile's grant in every tile."""
    sent = one(ir.math, hopper.WaitOp, on=ir.storage("room")).cursor
    erase(next(op for op in all_of(ir.math, hopper.AdvanceOp) if op.cursor is sent))


@fault("bf16-split", "fp8-split-tall", rule="R2")
def granted_twice_in_a_row(ir: Ir) -> None:
    """The producer grants the next tile's slots before the peer has seen this tile's grant."""
    erase(in_peeled(ir.producer, hopper.WaitOp))


@fault("fp8-split", rule="R2")
def granted_once_more(ir: Ir) -> None:
    """The producer grants its slots twice."""
    again(one(ir.producer, hopper.GrantOp))


@fault("fp8-split", rule="R2")
def granted_at_the_end(ir: Ir) -> None:
    """The producer grants slots after its last tile, when the peer may have ended."""
    after(one(ir.producer, hopper.TilesOp), one(ir.producer, hopper.GrantOp).clone())


# The sums


@fault("fp8-split", "bf16-split", rule="R5")
def sums_not_awaited(ir: Ir) -> None:
    """What the peer sends is added before it has arrived."""
    erase(exchange_wait(ir.math))


@fault("fp8-split", rule="R5")
def sums_added_then_awaited(ir: Ir) -> None:
    """What the peer sends is added, then waited for."""
    move_after(exchange_wait(ir.math), one(ir.math, hopper.AddSumsOp))


@fault("fp8-split", "bf16-split", rule="R5")
def sums_awaited_in_the_own_cta(ir: Ir) -> None:
    """The wait for the peer's sums makes only what its own CTA wrote seen."""
    del exchange_wait(ir.math).properties["of_peer"]


@fault("fp8-split", "bf16-split", rule="R0")
def sums_not_sent(ir: Ir) -> None:
    """Half of the sums are never sent."""
    erase(one(ir.math, hopper.SendSumsOp, 1))


@fault("fp8-split-tall", rule="R5")
def sums_sent_twice(ir: Ir) -> None:
    """The sums are sent twice into one slot."""
    again(one(ir.math, hopper.SendSumsOp))


@fault("fp8-split", rule="R2")
def sums_not_expected(ir: Ir) -> None:
    """The barrier of a slot expects the sums of one warpgroup only."""
    expect = in_peeled(ir.producer, hopper.ExpectOp)
    put(expect, "bytes", get(expect, "bytes") // 2)


@fault("fp8-split", rule="R5")
def sums_in_the_slot_of_the_last_k_block(ir: Ir) -> None:
    """Sums are sent to the slot of the tile's last k-block, which the peer may still read."""
    send = one(ir.math, hopper.SendSumsOp)
    ahead = send.cursor.owner
    assert isinstance(ahead, hopper.NextOp)
    change(send, send.cursor, ahead.cursor)


@fault("fp8-split", "fp8-split-tall", rule="R6")
def sums_read_and_not_fenced(ir: Ir) -> None:
    """The peer, or TMA, may overwrite sums that are being read: no fence after they are added."""
    erase(next(op for op in peeled(ir.math) if isinstance(op, hopper.FenceProxyAsyncOp)))


@fault("fp8-split", rule="R5")
def lanes_do_not_meet_after_the_sums(ir: Ir) -> None:
    """One lane gives the slots back while others still read the peer's sums."""
    fence = next(op for op in peeled(ir.math) if isinstance(op, hopper.FenceProxyAsyncOp))
    meeting = fence.next_op
    assert isinstance(meeting, hopper.SyncWarpOp)
    erase(meeting)


@fault("bf16-split", "fp8-split", rule="R5")
def slot_given_back_before_the_sums_are_read(ir: Ir) -> None:
    """A slot is given back, then the peer's sums in it are read."""
    add = one(ir.math, hopper.AddSumsOp)
    release = next(op for op in peeled(ir.math)[peeled(ir.math).index(add) :] if isinstance(op, hopper.ReleaseOp))
    move_before(release, add)


@fault("fp8-split", "bf16-split", rule="R0")
def slot_of_the_sums_not_given_back(ir: Ir) -> None:
    """The slots of an exchange are not given back."""
    erase([op for op in peeled(ir.math) if isinstance(op, hopper.ReleaseOp)][-1])


@fault("fp8-split", rule="R7")
def ctas_do_not_meet(ir: Ir) -> None:
    """Sums, or a grant, may come to a CTA that has not begun."""
    meeting = one(ir.frame, hopper.ClusterSyncOp)
    before(meeting, hopper.CtaSyncOp.build())
    erase(meeting)


# What is computed


@fault("fp8-split", "bf16-split", caught_by="simulator")
def wrong_wave_sent(ir: Ir) -> None:
    """A CTA sends the half of the tile that it finishes itself."""
    own = one(ir.math, hopper.AddSumsOp).sums
    for send in all_of(ir.math, hopper.SendSumsOp):
        change(send, send.sums, own)


@fault("fp8-split", "bf16-split", caught_by="simulator")
def added_to_the_wrong_wave(ir: Ir) -> None:
    """The peer's sums are added to the half that was sent."""
    other = one(ir.math, hopper.SendSumsOp).sums
    for add in all_of(ir.math, hopper.AddSumsOp):
        change(add, add.sums, other)


@fault("fp8-split", caught_by="simulator")
def sums_sent_in_the_wrong_order(ir: Ir) -> None:
    """The two halves of a warpgroup's sums change places on their way."""
    sends = all_of(ir.math, hopper.SendSumsOp)
    for send, first in zip(sends, [get(send, "first") for send in reversed(sends)], strict=True):
        put(send, "first", first)


@fault("fp8-split", "bf16-split", caught_by="simulator")
def both_sum_the_first_part(ir: Ir) -> None:
    """Both CTAs sum the first part of K."""
    block = one(ir.producer, hopper.PartBlockOp)
    Rewriter.replace_op(block, [], [block.k])


@fault("fp8-split-tall", caught_by="simulator")
def scales_of_the_first_part(ir: Ir) -> None:
    """Both CTAs take the weight scales of the first part of K."""
    del one(ir.producer, hopper.StartScalesOp).properties["in_part"]


@fault("fp8-split", "bf16-split", caught_by="simulator")
def both_compute_rows_in_the_same_order(ir: Ir) -> None:
    """Both CTAs compute the same half of the tile first."""
    for multiplication in all_of(ir.math, hopper.WgmmaOp):
        del multiplication.properties["by_part"]


@fault("fp8-split", caught_by="simulator")
def row_scales_of_the_other_wave(ir: Ir) -> None:
    """The rows' scales are not swapped where the rows are."""
    for load in all_of(ir.math, hopper.LoadScalesOp):
        del load.properties["by_part"]


@fault("fp8-split", "bf16-split", caught_by="simulator")
def both_store_the_same_half(ir: Ir) -> None:
    """Both CTAs store to the first half of the tile."""
    for store in all_of(ir.store, hopper.TmaStoreOp):
        del store.properties["part_rows"]
