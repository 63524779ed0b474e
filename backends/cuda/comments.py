"""What a printed kernel says about itself: a comment at the first op of each kind that has a reason worth telling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdsl.ir import Operation

from gemmir.dialects import hopper


def _holds(op: Operation, kind: type[Operation]) -> bool:
    return any(isinstance(inner, kind) for inner in op.walk())


def _holds_operands(op: Operation) -> bool:
    """Whether it loads what is not f32: A and B."""
    maps = (load.map.type for load in op.walk() if isinstance(load, hopper.TmaLoadOp))
    return any(isinstance(map_, hopper.TensorMapType) and map_.element_bytes < 4 for map_ in maps)


def _warpgroups(op: hopper.WarpgroupsOp) -> str:
    if not _holds(op, hopper.WgmmaOp):
        return ""
    if any(_holds(op, kind) for kind in (hopper.PromoteOp, hopper.PromoteBlockOp, hopper.PromoteColumnsOp)):
        return (
            "Math warpgroups: multiply slot by slot, add each partial sum, scaled, to the totals, stage finished rows."
        )
    return "Math warpgroups: multiply slot by slot, sum up in the tensor cores, stage finished rows."


def _warp(op: hopper.WarpOp) -> str:
    if _holds(op, hopper.CopyScalesOp):
        return "Scales warp: those of all k-blocks of a tile at once, so that the producer has none to wait for."
    if _holds(op, hopper.TmaLoadOp) and not _holds_operands(op):
        return "Scales warp: fills in the scales of a slot, so that the producer has none to wait for, and no fence."
    if _holds(op, hopper.TmaLoadOp):
        return "Producer warp: keeps the ring full, one k-block of A and B in a slot, with its scales if it has any."
    if _holds(op, hopper.StoreRowsOp):
        return "Store warp: sends off what is staged, one warpgroup's at a time; no row that is another group's."
    return "Store thread: sends off what is staged, one warpgroup's at a time." if _holds(op, hopper.TmaStoreOp) else ""


def _acquire(op: hopper.AcquireOp) -> str:
    if op.group is None:
        return "Until every math warp has read what the slot held before."
    return "Until the store thread has sent what was staged before."


def _wait(op: hopper.WaitOp) -> str:
    if isinstance(op.next_op, hopper.SendSumsOp):
        return "Until the peer's slot is free. Half of the tile goes there."
    if isinstance(op.prev_op, hopper.GrantOp):
        return "Until the peer's sums are there: it has seen the grant, and another may follow."
    if isinstance(op.next_op, hopper.StageFragmentOp):
        return "Until C has arrived, where the store thread has sent what was staged before."
    if op.unless_last is None:
        return ""
    return "Nothing follows the very last k-block: what is multiplied after it is dropped."


def _fence(op: hopper.FenceProxyAsyncOp) -> str:
    if isinstance(op.prev_op, hopper.AddSumsOp):
        return "What was read of the slot comes before what TMA, or the peer, puts there next."
    if isinstance(op.next_op, hopper.TmaLoadOp):
        return "What the math warps read of the slot by ordinary loads comes before TMA's writes."
    return "Ordinary accesses before this come before TMA's after the next signal."


def _wgmma(op: hopper.WgmmaOp) -> str:
    if op.fresh is None or not isinstance(op.cursor.owner, hopper.NextOp):
        return ""
    return (
        "In flight while the loop goes round, and while a tile's rows are staged: the tensor cores never wait for them."
    )


_COMMENTS: dict[type[Operation], Callable[[Any], str]] = {
    hopper.AddSumsOp: lambda op: "Half of the tile is finished here: this part of K plus the peer's, in f32.",
    hopper.AcquireOp: _acquire,
    hopper.CountTilesOp: lambda op: (
        "Only the device knows which rows are whose. "
        f"A {'CTA' if op.per_cluster is None else 'cluster'} without a tile ends here."
    ),
    hopper.ExpectOp: lambda op: "The slot is full once all these bytes have arrived." if op.group is None else "",
    hopper.FetchScalesOp: lambda op: "Before the wait, so that the load's latency hides behind it.",
    hopper.FenceProxyAsyncOp: _fence,
    hopper.InitBarriersOp: lambda op: (
        "full: a slot is loaded; empty: it is read; staged: rows may leave; drained: they have left."
    ),
    hopper.GrantOp: lambda op: "The peer may send its sums to these slots.",
    hopper.PartBlockOp: lambda op: "The CTAs of a cluster sum a part of K each.",
    hopper.PromoteBlockOp: lambda op: "total = partial * (scale of the weights * scale of each row) + total, in f32.",
    hopper.PromoteColumnsOp: lambda op: "total = partial * (row scale * column scale) + total, in f32.",
    hopper.PromoteOp: lambda op: "total = partial * (row scale * column scale) + total, in f32.",
    hopper.LaunchDependentsOp: lambda op: "The kernel behind may start: it waits for this one before it reads memory.",
    hopper.ReleaseOp: lambda op: "This warp has read the slot.",
    hopper.RingOp: lambda op: "Shared memory: rings of slots for operands and scales, rows on their way out, barriers.",
    hopper.StageFragmentOp: lambda op: (
        "Round, and lay the rows out as TMA stores them."
        if op.accumulate is None
        else "Add C in f32, round, lay the rows out as TMA stores them; box by box, since C would fill registers."
    ),
    hopper.StartScalesOp: lambda op: "Many k-blocks in one load, the next ones ahead: none is waited for.",
    hopper.StoreWaitReadOp: lambda op: "TMA has read the rows: others may be staged.",
    hopper.TilesOp: lambda op: "" if op.tail is None else "The last columns, in narrower tiles.",
    hopper.TmaFillOp: lambda op: "C comes to where the rows of D leave from: to be added to them.",
    hopper.TmaPrefetchOp: lambda op: "L2 is asked for weights while the kernel before ends.",
    hopper.WaitForGridOp: lambda op: "Until the kernels before have ended.",
    hopper.WaitOp: _wait,
    hopper.WarpOp: _warp,
    hopper.WarpgroupsOp: _warpgroups,
    hopper.WgmmaOp: _wgmma,
}


class Comments:
    """Tells what has not been said yet. Texts are ours: none comes out of the IR."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def of(self, op: Operation) -> str | None:
        """The comment for `op`, the first time that it applies."""
        text = _COMMENTS[type(op)](op) if type(op) in _COMMENTS else ""
        if not text or text in self.said:
            return None
        self.said.add(text)
        return text
