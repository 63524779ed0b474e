"""More faults of the warp that loads the scales of whole tiles: slots that are mixed up, and rings that do not fit."""

from __future__ import annotations

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IndexType, IntegerAttr
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.rewriter import Rewriter

from gemmir.dialects import hopper
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import (
    Ir,
    after,
    all_of,
    before,
    change,
    erase,
    get,
    loop,
    move_after,
    move_before,
    one,
    put,
    resized,
)
from tests.sabotage.stream import behind

SCALES = Collection()
fault = SCALES.add

ALIGNMENT = 1024
"""Wherever storage is put anew."""


def following(op: Operation, cursor: SSAValue) -> None:
    """`op` takes the slot after the one that it should."""
    ahead = hopper.NextOp.build(operands=[cursor], result_types=[cursor.type])
    before(op, ahead)
    change(op, cursor, ahead.result)


def with_type(op: Operation, type_: Attribute) -> Operation:
    """Storage of another type in the place of `op`."""
    made = type(op).create(properties=dict(op.properties), result_types=[type_])
    Rewriter.replace_op(op, made, made.results)
    return made


def deepened(ir: Ir, slots: int) -> None:
    """A kernel with so many slots for the scales of tiles, at the end of shared memory; as right as it was."""
    release = one(ir.math, hopper.ReleaseOp, on=ir.storage("unscaled"))
    for cursor in (release.cursor, one(ir.scales, hopper.AcquireOp).cursor):
        assert isinstance(cursor.owner, hopper.CursorOp)
        with_type(cursor.owner, hopper.CursorType(slots))
    end = get(ir.kernel, "shared")
    for name in ("ring_scale_a", "ring_scale_b", "scaled", "unscaled"):
        storage = ir.storage(name)
        assert isinstance(storage.owner, hopper.RingOp | hopper.BarriersOp)
        type_ = storage.type
        end = -(-end // ALIGNMENT) * ALIGNMENT
        if isinstance(type_, hopper.RingType):
            ring = hopper.RingType((slots, *type_.dims[1:]), type_.element, type_.swizzle_mode)
            put(with_type(storage.owner, ring), "offset", end)  # type: ignore[arg-type]
            end += slots * type_.slot_bytes
        else:
            put(with_type(storage.owner, hopper.BarriersType(slots, 1)), "offset", end)  # type: ignore[arg-type]
            end += slots * 8
    put(ir.kernel, "shared", end)


# Which slot, and when


@fault("fp8-stream", "fp8-at-once", "fp8-at-once-2x1", rule="R5")
def copied_to_the_next_slot(ir: Ir) -> None:
    """The weights' scales are copied to the slot that the tile before still reads."""
    copy = one(ir.scales, hopper.CopyScalesOp)
    following(copy, copy.cursor)


@fault("fp8-stream", "fp8-at-once", "fp8-at-once-2x1", rule="R0")
def loaded_to_the_next_slot(ir: Ir) -> None:
    """The rows' scales of a tile go to the next tile's slot, and count there."""
    load = one(ir.scales, hopper.TmaLoadOp)
    following(load, load.cursor)


@fault("fp8-at-once-2x1", rule="R2")
@fault("fp8-stream", "fp8-at-once", rule="R0")
def scales_counted_with_operands(ir: Ir) -> None:
    """The rows' scales count on the barrier of a k-block, not on that of their own slot."""
    load = one(ir.scales, hopper.TmaLoadOp)
    change(load, load.full, ir.storage("full"))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R0")
def scales_announced_too_late(ir: Ir) -> None:
    """The scales warp announces a tile's scales in the slot that it goes on to."""
    move_after(one(ir.scales, hopper.ExpectOp), one(ir.scales, hopper.AdvanceOp))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R0")
def row_scales_not_loaded(ir: Ir) -> None:
    """The rows' scales are expected, and never loaded."""
    erase(one(ir.scales, hopper.TmaLoadOp))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R0")
def more_scales_expected(ir: Ir) -> None:
    """The copies of the warp's lanes are expected like bytes of TMA, whose barrier they do not count on."""
    expect, slot = one(ir.scales, hopper.ExpectOp), ir.storage("ring_scale_b").type
    assert isinstance(slot, hopper.RingType)
    put(expect, "bytes", get(expect, "bytes") + slot.slot_bytes)


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R5")
def slot_of_scales_awaited_late(ir: Ir) -> None:
    """The scales warp loads a tile's scales, then waits until their slot is free."""
    move_after(one(ir.scales, hopper.AcquireOp), one(ir.scales, hopper.TmaLoadOp))


@fault("fp8-stream", "fp8-at-once", "fp8-at-once-2x1", rule="R5")
def scales_announced_before_their_slot_is_free(ir: Ir) -> None:
    """The scales of a tile are announced, then their slot is waited for."""
    move_before(one(ir.scales, hopper.ExpectOp), one(ir.scales, hopper.AcquireOp))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R5")
def scales_warp_stays_at_its_slot(ir: Ir) -> None:
    """The scales warp does not advance from tile to tile."""
    erase(one(ir.scales, hopper.AdvanceOp))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R2")
def math_stays_at_its_scales(ir: Ir) -> None:
    """A math warpgroup does not advance from one tile's scales to the next one's."""
    cursor = one(ir.math, hopper.WaitOp, on=ir.storage("scaled")).cursor
    erase(next(op for op in all_of(ir.math, hopper.AdvanceOp) if op.cursor is cursor))


@fault("fp8-stream", "fp8-stream-3", rule="R5")
def promoted_by_the_next_slot(ir: Ir) -> None:
    """Sums are promoted by what lies in the next tile's slot."""
    for promotion in all_of(ir.math, hopper.PromoteBlockOp):
        following(promotion, promotion.cursor)


@fault("fp8-stream", "fp8-stream-3", rule="R7")
def promoted_by_the_slot_of_the_k_block(ir: Ir) -> None:
    """Scales are read from a slot of the k-block's number, as if each had one."""
    for promotion in all_of(ir.math, hopper.PromoteBlockOp):
        change(promotion, promotion.cursor, one(ir.math, hopper.CursorOp).result)


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R1")
def next_slot_of_scales_given_back(ir: Ir) -> None:
    """Math warpgroups give the next tile's slot of scales back."""
    release = one(ir.math, hopper.ReleaseOp, on=ir.storage("unscaled"))
    following(release, release.cursor)


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", caught_by="simulator")
def weight_scales_not_copied(ir: Ir) -> None:
    """The weights' scales are never copied."""
    erase(one(ir.scales, hopper.CopyScalesOp))


@fault("fp8-stream", caught_by="simulator")
def rest_promoted_by_the_first_scales(ir: Ir) -> None:
    """The k-blocks that are left over behind the chunks take the scales of the tile's first one."""
    rest = behind(loop(ir.math), hopper.PromoteBlockOp)
    zero = ConstantOp(IntegerAttr(0, IndexType()))
    before(one(ir.math, hopper.TilesOp), zero)
    change(rest, rest.k, zero.result)


@fault("fp8-stream", "fp8-at-once", "fp8-at-once-2x1", caught_by="verifier")
def more_scales_copied_than_there_are(ir: Ir) -> None:
    """The copies reach past the last k-block of the scales' tensor."""
    copy = one(ir.scales, hopper.CopyScalesOp)
    put(copy, "blocks", get(copy, "blocks") + 1)


@fault("fp8-stream", "fp8-stream-3", caught_by="verifier")
def scales_past_the_slot(ir: Ir) -> None:
    """A promotion reads the scales of a k-block further on than a slot has any."""
    put(one(ir.math, hopper.PromoteBlockOp), "ahead", 8)


# Rings that do not fit


@fault("fp8-stream", "fp8-stream-3", "fp8-turns", "fp8-at-once", rule="R7")
def last_slot_on_barriers(ir: Ir) -> None:
    """The last slot of a ring that is shorter than its cursor lies where barriers are."""
    ring = ir.storage("ring_scale_b")
    type_, offset = ring.type, get(ring.owner, "offset")  # type: ignore[arg-type]
    assert isinstance(type_, hopper.RingType)
    resized(ir, "ring_scale_b", type_.stages - 1)
    put(ir.storage("ring_scale_b").owner, "offset", offset + type_.slot_bytes)  # type: ignore[arg-type]


@fault("fp8-stream", "fp8-at-once", "fp8-at-once-2x1", rule="R7")
def last_slot_past_the_end(ir: Ir) -> None:
    """The last slot of a ring that is shorter than its cursor lies past the end of shared memory."""
    type_ = ir.storage("ring_scale_b").type
    assert isinstance(type_, hopper.RingType)
    resized(ir, "ring_scale_b", type_.stages - 1)
    offset = -(-get(ir.kernel, "shared") // ALIGNMENT) * ALIGNMENT
    put(ir.storage("ring_scale_b").owner, "offset", offset)  # type: ignore[arg-type]
    put(ir.kernel, "shared", offset + (type_.stages - 1) * type_.slot_bytes)


# More slots than there are tiles in the runs for k-blocks


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R5")
def deep_slot_of_scales_not_awaited(ir: Ir) -> None:
    """Of four slots of scales, one is loaded again while it is read: the scales warp does not wait."""
    deepened(ir, 4)
    erase(one(ir.scales, hopper.AcquireOp))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R6")
def deep_slot_of_scales_not_fenced(ir: Ir) -> None:
    """Of four slots of scales, one is loaded again over what ordinary loads read, with no fence."""
    deepened(ir, 4)
    erase(one(ir.scales, hopper.FenceProxyAsyncOp))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R5")
def deep_slot_of_scales_given_back_early(ir: Ir) -> None:
    """Of four slots of scales, one is given back before its tile's k-blocks are promoted."""
    deepened(ir, 4)
    release = one(ir.math, hopper.ReleaseOp, on=ir.storage("unscaled"))
    meeting = hopper.SyncWarpOp.build()
    after(one(ir.math, hopper.WaitOp, on=ir.storage("scaled")), meeting)
    move_after(release, meeting)
