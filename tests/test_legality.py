"""The rules of schedules: each refuses what it should, with its code and its arithmetic, and nothing else."""

import re
from collections.abc import Callable
from dataclasses import fields, replace
from random import Random

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from gemmir.dtypes import BF16
from gemmir.errors import ScheduleError
from gemmir.legality import (
    CLUSTERS_OF_FOUR,
    MAX_STAGES,
    MIN_STAGES,
    check_schedule,
    is_legal,
    math_registers,
    scale_steps,
    violation,
)
from gemmir.legality import scale_batch as batch_rule
from gemmir.loop_legality import SCALE_SLOTS
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Schedule, Split
from gemmir.target import SM_90A, setmaxnreg_split
from gemmir.tile import (
    shared_layout,
    tile_geometry,
    widest_scale_batch,
)
from tests.kernels import FP8_SCHEDULE
from tests.schedules import (
    fp8_problem,
    half_problem,
    legal_schedules,
    nearly_legal_schedules,
    placed_schedules,
    problems,
)

FP8 = fp8_problem(4096, 7168, 2048)
HALF = half_problem(4096, 7168, 2048)
GOOD = FP8_SCHEDULE


def broken(code: str, *numbers: str, **changes: object) -> None:
    """`GOOD` with `changes` breaks a rule with `code`, and the message holds `numbers`."""
    found = violation(FP8, replace(GOOD, **changes))
    assert found is not None
    assert found.code == code
    for number in numbers:
        assert number in f"{found.what}; {found.rule}", found
    assert found.fix


def test_the_fastest_schedule_is_legal():
    assert violation(FP8, GOOD) is None
    check_schedule(FP8, GOOD)


def test_an_open_schedule_breaks_nothing():
    assert is_legal(FP8, Schedule())


def test_blocks_are_what_the_hardware_has():
    broken("GMR-S003", "block_m = 96", block_m=96)
    broken("GMR-S003", "block_n = 8", block_n=8)
    broken("GMR-S003", "block_n = 528", block_n=528)
    broken("GMR-S003", "block_k = 64", "64 bytes", "128 bytes", block_k=64)
    broken("GMR-S003", "math_warpgroups = 4", "(1, 2, 3)", math_warpgroups=4)


def test_a_stage_holds_128_bytes_of_k():
    assert is_legal(HALF, Schedule(block_k=64))
    found = violation(HALF, Schedule(block_k=128))
    assert found is not None
    assert "256 bytes" in found.what


def test_warpgroups_own_whole_waves_and_whole_boxes():
    broken("GMR-S003", "block_n = 256 over 3", math_warpgroups=3)
    broken("GMR-S003", "96 rows a warpgroup", "64 rows", split=Split.ALONG_M, block_m=192, block_n=64)
    broken("GMR-S003", "72 columns a warpgroup", block_n=144)
    broken("GMR-S003", "272 columns a warpgroup", "16 to 256", split=Split.ALONG_M, block_n=272)


def test_one_lane_expands_one_weight_scale():
    """No block of at most 512 columns in steps of 16 has more than 32 scales, so the rule is asked by itself."""
    found = scale_steps(FP8, replace(GOOD, block_n=2 * 264), SM_90A)
    assert found is not None
    assert found.code == "GMR-S003"
    assert "528 in steps of 8 columns is 66 weight scales" in found.what
    assert scale_steps(HALF, replace(GOOD, block_n=2 * 264), SM_90A) is None


def test_registers_are_counted():
    too_many = replace(GOOD, split=Split.ALONG_M, num_stages=3)
    found = violation(FP8, too_many)
    assert found is not None
    assert found.code == "GMR-S002"
    assert str(math_registers(FP8, too_many)) in found.what
    assert "232" in found.rule
    assert is_legal(HALF, replace(too_many, block_k=64))


def test_promotion_costs_one_more_fragment():
    tile = tile_geometry(GOOD)
    assert math_registers(FP8, GOOD) - math_registers(HALF, GOOD) == tile.fragment_registers == 64


