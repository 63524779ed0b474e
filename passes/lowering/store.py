"""
The store warp: one thread sends staged tiles off, warpgroup by warpgroup.

An SM sends only some 32 bytes a cycle to L2, so math warps that stored their results themselves would stall. One
warpgroup's tile at a time: two in the queue at once delay the loads behind them.
"""

from __future__ import annotations

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IntegerAttr

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import INDEX, Emitter
from gemmir.passes.lowering.kernel import Parameters, Plan, Storage


def store(emit: Emitter, plan: Plan, parameters: Parameters, storage: Storage) -> None:
    """For each tile and warpgroup: wait until it is staged, store its boxes, say that it is drained."""
    at = emit.value(hopper.CursorOp, hopper.CursorType(1), "at")
    constants = [ConstantOp(IntegerAttr(g, INDEX)) for g in range(plan.groups)]
    for number, constant in enumerate(constants):
        constant.result.name_hint = f"group{number}"
        emit.insert(constant)
    with emit.inside(hopper.TilesOp, "m0", "n0", **plan.raster) as (tile, (m0, n0)):
        for number, constant in enumerate(constants):
            group = constant.result
            tile.op(hopper.WaitOp, storage.staged, at, [group])
            for chunk in plan.tile.store_chunks:
                tile.op(
                    hopper.TmaStoreOp,
                    *(storage.staging, parameters.maps_d[chunk.columns], m0, n0),
                    offset=number * plan.layout.staging_bytes + chunk.offset,
                    row_offset=number * plan.group_rows,
                    column_offset=number * plan.group_columns + chunk.first,
                )
            tile.op(hopper.StoreCommitOp)
            tile.op(hopper.StoreWaitReadOp, pending=0)
            tile.op(hopper.ArriveOp, storage.drained, at, [group])
        tile.op(hopper.AdvanceOp, at)
