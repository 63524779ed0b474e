"""Slices in which a tile leaves: which are legal, which are usual, and the shared memory that they take."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.dtypes import F32
from gemmir.errors import ScheduleError
from gemmir.layouts import Swizzle, store_chunks
from gemmir.legality import (
    check_schedule,
    is_legal,
)
from gemmir.problem import GemmProblem
from gemmir.schedule import Family, Schedule, Split
from gemmir.tile import (
    TileGeometry,
    default_store_slices,
    legal_store_slices,
    shared_layout,
    tile_geometry,
)
from tests.kernels import FP8_SCHEDULE
from tests.schedules import (
    fp8_problem,
    half_problem,
    placed_schedules,
    problems,
    sliced_schedules,
)

FP8 = fp8_problem(4096, 7168, 2048)
HALF = half_problem(4096, 7168, 2048)
GOOD = FP8_SCHEDULE


WAVES = {
    1: replace(GOOD, block_n=192, split=Split.ALONG_M),
    2: GOOD,
    3: replace(GOOD, block_m=192, block_n=128),
    4: replace(GOOD, block_m=256, block_n=64),
}
"""Tiles by the waves of a warpgroup."""


@pytest.mark.parametrize("waves", WAVES)
def test_a_promoted_tile_leaves_whole_or_wave_by_wave(waves: int):
    tile = WAVES[waves]
    assert tile_geometry(tile).waves == waves
    legal = [n for n in range(1, 7) if is_legal(FP8, replace(tile, store_slices=n, num_stages=2))]
    assert legal == sorted({1, waves})


@pytest.mark.parametrize("waves", WAVES)
def test_a_tile_that_is_summed_in_place_leaves_whole_wave_by_wave_or_column_by_column(waves: int):
    tile = replace(WAVES[waves], block_k=64, num_stages=2)
    legal = [n for n in range(1, 7) if is_legal(HALF, replace(tile, store_slices=n))]
    assert legal == ([1, waves] if waves > 1 else [1, 2, 3, 4])


@pytest.mark.parametrize("waves", WAVES)
def test_slices_of_f32_are_as_many_and_twice_as_large(waves: int):
    tile = replace(WAVES[waves], block_k=64, num_stages=2)
    in_f32 = replace(HALF, d=F32)
    legal = legal_store_slices(in_f32, tile)
    assert legal == legal_store_slices(HALF, tile)
    for slices in legal:
        staged = [shared_layout(p, replace(tile, store_slices=slices)).staging_bytes for p in (in_f32, HALF)]
        assert staged[0] == 2 * staged[1] == 4 * tile_geometry(tile).wg_rows * tile_geometry(tile).wg_columns // slices


def test_columns_that_do_not_leave_together_are_no_slices():
    """Of 48 columns a third are 16, of 80 a fifth: `stmatrix` takes 16 at a time."""
    tile = replace(GOOD, block_k=64, split=Split.ALONG_M)
    assert legal_store_slices(HALF, replace(tile, block_n=48)) == (1, 3)
    assert legal_store_slices(HALF, replace(tile, block_n=80)) == (1,)
    assert legal_store_slices(HALF, replace(tile, block_n=128)) == (1, 2, 4)


@pytest.mark.parametrize(
    ("block", "k", "slices"),
    [
        ((128, 256), 1024, 2),
        ((128, 256), 960, 1),
        ((256, 128), 8192, 2),
        ((192, 192), 8192, 1),
        ((128, 192), 8192, 1),
        ((128, 128), 8192, 1),
    ],
)
def test_sums_in_place_leave_in_slices_where_a_fourth_stage_fits_so(block: tuple[int, int], k: int, slices: int):
    """Not 192x192: with two slices, four stages are 1 KB too large."""
    groups = 3 if block[0] == 192 else 2
    tile = Schedule(Family.TILES, *block, 64, groups, Split.ALONG_M)
    assert default_store_slices(replace(HALF, k=k), tile) == slices
    assert default_store_slices(replace(HALF, k=k, has_c=True), tile) == 1


@pytest.mark.parametrize(
    ("problem", "tile", "slices", "legal"),
    [(FP8, GOOD, 3, "1 or 2"), (FP8, WAVES[3], 2, "1 or 3"), (FP8, WAVES[1], 2, "1"), (HALF, WAVES[3], 2, "1 or 3")],
    ids=["between", "fewer than waves", "one wave", "in place"],
)
def test_other_slices_are_refused(problem: GemmProblem, tile: Schedule, slices: int, legal: str):
    with pytest.raises(ScheduleError) as caught:
        check_schedule(problem, replace(tile, block_k=problem.block_k, store_slices=slices, num_stages=2))
    error = caught.value
    assert error.code == "GMR-S003"
    assert error.what == f"slices = {slices} of {tile_geometry(tile).waves} waves a warpgroup"
    assert error.rule.startswith("a tile leaves in one slice, in one a wave, or, where sums are not promoted, one wave")
    assert error.fix == f"use slices = {legal}"


def test_slices_of_an_open_tile_break_nothing():
    assert is_legal(FP8, Schedule(store_slices=2))
    assert is_legal(HALF, Schedule(store_slices=2, block_m=128, block_n=256))


@pytest.mark.parametrize(
    ("slices", "stages", "staging", "total"),
    [(1, 3, 32768, 3 * 49696 + 65568), (2, 4, 16384, 4 * 49696 + 32800), (None, 4, 16384, 4 * 49696 + 32800)],
)
def test_the_staging_area_holds_one_slice(slices: int | None, stages: int, staging: int, total: int):
    """Where slices are open, the usual ones are assumed."""
    layout = shared_layout(FP8, replace(GOOD, store_slices=slices, num_stages=stages))
    assert layout.staging_bytes == staging
    assert layout.stage_bytes == 16384 + 32768 + 512 + 16 + 2 * 8 == 49696
    assert layout.fixed_bytes == 2 * staging + 2 * 2 * 8
    assert layout.total_bytes == total


@pytest.mark.parametrize(
    ("rows", "slices", "boxes"),
    [
        (256, 1, [(0, 32, Swizzle.B64, 0), (32, 16, Swizzle.B32, 256 * 64)]),
        (256, 4, [(0, 32, Swizzle.B64, 0), (32, 16, Swizzle.B32, 64 * 64)]),
        (64, 3, [(0, 16, Swizzle.B32, 0)]),
    ],
)
def test_boxes_are_those_of_a_slice(rows: int, slices: int, boxes: list[tuple[int, int, Swizzle, int]]):
    """48 columns, 32 at 64 bytes a row and 16 at 32: whole, a quarter of the rows, a third of the columns."""
    shape = TileGeometry(rows, 48).slice_shape(slices)
    assert [(c.first, c.columns, c.swizzle, c.offset) for c in store_chunks(shape[1], shape[0])] == boxes


@given(st.data())
def test_the_most_slices_leave_the_most_stages(data: st.DataObject):
    problem = data.draw(problems())
    placed = data.draw(st.sampled_from(placed_schedules(problem)))
    sliced = sliced_schedules(problem, placed)
    assert {s.store_slices for s in sliced} <= set(legal_store_slices(problem, placed))
    stages = [[n for n in range(2, 13) if is_legal(problem, replace(s, num_stages=n))][-1] for s in sliced]
    assert stages == sorted(stages)
    usual = default_store_slices(problem, placed)
    assert any(s.store_slices == usual for s in sliced)
    most = next(n for s, n in zip(sliced, stages, strict=True) if s.store_slices == usual)
    assert is_legal(problem, replace(placed, num_stages=most)), "slices open"
