"""Kernels that are not right: what the simulator says of them, and that no seed lets a planted fault pass."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from xdsl.dialects.builtin import IntegerAttr, i64
from xdsl.ir import Operation

from gemmir.dialects import hopper
from gemmir.errors import SyncError
from tests.backends.simulator.kernels import Example, program

SEEDS = 40
Change = Callable[[hopper.KernelOp], None]


@cache
def example(name: str) -> Example:
    """Small kernels whose CTAs compute several tiles of more k-blocks than there are stages."""
    fp8, half = (
        "block = 64x64x128, warpgroups = 1, chunk = 1, stages = 2",
        "block = 128x32x64, warpgroups = 2 along m, stages = 2",
    )
    return {
        "promoted": lambda: Example.of(program("f8E4M3FN", 64, 384, fp8), 160),
        "turns": lambda: Example.of(
            program("f8E4M3FN", 64, 384, "block = 64x64x128, warpgroups = 2 along n, turns = true, stages = 2"), 160
        ),
        "cluster": lambda: Example.of(program("f8E4M3FN", 64, 384, fp8 + ", cluster = 2x1"), 200),
        "in place": lambda: Example.of(program("bf16", 64, 192, half), 150),
        "in place cluster": lambda: Example.of(program("bf16", 128, 192, half + ", cluster = 1x2"), 150),
    }[name]()


def find(kernel: hopper.KernelOp, kind: type[Operation], inside: type[Operation], number: int = 0) -> Operation:
    found = [op for op in kernel.walk() if isinstance(op, kind) and isinstance(op.parent_op(), inside)]
    return found[number]


def drop(kind: type[Operation], inside: type[Operation], number: int = 0) -> Change:
    def change(kernel: hopper.KernelOp) -> None:
        op = find(kernel, kind, inside, number)
        op.detach()
        op.drop_all_references()

    return change


def put(kind: type[Operation], inside: type[Operation], name: str, value: int, number: int = 0) -> Change:
    """Give an op's property another number."""

    def change(kernel: hopper.KernelOp) -> None:
        find(kernel, kind, inside, number).properties[name] = IntegerAttr(value, i64)

    return change


def move_up(kind: type[Operation], inside: type[Operation], before: type[Operation]) -> Change:
    """Move an op up to before another one of its block."""

    def change(kernel: hopper.KernelOp) -> None:
        op, target = find(kernel, kind, inside), find(kernel, before, inside)
        block = op.parent_block()
        assert block is not None
        op.detach()
        block.insert_op_before(op, target)

    return change


def verdict(name: str, change: Change, seed: int) -> str | None:
    """What is wrong with a changed kernel under one seed: the error's first line, "wrong bits", or None."""
    try:
        bits = example(name).run(change, seed)
    except SyncError as error:
        return error.what
    return None if np.array_equal(bits, example(name).expected) else "wrong bits"


def first_verdict(name: str, change: Change) -> str:
    """The first thing that any seed finds; fails if none does."""
    for seed in range(SEEDS):
        if (found := verdict(name, change, seed)) is not None:
            return found
    pytest.fail(f"{SEEDS} seeds found nothing")


Tiles, Loop, Group, Kernel = hopper.TilesOp, hopper.KBlocksOp, hopper.WarpgroupsOp, hopper.KernelOp

