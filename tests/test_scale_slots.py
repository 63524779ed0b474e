"""Who fills in scales: the rule of `scale_slots`."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import Phase, find, settings

from gemmir.legality import (
    is_legal,
    violation,
)
from gemmir.loop_legality import scale_slots as slots_rule
from gemmir.problem import GemmProblem, Grouping, Recipe
from gemmir.rule import Violation
from gemmir.schedule import SCALES_OF_TILE, Family, Schedule, Split
from gemmir.target import SM_90A
from tests.kernels import FP8_SCHEDULE
from tests.schedules import (
    fp8_problem,
    half_problem,
    legal_schedules,
)
from tests.test_legality import broken

FP8 = fp8_problem(4096, 7168, 2048)
HALF = half_problem(4096, 7168, 2048)
GOOD = FP8_SCHEDULE


def drawn(wanted: Callable[[Schedule], bool]) -> Schedule:
    """The first such schedule that is drawn; not the simplest, which takes seconds to find."""
    quick = settings(phases=(Phase.generate,), max_examples=1000)
    return find(legal_schedules(FP8), wanted, random=Random(0), settings=quick)


BATCHED = replace(GOOD, block_n=128, scale_batch=16)
SPLIT = replace(FP8, numerics=replace(FP8.numerics, split_k=2))
COLUMN_SCALES = replace(FP8, scale_b=Recipe.BLOCK_WISE_1X128)
K_OFFS = replace(FP8, grouping=Grouping.K_OFFS, groups=4)


FOUR_WAVES = {"block_m": 256, "block_n": 48, "math_warpgroups": 3, "split": Split.ALONG_N}
"""A tile of three warpgroups that ptxas 13.0 spilled with a warp for scales."""


@pytest.mark.parametrize(
    ("problem", "changes", "what", "rule", "fix"),
    [
        (HALF, {"scale_slots": 1}, "1 for bf16, summed in the tensor core", "slots hold scales where sums are", 0),
        (FP8, {"scale_slots": 1, "family": Family.STREAM}, "1", "a warp loads the scales of whole tiles", 0),
        (SPLIT, {"scale_slots": 4}, "4 with split_k = 2", "slots also hold sums that CTAs exchange", 0),
        (FP8, {"scale_slots": 3}, "3", "one of (0, 1, 2, 4), or tile", 1),
        (FP8, {"scale_slots": 8}, "8", "one of (0, 1, 2, 4), or tile", 1),
        (FP8, {"scale_slots": 2, "scale_batch": 1}, "2, scale_batch = 1", "at a time come in batches", 1),
        (FP8, {"scale_slots": 4, "scale_batch": 2}, "4, scale_batch = 2", "come in one batch", 1),
        (FP8, {"scale_slots": 2, "math_warpgroups": 3}, "2 with 3 math warpgroups", "128 registers", 1),
        (FP8, FOUR_WAVES | {"scale_slots": 1}, "1 with 3 x 4 waves", "more than two waves each some are spilled", 0),
        (fp8_problem(4096, 7168, 1920), {"scale_slots": 2}, "2, 15 k-blocks", "whole steps of so many slots", 1),
        (fp8_problem(4096, 7168, 1792), {"scale_slots": 4}, "4, 14 k-blocks", "whole steps of so many slots", 1),
        (fp8_problem(4096, 7168, 0), {"scale_slots": 2}, "2, 1 k-blocks", "whole steps of so many slots", 1),
        (K_OFFS, {"scale_slots": 2}, "2 for groups along K", "its own number of k-blocks", 1),
        (FP8, {"scale_slots": 2, "num_stages": 5}, "2 of 5 stages", "at least 6 stages", 1),
        (FP8, {"scale_slots": 4, "num_stages": 6}, "4 of 6 stages", "at least 7 stages", 1),
    ],
)
def test_slots_that_no_warp_of_their_own_fills_with_scales(
    problem: GemmProblem, changes: dict[str, int | Family | Split], what: str, rule: str, fix: int
):
    found = slots_rule(problem, replace(BATCHED, **{"num_stages": 8} | changes), SM_90A)
    assert found is not None
    assert (found.code, found.what, found.fix) == ("GMR-S003", f"scale_slots = {what}", f"use scale_slots = {fix}")
    assert rule in found.rule


@pytest.mark.parametrize("slots", [0, 1])
@pytest.mark.parametrize("stages", [2, None])
@pytest.mark.parametrize(
    "problem", [FP8, COLUMN_SCALES, K_OFFS, fp8_problem(64, 64, 0), fp8_problem(64, 64, 400)], ids=str
)
def test_one_slot_at_a_time_needs_scales_only(problem: GemmProblem, stages: int | None, slots: int):
    for batch, groups in ((1, 2), (16, 3)):
        schedule = replace(BATCHED, scale_batch=batch, math_warpgroups=groups, num_stages=stages, scale_slots=slots)
        assert slots_rule(problem, schedule, SM_90A) is None


@pytest.mark.parametrize(("slots", "stages"), [(2, 6), (4, 7), (4, 12), (2, None), (4, None)])
def test_several_slots_at_a_time_are_legal_in_deep_rings(slots: int, stages: int | None):
    several = replace(BATCHED, scale_slots=slots, num_stages=stages)
    tails = fp8_problem(64, 64, 1008)
    for problem, batch in ((FP8, 16), (FP8, None), (COLUMN_SCALES, 1), (tails, 16)):
        assert slots_rule(problem, replace(several, scale_batch=batch), SM_90A) is None


def test_where_scales_have_no_warp_nothing_is_asked():
    for problem in (HALF, SPLIT):
        for slots in (0, None):
            assert slots_rule(problem, replace(BATCHED, scale_slots=slots), SM_90A) is None


def test_both_families_have_the_rule_of_scale_slots():
    broken("GMR-S003", "scale_slots = 3", "(0, 1, 2, 4)", scale_slots=3)
    few = replace(FP8, m=16)
    stream = Schedule(Family.STREAM, 16, 64, 128, 1, Split.ALONG_N, scale_slots=0)
    assert violation(few, stream) is None
    found = violation(few, replace(stream, scale_slots=1))
    assert found == Violation(
        "GMR-S003",
        "scale_slots = 1",
        "family = stream: a warp loads the scales of whole tiles",
        "use scale_slots = 0",
    )


OF_TILE = replace(GOOD, block_m=64, block_n=64, math_warpgroups=1, split=Split.ALONG_M, cluster_m=1, store_slices=1)
CHUNKED = replace(OF_TILE, promote_chunk=4, scale_slots=SCALES_OF_TILE, scale_batch=1, num_stages=4)
LONGEST = 256 * 128
"""K whose scales of a row come in one TMA box."""


@pytest.mark.parametrize(
    ("problem", "changes", "what", "rule", "fix"),
    [
        (HALF, {}, " for bf16, summed in the tensor core", "slots hold scales where sums are promoted", 0),
        (FP8, {"family": Family.STREAM}, "", "a warp loads the scales of whole tiles", 0),
        (SPLIT, {}, " with split_k = 2", "slots also hold sums that CTAs exchange", 0),
        (fp8_problem(4096, 7168, LONGEST + 16), {}, ", 257 k-blocks", "one TMA box has at most 256 rows", 1),
        (COLUMN_SCALES, {}, " for 1x128 scales of B", "B has 128x128 scales", 1),
        (K_OFFS, {}, " for groups along K", "each tile as many k-blocks", 1),
        (FP8, {"tail_n": 32, "tail_after": 100}, " with a tail", "all tiles have scales for the same columns", 1),
        (FP8, {"math_warpgroups": 3}, " with 3 math warpgroups", "128 registers", 1),
        (FP8, {"promote_chunk": 1}, ", promote_chunk = 1", "k-blocks go in chunks", 1),
    ],
)
def test_scales_that_do_not_come_for_a_whole_tile(
    problem: GemmProblem, changes: dict[str, int | Family], what: str, rule: str, fix: int
):
    """It is called `tile`, not by its number."""
    found = slots_rule(problem, replace(CHUNKED, **changes), SM_90A)
    assert found is not None
    assert (found.code, found.what, found.fix) == ("GMR-S003", f"scale_slots = tile{what}", f"use scale_slots = {fix}")
    assert rule in found.rule


@pytest.mark.parametrize("chunk", [2, 4])
@pytest.mark.parametrize("problem", [FP8, fp8_problem(64, 64, 16), fp8_problem(None, 7168, 1008)], ids=str)
def test_chunks_may_have_scales_of_a_whole_tile(problem: GemmProblem, chunk: int):
    """Whether or not k-blocks are left over behind the chunks."""
    schedule = replace(CHUNKED, promote_chunk=chunk)
    assert is_legal(problem, schedule)
    for groups in (Grouping.OFFS, Grouping.COUNTS):
        assert slots_rule(replace(problem, grouping=groups, groups=4), schedule, SM_90A) is None


def test_the_longest_k_whose_scales_come_at_once():
    longest = fp8_problem(4096, 7168, LONGEST)
    assert slots_rule(longest, CHUNKED, SM_90A) is None
    assert slots_rule(longest, replace(CHUNKED, promote_chunk=None), SM_90A) is None, "chunks are still to be chosen"


def test_scales_of_a_whole_tile_come_in_no_batches():
    found = violation(FP8, replace(CHUNKED, scale_batch=4))
    assert found is not None
    assert found.what.startswith("scale_batch = 4")


@pytest.mark.parametrize("slots", [(0,), (1,), (2, 4), (SCALES_OF_TILE,)], ids=str)
def test_warps_for_scales_are_drawn(slots: tuple[int, ...]):
    found = drawn(lambda s: s.scale_slots in slots)
    assert found.complete
    assert is_legal(FP8, found)
