"""What both kinds of math warpgroup do with finished waves of a tile: round, stage, hand them to the store warp."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.kernel import Storage
from gemmir.target import SM_90A


def stage_slice(emit: Emitter, storage: Storage, group: SSAValue, at: SSAValue, totals: Sequence[SSAValue]) -> None:
    """
    Stage the waves of one slice. `at` counts slices: the staging area is free again once the store warp has drained
    the slice before.
    """
    emit.op(hopper.AcquireOp, storage.drained, at, [group])
    for wave, total in enumerate(totals):
        emit.op(hopper.StageFragmentOp, total, storage.staging, group, row=wave * SM_90A.wgmma_m)
    emit.op(hopper.FenceProxyAsyncOp)
    emit.op(hopper.SyncWarpOp)
    emit.op(hopper.ArriveOp, storage.staged, at, [group])
    emit.op(hopper.AdvanceOp, at)
