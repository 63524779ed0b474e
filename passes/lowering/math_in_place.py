"""
Math warpgroups that accumulate in the tensor core: BF16 and FP16.

One group of WGMMAs is always in flight; a slot is released when the group after it has been issued and its own has
finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.exchange import add_sums, exchange_cursor, send_sums
from gemmir.passes.lowering.gather import finishing, gathering
from gemmir.passes.lowering.math_slots import multiply
from gemmir.passes.lowering.math_staging import stage_slice
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage
from gemmir.passes.lowering.tiles import each_block, each_tile, has_blocks
from gemmir.target import SM_90A


def math_in_place(emit: Emitter, plan: Plan, storage: Storage, group: SSAValue) -> None:
    """The math role: the first k-block of a tile overwrites the accumulators, the others add to them."""
    totals = [_totals(emit, region) for region in plan.regions]
    at = emit.value(hopper.CursorOp, hopper.CursorType(plan.stages), "at")
    out = emit.value(hopper.CursorOp, hopper.CursorType(1), "out")
    for region, sums in zip(plan.regions, totals, strict=True):
        _multiply_tiles(emit, region, storage.of(region), group, sums, (at, out))


def _totals(emit: Emitter, plan: Plan) -> list[SSAValue]:
    fragment = hopper.FragmentType(SM_90A.wgmma_m, plan.tile.wg_columns)
    name = "tail_total" if plan.in_tail else "total"
    return [emit.value(hopper.FragmentOp, fragment, f"{name}{wave}") for wave in range(plan.tile.waves)]


def _multiply_tiles(
    emit: Emitter,
    plan: Plan,
    storage: Storage,
    group: SSAValue,
    totals: list[SSAValue],
    positions: tuple[SSAValue, SSAValue],
) -> None:
    """The tiles of one loop. `positions`: in the ring, and in what leaves."""
    at, out = positions
    sent, cursors = exchange_cursor(emit, plan, "sent"), gathering(emit, plan)
    with each_tile(emit, plan, storage) as (tile, own):
        tile.op(hopper.WaitOp, storage.full, at, [])
        _issue(tile, plan, storage, group, at, totals, fresh=True)
        if has_blocks(plan, own, 1):
            with each_block(tile, plan, own, first=1) as (body, _):
                ahead = body.value(hopper.NextOp, at.type, "ahead", at)
                body.op(hopper.WaitOp, storage.full, ahead, [])
                _issue(body, plan, storage, group, ahead, totals, fresh=False)
                body.op(hopper.WgmmaWaitOp, [], pending=1)
                body.op(hopper.ReleaseOp, storage.empty, at, [], peers=plan.peers)
                body.op(hopper.AdvanceOp, at)
        tile.op(hopper.WgmmaWaitOp, totals, pending=0)
        tile.op(hopper.ReleaseOp, storage.empty, at, [], peers=plan.peers)
        tile.op(hopper.AdvanceOp, at)
        if sent is not None:
            send_sums(tile, plan, storage, group, at, sent, totals[0])
            add_sums(tile, plan, storage, group, at, totals[1])
        finished = totals if sent is None else totals[1:]
        with finishing(tile, plan, storage, group, cursors, totals[0]) as finish:
            for waves, column in _slices(plan, finished):
                stage_slice(finish, plan, storage, group, out, waves, column)


def _slices(plan: Plan, finished: Sequence[SSAValue]) -> Iterator[tuple[Sequence[SSAValue], int]]:
    """The waves of each slice, and the first column that it takes of them."""
    if plan.tile.sliced_by_columns:
        yield from ((finished, slice_ * plan.slice_columns) for slice_ in range(plan.slices))
        return
    waves = len(finished) // plan.slices
    yield from ((finished[first : first + waves], 0) for first in range(0, len(finished), waves))


def _issue(
    emit: Emitter,
    plan: Plan,
    storage: Storage,
    group: SSAValue,
    at: SSAValue,
    totals: Sequence[SSAValue],
    fresh: bool,
) -> None:
    emit.op(hopper.WgmmaFenceOp)
    for wave, total in enumerate(totals):
        multiply(emit, plan, storage, group, at, total, wave, fresh)
    emit.op(hopper.WgmmaCommitOp)
