"""Where CTAs of a cluster end: none may be gone while a signal to it is on its way (R8)."""

from __future__ import annotations

from gemmir.dialects import hopper
from gemmir.passes.sync.report import refuse


def check_exits(kernel: hopper.KernelOp) -> None:
    """
    The last meeting of a cluster is a release: a relaxed one does not wait for arrivals that were sent before it.

    No CTA of it ends early, for want of a tile: its peers would wait for it.
    """
    if kernel.cluster_ctas == 1:
        return
    for op in kernel.body.block.ops:
        if isinstance(op, hopper.CountTilesOp):
            refuse("R8", "a CTA of a cluster ends before its peers", "CTAs that may have no tile stand alone", op)
    meetings = [op for op in kernel.body.block.ops if isinstance(op, hopper.ClusterSyncOp)]
    if len(meetings) > 1 and meetings[-1].release is None:
        refuse(
            "R8",
            "the last meeting of the cluster does not wait for signals that are on their way",
            "hopper.cluster_sync release at the end",
            meetings[-1],
        )
