"""What loads of operands and of scales have in common."""

from __future__ import annotations

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.dialects.hopper.types import EvictName
from gemmir.passes.lowering.emitter import INDEX, Emitter
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.tiles import Tile
from gemmir.schedule import Evict


def evict(plan: Plan, operand: str) -> hopper.EvictAttr | None:
    """What L2 does with an operand, or with its scales."""
    if plan.schedule.evict is Evict.NEITHER:
        return None
    last = operand == "a" and plan.schedule.evict is Evict.WEIGHTS
    return hopper.EvictAttr(EvictName.LAST if last else EvictName.FIRST)


def number_of(emit: Emitter, plan: Plan, tile: Tile, k: SSAValue) -> SSAValue:
    """The number among all k-blocks of one of this CTA's, or of one of the tile's group."""
    if tile.first_block is not None:
        return emit.value(hopper.GroupBlockOp, INDEX, "block", k, tile.first_block)
    if plan.parts == 1:
        return k
    return emit.value(hopper.PartBlockOp, INDEX, "block", k, blocks=plan.k_blocks)
