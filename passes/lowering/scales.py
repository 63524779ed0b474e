"""The warp that loads scales, where operands have one of their own: those of a tile at once, or slot by slot."""

from __future__ import annotations

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import INDEX, Emitter
from gemmir.passes.lowering.operand_loads import evict, number_of
from gemmir.passes.lowering.parameters import Parameters
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.slot_scales import (
    WeightScales,
    next_weight_scales,
    put_scales,
    start_weight_scales,
    weight_scales_of,
)
from gemmir.passes.lowering.storage import Storage
from gemmir.passes.lowering.tiles import Tile, each_block, each_tile, own_matrix


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


def scales_of_slots(emit: Emitter, plan: Plan, parameters: Parameters, storage: Storage) -> None:
    """
    For each k-block of each tile: wait until its slot is free, fill in the scales, say what is coming.

    Several slots at a time have one fence, which takes longer than the loads of a short k-block.
    """
    at = emit.value(hopper.CursorOp, hopper.CursorType(plan.stages), "at")
    free = emit.value(hopper.CursorOp, hopper.CursorType(plan.stages), "free") if plan.scale_slots > 1 else at
    for region in plan.regions:
        own = parameters.of(region)
        with each_tile(emit, region, storage) as (each, tile):
            weights = weight_scales_of(each, own, tile)
            batch = start_weight_scales(each, region, weights, tile.n0)
            _fill_slots(each, region, own, storage, tile, (weights, batch), (free, at))


def _fill_slots(
    emit: Emitter,
    plan: Plan,
    parameters: Parameters,
    storage: Storage,
    tile: Tile,
    sources: tuple[WeightScales | None, SSAValue | None],
    positions: tuple[SSAValue, SSAValue],
) -> None:
    """The slots of a tile. `positions`: of what is free, of what is filled."""
    (weights, batch), (free, at), slots = sources, positions, plan.scale_slots
    with each_block(emit, plan, tile, step=slots if slots > 1 else None) as (body, k):
        numbers = [k, *(body.value(hopper.BlockAheadOp, INDEX, "k", k, ahead=i) for i in range(1, slots))]
        blocks = [number_of(body, plan, tile, number) for number in numbers]
        pairs = zip(numbers, blocks, strict=True)
        scales = [next_weight_scales(body, plan, weights, tile.n0, pair, batch) for pair in pairs]
        for _ in numbers:
            body.op(hopper.AcquireOp, storage.empty, free, [])
            if free is not at:
                body.op(hopper.AdvanceOp, free)
        if not plan.fence_where_read:
            body.op(hopper.FenceProxyAsyncOp)
        for block, fetched in zip(blocks, scales, strict=True):
            put_scales(body, plan, parameters, storage, at, tile, block, fetched)
            body.op(hopper.SyncWarpOp)
            body.op(hopper.ExpectOp, storage.full, at, [], bytes=plan.scale_bytes)
            body.op(hopper.AdvanceOp, at)
