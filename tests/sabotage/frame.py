"""Faults of the way out, of the store thread, and of the kernel's frame: barriers, shared memory, beginning and end."""

from __future__ import annotations

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IndexType, IntegerAttr
from xdsl.rewriter import Rewriter

from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import count
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import (
    Ir,
    after,
    again,
    all_of,
    before,
    change,
    erase,
    first_slice,
    get,
    move_after,
    move_before,
    one,
    put,
    resized,
    turned,
)

FRAME = Collection()
fault = FRAME.add


# The way out


@fault("fp8", "bf16", rule="R2")
def staging_area_not_acquired(ir: Ir) -> None:
    """A tile is staged while the store thread may still read the one before."""
    erase(one(ir.math, hopper.AcquireOp))


@fault("fp8", rule="R0")
def staging_area_acquired_with_the_wrong_parity(ir: Ir) -> None:
    """A math warpgroup waits for the store of a tile that it has not staged."""
    turned(one(ir.math, hopper.AcquireOp))


@fault("fp8", "fp8-whole", rule="R5")
def staging_area_acquired_too_late(ir: Ir) -> None:
    """A tile is staged, then the staging area is waited for."""
    move_after(one(ir.math, hopper.AcquireOp), first_slice(ir.math)[-1])


@fault("fp8", "bf16-2x1", rule="R6")
def staged_tile_not_fenced(ir: Ir) -> None:
    """TMA may send what has not arrived in shared memory: no fence after stmatrix."""
    erase(all_of(ir.math, hopper.FenceProxyAsyncOp)[-1])


@fault("fp8", "bf16", rule="R6")
def staged_tile_fenced_after_the_lanes_met(ir: Ir) -> None:
    """The lanes meet, then fence: one reports the tile for others that have not fenced."""
    move_after(all_of(ir.math, hopper.FenceProxyAsyncOp)[-1], all_of(ir.math, hopper.SyncWarpOp)[-1])


@fault("bf16", rule="R6")
def staged_tile_fenced_by_the_reader(ir: Ir) -> None:
    """The store thread fences instead of the threads that wrote, for the first warpgroup's tile only."""
    fence = one(ir.math, hopper.FenceProxyAsyncOp)
    fence.detach()
    before(one(ir.store, hopper.TmaStoreOp), fence)


@fault("fp8", "bf16", rule="R5")
def lanes_do_not_meet_after_staging(ir: Ir) -> None:
    """One lane reports a tile as staged while others still write it."""
    erase(all_of(ir.math, hopper.SyncWarpOp)[-1])


@fault("fp8", "bf16-1x2", rule="R0")
def tile_not_reported(ir: Ir) -> None:
    """The store thread is never told of a tile."""
    erase(one(ir.math, hopper.ArriveOp))


@fault("fp8", rule="R5")
def tile_reported_too_early(ir: Ir) -> None:
    """A tile is reported as staged, then staged."""
    move_before(one(ir.math, hopper.ArriveOp), one(ir.math, hopper.StageFragmentOp))


@fault("fp8", rule="R2")
def tile_reported_twice(ir: Ir) -> None:
    """A tile is reported twice."""
    again(one(ir.math, hopper.ArriveOp))


@fault("bf16", rule="R2")
def tile_reported_for_the_other_warpgroup(ir: Ir) -> None:
    """Both warpgroups report their tiles as the first one's."""
    arrive = one(ir.math, hopper.ArriveOp)
    zero = ConstantOp(IntegerAttr(0, IndexType()))
    before(arrive, zero)
    assert arrive.group is not None
    change(arrive, arrive.group, zero.result)


@fault("bf16", rule="R5")
def staged_into_the_other_warpgroups_area(ir: Ir) -> None:
    """Both warpgroups stage their tiles in the first one's area."""
    stage = one(ir.math, hopper.StageFragmentOp)
    zero = ConstantOp(IntegerAttr(0, IndexType()))
    before(stage, zero)
    change(stage, stage.group, zero.result)


@fault("bf16", rule="R5a")
def staged_before_the_wait(ir: Ir) -> None:
    """A tile is staged, then its WGMMAs are waited for."""
    move_before(one(ir.math, hopper.StageFragmentOp), all_of(ir.math, hopper.WgmmaWaitOp)[-1])


@fault("fp8", "bf16", rule="R2")
def tiles_of_the_way_out_not_counted(ir: Ir) -> None:
    """A math warpgroup does not advance from tile to tile."""
    erase(all_of(ir.math, hopper.AdvanceOp)[-1])


@fault("fp8-whole", caught_by="simulator")
def waves_staged_in_the_wrong_order(ir: Ir) -> None:
    """The two waves of a warpgroup change places."""
    first, second = all_of(ir.math, hopper.StageFragmentOp)
    put(first, "row", 64)
    put(second, "row", 0)


# The store thread


@fault("fp8", rule="R2")
@fault("fp8-whole", "bf16", rule="R0")
def tile_not_awaited(ir: Ir) -> None:
    """The store thread sends a tile that may not be staged."""
    erase(one(ir.store, hopper.WaitOp))


