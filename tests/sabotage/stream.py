"""Faults of kernels for few rows: scales of whole tiles, sums that one CTA gathers, waiting for the kernel before."""

from __future__ import annotations

from xdsl.ir import Block, Operation
from xdsl.rewriter import Rewriter

from gemmir.dialects import hopper
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import (
    Ir,
    OpT,
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

STREAM = Collection()
fault = STREAM.add


def part(where: Block, others: bool) -> Block:
    """What the CTAs of later parts of K do, or that of the first one."""
    found = next(op for op in all_of(where, hopper.InPartOp) if (op.others is not None) == others)
    return found.body.block


def behind(op: Operation, kind: type[OpT]) -> OpT:
    """The next op of a kind in the same block."""
    found = op.next_op
    while not isinstance(found, kind):
        assert found is not None
        found = found.next_op
    return found


# Scales of a tile


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R0")
def scales_not_announced(ir: Ir) -> None:
    """The scales warp never says that a tile's scales are there."""
    erase(one(ir.scales, hopper.ExpectOp))


@fault("fp8-stream", "fp8-at-once", "fp8-at-once-2x1", rule="R5")
def scales_announced_before_they_are_copied(ir: Ir) -> None:
    """The scales warp says that the weights' scales are there, then copies them."""
    move_before(one(ir.scales, hopper.ExpectOp), one(ir.scales, hopper.CopyScalesOp))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R5")
def lanes_do_not_meet_after_the_copies(ir: Ir) -> None:
    """One lane says that the weights' scales are there while others still copy them."""
    erase(one(ir.scales, hopper.SyncWarpOp))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R0")
def row_scales_not_expected(ir: Ir) -> None:
    """The barrier of a slot of scales expects fewer bytes than come."""
    expect = one(ir.scales, hopper.ExpectOp)
    put(expect, "bytes", get(expect, "bytes") // 2)


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R5")
def slot_of_scales_not_awaited(ir: Ir) -> None:
    """The next tile's scales are loaded over scales that are still read."""
    erase(one(ir.scales, hopper.AcquireOp))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R6")
def scales_read_and_not_fenced(ir: Ir) -> None:
    """TMA may overwrite scales that ordinary loads are reading."""
    erase(one(ir.scales, hopper.FenceProxyAsyncOp))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R5")
def scales_of_a_tile_not_awaited(ir: Ir) -> None:
    """Sums are promoted by scales that have not arrived."""
    erase(one(ir.math, hopper.WaitOp, on=ir.storage("scaled")))


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R0")
def slot_of_scales_not_given_back(ir: Ir) -> None:
    """Math warpgroups never give the scales of a tile back."""
    erase(one(ir.math, hopper.ReleaseOp, on=ir.storage("unscaled")))


@fault("fp8-stream", "fp8-stream-3", rule="R5")
def scales_given_back_before_the_last_promotion(ir: Ir) -> None:
    """The slot of a tile's scales is given back, then the k-blocks that are left over are promoted."""
    release = one(ir.math, hopper.ReleaseOp, on=ir.storage("unscaled"))
    move_before(release, behind(loop(ir.math), hopper.PromoteBlockOp))


@fault("fp8-stream", "fp8-at-once", "fp8-at-once-2x1", rule="R5")
def lanes_do_not_meet_before_scales_are_given_back(ir: Ir) -> None:
    """One lane gives a tile's scales back while others still read them."""
    meeting = one(ir.math, hopper.ReleaseOp, on=ir.storage("unscaled")).prev_op
    assert isinstance(meeting, hopper.SyncWarpOp)
    erase(meeting)


@fault("fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1", rule="R2")
def scales_given_back_twice(ir: Ir) -> None:
    """Math warpgroups give a tile's scales back twice."""
    again(one(ir.math, hopper.ReleaseOp, on=ir.storage("unscaled")))


# K-blocks


@fault("fp8-stream", "fp8-stream-3", rule="R5")
def slot_given_back_while_its_wave_runs(ir: Ir) -> None:
    """A slot is given back before the wave that reads it has finished."""
    wait = one(ir.math, hopper.WgmmaWaitOp)
    move_before(behind(wait, hopper.ReleaseOp), wait)


@fault("fp8-stream", "fp8-stream-3", rule="R5a")
def promoted_while_its_wave_runs(ir: Ir) -> None:
    """A partial sum is promoted before its wave has finished."""
    wait = one(ir.math, hopper.WgmmaWaitOp)
    put(wait, "pending", 2)


@fault("fp8-stream", caught_by="simulator")
def scales_of_the_k_block_before(ir: Ir) -> None:
    """The second k-block of a chunk is promoted by the scales of the first."""
    for promotion in all_of(ir.math, hopper.PromoteBlockOp):
        put(promotion, "ahead", 0)


@fault("fp8-stream-3", caught_by="simulator")
def all_load_the_first_scales(ir: Ir) -> None:
    """Every part of K takes the scales of the first k-blocks."""
    put(one(ir.scales, hopper.FirstBlockOp), "blocks", 1)


# The way out


@fault("fp8-stream", "bf16-stream-2", rule="R6")
def transposed_rows_not_fenced(ir: Ir) -> None:
    """TMA may store a tile before the math warps' writes to it."""
    erase(behind(one(ir.math, hopper.StageFragmentOp), hopper.FenceProxyAsyncOp))


@fault("fp8-stream", "bf16-stream", rule="R2")
def transposed_over_rows_on_their_way(ir: Ir) -> None:
    """A tile is staged over one that TMA still reads."""
    erase(one(ir.math, hopper.AcquireOp, on=ir.storage("drained")))


@fault("bf16-stream", caught_by="simulator")
def waves_transposed_to_the_same_columns(ir: Ir) -> None:
    """The second wave is staged over the first."""
    put(one(ir.math, hopper.StageFragmentOp, 1), "row", 0)


# Sums that one CTA gathers


@fault("fp8-stream-3", "bf16-stream-2", rule="R0")
def nobody_may_send(ir: Ir) -> None:
    """The CTA of the last part is never told that it may send its sums."""
    erase(all_of(ir.producer, hopper.GrantOp)[-1])


@fault("fp8-stream-3", rule="R2")
def granted_to_one_twice(ir: Ir) -> None:
    """The CTA of the second part is told twice that it may send its sums, that of the third never."""
    put(all_of(ir.producer, hopper.GrantOp)[-1], "part", 1)


@fault("fp8-stream-3", "bf16-stream-2", rule="R3")
def granted_while_the_sums_before_are_read(ir: Ir) -> None:
    """A slot is granted that still holds another tile's sums."""
    erase(one(ir.producer, hopper.AcquireOp, on=ir.storage("unsummed")))


@fault("fp8-stream-3", "bf16-stream-2", rule="R2")
def fewer_sums_expected(ir: Ir) -> None:
    """The barrier of a slot expects half of the sums that come."""
    expect = one(ir.producer, hopper.ExpectOp, on=ir.storage("summed"))
    put(expect, "bytes", get(expect, "bytes") // 2)


@fault("fp8-stream-3", "bf16-stream-2", rule="R8")
def sent_without_a_grant(ir: Ir) -> None:
    """Sums are sent to a slot that has not been granted."""
    erase(one(part(ir.math, others=True), hopper.WaitOp))


@fault("fp8-stream-3", rule="R5")
def grant_seen_in_the_own_cta_only(ir: Ir) -> None:
    """The wait for a grant orders nothing that the first CTA has done."""
    del one(part(ir.math, others=True), hopper.WaitOp).properties["of_peer"]


@fault("fp8-stream-3", "bf16-stream-2", rule="R0")
def nothing_is_sent(ir: Ir) -> None:
    """The sums of later parts are never sent."""
    erase(one(part(ir.math, others=True), hopper.SendSumsOp))


@fault("fp8-stream-3", "bf16-stream-2", rule="R1")
def gathered_before_they_come(ir: Ir) -> None:
    """Sums of later parts are added before they have arrived."""
    erase(one(part(ir.math, others=False), hopper.WaitOp))


@fault("fp8-stream-3", rule="R5")
def arrival_seen_in_the_own_cta_only(ir: Ir) -> None:
    """The wait for gathered sums makes only what its own CTA wrote seen."""
    del one(part(ir.math, others=False), hopper.WaitOp).properties["of_peer"]


@fault("fp8-stream-3", "bf16-stream-2", rule="R5")
def slot_of_sums_given_back_before_it_is_read(ir: Ir) -> None:
    """A slot is given back, then the sums in it are added."""
    add = one(part(ir.math, others=False), hopper.AddSumsOp)
    move_before(behind(add, hopper.ReleaseOp), add)


@fault("fp8-stream-3", "bf16-stream-2", rule="R5")
def lanes_do_not_meet_after_gathered_sums(ir: Ir) -> None:
    """One lane gives a slot back while others still read gathered sums."""
    erase(behind(one(part(ir.math, others=False), hopper.AddSumsOp), hopper.SyncWarpOp))


@fault("fp8-stream-3", "bf16-stream-2", rule="R0")
def slot_of_sums_not_given_back(ir: Ir) -> None:
    """Slots of gathered sums are not given back."""
    for release in all_of(part(ir.math, others=False), hopper.ReleaseOp):
        erase(release)


@fault("fp8-stream-3", "bf16-stream-2", rule="R7")
def gatherers_do_not_meet(ir: Ir) -> None:
    """Sums, or a grant, may come to a CTA that has not begun."""
    meeting = one(ir.frame, hopper.ClusterSyncOp)
    before(meeting, hopper.CtaSyncOp.build())
    erase(meeting)


@fault("bf16-stream-2", "fp8-stream-3", rule="R0")
def the_wrong_part_finishes(ir: Ir) -> None:
    """The store warp of later parts waits for a tile that the first part stages."""
    others = one(ir.store, hopper.InPartOp)
    others.properties["others"] = one(ir.math, hopper.InPartOp).properties["others"]


@fault("fp8-stream-3", caught_by="simulator")
def sums_gathered_twice(ir: Ir) -> None:
    """The sums of the second part are added twice."""
    again(one(part(ir.math, others=False), hopper.AddSumsOp))


@fault("fp8-stream-3", "bf16-stream-2", caught_by="simulator")
def all_sum_the_first_part(ir: Ir) -> None:
    """Every CTA sums the first part of K."""
    block = next(op for op in all_of(ir.producer, hopper.PartBlockOp))
    Rewriter.replace_op(block, [], [block.k])


# The kernel before


@fault("fp8-stream", "bf16-stream-2", caught_by="verifier")
def work_before_the_wait_for_the_grid(ir: Ir) -> None:
    """The kernel works before those before it have ended."""
    move_after(one(ir.frame, hopper.WaitForGridOp), one(ir.frame, hopper.RolesOp))


@fault("fp8-stream", caught_by="verifier")
def prefetched_by_every_role(ir: Ir) -> None:
    """A producer asks L2 for lines, which only the first tile's thread may."""
    fetch = one(ir.frame, hopper.TmaPrefetchOp)
    load = one(ir.producer, hopper.TmaLoadOp)
    after(
        load, hopper.TmaPrefetchOp.build(operands=[fetch.map, load.row, load.column], properties=dict(fetch.properties))
    )


@fault("fp8-stream", caught_by="verifier")
def prefetched_by_the_number_of_rows(ir: Ir) -> None:
    """Whether to ask L2 early is not told by the launch, but by M."""
    first = one(ir.frame, hopper.FirstTileOp)
    change(first, first.overlaps, next(a for a in ir.frame.args if a.name_hint == "m"))
