"""More faults of sums that one CTA gathers, of tiles on their way out, and of launches that overlap."""

from __future__ import annotations

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IndexType, IntegerAttr
from xdsl.ir import Block, Operation, Region
from xdsl.rewriter import InsertPoint, Rewriter

from gemmir.dialects import hopper
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import (
    Ir,
    after,
    again,
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
)
from tests.sabotage.scales import following
from tests.sabotage.stream import behind, part

GATHER = Collection()
fault = GATHER.add


def opened(in_part: Operation) -> None:
    """What one part does, all do."""
    Rewriter.inline_block(in_part.regions[0].block, InsertPoint.before(in_part))
    erase(in_part)


def grants(ir: Ir) -> list[hopper.GrantOp]:
    return all_of(ir.producer, hopper.GrantOp)


# Grants


@fault("fp8-stream-3", rule="R2")
def granted_to_the_wrong_parts(ir: Ir) -> None:
    """The second part is told that the third one's slot is free, and the other way round."""
    for grant, number in zip(grants(ir), (2, 1), strict=True):
        put(grant, "part", number)


@fault("fp8-stream-3", "bf16-stream-2", rule="R2")
def granted_before_its_slot_is_free(ir: Ir) -> None:
    """A part is told that it may send its sums, then their slot is waited for."""
    move_before(grants(ir)[0], one(ir.producer, hopper.AcquireOp, on=ir.storage("unsummed")))


@fault("fp8-stream-3", "bf16-stream-2", rule="R1")
def one_lane_grants(ir: Ir) -> None:
    """One lane grants a slot that others still wait for."""
    meeting = one(ir.producer, hopper.ExpectOp, on=ir.storage("summed")).prev_op
    assert isinstance(meeting, hopper.SyncWarpOp)
    erase(meeting)


@fault("fp8-stream-3", "bf16-stream-2", rule="R2")
def later_parts_grant_too(ir: Ir) -> None:
    """Every CTA tells the others that they may send, also those to whom nothing is sent."""
    opened(one(ir.producer, hopper.InPartOp))


@fault("fp8-stream-3", "bf16-stream-2", rule="R2")
def granted_behind_the_last_tile(ir: Ir) -> None:
    """A slot is granted once more after the last tile, to a CTA that may have ended."""
    once_more = hopper.InPartOp.build(regions=[Region(Block([grants(ir)[0].clone()]))])
    after(one(ir.producer, hopper.TilesOp), once_more)


@fault("fp8-stream-3", "bf16-stream-2", rule="R8")
def granted_to_who_has_left(ir: Ir) -> None:
    """Once its slot is free, a part is told to send again after its last tile: it may have left."""
    grant, acquire = grants(ir)[0], one(ir.producer, hopper.AcquireOp, on=ir.storage("unsummed"))
    ops = [acquire.clone(), hopper.SyncWarpOp.build(), grant.clone()]
    after(one(ir.producer, hopper.TilesOp), hopper.InPartOp.build(regions=[Region(Block(ops))]))


@fault("fp8-stream-3", "bf16-stream-2", rule="R3")
def producer_stays_at_a_slot_of_sums(ir: Ir) -> None:
    """The producer announces the sums of every part in one slot."""
    erase(behind(grants(ir)[0], hopper.AdvanceOp))


@fault("fp8-stream-3", rule="R8")
def granted_to_a_part_that_does_not_exist(ir: Ir) -> None:
    """A slot is granted to a CTA that the cluster does not have."""
    put(grants(ir)[-1], "part", 3)


# Sums


@fault("fp8-stream-3", "bf16-stream-2", rule="R0")
def more_sums_expected(ir: Ir) -> None:
    """The barrier of a slot expects twice the sums that come."""
    expect = one(ir.producer, hopper.ExpectOp, on=ir.storage("summed"))
    put(expect, "bytes", 2 * get(expect, "bytes"))


@fault("fp8-stream-3", rule="R2")
def sent_then_awaited(ir: Ir) -> None:
    """The sums of a later part are sent, then the grant is waited for."""
    others = part(ir.math, others=True)
    move_after(one(others, hopper.WaitOp), one(others, hopper.SendSumsOp))


@fault("fp8-stream-3", "bf16-stream-2", rule="R5")
def later_sums_sent_twice(ir: Ir) -> None:
    """The sums of a later part are sent twice into one slot."""
    again(one(ir.math, hopper.SendSumsOp))


@fault("fp8-stream-3", "bf16-stream-2", rule="R5")
def gathered_then_awaited(ir: Ir) -> None:
    """Sums of a later part are added, then waited for."""
    first = part(ir.math, others=False)
    move_after(one(first, hopper.WaitOp), one(first, hopper.AddSumsOp))


@fault("fp8-stream-3", "bf16-stream-2", rule="R6")
def gathered_sums_not_fenced(ir: Ir) -> None:
    """Later sums may come over those that ordinary loads still read."""
    erase(behind(one(part(ir.math, others=False), hopper.AddSumsOp), hopper.FenceProxyAsyncOp))


@fault("fp8-stream-3", "bf16-stream-2", rule="R2")
def math_stays_at_a_slot_of_sums(ir: Ir) -> None:
    """A math warpgroup does not advance from the sums of one part to those of the next."""
    erase(behind(one(part(ir.math, others=False), hopper.AddSumsOp), hopper.AdvanceOp))


