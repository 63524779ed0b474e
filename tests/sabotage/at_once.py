"""Faults of scales that are loaded for a whole tile at once, and read k-block by k-block, in chunks."""

from __future__ import annotations

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IndexType, IntegerAttr

from gemmir.dialects import hopper
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import (
    Ir,
    all_of,
    before,
    change,
    get,
    loop,
    move_after,
    move_before,
    one,
    put,
)
from tests.sabotage.scales import following
from tests.sabotage.stream import behind

AT_ONCE = Collection()
fault = AT_ONCE.add


def given_back(ir: Ir) -> hopper.ReleaseOp:
    return one(ir.math, hopper.ReleaseOp, on=ir.storage("unscaled"))


def awaited(ir: Ir) -> hopper.WaitOp:
    return one(ir.math, hopper.WaitOp, on=ir.storage("scaled"))


def of_rest(ir: Ir) -> list[hopper.LoadScalesOp]:
    """What reads the scales of k-blocks that are left over behind the chunks."""
    in_chunks = len(all_of(loop(ir.math), hopper.LoadScalesOp))
    return all_of(ir.math, hopper.LoadScalesOp)[in_chunks:]


def arrivals(ir: Ir, name: str, number: int) -> None:
    owner = ir.storage(name).owner
    assert isinstance(owner, hopper.BarriersOp)
    put(owner, "arrivals", number)


# Which slot, and when


@fault("fp8-at-once", "fp8-at-once-2x1", rule="R5")
def scales_read_from_the_next_slot(ir: Ir) -> None:
    """A tile takes the scales that lie in the next tile's slot."""
    for load in all_of(ir.math, hopper.LoadScalesOp):
        following(load, load.cursor)


@fault("fp8-at-once", "fp8-at-once-2x1", rule="R5")
def last_scales_read_from_the_next_slot(ir: Ir) -> None:
    """The last k-block of a tile takes scales that lie in the next tile's slot."""
    load = of_rest(ir)[-1]
    following(load, load.cursor)


@fault("fp8-at-once", "fp8-at-once-2x1", rule="R7")
def scales_read_from_the_slot_of_the_k_block(ir: Ir) -> None:
    """Scales of a tile are read from the slot that the k-block's operands have in their ring."""
    at = one(ir.math, hopper.WgmmaOp).cursor
    for load in all_of(ir.math, hopper.LoadScalesOp):
        change(load, load.cursor, at)


@fault("fp8-at-once", "fp8-at-once-2x1", rule="R5")
def scales_awaited_behind_the_chunks(ir: Ir) -> None:
    """The scales of a tile are waited for when its chunks have read them."""
    move_after(awaited(ir), loop(ir.math))


@fault("fp8-at-once", "fp8-at-once-2x1", rule="R0")
def scales_of_the_next_tile_awaited(ir: Ir) -> None:
    """A tile waits for the next one's scales, and reads its own."""
    wait = awaited(ir)
    following(wait, wait.cursor)


@fault("fp8-at-once", "fp8-at-once-2x1", rule="R5")
def scales_given_back_before_the_last_are_read(ir: Ir) -> None:
    """The slot of a tile's scales is given back, then those of its last k-block are read."""
    move_before(given_back(ir), of_rest(ir)[-1])


@fault("fp8-at-once", "fp8-at-once-2x1", rule="R5")
def last_scales_read_after_the_lanes_meet(ir: Ir) -> None:
    """The scales of a tile's last k-block are read after the lanes met, which giving them back relies on."""
    meeting = given_back(ir).prev_op
    assert isinstance(meeting, hopper.SyncWarpOp)
    move_before(meeting, of_rest(ir)[-1])


@fault("fp8-at-once-2x1", rule="R2")
def scales_given_back_with_every_chunk(ir: Ir) -> None:
    """The scales of a tile are given back once for each of its chunks."""
    last = loop(ir.math).body.block.last_op
    assert last is not None
    move_after(given_back(ir), last)


# Who says so


@fault("fp8-at-once", "fp8-at-once-2x1", rule="R3")
def scales_given_back_by_one_warp(ir: Ir) -> None:
    """A slot of scales is free as soon as one math warp has read them."""
    arrivals(ir, "unscaled", 1)