@fault("fp8", rule="R2")
@fault("fp8-whole", rule="R0")
def tile_awaited_with_the_wrong_parity(ir: Ir) -> None:
    """The store thread waits for the tile before the one that it sends."""
    turned(one(ir.store, hopper.WaitOp))


@fault("fp8", rule="R5")
def other_warpgroups_tile_awaited(ir: Ir) -> None:
    """The store thread waits for the second warpgroup, then sends the first one's tile."""
    wait, other = all_of(ir.store, hopper.WaitOp)[:2]
    assert wait.group is not None
    assert other.group is not None
    change(wait, wait.group, other.group)


@fault("fp8", rule="R5")
@fault("bf16-1x2", rule="R8")
def store_not_awaited(ir: Ir) -> None:
    """The staging area is given back while TMA may still read it."""
    erase(one(ir.store, hopper.StoreWaitReadOp))


@fault("fp8", rule="R5")
@fault("fp8-whole", rule="R8")
def store_left_in_flight(ir: Ir) -> None:
    """The staging area is given back when one group of stores may still read it."""
    for op in all_of(ir.store, hopper.StoreWaitReadOp):
        put(op, "pending", 1)


@fault("fp8", "bf16", rule="R5")
def store_not_committed(ir: Ir) -> None:
    """Stores belong to no group when they are waited for."""
    erase(one(ir.store, hopper.StoreCommitOp))


@fault("fp8", rule="R5")
def staging_area_given_back_too_early(ir: Ir) -> None:
    """The staging area is given back, then its stores are waited for."""
    move_before(one(ir.store, hopper.ArriveOp), one(ir.store, hopper.StoreWaitReadOp))


@fault("fp8", "bf16", rule="R0")
def staging_area_not_given_back(ir: Ir) -> None:
    """The staging area is never given back."""
    erase(one(ir.store, hopper.ArriveOp))


@fault("fp8", rule="R1")
def other_staging_area_given_back(ir: Ir) -> None:
    """The second warpgroup's staging area is given back twice, the first one's never."""
    arrive, other = all_of(ir.store, hopper.ArriveOp)[:2]
    assert arrive.group is not None
    assert other.group is not None
    change(arrive, arrive.group, other.group)


@fault("fp8", rule="R5")
def store_from_the_other_staging_area(ir: Ir) -> None:
    """The second warpgroup's tile is sent when the first one's is staged."""
    store = one(ir.store, hopper.TmaStoreOp)
    put(store, "offset", get(one(ir.frame, hopper.StagingOp), "pitch"))


@fault("bf16", rule="R2")
def store_thread_does_not_count(ir: Ir) -> None:
    """The store thread does not advance from tile to tile."""
    erase(one(ir.store, hopper.AdvanceOp))


@fault("fp8", caught_by="simulator")
def stored_to_the_wrong_columns(ir: Ir) -> None:
    """A box is stored one box further right."""
    put(one(ir.store, hopper.TmaStoreOp), "column_offset", 64)


@fault("bf16", caught_by="simulator")
def stored_to_the_wrong_rows(ir: Ir) -> None:
    """The second warpgroup's rows overwrite the first one's."""
    for op in all_of(ir.store, hopper.TmaStoreOp):
        put(op, "row_offset", 0)


# Barriers and shared memory


@fault("fp8", "bf16-2x1", rule="R3")
def empty_barrier_without_one_warp(ir: Ir) -> None:
    """The empty barrier counts one warp too few."""
    barriers = ir.storage("empty").owner
    put(barriers, "arrivals", get(barriers, "arrivals") - 1)


@fault("fp8", rule="R2")
def empty_barrier_without_one_warpgroup(ir: Ir) -> None:
    """The empty barrier counts one warpgroup too few."""
    put(ir.storage("empty").owner, "arrivals", 4)


@fault("fp8", "bf16", rule="R3")
def empty_barrier_for_two_ctas(ir: Ir) -> None:
    """The empty barrier counts a peer that there is not."""
    put(ir.storage("empty").owner, "arrivals", 16)


@fault("fp8-2x1", rule="R1")
def empty_barrier_without_the_peer(ir: Ir) -> None:
    """The empty barrier counts the warps of one CTA, but two release."""
    put(ir.storage("empty").owner, "arrivals", 8)


@fault("fp8", rule="R0")
def full_barrier_for_two_producers(ir: Ir) -> None:
    """The full barrier counts a producer that there is not."""
    put(ir.storage("full").owner, "arrivals", 2)


@fault("fp8", rule="R0")
def staged_barrier_for_two_warpgroups(ir: Ir) -> None:
    """The barrier of a staged tile counts a warpgroup too many."""
    put(ir.storage("staged").owner, "arrivals", 8)


@fault("fp8", rule="R3")
def staged_barrier_for_one_warp(ir: Ir) -> None:
    """The barrier of a staged tile counts one warp of four."""
    put(ir.storage("staged").owner, "arrivals", 1)


@fault("fp8", "bf16", rule="R7")
def barriers_not_initialised(ir: Ir) -> None:
    """The last array of barriers is not initialised."""
    init = one(ir.frame, hopper.InitBarriersOp)
    init.operands = list(init.operands)[:-1]


