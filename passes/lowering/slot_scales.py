"""How slots of the ring get scales: by TMA, and by lanes that expand weight scales to one per column step."""

from __future__ import annotations

from xdsl.dialects.builtin import Float32Type
from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.operand_loads import evict
from gemmir.passes.lowering.parameters import Parameters
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage
from gemmir.passes.lowering.tiles import Tile, own_matrix
from gemmir.target import WARP_LANES

WeightScales = tuple[SSAValue, SSAValue, SSAValue]
"""Address and strides along K and N."""


def put_scales(
    emit: Emitter,
    plan: Plan,
    parameters: Parameters,
    storage: Storage,
    at: SSAValue,
    tile: Tile,
    k: SSAValue,
    weights: SSAValue | None,
) -> None:
    """The scales of a k-block: by TMA those that lie in rows, by the lanes of the warp those that they have fetched."""
    for map_, ring, column, of in (
        (parameters.map_scale_a, storage.scale_a, tile.m0, "a"),
        (parameters.map_scale_b, storage.scale_b, tile.n0, "b"),
    ):
        if map_ is not None and ring is not None:
            emit.op(
                hopper.TmaLoadOp,
                *(map_, k, column, ring, at, storage.full, own_matrix(tile, plan, of)),
                row_step=1,
                column_step=1,
                evict=evict(plan, of),
            )
    if weights is not None and storage.scale_b is not None:
        emit.op(hopper.PutScalesOp, weights, storage.scale_b, at, steps=plan.column_steps)


def weight_scales_of(emit: Emitter, parameters: Parameters, tile: Tile) -> WeightScales | None:
    """Where the weight scales of a tile's group lie."""
    scales = parameters.weight_scales
    if scales is None or tile.group is None or parameters.scale_b_stride_group is None:
        return scales
    pointer, stride_k, stride_n = scales
    stride = parameters.scale_b_stride_group
    own = emit.value(hopper.GroupPointerOp, pointer.type, "group_scale_b", pointer, tile.group, stride)
    return own, stride_k, stride_n


def start_weight_scales(emit: Emitter, plan: Plan, scales: WeightScales | None, n0: SSAValue) -> SSAValue | None:
    """Where they are fetched in batches: the first batch of a tile."""
    if scales is None or plan.scale_batch == 1:
        return None
    pointer, stride_k, stride_n = scales
    return emit.value(
        hopper.StartScalesOp,
        hopper.ScaleBatchType(plan.scale_batch, WARP_LANES // plan.scale_batch),
        "batch",
        *(pointer, n0, stride_k, stride_n),
        step=plan.tile.column_step,
        blocks=plan.k_blocks,
        in_part=plan.parts > 1,
    )


def next_weight_scales(
    emit: Emitter,
    plan: Plan,
    weights: WeightScales | None,
    n0: SSAValue,
    where: tuple[SSAValue, SSAValue],
    batch: SSAValue | None,
) -> SSAValue | None:
    """One scale a lane for a k-block, or None where there are none. `where`: its number in its part of K and in all."""
    in_part, k = where
    if batch is not None:
        return emit.value(hopper.NextScalesOp, Float32Type(), "scales", batch, in_part)
    if weights is None:
        return None
    pointer, stride_k, stride_n = weights
    return emit.value(
        hopper.FetchScalesOp,
        Float32Type(),
        "scales",
        *(pointer, k, n0, stride_k, stride_n),
        steps=plan.column_steps,
        step=plan.tile.column_step,
    )
