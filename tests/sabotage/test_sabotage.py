"""Every planted fault is found, by the one who is to find it; nothing is found in kernels that are right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from xdsl.ir import Operation
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects import hopper
from gemmir.errors import SyncError
from gemmir.passes.sync.check import check_kernel
from gemmir.passes.sync.execute import Machine
from gemmir.passes.sync.extract import Program, program
from gemmir.passes.sync.report import Refusal
from gemmir.passes.sync.rules import check_end
from tests.sabotage.fault import Fault
from tests.sabotage.faults import FAULTS, FOR_THE_SIMULATOR, table
from tests.sabotage.kernels import TEXTS, Ir, after, all_of, erase, kernel_in, module_of
from tests.sabotage.producer import share_row_scales
from tests.sabotage.scales import deepened

PROOF = Path(__file__).parents[2] / "docs" / "proof.md"

TOLD_BY_THE_CHECKER = [fault for fault in FAULTS if fault.caught_by == "checker"]

TOLD_BEFORE_A_RUN = {
    "registers-over-budget",
    "registers-that-do-not-exist",
    "last-meeting-releases-nothing",
    "one-of-a-cluster-ends",
    "tiles-by-the-rank",
}
"""Seen in the IR as it stands: no run is needed."""

TOLD_BY_A_RUN = [fault for fault in TOLD_BY_THE_CHECKER if fault.name not in TOLD_BEFORE_A_RUN]

WHAT_SYNCHRONISES = (
    hopper.AcquireOp,
    hopper.AdvanceOp,
    hopper.ArriveOp,
    hopper.ClusterSyncOp,
    hopper.CtaSyncOp,
    hopper.ExpectOp,
    hopper.FenceProxyAsyncOp,
    hopper.GrantOp,
    hopper.InitBarriersOp,
    hopper.PassTurnOp,
    hopper.ReleaseOp,
    hopper.SendSumsOp,
    hopper.StoreCommitOp,
    hopper.StoreWaitReadOp,
    hopper.SyncWarpOp,
    hopper.TakeTurnOp,
    hopper.TmaFillOp,
    hopper.TmaLoadOp,
    hopper.WaitOp,
    hopper.WgmmaCommitOp,
    hopper.WgmmaFenceOp,
    hopper.WgmmaWaitOp,
)

FIRST_MEETING, NEXT_MEETING = "hopper.sync_warp in hopper.warpgroups", "hopper.sync_warp in hopper.tiles"
FIRST_SCALES = ["hopper.fence_proxy_async in hopper.warpgroups", FIRST_MEETING]
NEXT_TILE = ["hopper.fence_proxy_async in hopper.tiles", NEXT_MEETING]

FIRST_STORES = ["hopper.store_commit in hopper.tiles", "hopper.store_wait_read in hopper.tiles"]

SLOTS_OF_A_CHUNK = [f"hopper.{op} in hopper.k_blocks" for op in ("acquire", "sync_warp", "sync_warp")]

NOT_NEEDED = {
    "fp8": [FIRST_MEETING, NEXT_MEETING],
    "fp8-whole": [FIRST_MEETING],
    "fp8-waves-2x1": [*FIRST_SCALES, *NEXT_TILE],
    "fp8-turns": [FIRST_MEETING],
    "fp8-batch": [FIRST_MEETING],
    "fp8-2x1": FIRST_SCALES,
    "fp8-1x2": FIRST_SCALES,
    "fp8-2x2": FIRST_SCALES,
    "bf16-4x1": ["hopper.wgmma_fence in hopper.k_blocks"],
    "fp8-chunk": ["hopper.wgmma_fence in hopper.k_blocks"],
    "fp8-chunk-2x1": ["hopper.wgmma_fence in hopper.k_blocks", "hopper.wgmma_fence in hopper.tiles"],
    "fp8-scales": [FIRST_MEETING],
    "fp8-scales-4": ["hopper.wgmma_fence in hopper.k_blocks", *SLOTS_OF_A_CHUNK],
    "fp8-at-once": ["hopper.wgmma_fence in hopper.k_blocks", "hopper.wgmma_fence in hopper.tiles"],
    "fp8-at-once-2x1": ["hopper.wgmma_fence in hopper.k_blocks"],
    "fp8-columns": [],
    "fp8-columns-2x1": [],
    "fp8-columns-chunk": ["hopper.wgmma_fence in hopper.k_blocks"],
    "bf16": ["hopper.wgmma_fence in hopper.k_blocks"],
    "bf16-2x1": ["hopper.wgmma_fence in hopper.k_blocks"],
    "bf16-1x2": ["hopper.wgmma_fence in hopper.k_blocks"],
    "fp8-offs": [FIRST_MEETING],
    "bf16-offs-c": ["hopper.wgmma_fence in hopper.k_blocks", *FIRST_STORES, *NEXT_TILE],
    "bf16-k-offs": ["hopper.wgmma_fence in hopper.k_blocks"],
    "fp8-offs-2x1": FIRST_SCALES,
    "bf16-counts-1x2": ["hopper.wgmma_fence in hopper.k_blocks"],
    "bf16-k-offs-2x1": ["hopper.wgmma_fence in hopper.k_blocks"],
    "fp8-split": [],
    "fp8-split-tall": [],
    "bf16-split": ["hopper.wgmma_fence in hopper.k_blocks"],
    "bf16-f32": ["hopper.wgmma_fence in hopper.k_blocks"],
    "bf16-columns": ["hopper.wgmma_fence in hopper.k_blocks"],
    "bf16-mn": ["hopper.wgmma_fence in hopper.k_blocks"],
    "bf16-c": ["hopper.wgmma_fence in hopper.k_blocks", *FIRST_STORES],
    "f32-c": ["hopper.wgmma_fence in hopper.k_blocks", *FIRST_STORES],
    "fp8-tail": [FIRST_MEETING, NEXT_MEETING, NEXT_MEETING],
    "fp8-tail-turns": [FIRST_MEETING],
    "bf16-tail": ["hopper.wgmma_fence in hopper.k_blocks", "hopper.wgmma_fence in hopper.k_blocks"],
    "fp8-stream": ["hopper.wgmma_fence in hopper.k_blocks"],
    "fp8-stream-3": ["hopper.wgmma_fence in hopper.k_blocks", "hopper.advance in hopper.in_part"],
    "bf16-stream": ["hopper.wgmma_fence in hopper.k_blocks"],
    "bf16-counts-stream": ["hopper.wgmma_fence in hopper.k_blocks"],
    "bf16-stream-2": ["hopper.wgmma_fence in hopper.k_blocks", "hopper.advance in hopper.in_part"],
}
"""
What could go: meeting, and fence in a cluster, after the very first scales, after those of the next tile's first
k-block, and after the first ones of a narrower tile with two waves, since
the ones in the k-block after come before the slot is released; the fence between the first two waves of a chunk, since
the one before serves both partial sums; the fence between WGMMAs that add to the same registers; where C follows
after the last warpgroup's stores, the wait for those of the first one; where a warp of its own fills several slots
with scales, what is between two of a chunk, which are read once both are full: a wait (of two, the other one is told by
that of the producer) and the meetings after the first of two; and the count of what one CTA has granted to
those that it gathers sums from, by which it waits for nothing.
"""


def label(op: Operation) -> str:
    parent = op.parent_op()
    assert parent is not None
    return f"{op.name} in {parent.name}"


def broken(fault: Fault) -> hopper.KernelOp:
    ir = Ir(kernel_in(module_of(fault.kernel)))
    fault.plant(ir)
    return ir.kernel


def rule_of(error: SyncError) -> str:
    assert error.rule is not None
    return error.rule.partition(":")[0]


@pytest.mark.parametrize("name", TEXTS)
def test_kernels_that_are_right(name: str):
    kernel = kernel_in(module_of(name))
    kernel.verify()
    check_kernel(kernel)
    check_kernel(kernel, split_warps=True)


def test_there_are_enough():
    assert len({fault.what for fault in FAULTS}) >= 100
    assert len({fault.what for fault in TOLD_BY_THE_CHECKER}) >= 60
    assert len(FOR_THE_SIMULATOR) >= 10
    assert {fault.kernel for fault in FAULTS} == set(TEXTS)
    assert len({(fault.name, fault.kernel) for fault in FAULTS}) == len(FAULTS)
    rules = {"R0", "R1", "R2", "R3", "R4", "R5", "R5a", "R6", "R7", "R8"}
    assert {fault.rule for fault in TOLD_BY_THE_CHECKER} == rules


@pytest.mark.parametrize("fault", TOLD_BY_THE_CHECKER, ids=lambda f: f"{f.name}-{f.kernel}")
def test_the_checker_finds_it(fault: Fault):
    with pytest.raises(SyncError) as error:
        check_kernel(broken(fault))
    assert error.value.code == "GMR-Y001"
    assert rule_of(error.value) == fault.rule
    assert error.value.fix


@pytest.mark.parametrize("fault", TOLD_BY_THE_CHECKER, ids=lambda f: f"{f.name}-{f.kernel}")
def test_the_warps_of_a_warpgroup_may_be_looked_at_as_one(fault: Fault):
    with pytest.raises(SyncError):
        check_kernel(broken(fault), split_warps=True)


@pytest.mark.parametrize("fault", FOR_THE_SIMULATOR, ids=lambda f: f"{f.name}-{f.kernel}")
def test_what_is_no_fault_of_synchronisation(fault: Fault):
    check_kernel(broken(fault))


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.caught_by == "verifier"], ids=lambda f: f.name)
def test_the_verifier_finds_it(fault: Fault):
    with pytest.raises(VerifyException):
        broken(fault).verify()


def test_a_peer_may_load_what_every_reader_fences() -> None:
    """What `producer_fences_for_its_peer` breaks: with the fences of the math warps there is no fault."""
    ir = Ir(kernel_in(module_of("fp8-1x2")))
    share_row_scales(ir)
    check_kernel(ir.kernel)
    check_kernel(ir.kernel, split_warps=True)


@pytest.mark.parametrize("name", ["fp8-stream", "fp8-stream-3", "fp8-at-once", "fp8-at-once-2x1"])
@pytest.mark.parametrize("slots", [2, 3, 4, 5])
def test_tiles_may_take_turns_in_more_slots(name: str, slots: int) -> None:
    """What the faults of deep slots break: as such they are right."""
    ir = Ir(kernel_in(module_of(name)))
    deepened(ir, slots)
    ir.kernel.verify()
    assert program(ir.kernel).tile_slots == slots
    check_kernel(ir.kernel)
    check_kernel(ir.kernel, split_warps=True)


def test_a_fence_by_the_second_thread_is_as_good() -> None:
    """For what was read, and for what was written: the store thread fences each tile that it waited for."""
    for name in ("fp8-turns", "bf16"):
        ir = Ir(kernel_in(module_of(name)))
        erase(all_of(ir.math, hopper.FenceProxyAsyncOp)[-1])
        for wait in all_of(ir.store, hopper.WaitOp):
            after(wait, hopper.FenceProxyAsyncOp.build())
        check_kernel(ir.kernel)


@pytest.mark.parametrize("name", TEXTS)
def test_everything_is_needed(name: str):
    """Leave out each op that synchronises, one at a time; it is put back before the next."""
    module = module_of(name)
    kernel, ops = kernel_in(module), [op for op in module.walk() if isinstance(op, WHAT_SYNCHRONISES)]
    survivors: list[str] = []
    for op in ops:
        block, next_op = op.parent_block(), op.next_op
        assert block is not None
        assert not any(result.uses for result in op.results)
        op.detach()
        try:
            check_kernel(kernel)
        except SyncError:
            continue
        finally:
            block.add_op(op) if next_op is None else block.insert_op_before(op, next_op)
        survivors.append(label(op))
    assert str(module) == str(module_of(name)), "all were put back"
    assert len(ops) >= 30
    assert survivors == NOT_NEEDED[name]


def verdict(
    made: Program, trips: tuple[int, ...], order: random.Random, wide: int | None = None
) -> tuple[bool, tuple[tuple[int, int, int], ...]]:
    """Whether a run is faultless, and the phases of every barrier, with the agents taken in a random order."""
    machine = Machine(made.roles(trips, wide), len(made.memory.names))
    order.shuffle(machine.agents)
    check_end(machine, machine.run())
    phases = sorted((b.cta, b.address, len(b.phases)) for barriers in machine.barriers for b in barriers.values())
    return not machine.faults, tuple(phases)


@pytest.mark.parametrize("name", TEXTS)
def test_one_run_stands_for_all(name: str):
    """In whatever order the agents run, the same phases complete, and nothing is found."""
    made = program(kernel_in(module_of(name)))
    trips = made.traces[2]
    found = {verdict(made, trips, random.Random(seed)) for seed in range(30)}
    assert len(found) == 1
    assert found.pop()[0]


@pytest.mark.parametrize("fault", TOLD_BY_A_RUN[::4], ids=lambda f: f"{f.name}-{f.kernel}")
def test_faults_are_found_in_every_order(fault: Fault):
    try:
        made = program(broken(fault))
    except Refusal:
        return  # found before anything runs
    for seed in range(5):
        runs = [(trips, wide) for trips in made.traces for wide in made.wide(trips)]
        found = [verdict(made, trips, random.Random(seed), wide)[0] for trips, wide in runs]
        assert not all(found), f"nothing found with seed {seed}"


def test_the_table_in_the_documentation():
    assert table() in PROOF.read_text(), "run: python -m tests.sabotage.write_table"
