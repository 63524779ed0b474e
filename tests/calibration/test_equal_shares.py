"""Equal shares on paper: nothing to gain where shares are equal already, and what the table tells."""

from fractions import Fraction

import pytest

from gemmir.bench.cases import DECODE, Case
from gemmir.schedule import Family
from tests.calibration import equal_shares
from tests.calibration.equal_shares import Shares, chosen, lines, pieces, shares

FP8 = "f8E4M3FN"


def of(case: Case) -> Shares:
    problem, schedule = chosen(case)
    assert schedule.family is Family.STREAM
    return shares(problem, schedule)


@pytest.mark.parametrize(
    ("tiles", "expected"),
    [
        (Fraction(1), (1, 0)),
        (Fraction(3), (1, 2)),
        (Fraction(1, 4), (4, 0)),
        (Fraction(1, 2), (2, 0)),
        (Fraction(64, 132), (3, 1)),
        (Fraction(112, 132), (2, 1)),
        (Fraction(384, 132), (2, 3)),
    ],
    ids=str,
)
def test_shares_that_end_within_a_tile_cut_it(tiles: Fraction, expected: tuple[int, int]):
    assert pieces(tiles) == expected


@pytest.mark.parametrize(
    "case",
    [Case(FP8, 64, 64 * 132, 2048), Case("bf16", 16, 2 * 64 * 132, 1024), Case(FP8, 128, 2112, 7168, 2)],
    ids=str,
)
def test_where_every_sm_has_as_much_there_is_nothing_to_gain(case: Case):
    found = of(case)
    assert found.busiest == 1.0
    assert found.free == pytest.approx(found.now)
    assert found.gathered == pytest.approx(found.now)


@pytest.mark.parametrize(
    ("case", "busiest"),
    [
        (Case(FP8, 64, 2112, 7168, 2), 132 / 66),
        (Case(FP8, 128, 7168, 16384), 132 / 112),
        (Case(FP8, 64, 24576, 1536), 3 * 132 / 384),
    ],
    ids=str,
)
def test_what_is_free_is_a_bound(case: Case, busiest: float):
    found = of(case)
    assert found.busiest == pytest.approx(busiest)
    assert found.dram < found.free < found.now
    assert found.free < found.gathered
    assert found.now / found.free < busiest


def test_the_table_has_a_line_for_each_row_and_what_may_gain_most_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(equal_shares, "DECODE", tuple(shape for shape in DECODE if shape[0] == 64))
    monkeypatch.setattr(equal_shares, "DTYPES", (FP8,))
    rows = [line.strip("| ").split(" | ") for line in lines() if line.startswith("| 64")]
    assert rows[0][:3] == ["64 x 2112 x 7168", "64x64, 2 parts", "2.00"]
    assert (len(rows), {len(row) for row in rows}) == (6, {9})
    gains = [float(row[6]) for row in rows]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 1.05 > 1.02 > gains[-1]