@fault("fp8-at-once", "fp8-at-once-2x1", rule="R0")
def scales_announced_by_two(ir: Ir) -> None:
    """A slot of scales is full after two arrivals, and has one."""
    arrivals(ir, "scaled", 2)


@fault("fp8-at-once-2x1", rule="R1")
def scales_given_back_to_the_peer(ir: Ir) -> None:
    """Math warps give the scales back to both CTAs, each of which has its own."""
    put(given_back(ir), "peers", 2)


# Which scales


@fault("fp8-at-once", "fp8-at-once-2x1", caught_by="simulator")
def rest_takes_the_first_scales(ir: Ir) -> None:
    """The k-blocks that are left over behind the chunks take the scales of the first ones."""
    zero = ConstantOp(IntegerAttr(0, IndexType()))
    before(one(ir.math, hopper.TilesOp), zero)
    for load in of_rest(ir):
        assert load.k is not None
        change(load, load.k, zero.result)


@fault("fp8-at-once", "fp8-at-once-2x1", caught_by="simulator")
def chunk_takes_the_scales_of_its_first_block(ir: Ir) -> None:
    """Every k-block of a chunk takes the scales of the first one."""
    for load in all_of(loop(ir.math), hopper.LoadScalesOp):
        put(load, "ahead", 0)


@fault("fp8-at-once", caught_by="simulator")
def scales_read_over_those_before(ir: Ir) -> None:
    """The scales of a chunk's third k-block are read before those of the first, in the same registers, are used."""
    body = loop(ir.math)
    move_before(one(body, hopper.LoadScalesOp, 2), one(body, hopper.PromoteOp))


@fault("fp8-at-once", "fp8-at-once-2x1", caught_by="simulator")
def last_weight_scales_not_copied(ir: Ir) -> None:
    """The copies of the scales warp end before the last k-block of the tile."""
    copy = one(ir.scales, hopper.CopyScalesOp)
    put(copy, "blocks", get(copy, "blocks") - 1)


@fault("fp8-at-once", "fp8-at-once-2x1", caught_by="simulator")
def row_scales_of_other_rows(ir: Ir) -> None:
    """The rows' scales of a tile are loaded from where its columns begin."""
    load = one(ir.scales, hopper.TmaLoadOp)
    m0, n0 = one(ir.scales, hopper.TilesOp).body.block.args[:2]
    change(load, m0, n0)


@fault("fp8-at-once-2x1", caught_by="simulator")
def row_scales_of_the_first_warpgroup(ir: Ir) -> None:
    """The second warpgroup takes the scales of the first one's rows."""
    for load in all_of(ir.math, hopper.LoadScalesOp):
        put(load, "group_rows", 0)


@fault("fp8-at-once", "fp8-at-once-2x1", caught_by="verifier")
def scales_of_a_block_past_the_slot(ir: Ir) -> None:
    """Scales are read of a k-block further on than a slot has any."""
    put(of_rest(ir)[-1], "ahead", 4)


@fault("fp8-at-once", caught_by="verifier")
def scales_of_no_block(ir: Ir) -> None:
    """How far ahead a k-block is stands there, but not of which one."""
    load = one(ir.math, hopper.LoadScalesOp)
    load.operands = load.operands[:-1]


@fault("fp8-at-once", caught_by="verifier")
def scales_of_a_slot_for_one_block(ir: Ir) -> None:
    """Scales are read as if the slot had those of one k-block."""
    load = one(ir.math, hopper.LoadScalesOp)
    load.operands = load.operands[:-1]
    del load.properties["ahead"]


@fault("fp8-at-once", caught_by="verifier")
def scales_of_a_block_of_that_number(ir: Ir) -> None:
    """The number of a warpgroup is taken for that of a k-block."""
    load = one(ir.math, hopper.LoadScalesOp)
    assert load.k is not None
    load.operands = [*load.operands[:-1], load.group]


@fault("fp8-at-once-2x1", caught_by="verifier")
def row_scales_past_the_row(ir: Ir) -> None:
    """The second warpgroup reads on into the scales of the next k-block."""
    put(behind(loop(ir.math), hopper.LoadScalesOp), "group_rows", 128)
