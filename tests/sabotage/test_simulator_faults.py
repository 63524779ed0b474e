"""
What is no fault of synchronisation computes something else, and the simulator sees it on exact data.

The result is 70 x 1024, and one cluster computes all of its tiles, so that each follows another. The simulator is a
second witness for most of what the checker finds, too: the last test takes an eighth of those faults.
"""

from __future__ import annotations

from zlib import crc32

import pytest
import torch

from gemmir.backends.simulator import simulate
from gemmir.dialects import hopper
from gemmir.errors import SyncError
from gemmir.testing import check_bits, check_exact
from tests.sabotage.fault import Fault
from tests.sabotage.faults import FAULTS, FOR_THE_SIMULATOR, table
from tests.sabotage.kernels import TEXTS, Ir, kernel_in, module_of

M = 70
FEW_SEEDS = range(8)

UNSEEN = {
    "an-empty-tile-gives-nothing-back",  # what a CTA leaves out is planted by parts of K, of which it has one
    "an-empty-tile-is-not-announced",
    "an-empty-tile-loads-nothing",
    "barriers-in-the-staging-area",  # barriers are no bytes there
    "gathered-sums-not-fenced",  # the fence of what is staged follows before other sums come
    "grant-awaited-in-the-own-cta",  # whoever waits sees everything
    "granted-before-its-slot-is-free",  # other sums would have to come within the few steps in which these are read
    "granted-to-the-wrong-parts",
    "one-lane-grants",  # lanes of a warp go together
    "sums-awaited-in-the-own-cta",
    "sums-read-and-not-fenced",  # with K of these kernels no exchange takes the slots of the one before
    "gatherers-do-not-meet",  # in 2 of 50 runs: a peer would have to signal before the first steps here
    "granted-twice-in-a-row",  # the peer would have to be a whole tile behind
    "granted-while-the-sums-before-are-read",  # other sums would have to come within these few steps
    "initialised-twice",  # before anybody uses them
    "lanes-do-not-meet-after-gathered-sums",  # lanes of a warp go together
    "last-slot-on-barriers",  # barriers are no bytes there
    "last-slot-past-the-end",  # memory is padded there, by more than it is past
    "last-meeting-releases-nothing",  # needs a signal that is later than the end
    "next-slot-of-scales-given-back",  # the scales warp would have to be a whole tile ahead
    "producer-lanes-left-alone",  # lanes of a warp go together
    "promoted-by-the-slot-of-the-k-block",  # what is read there is no part of that memory
    "scales-announced-too-late",  # of an even number of tiles each is announced with another one
    "scales-read-from-the-slot-of-the-k-block",  # it reads past the end of that memory
    "wave-in-vain-never-settles",  # a CTA ends when all that it does has ended
    "shared-memory-too-small",  # by bytes that nothing uses
}
"""Faults that the simulator does not see: what they break is not simulated, or breaks only by rare chance."""


NOT_SEEN_HERE = {
    "arrival-seen-in-the-own-cta-only-fp8-stream-3",
    "c-not-waited-for-f32-c",
    "ctas-do-not-meet-fp8-split",
    "grant-seen-in-the-own-cta-only-fp8-stream-3",
    "nobody-waits-for-the-initialisation-fp8",
    "one-of-a-cluster-ends-fp8-offs",
    "rows-given-back-before-the-lanes-meet-fp8-offs",
    "rows-given-back-before-they-are-stored-fp8-offs",
    "slot-of-sums-given-back-before-it-is-read-bf16-stream-2",
    "slot-of-sums-given-back-before-it-is-read-fp8-stream-3",
    "tiles-by-the-rank-bf16-k-offs-2x1",
}
"""
Of the others, those that do not show in eight runs of these kernels; all 500 and more that are left do. Lanes of a warp
go together, who waits sees everything, or few steps would have to fall together.
"""


ON_RANDOM_DATA = ("gathered-in-another-order",)
"""What only rounds differently shows on data whose sums are not exact, against the model's bits."""