STUCK = "the kernel is stuck"
FAULTS: dict[str, tuple[str, Change, str]] = {
    # Signals that do not come.
    "nobody says that a slot is full": ("promoted", drop(hopper.ExpectOp, Loop), STUCK),
    "nobody releases a slot": ("promoted", drop(hopper.ReleaseOp, Loop), STUCK),
    "the last slot of a tile is not released": ("in place", drop(hopper.ReleaseOp, Tiles), STUCK),
    "nobody says that a tile is staged": ("promoted", drop(hopper.ArriveOp, Tiles), STUCK),
    "nobody says that a tile is drained": ("promoted", drop(hopper.ArriveOp, Tiles, 1), STUCK),
    "a load is missing": ("in place", drop(hopper.TmaLoadOp, Loop, 1), STUCK),
    "a stage too many bytes are expected": ("promoted", put(hopper.ExpectOp, Loop, "bytes", 2 * 16640), STUCK),
    "slots are released to one CTA of two": ("cluster", put(hopper.ReleaseOp, Loop, "peers", 1), STUCK),
    "nobody begins to take turns": ("turns", drop(hopper.PassTurnOp, Group), STUCK),
    "a turn is not passed on": ("turns", drop(hopper.PassTurnOp, Loop), STUCK),
    "the service warpgroup keeps its registers": ("turns", drop(hopper.SetMaxRegistersOp, Group, 1), STUCK),
    # Signals that come too early, or waits that are not there.
    "too few bytes are expected": ("promoted", put(hopper.ExpectOp, Loop, "bytes", 8192), ""),
    "the producer does not wait": ("promoted", drop(hopper.AcquireOp, Loop), ""),
    "the math role does not wait": ("in place", drop(hopper.WaitOp, Loop), ""),
    "the first slot is not waited for": ("promoted", drop(hopper.WaitOp, Group), ""),
    "the store warp does not wait": ("promoted", drop(hopper.WaitOp, Tiles), "a TMA store sends garbage to out"),
    "the staging area is not waited for": ("promoted", drop(hopper.AcquireOp, Tiles), ""),
    "a slot is released before its WGMMAs are done": (
        "promoted",
        move_up(hopper.ReleaseOp, Loop, hopper.WgmmaWaitOp),
        "",
    ),
    "one group too many stays in flight": ("in place", put(hopper.WgmmaWaitOp, Loop, "pending", 2), ""),
    "the store's reading is not waited for": ("in place", drop(hopper.StoreWaitReadOp, Tiles), ""),
    "a store is not committed": ("in place", drop(hopper.StoreCommitOp, Tiles), ""),
    "a turn is not waited for": ("turns", drop(hopper.TakeTurnOp, Loop), ""),
    "an arrival too many is expected of the math role": (
        "in place",
        put(hopper.BarriersOp, Kernel, "arrivals", 9, 1),
        STUCK,
    ),
    "an arrival too few is expected of the math role": (
        "in place",
        put(hopper.BarriersOp, Kernel, "arrivals", 7, 1),
        "",
    ),
    # Sums.
    "partial sums are used before they are there": (
        "promoted",
        drop(hopper.WgmmaWaitOp, Loop),
        "CTA 0, warpgroup 0: register 0 of thread 0 of total0 is staged, but it is garbage",
    ),
    "WGMMAs are not committed": ("promoted", drop(hopper.WgmmaCommitOp, Loop), ""),
    "registers are not fenced": (
        "promoted",
        drop(hopper.WgmmaFenceOp, Loop),
        "CTA 0, warpgroup 0: partial goes into a WGMMA without wgmma_fence after its last use",
    ),
    "totals are not set to zero": (
        "promoted",
        drop(hopper.ZeroOp, Tiles),
        "CTA 0, warpgroup 0: register 0 of thread 0 of total0 is staged, but it is garbage",
    ),
    "the last wave is never waited for": (
        "promoted",
        drop(hopper.WgmmaWaitOp, Group),
        "CTA 0, warpgroup 0 ends with WGMMAs that it has not waited for",
    ),
    "scales are not carried over": ("promoted", drop(hopper.MoveScalesOp, Loop), "wrong bits"),
    "a k-block is left out": ("in place", put(hopper.KBlocksOp, Tiles, "last", 2), ""),
    # Ordinary accesses and the asynchronous proxy.
    "the producer does not fence scales that were read": (
        "promoted",
        drop(hopper.FenceProxyAsyncOp, Loop),
        "CTA 0: TMA overwrites shared bytes",
    ),
    "the producer fences before it waits": (
        "promoted",
        move_up(hopper.FenceProxyAsyncOp, Loop, hopper.AcquireOp),
        "CTA 0: TMA overwrites shared bytes",
    ),
    "nobody in a cluster fences scales that were read": (
        "cluster",
        drop(hopper.FenceProxyAsyncOp, Loop),
        ": TMA overwrites shared bytes",
    ),
    "lanes do not meet after reading scales": (
        "promoted",
        drop(hopper.SyncWarpOp, Loop),
        "CTA 0: TMA overwrites shared bytes",
    ),
    "lanes do not meet after writing scales": (
        "promoted",
        drop(hopper.SyncWarpOp, Loop, 1),
        "CTA 0, warpgroup 0: register 0 of thread 0 of total0 is staged, but it is garbage",
    ),
    "a staged tile is not fenced": (
        "promoted",
        drop(hopper.FenceProxyAsyncOp, Tiles),
        "a TMA store sends garbage to out[0, 0]",
    ),
    "lanes do not meet after staging": (
        "promoted",
        drop(hopper.SyncWarpOp, Tiles),
        "a TMA store sends garbage to out[0, 0]",
    ),
    # Beginning and end.
    "barriers are not initialised": ("promoted", drop(hopper.InitBarriersOp, Kernel), "used before it is initialised"),
    "the CTA does not meet after that": ("in place", drop(hopper.CtaSyncOp, Kernel), "used before it is initialised"),
    "nor does the cluster": ("cluster", drop(hopper.ClusterSyncOp, Kernel), "used before it is initialised"),
    "the cluster does not meet at the end": ("in place cluster", drop(hopper.ClusterSyncOp, Kernel, 1), "CTA"),
    "a tile is never stored": (
        "promoted",
        drop(hopper.TmaStoreOp, Tiles),
        "10240 elements of out are never stored, the first is [0, 0]",
    ),
    "a tile is stored twice": (
        "in place",
        put(hopper.TmaStoreOp, Tiles, "row_offset", 0, 1),
        "out[0, 0] is stored twice",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_is_found(fault):
    name, change, expected = FAULTS[fault]
    assert expected in first_verdict(name, change)


@pytest.mark.parametrize("name", ["promoted", "turns", "cluster", "in place", "in place cluster"])
def test_the_kernels_are_right_without_a_fault(name):
    for seed in range(12):
        np.testing.assert_array_equal(example(name).run(None, seed), example(name).expected, err_msg=f"seed {seed}")


def test_a_deadlock_is_reported_role_by_role():
    with pytest.raises(SyncError) as caught:
        example("promoted").run(drop(hopper.ReleaseOp, Loop))
    lines = str(caught.value).splitlines()
    assert lines[0] == "GMR-Y001: the kernel is stuck: no role can go on and nothing is under way"
    by_role = dict(line.strip().split(": ", 1) for line in lines[1:])
    assert by_role["CTA 0, warpgroup 0"].startswith("hopper.wait, parity 1, of full[0, 0] of CTA 0 (phase 1")
    assert by_role["CTA 0, warp 0 of warpgroup 1"].startswith(
        "hopper.acquire, parity 0, of empty[0, 0] of CTA 0 (phase 0"
    )
    assert by_role["CTA 0, warp 1 of warpgroup 1"].startswith("hopper.wait, parity 0, of staged[0, 0] of CTA 0")


def test_the_last_wait_is_left_out_because_nothing_would_come():
    def wait_always(kernel: hopper.KernelOp) -> None:
        del find(kernel, hopper.WaitOp, Loop).properties["unless_last"]

    assert STUCK in first_verdict("promoted", wait_always)


def test_the_wave_issued_ahead_reads_a_stale_slot_and_its_use_would_be_found():
    """Legal in itself; but staged instead of the total, it is garbage."""

    def stage_partial(kernel: hopper.KernelOp) -> None:
        op = find(kernel, hopper.StageFragmentOp, Tiles)
        partial = find(kernel, hopper.PromoteOp, Loop).operands[0]
        op.operands[0] = partial

    assert "of partial is staged, but it is garbage" in first_verdict("promoted", stage_partial)


def test_faults_have_a_code():
    with pytest.raises(SyncError) as caught:
        example("promoted").run(drop(hopper.InitBarriersOp, Kernel))
    assert caught.value.code == "GMR-Y001"
