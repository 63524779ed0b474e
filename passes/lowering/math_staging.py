"""What all kinds of math warpgroup do with finished waves of a tile: add C, round, stage, tell the store warp."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage
from gemmir.target import SM_90A


def stage_slice(
    emit: Emitter,
    plan: Plan,
    storage: Storage,
    group: SSAValue,
    at: SSAValue,
    totals: Sequence[SSAValue],
    column: int = 0,
) -> None:
    """
    Stage the waves of one slice, their columns from `column` on. `at` counts slices: the staging area is free again
    once the store warp has drained the slice before; an operand C lies there then, which is added.
    """
    emit.op(hopper.WaitOp if plan.problem.has_c else hopper.AcquireOp, storage.drained, at, [group])
    for wave, total in enumerate(totals):
        row = wave * SM_90A.wgmma_m
        how = {"accumulate": plan.problem.has_c, "transposed": plan.swapped}
        emit.op(hopper.StageFragmentOp, total, storage.staging, group, row=row, column=column, **how)
    emit.op(hopper.FenceProxyAsyncOp)
    emit.op(hopper.SyncWarpOp)
    emit.op(hopper.ArriveOp, storage.staged, at, [group])
    emit.op(hopper.AdvanceOp, at)
