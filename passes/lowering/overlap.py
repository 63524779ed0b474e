"""How a kernel overlaps with the one before it: it asks L2 for the first weights, then waits for that one to end."""

from __future__ import annotations

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import INDEX, Emitter
from gemmir.passes.lowering.parameters import Parameters
from gemmir.passes.lowering.plan import Plan
from gemmir.target import SM_90A
from gemmir.tile import PREFETCHED_BYTES

NARROW = 32
"""
Rows of a tile up to which prefetches pay in a kernel that waits for none before, if at most half of the SMs work: 4 to
6% (measured). Else they only come before the loads of the same lines, and cost up to 10% where CTAs share weights.
"""


def overlap(emit: Emitter, plan: Plan, parameters: Parameters) -> None:
    """Prefetch weights, where the first tile is known without memory, and wait."""
    blocks = min(plan.k_blocks, max(1, PREFETCHED_BYTES // plan.layout.b_bytes))
    if plan.prefetches:
        ctas = SM_90A.sms // 2 if plan.block_m <= NARROW else 0
        with emit.inside(hopper.FirstTileOp, "m0", "n0", operands=(parameters.overlaps,), ctas=ctas, **plan.raster) as (
            tile,
            (_, n0),
        ):
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
