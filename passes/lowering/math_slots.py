"""What math warpgroups do with a slot of the ring: multiply its rows, read its scales, promote, give it back."""

from __future__ import annotations

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage
from gemmir.target import SM_90A


def multiply(
    emit: Emitter,
    plan: Plan,
    storage: Storage,
    group: SSAValue,
    at: SSAValue,
    sums: SSAValue,
    wave: int,
    fresh: bool,
) -> None:
    """Issue one wave into `sums`: 64 rows x the warpgroup's columns x one k-block."""
    operands = (storage.b, storage.a) if plan.swapped else (storage.a, storage.b)
    emit.op(
        hopper.WgmmaOp,
        *(*operands, at, sums, group),
        a_row=wave * SM_90A.wgmma_m,
        a_group_rows=plan.wgmma_group_rows,
        b_group_rows=plan.wgmma_group_columns,
        fresh=fresh,
        by_part=plan.halves > 1,
        a_panels=plan.problem.a_major != "k",
        b_panels=plan.problem.b_major != "k",
    )


def read_scales(
    emit: Emitter,
    plan: Plan,
    storage: Storage,
    group: SSAValue,
    at: SSAValue,
    scales: SSAValue,
    block: tuple[SSAValue, int] | None = None,
) -> None:
    """
    Read the scales of a slot; before it is released they are let go of.

    `block`: the number of a k-block, and how far ahead of it the one is whose scales are read, where a slot has those
    of all.
    """
    assert storage.scale_a is not None and storage.scale_b is not None
    k, ahead = ([], None) if block is None else block
    emit.op(
        hopper.LoadScalesOp,
        *(storage.scale_a, storage.scale_b, at, scales, group, k),
        group_rows=plan.group_rows,
        group_steps=plan.group_columns // plan.tile.column_step,
        ahead=ahead,
        by_part=plan.halves > 1,
    )


def let_go_of_scales(emit: Emitter, plan: Plan) -> None:
    """Once their slots are released, TMA may overwrite the scales that were read (see `Plan.fence_where_read`)."""
    if plan.fence_where_read:
        emit.op(hopper.FenceProxyAsyncOp)
    emit.op(hopper.SyncWarpOp)


def give_back_scales(emit: Emitter, unscaled: SSAValue, of_tile: SSAValue) -> None:
    """Those of a whole tile, once all of its warps have read them: no peer has them too."""
    emit.op(hopper.SyncWarpOp)
    emit.op(hopper.ReleaseOp, unscaled, of_tile, [], peers=1)
    emit.op(hopper.AdvanceOp, of_tile)


def finish_wave(
    emit: Emitter,
    plan: Plan,
    storage: Storage,
    group: SSAValue,
    at: SSAValue,
    sums: tuple[SSAValue, SSAValue],
    scales: SSAValue | None,
    wave: int = 0,
    *,
    pending: int = 0,
    release: bool = True,
) -> None:
    """
    Wait for the oldest wave, add its sum, scaled, to its total (`sums`), and give its slot back if it is the last.

    A slot whose column scales are read while sums are promoted (`scales` is None) is given back after that.
    """
    emit.op(hopper.WgmmaWaitOp, [sums[0]], pending=pending)
    if scales is None:
        assert storage.scale_a is not None and storage.scale_b is not None
        emit.op(
            hopper.PromoteColumnsOp,
            *(*sums, storage.scale_a, storage.scale_b, at, group),
            wave=wave,
            group_rows=plan.group_rows,
            group_columns=plan.group_columns,
        )
        if release:
            let_go_of_scales(emit, plan)
    if release:
        emit.op(hopper.ReleaseOp, storage.empty, at, [], peers=plan.peers)
    if scales is not None:
        emit.op(hopper.PromoteOp, *sums, scales, wave=wave, step=plan.tile.column_step)
