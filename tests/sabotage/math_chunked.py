"""Faults of math warpgroups that take k-blocks in chunks."""

from __future__ import annotations

from gemmir.dialects import hopper
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import Ir, all_of, change, erase, get, loop, move_after, move_before, one, put

CHUNKED = Collection()
fault = CHUNKED.add


@fault("fp8-chunk", "fp8-chunk-2x1", rule="R5")
def second_slot_not_awaited(ir: Ir) -> None:
    """The second slot of a chunk is read without waiting for it."""
    erase(one(loop(ir.math), hopper.WaitOp, 1))


@fault("fp8-chunk", rule="R5")
def both_waits_for_the_first_slot(ir: Ir) -> None:
    """A chunk waits twice for its first slot, and reads both."""
    body = loop(ir.math)
    change(one(body, hopper.WaitOp, 1), one(body, hopper.NextOp).result, one(body, hopper.NextOp).cursor)


@fault("fp8-chunk", rule="R5a")
def both_waves_left_in_flight(ir: Ir) -> None:
    """The first partial sum is used when both waves may still run."""
    put(one(loop(ir.math), hopper.WgmmaWaitOp), "pending", 2)


@fault("fp8-chunk", "fp8-chunk-2x1", rule="R5a")
def last_wave_left_in_flight(ir: Ir) -> None:
    """The last partial sum of a chunk is used when its wave may still run."""
    put(all_of(loop(ir.math), hopper.WgmmaWaitOp)[-1], "pending", 1)


@fault("fp8-chunk", "fp8-chunk-2x1", rule="R5a")
def chunk_promoted_before_its_wait(ir: Ir) -> None:
    """The first partial sum of a chunk is used, then waited for."""
    body = loop(ir.math)
    move_before(one(body, hopper.PromoteOp), one(body, hopper.WgmmaWaitOp))


@fault("fp8-chunk", rule="R5a")
def other_partial_promoted(ir: Ir) -> None:
    """The partial sum that is still being made is used instead of the one that is done."""
    body = loop(ir.math)
    first, second = all_of(body, hopper.PromoteOp)[:2]
    change(first, first.partial, second.partial)


@fault("fp8-chunk", rule="R5a")
def other_partial_awaited(ir: Ir) -> None:
    """A wait for one wave of two names the partial sum of the other."""
    first, second = all_of(loop(ir.math), hopper.WgmmaWaitOp)[:2]
    change(first, first.fragments[0], second.fragments[0])


@fault("fp8-chunk-2x1", rule="R5a")
def partial_overwritten(ir: Ir) -> None:
    """The third wave of a chunk overwrites the partial sum of the first before that is used."""
    body = loop(ir.math)
    move_after(one(body, hopper.PromoteOp), one(body, hopper.WgmmaCommitOp, 2))


@fault("fp8-chunk-2x1", rule="R5a")
def no_fence_before_the_third_wave(ir: Ir) -> None:
    """The third wave of a chunk overwrites the partial sum of the first with no fence after its use."""
    erase(one(loop(ir.math), hopper.WgmmaFenceOp, 2))


@fault("fp8-chunk", rule="R5a")
def no_fence_at_the_head_of_a_chunk(ir: Ir) -> None:
    """The first wave of a chunk is given a partial sum that the chunk before used, with no fence in between."""
    erase(one(loop(ir.math), hopper.WgmmaFenceOp))


@fault("fp8-chunk", rule="R5a")
def waves_share_a_group(ir: Ir) -> None:
    """Both waves of a chunk are committed as one group, and one of two is waited for."""
    erase(one(loop(ir.math), hopper.WgmmaCommitOp))


@fault("fp8-chunk", "fp8-chunk-2x1", rule="R5")
def first_slot_released_in_flight(ir: Ir) -> None:
    """The first slot of a chunk is given back while its wave may still run."""
    body = loop(ir.math)
    move_before(one(body, hopper.ReleaseOp), one(body, hopper.WgmmaWaitOp))


@fault("fp8-chunk", "fp8-chunk-2x1", rule="R5")
def last_slot_released_in_flight(ir: Ir) -> None:
    """The last slot of a chunk is given back while its wave may still run."""
    body = loop(ir.math)
    move_before(all_of(body, hopper.ReleaseOp)[-1], all_of(body, hopper.WgmmaWaitOp)[-1])