@fault("fp8-stream-3", caught_by="simulator")
def gathered_in_another_order(ir: Ir) -> None:
    """The sums of the third part are added before those of the second, which rounds differently."""
    first = part(ir.math, others=False)
    ops = [one(first, hopper.WaitOp), one(first, hopper.AddSumsOp)]
    ops.append(behind(ops[-1], hopper.ReleaseOp))
    cursor = one(first, hopper.AddSumsOp).cursor
    move_after(
        behind(ops[-1], hopper.AdvanceOp), [op for op in all_of(first, hopper.AdvanceOp) if op.cursor is cursor][-1]
    )
    for op in ops:
        following(op, cursor)


# Which CTA does what


@fault("fp8-stream-3", "bf16-stream-2", rule="R0")
def all_parts_store(ir: Ir) -> None:
    """The store warp of every part waits for a tile, which only the first part stages."""
    opened(one(ir.store, hopper.InPartOp))


@fault("fp8-stream-3", "bf16-stream-2", caught_by="simulator")
def all_parts_stage_and_store(ir: Ir) -> None:
    """Every CTA stages and stores its part of the sum as if it were the tile."""
    all_parts_store(ir)
    first = next(op for op in all_of(ir.math, hopper.InPartOp) if op.others is None)
    way_out = one(first, hopper.AcquireOp, on=ir.storage("drained"))
    rest = [op for op in first.body.block.ops if op is way_out or way_out.is_before_in_block(op)]
    for op in reversed(rest):
        move_after(op, first)


@fault("fp8-stream-3", "bf16-stream-2", caught_by="simulator")
def parts_overlap(ir: Ir) -> None:
    """Each part of K begins with the last k-block of the one before, and the last k-blocks are left out."""
    block = one(ir.producer, hopper.PartBlockOp)
    put(block, "blocks", get(block, "blocks") - 1)


@fault("fp8-stream-3", "bf16-stream-2", rule="R0")
def a_k_block_of_a_part_left_out(ir: Ir) -> None:
    """The producer leaves out the first k-block of every part."""
    put(loop(ir.producer), "first", 1)


@fault("fp8-stream-3", "bf16-stream-2", caught_by="verifier")
def who_gathers_sends(ir: Ir) -> None:
    """The CTA of the first part sends sums, to itself."""
    others = next(op for op in all_of(ir.math, hopper.InPartOp) if op.others is not None)
    del others.properties["others"]


# The way out


@fault("fp8-stream-3", "bf16-stream-2", rule="R5")
def transposed_to_the_first_area(ir: Ir) -> None:
    """Every math warpgroup transposes its columns to the staging area of the first."""
    stage, zero = one(ir.math, hopper.StageFragmentOp), ConstantOp(IntegerAttr(0, IndexType()))
    before(stage, zero)
    change(stage, stage.group, zero.result)


@fault("bf16-stream", "bf16-stream-2", rule="R5a")
def transposed_while_the_wave_runs(ir: Ir) -> None:
    """A sum is transposed, then its WGMMAs are waited for."""
    move_after(all_of(ir.math, hopper.WgmmaWaitOp)[-1], all_of(ir.math, hopper.StageFragmentOp)[-1])


@fault("fp8-stream", "bf16-stream", rule="R5")
def one_lane_reports_a_transposed_tile(ir: Ir) -> None:
    """One lane reports a tile as staged while others still transpose their part."""
    erase(behind(all_of(ir.math, hopper.StageFragmentOp)[-1], hopper.SyncWarpOp))


@fault("fp8-stream", "bf16-stream", caught_by="verifier")
def staged_untransposed(ir: Ir) -> None:
    """Weights are staged as the rows of a tile, whose columns they are."""
    for stage in all_of(ir.math, hopper.StageFragmentOp):
        del stage.properties["transposed"]


# The kernel before


@fault("bf16-counts-stream", caught_by="verifier")
def tiles_counted_before_the_wait_for_the_grid(ir: Ir) -> None:
    """Tiles are counted from an operand that the kernel before may still write."""
    move_after(one(ir.frame, hopper.WaitForGridOp), one(ir.frame, hopper.CountTilesOp))


@fault("bf16-stream", caught_by="verifier")
def loads_for_the_first_tile(ir: Ir) -> None:
    """The first tile's activations are loaded, not only asked of L2, before those before have ended."""
    first, load = one(ir.frame, hopper.FirstTileOp), one(ir.producer, hopper.TmaLoadOp)
    storage = ir.storage("ring_a").owner
    assert isinstance(storage, hopper.RingOp)
    cursor = hopper.CursorOp.build(result_types=[load.cursor.type])
    before(first, cursor)
    block = one(first, hopper.TmaPrefetchOp)
    loaded = hopper.TmaLoadOp.build(
        operands=[load.map, block.row, block.column, load.ring, cursor.result, load.full, []],
        properties=dict(load.properties),
    )
    after(block, loaded)


@fault("fp8-stream", "bf16-counts-stream", caught_by="verifier")
def waited_for_by_the_producer_alone(ir: Ir) -> None:
    """Only the producer waits until the kernels before have ended: math warps may store before."""
    wait = one(ir.frame, hopper.WaitForGridOp)
    wait.detach()
    ir.producer.insert_op_before(wait, next(iter(ir.producer.ops)))
