"""Faults of kernels that compute the products of several groups."""

from __future__ import annotations

from xdsl.dialects.builtin import UnitAttr
from xdsl.rewriter import Rewriter

from gemmir.dialects import hopper
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import Ir, all_of, change, erase, loop, move_before, one, put

GROUPS = Collection()
fault = GROUPS.add


# Which rows may be written


@fault("fp8-offs", "fp8-offs-2x1", caught_by="simulator")
def whole_boxes_stored(ir: Ir) -> None:
    """Rows that lie in a tile and belong to another group are stored with it."""
    for op in all_of(ir.store, hopper.StoreRowsOp):
        whole = hopper.TmaStoreOp.build(
            operands=[op.staging, op.map, op.row, op.column, [] if op.group is None else op.group],
            properties={name: op.properties[name] for name in ("offset", "row_offset", "column_offset")},
        )
        Rewriter.replace_op(op, whole, [])


@fault("fp8-offs", rule="R5")
def rows_given_back_before_the_lanes_meet(ir: Ir) -> None:
    """The first lane gives the staging area back while others may still copy rows out of it."""
    for op in all_of(ir.store, hopper.SyncWarpOp):
        erase(op)


@fault("bf16-offs-c", rule="R6")
def rows_read_and_not_fenced(ir: Ir) -> None:
    """C of the next tile may arrive before the lanes have read the rows that it overwrites."""
    for op in all_of(ir.store, hopper.FenceProxyAsyncOp):
        erase(op)


@fault("bf16-offs-c", caught_by="verifier")
def addend_of_another_tile(ir: Ir) -> None:
    """C is loaded from elsewhere than from where the tile's part of D goes."""
    fill = one(ir.store, hopper.TmaFillOp)
    fill.operands[1] = fill.column


@fault("fp8-offs", rule="R5")
def rows_given_back_before_they_are_stored(ir: Ir) -> None:
    """The staging area is given back, then its rows are stored."""
    first = one(ir.store, hopper.StoreRowsOp)
    move_before(one(ir.store, hopper.ArriveOp), first)


@fault("fp8-offs", rule="R5")
def rows_stored_before_they_are_staged(ir: Ir) -> None:
    """Rows are stored, then waited for."""
    wait = one(ir.store, hopper.WaitOp)
    move_before(one(ir.store, hopper.StoreRowsOp), wait)


@fault("fp8-offs", caught_by="verifier")
def rows_of_another_tile(ir: Ir) -> None:
    """Which rows may be written is told by something else than the tile."""
    store = one(ir.store, hopper.StoreRowsOp)
    change(store, store.end, store.column)


@fault("fp8-offs", "bf16-k-offs", caught_by="verifier")
def tiles_found_by_one_lane(ir: Ir) -> None:
    """One lane looks for tiles that all lanes of its warp find together."""
    tiles = one(ir.store, hopper.TilesOp)
    warp = tiles.parent_op()
    assert isinstance(warp, hopper.WarpOp)
    warp.properties["elected"] = UnitAttr()


# Whose operands


@fault("fp8-offs", "fp8-offs-2x1", caught_by="verifier")
def operand_of_another_group(ir: Ir) -> None:
    """B is loaded from the matrix that the column of a tile numbers."""
    load = next(op for op in all_of(ir.producer, hopper.TmaLoadOp) if op.group is not None)
    assert load.group is not None
    load.operands[-1] = load.row


@fault("fp8-offs", caught_by="verifier")
def scales_of_the_first_group(ir: Ir) -> None:
    """Weight scales are read where those of the first group lie."""
    pointer = one(ir.producer, hopper.GroupPointerOp)
    pointer.result.replace_all_uses_with(pointer.pointer)


@fault("bf16-k-offs", "bf16-k-offs-2x1", caught_by="simulator")
def blocks_of_the_first_group(ir: Ir) -> None:
    """Every group is summed over the k-blocks of the first one."""
    block = one(ir.producer, hopper.GroupBlockOp)
    block.result.replace_all_uses_with(block.k)


# How many tiles, and k-blocks


@fault("bf16-k-offs", "bf16-k-offs-2x1", rule="R0")
def group_one_block_short(ir: Ir) -> None:
    """The producer leaves out the last k-block of every group."""
    put(loop(ir.producer), "less", 1)


@fault("bf16-k-offs", rule="R0")
def group_one_block_long(ir: Ir) -> None:
    """A math warpgroup counts the first k-block of a group twice."""
    put(loop(ir.math), "first", 0)


@fault("fp8-offs", rule="R8")
def one_of_a_cluster_ends(ir: Ir) -> None:
    """A CTA of a cluster that finds no tile ends, and leaves its peer behind."""
    ir.kernel.properties["cluster"] = hopper.PairAttr(2, 1)
