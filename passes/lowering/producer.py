"""The producer warp: fills the ring by TMA, and expands weight scales to one per column step."""

from __future__ import annotations

from xdsl.dialects.builtin import Float32Type
from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.dialects.hopper.types import AxisName
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.kernel import Parameters, Plan, Storage


def producer(emit: Emitter, plan: Plan, parameters: Parameters, storage: Storage) -> None:
    """For each k-block of each tile: wait for a free slot, load it, say what is coming."""
    at = emit.value(hopper.CursorOp, hopper.CursorType(plan.stages), "at")
    with emit.inside(hopper.TilesOp, "m0", "n0", **plan.raster) as (tile, (m0, n0)):
        with tile.inside(hopper.KBlocksOp, "k", first=0, last=plan.problem.k_blocks) as (body, (k,)):
            _load_stage(body, plan, parameters, storage, at, (m0, n0, k))


def _load_stage(
    emit: Emitter,
    plan: Plan,
    parameters: Parameters,
    storage: Storage,
    at: SSAValue,
    where: tuple[SSAValue, SSAValue, SSAValue],
) -> None:
    m0, n0, k = where
    # Before the wait, so that the global load's latency hides behind it.
    scales = _fetch_weight_scales(emit, plan, parameters, n0, k)
    emit.op(hopper.AcquireOp, storage.empty, at, [])

    def load(map_: SSAValue, ring: SSAValue, row: SSAValue, column: SSAValue, step: int, shared: str = "") -> None:
        emit.op(
            hopper.TmaLoadOp,
            *(map_, row, column, ring, at, storage.full),
            row_step=1,
            column_step=step,
            multicast=hopper.AxisAttr(AxisName(shared)) if shared else None,
        )

    block_k = plan.problem.block_k
    load(parameters.map_a, storage.a, m0, k, block_k, "n" if plan.cluster_n > 1 else "")
    load(parameters.map_b, storage.b, n0, k, block_k, "m" if plan.cluster_m > 1 else "")
    if parameters.map_scale_a is not None and storage.scale_a is not None:
        load(parameters.map_scale_a, storage.scale_a, k, m0, 1)
    if scales is not None and storage.scale_b is not None:
        emit.op(hopper.PutScalesOp, scales, storage.scale_b, at, steps=plan.column_steps)
    # Keeps the lanes that only wait in step with the one that acts: left behind by two phases, they would hang.
    emit.op(hopper.SyncWarpOp)
    emit.op(hopper.ExpectOp, storage.full, at, [], bytes=plan.stage_load_bytes)
    emit.op(hopper.AdvanceOp, at)


def _fetch_weight_scales(
    emit: Emitter, plan: Plan, parameters: Parameters, n0: SSAValue, k: SSAValue
) -> SSAValue | None:
    if parameters.scale_b is None or parameters.scale_b_stride_k is None or parameters.scale_b_stride_n is None:
        return None
    return emit.value(
        hopper.FetchScalesOp,
        Float32Type(),
        "scales",
        *(parameters.scale_b, k, n0, parameters.scale_b_stride_k, parameters.scale_b_stride_n),
        steps=plan.column_steps,
        step=plan.tile.column_step,
    )
