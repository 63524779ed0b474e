"""
Two CTAs that sum a part of K of one tile each swap halves of it, through slots of their operand rings.

Each finishes one wave of every warpgroup. To the ring an exchange looks like more k-blocks of the tile: the producer
waits for free slots, says what is coming, and grants them to the peer, whose math warpgroups send what TMA would load.
So no shared memory is set aside for it. Signals between the CTAs are releases to the cluster and are acquired as such:
what they order are ordinary accesses. All of them are waited for before a CTA ends, so that it need not meet its peer
then.
"""

from __future__ import annotations

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage


def exchange_cursor(emit: Emitter, plan: Plan, name: str) -> SSAValue | None:
    """A cursor that counts exchanges, one a tile, or None where there are none."""
    if plan.halves == 1:
        return None
    return emit.value(hopper.CursorOp, hopper.CursorType(1), name)


def positions(emit: Emitter, plan: Plan, first: SSAValue) -> list[SSAValue]:
    """The slots of one exchange, from position `first` on."""
    found = [first]
    for _ in range(1, plan.exchange.parts):
        found.append(emit.value(hopper.NextOp, first.type, "ahead", found[-1]))
    return found


def grant_slots(emit: Emitter, plan: Plan, storage: Storage, at: SSAValue, granted: SSAValue) -> None:
    """
    The producer's side: grant the peer the slots behind a tile's k-blocks.

    The next grant may follow once the peer's math warps have seen this one. In a ring of up to twice as many slots it
    waits for one of these anyway; in a longer one the producer waits here until the peer fills them, and so does the
    next tile.
    """
    assert storage.room is not None
    slots = positions(emit, plan, at)
    for slot in slots:
        emit.op(hopper.AcquireOp, storage.empty, slot, [])
    emit.op(hopper.SyncWarpOp)
    for slot in slots:
        emit.op(hopper.ExpectOp, storage.full, slot, [], bytes=plan.groups * plan.exchange.group_bytes)
    emit.op(hopper.GrantOp, storage.room, granted, [])
    if plan.stages > 2 * len(slots):
        emit.op(hopper.WaitOp, storage.full, at, [], of_peer=True)
    for _ in slots:
        emit.op(hopper.AdvanceOp, at)


def send_sums(
    emit: Emitter,
    plan: Plan,
    storage: Storage,
    group: SSAValue,
    first: SSAValue,
    sent: SSAValue,
    sums: SSAValue,
) -> None:
    """Send the wave that the peer finishes, to its slots from position `first` on, once it has granted them."""
    assert storage.room is not None
    exchange = plan.exchange
    slots = positions(emit, plan, first)
    emit.op(hopper.WaitOp, storage.room, sent, [], of_peer=True)
    for part, slot in enumerate(slots):
        emit.op(
            hopper.SendSumsOp,
            *(sums, storage.a if exchange.in_a else storage.b, slot, group, storage.full),
            first=part * exchange.registers,
            registers=exchange.registers,
        )
    emit.op(hopper.AdvanceOp, sent)


def add_sums(emit: Emitter, plan: Plan, storage: Storage, group: SSAValue, at: SSAValue, sums: SSAValue) -> None:
    """Add what the peer has sent to the wave that is finished here, and give the slots back."""
    exchange = plan.exchange
    for part, slot in enumerate(positions(emit, plan, at)):
        emit.op(hopper.WaitOp, storage.full, slot, [], of_peer=True)
        emit.op(
            hopper.AddSumsOp,
            *(sums, storage.a if exchange.in_a else storage.b, slot, group),
            first=part * exchange.registers,
            registers=exchange.registers,
        )
    emit.op(hopper.FenceProxyAsyncOp)
    emit.op(hopper.SyncWarpOp)
    for _ in range(exchange.parts):
        emit.op(hopper.ReleaseOp, storage.empty, at, [], peers=plan.peers)
        emit.op(hopper.AdvanceOp, at)
