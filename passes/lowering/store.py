"""
The store warp: one thread sends staged slices of tiles off, warpgroup by warpgroup.

Where rows below a tile's may belong to another group, it takes the whole warp: TMA cannot be told to stop at a row.

An SM sends only some 32 bytes a cycle to L2, so math warps that stored their results themselves would stall. One
warpgroup's slice at a time: two in the queue at once delay the loads behind them.
"""

from __future__ import annotations

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IntegerAttr
from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import INDEX, Emitter
from gemmir.passes.lowering.fill import fill_slice
from gemmir.passes.lowering.gather import by_who_finishes
from gemmir.passes.lowering.parameters import Parameters
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage
from gemmir.passes.lowering.tiles import Tile, each_tile, own_matrix


def store(emit: Emitter, plan: Plan, parameters: Parameters, storage: Storage) -> None:
    """
    For each tile, slice and warpgroup: wait until it is staged, store its boxes, say that it is drained; or, if there
    is an operand C, load that of the next slice in its place.
    """
    at = emit.value(hopper.CursorOp, hopper.CursorType(1), "at")
    constants = [ConstantOp(IntegerAttr(g, INDEX)) for g in range(plan.groups)]
    for number, constant in enumerate(constants):
        constant.result.name_hint = f"group{number}"
        emit.insert(constant)
    for region in plan.regions:
        _store_tiles(emit, region, parameters, storage.of(region), at, constants)


def _store_tiles(
    emit: Emitter, plan: Plan, parameters: Parameters, storage: Storage, at: SSAValue, constants: list[ConstantOp]
) -> None:
    """The slices of the tiles of one loop; `constants` are the numbers of the math warpgroups."""
    with each_tile(emit, plan, storage) as (every, tile), by_who_finishes(every, plan) as each:
        matrix = _matrix_of(each, plan, parameters, tile)
        c_of = range(plan.slices) if plan.problem.has_c else ()
        for number, constant in enumerate(constants if c_of else ()):
            fill_slice(each, plan, parameters, storage, tile, at, number, constant.result, 0)
        for slice_ in range(plan.slices):
            for number, constant in enumerate(constants):
                each.op(hopper.WaitOp, storage.staged, at, [constant.result])
                _store_slice(each, plan, parameters, storage, tile, matrix, number, slice_)
                if not c_of:
                    each.op(hopper.ArriveOp, storage.drained, at, [constant.result])
                elif slice_ + 1 in c_of:
                    fill_slice(each, plan, parameters, storage, tile, at, number, constant.result, slice_ + 1)
            each.op(hopper.AdvanceOp, at)


def _matrix_of(emit: Emitter, plan: Plan, parameters: Parameters, tile: Tile) -> SSAValue | None:
    """The address of the matrix that a tile of several groups' products lies in."""
    if parameters.d is None or tile.group is None or parameters.d_stride_group is None:
        return parameters.d
    stride = parameters.d_stride_group
    return emit.value(hopper.GroupPointerOp, parameters.d.type, "group_d", parameters.d, tile.group, stride)


def _store_slice(
    emit: Emitter,
    plan: Plan,
    parameters: Parameters,
    storage: Storage,
    tile: Tile,
    matrix: SSAValue | None,
    group: int,
    slice_: int,
) -> None:
    for chunk in plan.slice_chunks:
        place = plan.box_place(group, slice_, chunk)
        box = (storage.staging, parameters.maps_d[chunk.columns], tile.m0, tile.n0)
        own = own_matrix(tile, plan, "d")
        if tile.begin is None or tile.end is None or matrix is None or parameters.d_stride_m is None:
            emit.op(hopper.TmaStoreOp, *box, own, **place, part_rows=plan.slice_rows if plan.halves > 1 else None)
            continue
        emit.op(hopper.StoreRowsOp, *box, tile.begin, tile.end, matrix, parameters.d_stride_m, own, **place)
    emit.op(hopper.StoreCommitOp)
    emit.op(hopper.StoreWaitReadOp, pending=0)
    if plan.grouped:  # all lanes may have stored rows, which C of the next slice or tile overwrites
        if plan.problem.has_c and tile.begin is not None:
            emit.op(hopper.FenceProxyAsyncOp)
        emit.op(hopper.SyncWarpOp)