def check(kernel: hopper.KernelOp, name: str, seed: int, *, bits: bool = False) -> None:
    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return simulate(kernel, tensors, M, seed=seed, clusters=1)

    (check_bits if bits else check_exact)(run, TEXTS[name], M, seed=seed)


@pytest.mark.parametrize("name", TEXTS)
def test_kernels_that_are_right_are_exact(name: str):
    check(kernel_in(module_of(name)), name, seed=0)


def test_parts_that_are_added_in_order_have_the_bits_of_the_model() -> None:
    """What the fault that is found on random data breaks."""
    check(kernel_in(module_of("fp8-stream-3")), "fp8-stream-3", seed=0, bits=True)


def broken(fault: Fault) -> hopper.KernelOp:
    ir = Ir(kernel_in(module_of(fault.kernel)))
    fault.plant(ir)
    return ir.kernel


@pytest.mark.parametrize("fault", FOR_THE_SIMULATOR, ids=lambda f: f"{f.name}-{f.kernel}")
def test_the_simulator_finds_it(fault: Fault):
    """With the first seed: none of these depends on the order of events."""
    kernel = broken(fault)
    kernel.verify()
    with pytest.raises((AssertionError, SyncError)) as found:
        check(kernel, fault.kernel, seed=0, bits=fault.name in ON_RANDOM_DATA)
    assert FOUND_AS.get(fault.name, "elements differ, in rows") in str(found.value)


FOUND_AS = {
    "totals-not-zeroed": "is staged, but it is garbage",
    "stored-to-the-wrong-columns": "is stored twice",
    "stored-to-the-wrong-rows": "is stored twice",
    "slices-stored-to-the-same-rows": "is stored twice",
    "whole-boxes-stored": "is stored twice",
    "both-store-the-same-half": "is stored twice",
    "all-parts-stage-and-store": "is stored twice",
    "waves-transposed-to-the-same-columns": "sends garbage",
    "weight-scales-not-copied": "garbage",
    "weights-of-several-slots-stored-one-ahead": "is staged, but it is garbage",
    "tail-loaded-first": "is staged, but it is garbage",
    "tail-staged-as-wide": "are never stored",
}
"""How the others show: before there is a result."""


@pytest.mark.parametrize("fault", FOR_THE_SIMULATOR, ids=lambda f: f"{f.name}-{f.kernel}")
def test_the_table_says_so(fault: Fault):
    rows = [row for row in table().splitlines() if row.startswith(f"| {fault.what} |")]
    assert len(rows) == 1
    assert rows[0].endswith("| simulator |")
    assert fault.kernel in rows[0]


def seeds_that_find(fault: Fault) -> list[int]:
    """The first of a few seeds that finds it; empty if none does."""
    for seed in FEW_SEEDS:
        try:
            check(broken(fault), fault.kernel, seed)
        except (AssertionError, SyncError):
            return [seed]
    return []


NOT_A_RUN = (
    "cursor-of-another-warpgroup",
    "granted-to-a-part-that-does-not-exist",
    "peer-that-does-not-exist",
)


def label(fault: Fault) -> str:
    return f"{fault.name}-{fault.kernel}"


SEEN = [
    fault
    for fault in FAULTS
    if fault.caught_by == "checker" and fault.name not in UNSEEN and label(fault) not in NOT_SEEN_HERE
]


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.name in NOT_A_RUN], ids=lambda f: f"{f.name}-{f.kernel}")
def test_what_cannot_be_run_is_a_typed_error(fault: Fault):
    assert seeds_that_find(fault)


@pytest.mark.parametrize(
    "fault",
    [f for f in SEEN if crc32(label(f).encode()) % 8 == 0],
    ids=label,
)
def test_the_simulator_is_a_second_witness(fault: Fault):
    """An eighth of them, which stays the same whatever is added."""
    assert seeds_that_find(fault)


def test_what_is_left_out_is_planted():
    assert {fault.name for fault in FAULTS if fault.caught_by == "checker"} >= UNSEEN
    assert {label(fault) for fault in FAULTS if fault.caught_by == "checker"} >= NOT_SEEN_HERE
    assert len(SEEN) >= 500
