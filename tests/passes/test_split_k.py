"""Two CTAs that sum a part of K each: which schedules can, what is chosen, the kernel, and its proof."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmir.compiler import lower
from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number
from gemmir.errors import ScheduleError, UnsupportedError
from gemmir.legality import is_legal, violation
from gemmir.passes.block_search import search
from gemmir.passes.cost_model import predict
from gemmir.passes.l2_model import resident_clusters
from gemmir.passes.sync.check import check_kernel
from gemmir.passes.sync.extract import program
from gemmir.passes.sync.traces import default_traces
from gemmir.problem import GemmProblem
from gemmir.schedule import Family, Schedule, Split
from gemmir.testing.strategies import program_text, split_in_two
from gemmir.tile import Exchange, exchange, shared_layout
from tests.passes.run_passes import fp8_text, plain_text, run
from tests.sabotage.kernels import kernel_in
from tests.schedules import fp8_problem, half_problem, legal_schedules

FP8 = split_in_two(fp8_problem(512, 4096, 7168, expected_m=512))
HALF = split_in_two(half_problem(512, 4096, 7168))
WIDE = Schedule(block_m=128, block_n=256, math_warpgroups=2, split=Split.ALONG_N, promote_chunk=1, turns=False)
TALL = replace(WIDE, block_m=256, block_n=112, split=Split.ALONG_M)


# Schedules


def test_an_exchange_takes_as_few_slots_as_hold_it():
    """A wave of each warpgroup, 4 bytes an element, in the larger ring."""
    assert exchange(WIDE) == Exchange(parts=2, in_a=False, registers=32)
    assert exchange(TALL) == Exchange(parts=2, in_a=True, registers=28)
    assert exchange(replace(TALL, block_n=64)) == Exchange(parts=1, in_a=True, registers=32)
    assert exchange(replace(WIDE, block_n=128)) == Exchange(parts=2, in_a=True, registers=16)
    assert exchange(replace(WIDE, block_n=64)) == Exchange(parts=1, in_a=True, registers=16)
    for schedule in (WIDE, TALL):
        found = exchange(schedule)
        assert 2 * found.group_bytes <= max(schedule.block_m or 0, schedule.block_n or 0) * 128


@pytest.mark.parametrize("schedule", [WIDE, TALL, replace(WIDE, cluster_m=1, cluster_n=1), replace(WIDE, num_stages=3)])
def test_legal_schedules(schedule: Schedule):
    assert violation(FP8, schedule) is None


@pytest.mark.parametrize(
    ("changes", "code", "what"),
    [
        ({"block_m": 64}, "GMR-S003", "1 waves a warpgroup with split_k = 2"),
        ({"block_m": 192, "block_n": 96}, "GMR-S003", "3 waves a warpgroup with split_k = 2"),
        ({"block_n": 128, "split": Split.ALONG_M}, "GMR-S003", "1 waves a warpgroup"),
        ({"cluster_m": 2, "cluster_n": 1}, "GMR-S004", "cluster of 2 x 1 tiles with split_k = 2: 4 CTAs"),
        ({"cluster_m": 1, "cluster_n": 2}, "GMR-S004", "4 CTAs"),
        ({"store_slices": 2}, "GMR-S003", "slices = 2 of 2 waves"),
        ({"promote_chunk": 2}, "GMR-S003", "promote_chunk = 2"),
        ({"num_stages": 2}, "GMR-S001", "num_stages = 2; 3 <= num_stages"),
        ({"num_stages": 5}, "GMR-S001", "5 stages"),
    ],
)
def test_schedules_that_cannot(changes: dict[str, object], code: str, what: str):
    found = violation(FP8, replace(WIDE, **changes))
    assert found is not None
    assert found.code == code
    assert what in f"{found.what}; {found.rule}"
    assert found.fix


def test_sums_fall_into_whole_quads_of_few_slots():
    """Three slots, or registers that two slots do not halve."""
    three = Schedule(block_m=128, block_n=224, math_warpgroups=1, split=Split.ALONG_M)
    assert exchange(three).parts == 2
    long = replace(three, block_m=128, block_n=32, math_warpgroups=1)
    assert is_legal(HALF, long)
    assert exchange(long) == Exchange(parts=1, in_a=True, registers=16)


def test_without_parts_nothing_changes():
    whole = replace(FP8, numerics=replace(FP8.numerics, split_k=1))
    assert shared_layout(whole, replace(WIDE, num_stages=4)).room_barriers == 0
    layout = shared_layout(FP8, replace(WIDE, num_stages=4))
    assert layout.room_barriers == 1
    assert layout.room_offset + 8 == layout.total_bytes
    assert layout.staging_bytes == 64 * 128 * 2  # the half of a warpgroup's tile that a CTA finishes


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (fp8_text("?", 64, 512, "numerics <split_k = 4>"), "split_k = 4", "use split_k = 3"),
        (plain_text("?", 64, 320, "numerics <split_k = 5>"), "split_k = 5", "use split_k = 3"),
    ],
)
def test_parts_that_no_kernel_sums(text: str, what: str, fix: str):
    with pytest.raises(UnsupportedError) as caught:
        run(text, "gemm-select-family")
    assert what in caught.value.what
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize("k", [384, 1152])
def test_parts_of_unequal_length_are_streamed(k: int):
    """Two CTAs that swap sums go through as many k-blocks each; one that gathers them does not mind."""
    problem = fp8_problem(None, 64, k)
    uneven = replace(problem, numerics=replace(problem.numerics, split_k=2))
    found = violation(uneven, replace(WIDE, num_stages=4))
    assert found is not None
    assert found.what == f"split_k = 2 of {k // 128} k-blocks"
    assert run(fp8_text("?", 64, k, "numerics <split_k = 2>"), "gemm-select-family")[1].family is Family.STREAM


# The search


@pytest.mark.parametrize(("m", "n", "k"), [(512, 4096, 7168), (256, 7168, 2048), (64, 4096, 7168), (4096, 7168, 2048)])
@pytest.mark.parametrize("dtype", ["fp8", "half"])
def test_what_is_chosen_is_legal_and_one_tile_of_two_ctas(m: int, n: int, k: int, dtype: str):
    problem = split_in_two((fp8_problem if dtype == "fp8" else half_problem)(None, n, k, expected_m=m))
    best = search(problem, Schedule()).best
    assert violation(problem, best.schedule) is None
    assert (best.schedule.cluster_m, best.schedule.cluster_n) == (1, 1)
    assert best.cost.tiles % 2 == 0
    assert best.cost.rounds == -(-best.cost.tiles // 2 // 66)


def test_a_part_costs_half_the_k_blocks_and_an_exchange():
    whole = replace(FP8, numerics=replace(FP8.numerics, split_k=1))
    split, alone = predict(FP8, WIDE), predict(whole, WIDE)
    assert split.k_block == pytest.approx(alone.k_block, rel=0.02)
    assert (split.tiles, alone.tiles) == (128, 64)
    assert split.tile > alone.tile + 64 * 1024 / 14
    assert split.cycles == pytest.approx(28 * split.k_block + split.tile)
    assert (resident_clusters(WIDE), resident_clusters(WIDE, split_k=2)) == (132, 66)


def test_a_schedule_that_only_the_exchange_breaks_is_refused_with_the_arithmetic():
    fixed = "schedule <family = tiles, block = 64x64x128, warpgroups = 1>"
    with pytest.raises(ScheduleError, match="1 waves a warpgroup with split_k = 2"):
        lower(fp8_text("?", 64, 512, f"numerics <split_k = 2> {fixed}"))


# The kernel


def kernel_of(problem: GemmProblem, schedule: Schedule) -> hopper.KernelOp:
    return kernel_in(lower(program_text(problem, schedule), until="hopper").module)


def test_the_frame_of_a_kernel():
    kernel = kernel_of(split_in_two(fp8_problem(None, 4096, 1024)), replace(WIDE, num_stages=4))
    assert (kernel.parts, kernel.cluster_ctas) == (2, 2)
    meetings = [op for op in kernel.body.block.ops if isinstance(op, hopper.ClusterSyncOp)]
    assert [op.release for op in meetings] == [None]
    loops = [(number(op.first), number(op.last)) for op in kernel.walk() if isinstance(op, hopper.KBlocksOp)]
    assert loops == [(0, 3), (0, 4)]  # math peels the last of four, the producer loads all
    sends = [op for op in kernel.walk() if isinstance(op, hopper.SendSumsOp)]
    adds = [op for op in kernel.walk() if isinstance(op, hopper.AddSumsOp)]
    assert [(number(op.first), number(op.registers)) for op in sends] == [(0, 32), (32, 32)]
    assert [(number(op.first), number(op.registers)) for op in adds] == [(0, 32), (32, 32)]
    assert {op.sums.name_hint for op in sends} == {"total0"}
    assert {op.sums.name_hint for op in adds} == {"total1"}
    assert {op.ring.name_hint for op in (*sends, *adds)} == {"ring_b"}
    grants = [op for op in kernel.walk() if isinstance(op, hopper.GrantOp)]
    assert len(grants) == 1
    assert [number(op.bytes) for op in kernel.walk() if isinstance(op, hopper.ExpectOp)][1:] == [32768, 32768]


def test_what_the_peer_finishes_leaves_while_the_rest_runs():
    """Between the last wave and the wait for it."""
    kernel = kernel_of(split_in_two(fp8_problem(None, 4096, 1024)), replace(WIDE, num_stages=4))
    order = [
        op for op in kernel.walk() if isinstance(op, hopper.WgmmaCommitOp | hopper.WgmmaWaitOp | hopper.SendSumsOp)
    ]
    names = [op.name.removeprefix("hopper.") for op in order]
    assert names[-4:] == ["wgmma_commit", "send_sums", "send_sums", "wgmma_wait"]


@pytest.mark.parametrize(("stages", "waits"), [(3, 0), (4, 0)])
def test_the_producer_runs_ahead_where_the_ring_holds_it_back(stages: int, waits: int):
    schedule = replace(WIDE, block_n=192, num_stages=stages)
    assert waits_of_the_producer(kernel_of(split_in_two(fp8_problem(None, 4096, 1024)), schedule)) == waits


@pytest.mark.parametrize(("stages", "waits"), [(2, 0), (3, 1), (5, 1)])
def test_the_producer_waits_in_a_longer_ring(stages: int, waits: int):
    schedule = replace(WIDE, block_n=64, num_stages=stages)
    assert waits_of_the_producer(kernel_of(split_in_two(fp8_problem(None, 4096, 1024)), schedule)) == waits


def waits_of_the_producer(kernel: hopper.KernelOp) -> int:
    warp = next(op for op in kernel.walk() if isinstance(op, hopper.WarpOp))
    return sum(isinstance(op, hopper.WaitOp) for op in warp.walk())


# The proof


def test_traces_with_exchanges_follow_at_every_distance():
    assert default_traces(4, 7, exchanges=True) == (*default_traces(4, 7), (1, 2, 3, 4, 5))
    assert default_traces(4, 1, exchanges=True) == default_traces(4, 1)


@pytest.mark.parametrize("block_n", [64, 192])
@pytest.mark.parametrize("k_blocks", [1, 2, 3, 4, 5, 6, 7])
def test_no_false_alarm_in_any_ring(block_n: int, k_blocks: int):
    """Exchanges of one slot and of two, and tiles of the length that they have."""
    for stages in range(2, 9):
        problem, schedule = split_in_two(fp8_problem(None, 4096, 256 * k_blocks)), replace(WIDE, block_n=block_n)
        if not is_legal(problem, schedule := replace(schedule, num_stages=stages)):
            continue
        kernel = kernel_of(problem, schedule)
        check_kernel(kernel, [(k_blocks,) * tiles for tiles in (1, 2, 9)])


@pytest.mark.parametrize(("block_n", "stages"), [(64, 2), (64, 4), (192, 3), (192, 4)])
def test_no_false_alarm_at_any_seam(block_n: int, stages: int):
    """Two neighbouring tiles of any length, begun at any position in the ring."""
    schedule = replace(WIDE, block_n=block_n, num_stages=stages)
    kernel = kernel_of(split_in_two(fp8_problem(None, 4096, 1792)), schedule)
    lengths = range(1, stages + 2)
    runs = list(itertools.product(range(1, 2 * stages + 1), lengths, lengths))
    check_kernel(kernel, runs[:: 1 if stages < 4 else 3])


@settings(max_examples=30, derandomize=True)
@given(st.data(), st.booleans(), st.sampled_from((1, 2, 3, 7, 40)))
def test_every_legal_schedule_is_proven(data: st.DataObject, fp8: bool, k_blocks: int):
    problem = fp8_problem(None, 4096, 256 * k_blocks) if fp8 else half_problem(None, 4096, 128 * k_blocks)
    problem = split_in_two(problem)
    kernel = kernel_of(problem, data.draw(legal_schedules(problem)))
    check_kernel(kernel)
    assert len(program(kernel).ctas) == 2