@fault("fp8", rule="R7")
def nothing_initialised(ir: Ir) -> None:
    """No barrier is initialised."""
    erase(one(ir.frame, hopper.InitBarriersOp))


@fault("fp8", rule="R7")
def initialised_twice(ir: Ir) -> None:
    """The barriers are initialised twice."""
    again(one(ir.frame, hopper.InitBarriersOp))


@fault("fp8", "bf16", rule="R7")
def nobody_waits_for_the_initialisation(ir: Ir) -> None:
    """Roles begin before the barriers are initialised."""
    erase(one(ir.frame, hopper.CtaSyncOp))


@fault("fp8", rule="R7")
def initialised_after_the_meeting(ir: Ir) -> None:
    """All threads meet, then the barriers are initialised."""
    move_after(one(ir.frame, hopper.InitBarriersOp), one(ir.frame, hopper.CtaSyncOp))


@fault("fp8-2x1", "bf16-2x1", "bf16-k-offs-2x1", rule="R7")
def cluster_does_not_meet_at_the_beginning(ir: Ir) -> None:
    """A peer is signalled that may not have begun."""
    erase(one(ir.frame, hopper.ClusterSyncOp))


@fault("fp8-2x1", "bf16-1x2", "fp8-2x2", rule="R7")
def cta_meets_instead_of_the_cluster(ir: Ir) -> None:
    """Only the threads of one CTA meet after the initialisation."""
    Rewriter.replace_op(one(ir.frame, hopper.ClusterSyncOp), hopper.CtaSyncOp.build(), [])


ENDED = ("fp8-2x1", "fp8-1x2", "bf16-2x1", "fp8-2x2", "bf16-4x1", "fp8-offs-2x1", "bf16-counts-1x2", "bf16-k-offs-2x1")


@fault(*ENDED, rule="R8")
def cluster_does_not_meet_at_the_end(ir: Ir) -> None:
    """A CTA may have ended when a peer releases a slot to it."""
    erase(all_of(ir.frame, hopper.ClusterSyncOp)[-1])


@fault("fp8-2x1", "fp8-1x2", "bf16-2x1", "fp8-offs-2x1", rule="R8")
def last_meeting_releases_nothing(ir: Ir) -> None:
    """A signal may still be on its way to a CTA that has ended."""
    del all_of(ir.frame, hopper.ClusterSyncOp)[-1].properties["release"]


@fault("fp8-2x1", rule="R0")
def cluster_meets_in_one_role(ir: Ir) -> None:
    """Only the math warpgroups come to the last meeting."""
    meeting = all_of(ir.frame, hopper.ClusterSyncOp)[-1]
    meeting.detach()
    before(all_of(ir.math, hopper.WgmmaWaitOp)[-1], meeting)


@fault("fp8", rule="R7")
def barriers_on_top_of_each_other(ir: Ir) -> None:
    """The full and the empty barriers lie at the same place."""
    put(ir.storage("empty").owner, "offset", get(ir.storage("full").owner, "offset"))


@fault("bf16", rule="R7")
def barriers_in_the_staging_area(ir: Ir) -> None:
    """The full barriers lie in the staging area."""
    put(ir.storage("full").owner, "offset", get(ir.storage("staging").owner, "offset"))


@fault("fp8", "bf16", rule="R5")
def rings_overlap(ir: Ir) -> None:
    """The ring of B begins one slot of A too early."""
    ring = ir.storage("ring_a").type
    put(ir.storage("ring_b").owner, "offset", (ring.stages - 1) * ring.slot_bytes)


@fault("fp8", "bf16-2x1", rule="R5")
def staging_area_in_the_ring(ir: Ir) -> None:
    """The staging area begins in the last slot of B."""
    staging = ir.storage("staging").owner
    put(staging, "offset", get(staging, "offset") - 1024)


@fault("bf16", rule="R5")
def staging_areas_overlap(ir: Ir) -> None:
    """The staging areas of the warpgroups overlap."""
    staging = ir.storage("staging").owner
    put(staging, "pitch", get(staging, "pitch") - 1024)


@fault("fp8", rule="R7")
def shared_memory_too_small(ir: Ir) -> None:
    """The kernel asks for 16 bytes of shared memory less than it uses."""
    put(ir.kernel, "shared", get(ir.kernel, "shared") - 16)


@fault("fp8-turns", rule="R5")
def ring_smaller_than_its_cursor(ir: Ir) -> None:
    """The ring of row scales has a slot too few: the last one lies in the ring of column scales."""
    resized(ir, "ring_scale_a", 3)
    ring = ir.storage("ring_scale_a")
    put(ir.storage("ring_scale_b").owner, "offset", get(ring.owner, "offset") + 3 * ring.type.slot_bytes)


@fault("fp8", rule="R5")
def two_producers(ir: Ir) -> None:
    """A second warp produces, too."""
    warp = ir.producer.parent_op()
    assert warp is not None
    twin = warp.clone()
    twin.properties["index"] = count(2)
    after(warp, twin)
