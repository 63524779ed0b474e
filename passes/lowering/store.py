"""
The store warp: one thread sends staged slices of tiles off, warpgroup by warpgroup.

An SM sends only some 32 bytes a cycle to L2, so math warps that stored their results themselves would stall. One
warpgroup's slice at a time: two in the queue at once delay the loads behind them.
"""

from __future__ import annotations

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IntegerAttr
from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import INDEX, Emitter
from gemmir.passes.lowering.kernel import Parameters, Plan, Storage


def store(emit: Emitter, plan: Plan, parameters: Parameters, storage: Storage) -> None:
    """For each tile, slice and warpgroup: wait until it is staged, store its boxes, say that it is drained."""
    at = emit.value(hopper.CursorOp, hopper.CursorType(1), "at")
    constants = [ConstantOp(IntegerAttr(g, INDEX)) for g in range(plan.groups)]
    for number, constant in enumerate(constants):
        constant.result.name_hint = f"group{number}"
        emit.insert(constant)
    with emit.inside(hopper.TilesOp, "m0", "n0", **plan.raster) as (tile, (m0, n0)):
        for slice_ in range(plan.slices):
            for number, constant in enumerate(constants):
                tile.op(hopper.WaitOp, storage.staged, at, [constant.result])
                _store_slice(tile, plan, parameters, storage, (m0, n0), number, slice_)
                tile.op(hopper.ArriveOp, storage.drained, at, [constant.result])
            tile.op(hopper.AdvanceOp, at)


def _store_slice(
    emit: Emitter,
    plan: Plan,
    parameters: Parameters,
    storage: Storage,
    origin: tuple[SSAValue, SSAValue],
    group: int,
    slice_: int,
) -> None:
    for chunk in plan.slice_chunks:
        emit.op(
            hopper.TmaStoreOp,
            *(storage.staging, parameters.maps_d[chunk.columns], *origin),
            offset=group * plan.layout.staging_bytes + chunk.offset,
            row_offset=group * plan.group_rows + slice_ * plan.slice_rows,
            column_offset=group * plan.group_columns + chunk.first,
        )
    emit.op(hopper.StoreCommitOp)
    emit.op(hopper.StoreWaitReadOp, pending=0)
