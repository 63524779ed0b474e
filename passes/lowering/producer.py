"""The producer warp: fills the ring by TMA, and with scales, where they have no warp of their own."""

from __future__ import annotations

from dataclasses import replace

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import count
from gemmir.dialects.hopper.types import AxisName
from gemmir.layouts import PANEL
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.exchange import exchange_cursor, grant_slots
from gemmir.passes.lowering.gather import grant_all, granting
from gemmir.passes.lowering.operand_loads import evict, number_of
from gemmir.passes.lowering.parameters import Parameters
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.slot_scales import next_weight_scales, put_scales, start_weight_scales, weight_scales_of
from gemmir.passes.lowering.storage import Storage
from gemmir.passes.lowering.tiles import Tile, each_block, each_tile, own_matrix


def producer(emit: Emitter, plan: Plan, parameters: Parameters, storage: Storage) -> None:
    """For each k-block of each tile: wait for a free slot, load it, say what is coming."""
    if plan.scales_apart:  # another warp loads them
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
        batch = start_weight_scales(each, plan, weights, tile.n0)
        with each_block(each, plan, tile) as (body, k):
            block = number_of(body, plan, tile, k)
            # Before the wait, so that the global load's latency hides behind it.
            scales = next_weight_scales(body, plan, weights, tile.n0, (k, block), batch)
            _load_stage(body, plan, parameters, storage, at, tile, block, scales)
        if granted is not None:
            grant_slots(each, plan, storage, at, granted)
        if to_all is not None:
            grant_all(each, plan, storage, to_all)


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
    put_scales(emit, plan, parameters, storage, at, tile, k, scales)
    nbytes = plan.operand_bytes + (plan.scale_bytes if storage.scale_a is not None else 0)
    # Keeps the lanes that only wait in step with the one that acts: left behind by two phases, they would hang.
    emit.op(hopper.SyncWarpOp)
    emit.op(hopper.ExpectOp, storage.full, at, [], bytes=nbytes)
    emit.op(hopper.AdvanceOp, at)