def test_shared_memory_is_counted():
    broken("GMR-S001", "5 stages x 49696 + 32800", "281280 bytes", "232448", num_stages=5)
    broken("GMR-S001", "4 stages x 49696 + 65568", "264352 bytes", "232448", store_slices=1, num_stages=4)
    broken("GMR-S001", "num_stages = 1", num_stages=1)
    broken("GMR-S001", "num_stages = 13", num_stages=13)


def test_clusters_have_one_two_or_four_ctas():
    broken("GMR-S004", "4 x 2", cluster_m=4, cluster_n=2)
    broken("GMR-S004", "3 x 1", cluster_m=3)
    broken("GMR-S004", "1 x 8", cluster_m=1, cluster_n=8)
    broken("GMR-S004", "0 x 1", cluster_m=0)


@pytest.mark.parametrize("cluster", CLUSTERS_OF_FOUR)
def test_clusters_of_four_compute_one_product_whole(cluster: tuple[int, int]):
    tile = Schedule(block_m=128, block_n=64, cluster_m=cluster[0], cluster_n=cluster[1])
    assert is_legal(FP8, tile)
    assert is_legal(HALF, replace(tile, block_k=64))
    grouped = replace(FP8, grouping=Grouping.COUNTS, groups=4)
    split = replace(FP8, numerics=replace(FP8.numerics, split_k=2))
    for problem, what in ((grouped, "cluster of"), (split, "split_k = 2")):
        found = violation(problem, tile)
        assert found is not None
        assert found.code == "GMR-S004"
        assert what in found.what


def test_clusters_that_there_are_not_are_refused_with_those_that_there_are():
    found = violation(FP8, Schedule(block_m=128, block_n=64, cluster_m=3, cluster_n=1))
    assert found is not None
    assert found.what == "cluster of 3 x 1 CTAs"
    assert found.rule == "one of 1x1, 2x1, 1x2, 4x1, 1x4, 2x2"


def test_each_cta_of_a_cluster_loads_whole_swizzle_atoms():
    found = violation(FP8, Schedule(block_m=64, block_n=24, cluster_m=2))
    assert found is not None
    assert found.code == "GMR-S004"
    assert "12 rows" in found.what


def test_boxes_have_at_most_256_rows():
    found = violation(HALF, Schedule(block_m=64, block_n=272, cluster_m=1))
    assert found is not None
    assert "at most 256" in found.rule
    assert is_legal(HALF, Schedule(block_m=64, block_n=272, cluster_m=2))
    assert is_legal(HALF, Schedule(block_m=64, block_n=272)), "a cluster may still be chosen"


def test_raster_groups():
    broken("GMR-S003", "raster group of 0", raster_group=0)
    broken("GMR-S003", "raster group of 65", raster_group=65)


def test_turns_need_two_promoting_warpgroups_of_one_wave():
    broken("GMR-S003", "2 waves", turns=True)
    one_wave = replace(GOOD, split=Split.ALONG_M, block_n=192, turns=True)
    assert is_legal(FP8, one_wave)
    assert not is_legal(HALF, replace(one_wave, block_k=64))


