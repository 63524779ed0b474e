"""Where CTAs of a cluster end: none may be gone while a signal to it is on its way (R8)."""

from __future__ import annotations

from gemmir.dialects import hopper
from gemmir.passes.sync.report import refuse


def check_exits(kernel: hopper.KernelOp) -> None:
    """
    The last meeting of a cluster is a release: a relaxed one does not wait for arrivals that were sent before it.

    No CTA of it ends early, for want of a tile, while its peers have one and wait for it. What the index operand holds
    is not known, but a list that is dealt out `per_cluster` depends on nothing else but the cluster's number: it is the
    same for all of them.
    """
    if kernel.cluster_ctas == 1:
        return
    for op in kernel.body.block.ops:
        if isinstance(op, hopper.CountTilesOp) and op.per_cluster is None:
            what = "a CTA of a cluster may have fewer tiles than its peers, or none, and end before them"
            refuse("R8", what, "hopper.count_tiles per_cluster", op)
    meetings = [op for op in kernel.body.block.ops if isinstance(op, hopper.ClusterSyncOp)]
    if len(meetings) > 1 and meetings[-1].release is None:
        refuse(
            "R8",
            "the last meeting of the cluster does not wait for signals that are on their way",
            "hopper.cluster_sync release at the end",
            meetings[-1],
        )