@fault("fp8-chunk", rule="R0")
def second_slot_not_released(ir: Ir) -> None:
    """Only the first slot of a chunk is given back."""
    erase(one(loop(ir.math), hopper.ReleaseOp, 1))


@fault("fp8-chunk-2x1", rule="R6")
def one_fence_too_early(ir: Ir) -> None:
    """The scales of a chunk's second slot are read after the fence that is to order them before TMA."""
    body = loop(ir.math)
    move_after(one(body, hopper.LoadScalesOp, 1), one(body, hopper.FenceProxyAsyncOp))


@fault("fp8-chunk", rule="R5")
def scales_read_after_the_lanes_meet(ir: Ir) -> None:
    """The scales of a chunk's second slot are read after the lanes met, which the release relies on."""
    body = loop(ir.math)
    move_after(one(body, hopper.LoadScalesOp, 1), one(body, hopper.SyncWarpOp))


@fault("fp8-chunk", rule="R5")
def scales_read_after_the_release(ir: Ir) -> None:
    """The scales of a chunk's first slot are read when it has been given back."""
    body = loop(ir.math)
    move_after(one(body, hopper.LoadScalesOp), one(body, hopper.ReleaseOp))


@fault("fp8-chunk", rule="R2")
def second_slot_released_twice(ir: Ir) -> None:
    """The second slot of a chunk is given back twice, the first one never."""
    body = loop(ir.math)
    release = one(body, hopper.ReleaseOp)
    change(release, release.cursor, one(body, hopper.NextOp).result)


@fault("fp8-chunk", rule="R8")
@fault("fp8-chunk-2x1", rule="R0")
def rest_left_out(ir: Ir) -> None:
    """The k-blocks that chunks leave over are not waited for, multiplied or given back."""
    rest = [loop(ir.math).next_op]
    while not isinstance(rest[-1], hopper.AcquireOp):
        assert rest[-1] is not None
        rest.append(rest[-1].next_op)
    for op in reversed(rest[:-1]):
        assert op is not None
        erase(op)


@fault("fp8-chunk", rule="R0")
def a_chunk_too_many(ir: Ir) -> None:
    """A math warpgroup does a chunk more than there are."""
    put(loop(ir.math), "last", get(loop(ir.math), "last") + 2)


@fault("fp8-chunk", rule="R2")
@fault("fp8-chunk-2x1", rule="R5")
def chunk_moves_on_too_little(ir: Ir) -> None:
    """A math warpgroup advances once less than it has k-blocks in a chunk."""
    erase(all_of(loop(ir.math), hopper.AdvanceOp)[-1])


@fault("fp8-chunk", caught_by="verifier")
def chunks_that_do_not_divide(ir: Ir) -> None:
    """A loop by twos over an odd number of k-blocks."""
    put(loop(ir.math), "last", get(loop(ir.math), "last") - 1)


@fault("fp8-chunk", caught_by="verifier")
def chunks_without_end(ir: Ir) -> None:
    """Chunks longer than any kernel has."""
    put(loop(ir.math), "last", 1 << 20)
    put(loop(ir.math), "step", 1 << 20)


@fault("fp8-chunk", caught_by="simulator")
def other_scales_promoted(ir: Ir) -> None:
    """Both k-blocks of a chunk are scaled with the second one's scales."""
    first, second = all_of(loop(ir.math), hopper.PromoteOp)[:2]
    change(first, first.scales, second.scales)


@fault("fp8-chunk", caught_by="simulator")
def a_k_block_promoted_twice(ir: Ir) -> None:
    """The first partial sum of a chunk is added twice, the second never."""
    first, second = all_of(loop(ir.math), hopper.PromoteOp)[:2]
    change(second, second.partial, first.partial)


@fault("fp8-chunk", rule="R5")
def second_wave_multiplies_the_first_slot(ir: Ir) -> None:
    """Both waves of a chunk multiply its first slot."""
    body = loop(ir.math)
    second = one(body, hopper.WgmmaOp, 1)
    change(second, one(body, hopper.NextOp).result, one(body, hopper.NextOp).cursor)


@fault("fp8-chunk-2x1", caught_by="simulator")
def rest_scaled_like_the_last_chunk(ir: Ir) -> None:
    """The first k-block that chunks leave over is scaled with what the last chunk left behind."""
    first, second = all_of(ir.math, hopper.LoadScalesOp)[4:6]
    change(first, first.scales, second.scales)
