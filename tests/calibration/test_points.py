"""Which points are measured."""

from collections import Counter
from functools import cache

from gemmir.bench.cases import DENSE
from gemmir.passes.block_search import search
from gemmir.schedule import Schedule
from tests.calibration.data import Point
from tests.calibration.points import BF16, BF16_DRAWN, BF16_MENU, FIRST, FP8, FP8_DRAWN, FP8_MENU, points


@cache
def found() -> list[Point]:
    return points()


def test_there_are_three_to_five_hundred_each_once_and_the_same_every_time():
    assert 300 <= len(found()) <= 500
    assert len(set(found())) == len(found())
    assert points() == found()


def test_every_point_can_be_completed_to_a_legal_schedule():
    for point in found():
        problem, schedule = point.parsed()
        best = search(problem, schedule).best.schedule
        assert all(getattr(best, n) == v for n in ("block_m", "block_n") if (v := getattr(schedule, n)) is not None)


def test_dense_shapes_have_the_menu():
    """Every item fits every dense shape today; what stops to fit would drop out silently."""
    taken = Counter(p.case for p in found() if p.case.shape in DENSE)
    assert {(case.dtype, count) for case, count in taken.items()} == {(FP8, len(FP8_MENU)), (BF16, len(BF16_MENU))}
    assert len(taken) == 2 * len(DENSE)


def test_drawn_shapes_have_what_the_search_ranks_first_in_distinct_tiles():
    drawn = [p for p in found() if p.case.shape not in DENSE]
    taken = Counter(p.case for p in drawn)
    assert len(taken) == FP8_DRAWN + BF16_DRAWN
    assert max(taken.values()) == FIRST
    assert min(taken.values()) >= 3, "fewer only where the search has no more within its reach of the best"
    first = drawn[0]
    problem, schedule = first.parsed()
    chosen = search(problem, Schedule()).best.schedule
    assert (schedule.block_m, schedule.block_n) == (chosen.block_m, chosen.block_n)
    tiles = {(s.block_m, s.block_n) for p in drawn if p.case == first.case for s in [p.parsed()[1]]}
    assert len(tiles) == FIRST
