"""How the store warp brings operand C into the staging area, where math warps add it to what they stage there."""

from __future__ import annotations

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.parameters import Parameters
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage
from gemmir.passes.lowering.tiles import Tile, own_matrix


def fill_slice(
    emit: Emitter,
    plan: Plan,
    parameters: Parameters,
    storage: Storage,
    tile: Tile,
    at: SSAValue,
    number: int,
    group: SSAValue,
    slice_: int,
) -> None:
    """Load the boxes of one slice of C for a warpgroup; `at`: the store's cursor."""
    nbytes = 0
    for chunk in plan.slice_chunks:
        emit.op(
            hopper.TmaFillOp,
            *(parameters.maps_c[chunk.columns], tile.m0, tile.n0, storage.staging, at, storage.drained, group),
            own_matrix(tile, plan, "d"),
            **plan.box_place(number, slice_, chunk),
        )
        nbytes += plan.slice_rows * chunk.columns * plan.problem.d.bytes
    emit.op(hopper.ExpectOp, storage.drained, at, [group], bytes=nbytes)
