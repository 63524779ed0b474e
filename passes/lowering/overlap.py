"""How a kernel overlaps with the one before it: it asks L2 for the first weights, then waits for that one to end."""

from __future__ import annotations

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import INDEX, Emitter
from gemmir.passes.lowering.parameters import Parameters
from gemmir.passes.lowering.plan import Plan
from gemmir.tile import PREFETCHED_BYTES


def overlap(emit: Emitter, plan: Plan, parameters: Parameters) -> None:
    """Prefetch weights, where the first tile is known without memory, and wait."""
    blocks = min(plan.k_blocks, max(1, PREFETCHED_BYTES // plan.layout.b_bytes))
    if not plan.grouped:
        with emit.inside(hopper.FirstTileOp, "m0", "n0", **plan.raster) as (tile, (_, n0)):
            with tile.inside(hopper.KBlocksOp, "k", operands=([],), first=0, last=blocks) as (body, (k,)):
                block = k
                if plan.parts > 1:
                    block = body.value(hopper.PartBlockOp, INDEX, "block", k, blocks=plan.k_blocks)
                body.op(
                    hopper.TmaPrefetchOp,
                    *(parameters.map_b, n0, block),
                    row_step=1,
                    column_step=plan.problem.block_k,
                )
    emit.op(hopper.WaitForGridOp)
