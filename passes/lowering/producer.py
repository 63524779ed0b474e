"""The producer warp: fills the ring by TMA, and expands weight scales to one per column step."""

from __future__ import annotations

from dataclasses import replace

from xdsl.dialects.builtin import Float32Type
from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import count
from gemmir.dialects.hopper.types import AxisName, EvictName
from gemmir.layouts import PANEL
from gemmir.passes.lowering.emitter import INDEX, Emitter
from gemmir.passes.lowering.exchange import exchange_cursor, grant_slots
from gemmir.passes.lowering.gather import grant_all, granting
from gemmir.passes.lowering.parameters import Parameters
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage
from gemmir.passes.lowering.tiles import Tile, each_block, each_tile, own_matrix
from gemmir.schedule import Evict
from gemmir.target import WARP_LANES

WeightScales = tuple[SSAValue, SSAValue, SSAValue]
"""Address and strides along K and N."""


def producer(emit: Emitter, plan: Plan, parameters: Parameters, storage: Storage) -> None:
    """For each k-block of each tile: wait for a free slot, load it, say what is coming."""
    if plan.scales_of_tiles:  # another warp loads them
        parameters, storage = parameters.without_scales(), replace(storage, scale_a=None, scale_b=None)
    at = emit.value(hopper.CursorOp, hopper.CursorType(plan.stages), "at")
    granted, to_all = exchange_cursor(emit, plan, "granted"), granting(emit, plan)
    for region in plan.regions:
        _fill_tiles(emit, region, parameters.of(region), storage, at, granted, to_all)


def _fill_tiles(
    emit: Emitter,
    plan: Plan,
    parameters: Parameters,
    storage: Storage,
    at: SSAValue,
    granted: SSAValue | None,
    to_all: SSAValue | None,
) -> None:
    """The k-blocks of the tiles of one loop; `granted`, `to_all`: where the CTAs of a cluster split K."""
    with each_tile(emit, plan, storage) as (each, tile):
        weights = weight_scales_of(each, parameters, tile)
        batch = _start_weight_scales(each, plan, weights, tile.n0)
        with each_block(each, plan, tile) as (body, k):
            block = _number_of(body, plan, tile, k)
            # Before the wait, so that the global load's latency hides behind it.
            scales = _weight_scales(body, plan, weights, tile.n0, (k, block), batch)
            _load_stage(body, plan, parameters, storage, at, tile, block, scales)
        if granted is not None:
            grant_slots(each, plan, storage, at, granted)
        if to_all is not None:
            grant_all(each, plan, storage, to_all)


def evict(plan: Plan, operand: str) -> hopper.EvictAttr | None:
    """What L2 does with an operand, or with its scales."""
    if plan.schedule.evict is Evict.NEITHER:
        return None
    last = operand == "a" and plan.schedule.evict is Evict.WEIGHTS
    return hopper.EvictAttr(EvictName.LAST if last else EvictName.FIRST)


def _number_of(emit: Emitter, plan: Plan, tile: Tile, k: SSAValue) -> SSAValue:
    """The number among all k-blocks of one of this CTA's, or of one of the tile's group."""
    if tile.first_block is not None:
        return emit.value(hopper.GroupBlockOp, INDEX, "block", k, tile.first_block)
    if plan.parts == 1:
        return k
    return emit.value(hopper.PartBlockOp, INDEX, "block", k, blocks=plan.k_blocks)


def _load_stage(
    emit: Emitter,
    plan: Plan,
    parameters: Parameters,
    storage: Storage,
    at: SSAValue,
    tile: Tile,
    k: SSAValue,
    scales: SSAValue | None,
) -> None:
    emit.op(hopper.AcquireOp, storage.empty, at, [])
    if storage.scale_a is not None and not plan.fence_where_read:
        emit.op(hopper.FenceProxyAsyncOp)

    def load(
        map_: SSAValue, ring: SSAValue, row: SSAValue, column: SSAValue, step: int, of: str, shared: str = ""
    ) -> None:
        emit.op(
            hopper.TmaLoadOp,
            *(map_, row, column, ring, at, storage.full, own_matrix(tile, plan, of)),
            row_step=1,
            column_step=step,
            multicast=hopper.AxisAttr(AxisName(shared)) if shared else None,
            evict=evict(plan, of),
        )

    def load_operand(map_: SSAValue, ring: SSAValue, first: SSAValue, of: str, panels: int, shared: str) -> None:
        """A slot of A or B; panel by panel where it is not k-major."""
        if (plan.problem.a_major if of == "a" else plan.problem.b_major) == "k":
            return load(map_, ring, first, k, plan.problem.block_k, of, shared)
        for panel in range(panels):
            emit.op(
                hopper.TmaLoadOp,
                *(map_, k, first, ring, at, storage.full, own_matrix(tile, plan, of)),
                row_step=plan.problem.block_k,
                column_step=1,
                multicast=hopper.AxisAttr(AxisName(shared)) if shared else None,
                panel=count(panel),
                evict=evict(plan, of),
            )

    shared_a, shared_b = "n" if plan.cluster_n > 1 else "", "m" if plan.cluster_m > 1 else ""
    panels_a, panels_b = plan.block_m // plan.cluster_n // PANEL, plan.block_n // plan.cluster_m // PANEL
    load_operand(parameters.map_a, storage.a, tile.m0, "a", panels_a, shared_a)
    load_operand(parameters.map_b, storage.b, tile.n0, "b", panels_b, shared_b)
    if parameters.map_scale_a is not None and storage.scale_a is not None:
        load(parameters.map_scale_a, storage.scale_a, k, tile.m0, 1, "a")
    if parameters.map_scale_b is not None and storage.scale_b is not None:
        load(parameters.map_scale_b, storage.scale_b, k, tile.n0, 1, "b")
    if scales is not None and storage.scale_b is not None:
        emit.op(hopper.PutScalesOp, scales, storage.scale_b, at, steps=plan.column_steps)
    # Keeps the lanes that only wait in step with the one that acts: left behind by two phases, they would hang.
    emit.op(hopper.SyncWarpOp)
    emit.op(hopper.ExpectOp, storage.full, at, [], bytes=plan.stage_load_bytes)
    emit.op(hopper.AdvanceOp, at)


def weight_scales_of(emit: Emitter, parameters: Parameters, tile: Tile) -> WeightScales | None:
    """Where the weight scales of a tile's group lie."""
    scales = parameters.weight_scales
    if scales is None or tile.group is None or parameters.scale_b_stride_group is None:
        return scales
    pointer, stride_k, stride_n = scales
    stride = parameters.scale_b_stride_group
    own = emit.value(hopper.GroupPointerOp, pointer.type, "group_scale_b", pointer, tile.group, stride)
    return own, stride_k, stride_n


def _start_weight_scales(emit: Emitter, plan: Plan, scales: WeightScales | None, n0: SSAValue) -> SSAValue | None:
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


def _weight_scales(
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
