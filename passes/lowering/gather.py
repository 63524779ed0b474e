"""
One CTA of a cluster gathers the sums of the others, which sum a part of K each, and finishes the tile.

It has a slot for each of them. Its producer grants a slot to the CTA that fills it, whose math warpgroups send their
sums as soon as they are final; those of the first part add them in the order of K. Signals between the CTAs are
releases to the cluster and are acquired as such. All of them are waited for before a CTA ends, so that it need not meet
the others then.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage


@dataclass(frozen=True)
class Granting:
    """Cursors of the producer: over the slots that it grants, and one that counts tiles."""

    slot: SSAValue
    granted: SSAValue


def granting(emit: Emitter, plan: Plan) -> Granting | None:
    """None where no CTA gathers sums."""
    if not plan.layout.sum_slots:
        return None
    slot = emit.value(hopper.CursorOp, hopper.CursorType(plan.layout.sum_slots), "slot")
    return Granting(slot, emit.value(hopper.CursorOp, hopper.CursorType(1), "granted"))


def grant_all(emit: Emitter, plan: Plan, storage: Storage, cursors: Granting) -> None:
    """The producer's side: once a slot is free, say what is coming, and tell the CTA that it comes from."""
    assert storage.room is not None and storage.summed is not None and storage.unsummed is not None
    slot = cursors.slot
    with emit.inside(hopper.InPartOp) as (first, _):
        for part in range(1, plan.parts):
            first.op(hopper.AcquireOp, storage.unsummed, slot, [])
            first.op(hopper.SyncWarpOp)
            first.op(hopper.ExpectOp, storage.summed, slot, [], bytes=plan.layout.sums_bytes)
            first.op(hopper.GrantOp, storage.room, cursors.granted, [], part=part)
            first.op(hopper.AdvanceOp, slot)
        first.op(hopper.AdvanceOp, cursors.granted)


@dataclass(frozen=True)
class Gathering:
    """Cursors of a math warpgroup: over slots that it adds, and one that counts what it has sent."""

    added: SSAValue
    sent: SSAValue


def gathering(emit: Emitter, plan: Plan) -> Gathering | None:
    """None where no CTA gathers sums."""
    if not plan.layout.sum_slots:
        return None
    added = emit.value(hopper.CursorOp, hopper.CursorType(plan.layout.sum_slots), "added")
    return Gathering(added, emit.value(hopper.CursorOp, hopper.CursorType(1), "sent"))


@contextmanager
def finishing(
    emit: Emitter, plan: Plan, storage: Storage, group: SSAValue, cursors: Gathering | None, sums: SSAValue
) -> Generator[Emitter]:
    """What is done with the final `sums` of a tile is done by who finishes it; yields an emitter for that."""
    if cursors is None:
        yield emit
        return
    assert storage.room is not None and storage.sums is not None
    assert storage.summed is not None and storage.unsummed is not None
    registers = {"first": 0, "registers": plan.tile.fragment_registers}
    with emit.inside(hopper.InPartOp, others=True) as (others, _):
        others.op(hopper.WaitOp, storage.room, cursors.sent, [], of_peer=True)
        others.op(
            hopper.SendSumsOp, sums, storage.sums, cursors.sent, group, storage.summed, **registers, to_first=True
        )
        others.op(hopper.AdvanceOp, cursors.sent)
    with emit.inside(hopper.InPartOp) as (first, _):
        for _ in range(1, plan.parts):
            first.op(hopper.WaitOp, storage.summed, cursors.added, [], of_peer=True)
            first.op(hopper.AddSumsOp, sums, storage.sums, cursors.added, group, **registers)
            first.op(hopper.FenceProxyAsyncOp)
            first.op(hopper.SyncWarpOp)
            first.op(hopper.ReleaseOp, storage.unsummed, cursors.added, [], peers=1)
            first.op(hopper.AdvanceOp, cursors.added)
        yield first


@contextmanager
def by_who_finishes(emit: Emitter, plan: Plan) -> Generator[Emitter]:
    """What only the CTA does that finishes the tile."""
    if not plan.layout.sum_slots:
        yield emit
        return
    with emit.inside(hopper.InPartOp) as (first, _):
        yield first