@pytest.mark.parametrize(
    ("split", "block_n", "lanes"),
    [
        (Split.ALONG_M, 128, 1),
        (Split.ALONG_N, 128, 2),
        (Split.ALONG_N, 256, 2),
        (Split.ALONG_M, 192, 4),
        (Split.ALONG_M, 160, 8),
        (Split.ALONG_M, 112, 8),
        (Split.ALONG_N, 96, 8),
        (Split.ALONG_M, 144, 16),
    ],
)
def test_a_batch_of_weight_scales_fills_a_warp(split: Split, block_n: int, lanes: int):
    """A k-block takes as many lanes as the tile has column steps, up to the next power of two."""
    schedule = replace(GOOD, split=split, block_n=block_n)
    assert widest_scale_batch(FP8, schedule) == 32 // lanes
    legal = [n for n in range(1, 66) if is_legal(FP8, replace(schedule, scale_batch=n))]
    assert legal == [1, 32 // lanes]


def test_a_batch_says_what_would_fill_a_warp():
    broken("GMR-S003", "scale_batch = 32 with block_n = 256", "1, or 16: 32 lanes", scale_batch=32)
    broken("GMR-S003", "scale_batch = 8", "1, or 16", scale_batch=8)
    found = violation(FP8, replace(GOOD, scale_batch=15))
    assert found is not None
    assert found.fix == "use scale_batch = 16"
    wide = replace(GOOD, split=Split.ALONG_N, block_n=272, scale_batch=2)
    assert widest_scale_batch(FP8, wide) == 1
    for problem, schedule in ((HALF, replace(GOOD, block_k=64, scale_batch=16)), (FP8, wide)):
        found = batch_rule(problem, schedule, SM_90A)
        assert found is not None
        assert (found.rule, found.fix) == ("1: there are no weight scales to fetch, or too many", "use scale_batch = 1")
    assert is_legal(FP8, Schedule(scale_batch=7)), "the tile is open"


CHUNKED = replace(GOOD, split=Split.ALONG_M, block_n=128, promote_chunk=2)


def test_chunks_need_a_promoting_warpgroup_of_one_wave_that_runs_freely():
    assert is_legal(FP8, CHUNKED)
    assert is_legal(FP8, replace(CHUNKED, promote_chunk=4))
    broken("GMR-S003", "promote_chunk = 3", "(1, 2, 4)", promote_chunk=3)
    broken("GMR-S003", "promote_chunk = 2 with 2 waves", promote_chunk=2)
    broken("GMR-S003", "promote_chunk = 2 in turn", split=Split.ALONG_M, block_n=128, promote_chunk=2, turns=True)
    found = violation(HALF, replace(CHUNKED, block_k=64))
    assert found is not None
    assert found.what == "promote_chunk = 2 for bf16, summed in the tensor core"
    assert is_legal(FP8, Schedule(promote_chunk=4))


def test_a_chunk_costs_a_second_partial_sum():
    assert math_registers(FP8, CHUNKED) - math_registers(FP8, replace(CHUNKED, promote_chunk=1)) == 64
    assert math_registers(FP8, CHUNKED) == 3 * 64 + 32
    wide = dict(split=Split.ALONG_M, block_n=144, promote_chunk=2)
    broken("GMR-S002", "1 x 72 accumulators + 2 x 72 partial + 32 = 248 registers", "232", **wide)
    widest = {groups: [] for groups in (1, 2, 3)}
    for s in placed_schedules(FP8):
        if s.promote_chunk == 2:
            widest[s.math_warpgroups].append(tile_geometry(s).wg_columns)
    assert {groups: max(columns) for groups, columns in widest.items()} == {1: 128, 2: 128, 3: 80}


@pytest.mark.parametrize(("slices", "stages", "nbytes", "fitting"), [(2, 5, 281280, 4), (1, 4, 264352, 3)])
def test_check_raises_what_the_rule_says(slices: int, stages: int, nbytes: int, fitting: int):
    with pytest.raises(ScheduleError, match=f"{nbytes} bytes") as caught:
        check_schedule(FP8, replace(GOOD, store_slices=slices, num_stages=stages))
    assert caught.value.code == "GMR-S001"
    assert caught.value.fix == f"use num_stages = {fitting}"
    assert is_legal(FP8, replace(GOOD, store_slices=slices, num_stages=fitting))


@pytest.mark.parametrize("problem", [FP8, HALF], ids=["fp8", "bf16"])
def test_the_space_is_large_and_holds_the_measured_tiles(problem):
    tiles = {(s.block_m, s.block_n, s.math_warpgroups, s.split) for s in placed_schedules(problem)}
    assert len(tiles) >= 100
    assert {s.block_m for s in placed_schedules(problem)} == {64, 128, 192, 256}
    for measured in ((128, 256, 2, Split.ALONG_N), (128, 192, 2, Split.ALONG_M), (256, 128, 2, Split.ALONG_M)):
        assert measured in tiles


@given(st.data())
def test_legal_schedules_keep_the_budgets_of_an_sm(data: st.DataObject):
    """From first principles, not from the rules' own arithmetic."""
    problem = data.draw(problems())
    s = data.draw(legal_schedules(problem))
    assert s.complete
    assert None not in (s.block_m, s.block_n, s.math_warpgroups, s.num_stages, s.cluster_m, s.cluster_n)
    check_schedule(problem, s)
    service, math = setmaxnreg_split(s.math_warpgroups)
    assert 128 * (service + s.math_warpgroups * math) <= 65536
    sums = s.block_m * s.block_n // (128 * s.math_warpgroups)
    partials = (1 if s.promote_chunk == 1 else 2) if problem.promoted else 0
    assert sums + partials * sums // tile_geometry(s).waves < math
    operands = (s.block_m + s.block_n) * 128 * s.num_stages
    assert operands + s.block_m * s.block_n * 2 // s.store_slices < shared_layout(problem, s).total_bytes <= 232_448
    assert s.block_m // s.cluster_n <= 256
    assert s.block_n // s.cluster_m <= 256 or problem.b_major != "k", "else B comes in panels"


def drawn(wanted: Callable[[Schedule], bool]) -> Schedule:
    """The first such schedule that is drawn; not the simplest, which takes seconds to find."""
    quick = settings(phases=(Phase.generate,))
    return find(legal_schedules(FP8), wanted, random=Random(0), settings=quick)


@pytest.mark.parametrize("whole", [True, False])
def test_tiles_that_leave_whole_and_wave_by_wave_are_drawn(whole: bool):
    found = drawn(lambda s: tile_geometry(s).waves > 1 and (s.store_slices == 1) is whole)
    assert found.complete
    assert is_legal(FP8, found)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("balanced", [True, False])
def test_batches_of_scales_and_balanced_grids_are_drawn(batched: bool, balanced: bool):
    found = drawn(lambda s: (s.scale_batch != 1, s.balanced) == (batched, balanced))
    assert found.complete
    assert found.scale_batch in (1, widest_scale_batch(FP8, found))


@given(st.data())
def test_regions_of_shared_memory_follow_one_another(data: st.DataObject):
    problem = data.draw(problems())
    s = data.draw(legal_schedules(problem))
    layout = shared_layout(problem, s)
    stages, groups = layout.num_stages, layout.math_warpgroups
    regions = [
        (layout.a_offset, stages * layout.a_bytes, 1024),
        (layout.b_offset, stages * layout.b_bytes, 1024),
        (layout.staging_offset, groups * layout.staging_bytes, 1024),
        (layout.scale_a_offset, stages * layout.scale_a_bytes, 16),
        (layout.scale_b_offset, stages * layout.scale_b_bytes, 16),
        (layout.full_offset, stages * 8, 8),
        (layout.empty_offset, stages * 8, 8),
        (layout.staged_offset, groups * 8, 8),
        (layout.drained_offset, groups * 8, 8),
    ]
    at = 0
    for offset, size, alignment in regions:
        assert offset == at
        assert offset % alignment == 0
        at += size
    assert at == layout.total_bytes
    assert layout.staging_bytes * s.store_slices >= tile_geometry(s).wg_rows * tile_geometry(s).wg_columns * BF16.bytes


@given(st.data())
def test_operand_slices_start_at_swizzle_atoms(data: st.DataObject):
    problem = data.draw(problems())
    s = data.draw(legal_schedules(problem))
    assert None not in (s.block_m, s.block_n, s.cluster_m, s.cluster_n)
    assert (s.block_m // s.cluster_n * 128) % 1024 == 0
    assert (s.block_n // s.cluster_m * 128) % 1024 == 0
    tile = tile_geometry(s)
    assert tile.wg_rows * 128 % 1024 == 0
    assert tile.wg_columns * 128 % 1024 == 0


@given(st.data())
def test_a_part_of_a_legal_schedule_is_legal(data: st.DataObject):
    problem = data.draw(problems())
    s = data.draw(legal_schedules(problem))
    placed = ("cluster_m", "cluster_n")  # a tile over 256 rows needs its cluster, so the two stay
    names = data.draw(st.sets(st.sampled_from([f.name for f in fields(Schedule) if f.name not in placed])))
    assert is_legal(problem, replace(s, **dict.fromkeys(names)))


@given(st.data())
def test_nearly_legal_schedules_are_refused_with_numbers(data: st.DataObject):
    problem = data.draw(problems())
    s = data.draw(nearly_legal_schedules(problem))
    with pytest.raises(ScheduleError) as caught:
        check_schedule(problem, s)
    assert re.fullmatch(r"GMR-S00[1-4]", caught.value.code)
    assert re.search(r"\d", caught.value.what)
    assert caught.value.rule
    assert caught.value.fix


@given(st.data())
def test_the_most_stages_that_fit_are_the_most(data: st.DataObject):
    problem = data.draw(problems())
    s = data.draw(legal_schedules(problem))
    legal = [n for n in range(0, MAX_STAGES + 3) if is_legal(problem, replace(s, num_stages=n))]
    assert s.scale_slots is not None
    assert legal == list(range(max(MIN_STAGES, SCALE_SLOTS[s.scale_slots]), legal[-1] + 1))


FORMS = tuple(form for form in Grouping if form is not Grouping.NONE)


@pytest.mark.parametrize("one", [FP8, HALF], ids=["fp8", "bf16"])
@pytest.mark.parametrize("grouping", FORMS)
def test_groups_form_clusters_as_one_product_does(grouping: Grouping, one: GemmProblem):
    problem = replace(one, grouping=grouping, groups=4)
    for cluster_m, cluster_n in ((2, 1), (1, 2)):
        assert is_legal(problem, Schedule(block_m=64, block_n=256, cluster_m=cluster_m, cluster_n=cluster_n))
    for cluster_m, cluster_n in ((2, 2), (4, 1), (1, 4), (0, 1)):
        found = violation(problem, Schedule(block_m=64, cluster_m=cluster_m, cluster_n=cluster_n))
        assert found is not None
        assert (found.code, found.fix) == ("GMR-S004", "use cluster = 2x1" if cluster_m < 4 else found.fix)


def test_tiles_of_a_cluster_lie_in_one_block_of_rows_with_a_number():
    problem = replace(FP8, grouping=Grouping.GROUP_IDS, groups=4)
    found = violation(problem, Schedule(block_m=128, cluster_m=2, cluster_n=1))
    assert found is not None
    assert found.code == "GMR-S004"
    assert found.what == "cluster of 2 x 1 tiles of 128 rows for groups by group_ids"
    assert "blocks of 128 rows" in found.rule
    assert found.fix == "use cluster = 1x2, or block_m = 64"
    assert is_legal(problem, Schedule(block_m=128, cluster_m=1, cluster_n=2))
    assert is_legal(problem, Schedule(block_m=64, cluster_m=2, cluster_n=1))
    assert is_legal(replace(problem, grouping=Grouping.OFFS), Schedule(block_m=128, cluster_m=2, cluster_n=1))


def test_a_tile_of_groups_over_256_columns_needs_a_cluster():
    problem = replace(HALF, grouping=Grouping.OFFS, groups=4)
    found = violation(problem, Schedule(block_m=64, block_n=272))
    assert found is not None
    assert "or a cluster" in found.fix
    assert is_legal(problem, Schedule(block_m=64, block_n=272, cluster_m=2))
