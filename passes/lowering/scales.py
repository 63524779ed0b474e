"""The warp that loads the scales of all k-blocks of a tile at once, where its operands have a warp of their own."""

from __future__ import annotations

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import INDEX, Emitter
from gemmir.passes.lowering.parameters import Parameters
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.producer import evict, weight_scales_of
from gemmir.passes.lowering.storage import Storage
from gemmir.passes.lowering.tiles import each_tile, own_matrix


def scales_of_tiles(emit: Emitter, plan: Plan, parameters: Parameters, storage: Storage) -> None:
    """For each tile: wait for a slot, load the scales of rows by TMA, copy those of weights, say what is coming."""
    assert storage.scale_a is not None and storage.scale_b is not None and parameters.map_scale_a is not None
    assert storage.scaled is not None and storage.unscaled is not None
    at = emit.value(hopper.CursorOp, hopper.CursorType(plan.layout.scale_tiles), "at")
    first = emit.value(hopper.FirstBlockOp, INDEX, "first", blocks=plan.k_blocks)
    with each_tile(emit, plan, storage) as (each, tile):
        weights = weight_scales_of(each, parameters, tile)
        assert weights is not None
        each.op(hopper.AcquireOp, storage.unscaled, at, [])
        each.op(hopper.FenceProxyAsyncOp)
        each.op(
            hopper.TmaLoadOp,
            *(parameters.map_scale_a, first, tile.m0, storage.scale_a, at, storage.scaled, own_matrix(tile, plan, "a")),
            row_step=1,
            column_step=1,
            evict=evict(plan, "a"),
        )
        pointer, stride_k, stride_n = weights
        each.op(
            hopper.CopyScalesOp,
            *(pointer, first, tile.n0, stride_k, stride_n, storage.scale_b, at),
            step=plan.tile.column_step,
            blocks=plan.problem.k_blocks,
        )
        # The lanes' stores come before the arrival that tells of them.
        each.op(hopper.SyncWarpOp)
        each.op(hopper.ExpectOp, storage.scaled, at, [], bytes=plan.layout.scale_a_bytes)
        each.op(hopper.AdvanceOp, at)
