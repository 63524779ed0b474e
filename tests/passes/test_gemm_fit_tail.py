"""`gemm-fit-tail`: narrower tiles for the last columns, where the last round is then a shorter one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.bench.cases import program_text
from gemmir.compiler import lower
from gemmir.errors import ScheduleError
from gemmir.passes.cost_model import predict
from gemmir.passes.gemm_fit_tail import GAIN, best_tail, columns_of_busiest
from gemmir.passes.tail_model import Deal, deal
from gemmir.schedule import Family, Split
from tests.kernels import FP8_SCHEDULE
from tests.passes.run_passes import fp8_text, run
from tests.schedules import fp8_problem, half_problem

NAME = "gemm-select-family,gemm-select-blocks,gemm-fit-tail"
TURNS = "family = tiles, block = 128x192x128, warpgroups = 2 along m, turns = true, chunk = 1, cluster = 1x1"
BEHIND = ("tail_n", "tail_after", "raster_axis", "raster_group", "evict", "num_stages")
WIDE = replace(FP8_SCHEDULE, cluster_m=1, **dict.fromkeys(BEHIND))
"""As `gemm-select-blocks` leaves it."""


@given(st.integers(0, 600), st.integers(0, 600), st.integers(1, 132), st.integers(1, 9), st.integers(1, 9))
def test_the_busiest_cta_is_found_without_looking_at_each(
    wide: int, narrow: int, ctas: int, one: int, other: int
) -> None:
    loads = [0] * ctas
    for number in range(wide + narrow):
        loads[number % ctas] += one if number < wide else other
    assert Deal(wide, narrow, ctas).longest(one, other) == max(loads)


def test_what_is_left_of_a_round_is_dealt_out_anew() -> None:
    """4096 x 2112: 352 tiles of 192 columns in three rounds, or 256 in two and 128 of 144 columns in the third."""
    problem = fp8_problem(4096, 2112, 7168)
    whole = replace(WIDE, block_n=192, split=Split.ALONG_M, turns=True, tail_n=0, tail_after=0)
    tail = replace(whole, tail_n=144, tail_after=8)
    assert (deal(problem, whole), deal(problem, tail)) == (Deal(352, 0, 132), Deal(256, 128, 132))
    assert (columns_of_busiest(problem, whole), columns_of_busiest(problem, tail)) == (576, 528)


def test_a_tail_is_taken_where_it_is_predicted_to_pay() -> None:
    """One column of tiles more than rounds hold, and a K that makes a round long."""
    problem = fp8_problem(4096, 4352, 8192)
    found = best_tail(problem, WIDE)
    none = replace(WIDE, tail_n=0, tail_after=0)
    assert (found.tail_n, found.tail_after) == (64, 16)
    assert predict(problem, found).seconds <= (1 - GAIN) * predict(problem, none).seconds
    assert predict(problem, found).rounds == 5


@pytest.mark.parametrize("shape", [(4096, 2112, 7168), (4096, 32768, 512), (1024, 7168, 16384)])
def test_less_than_the_model_knows_is_not_taken(shape: tuple[int, int, int]) -> None:
    """Measured: 3% slower, 2% slower, and 1% faster but 3% slower in a hot loop."""
    _, schedule, decisions = run(fp8_text(*shape), NAME)
    assert (schedule.tail_n, schedule.tail_after) == (0, 0)
    assert "tail" not in [decision.subject for decision in decisions]


def test_it_is_explained() -> None:
    text = fp8_text(4096, 4352, 8192, "schedule <family = tiles, block = 128x256x128, cluster = 1x1>")
    _, schedule, decisions = run(text, NAME)
    assert schedule.tail_n == 64
    (why,) = [decision for decision in decisions if decision.subject == "tail"]
    assert why.choice == "64 after 16"
    assert "512 + 128 tiles on 132 CTAs, the busiest computes 1088 columns" in why.because
    assert "none, 544 tiles, 1280 columns" in str(why)


@pytest.mark.parametrize(
    ("options", "tail"),
    [("{n=144 after=8}", (144, 8)), ("{n=0 after=0}", (0, 0)), ("{n=144}", (144, 8)), ("{after=10}", (96, 10))],
)
def test_what_is_asked_for_is_taken(options: str, tail: tuple[int, int]) -> None:
    """What is left open of it too, though none is predicted to pay."""
    _, schedule, _ = run(fp8_text(4096, 2112, 7168, f"schedule <{TURNS}>"), NAME + options)
    assert (schedule.tail_n, schedule.tail_after) == tail


@pytest.mark.parametrize(
    ("tail", "what"),
    [
        ("192 after 8", "narrower"),
        ("144 after 11", "behind 11 x 192 of 2112 columns"),
        ("0 after 8", "both a width and the columns"),
        ("24 after 8", "tail: 24 columns a warpgroup"),
        ("128 after 7", "begins at column 1344"),
    ],
)
def test_what_cannot_be_is_refused_with_a_fix(tail: str, what: str) -> None:
    with pytest.raises(ScheduleError, match=what) as caught:
        run(fp8_text(4096, 2112, 7168, f"schedule <{TURNS}, tail = {tail}>"), NAME)
    assert caught.value.code == "GMR-S003"
    assert caught.value.fix.startswith("use tail = ")


def test_a_fixed_tail_keeps_the_search_from_clusters() -> None:
    """Which were chosen first, and refused then."""
    _, schedule, _ = run(fp8_text(4096, 2112, 7168, "schedule <family = tiles, tail = 144 after 8>"), NAME)
    assert (schedule.cluster_m, schedule.cluster_n, schedule.tail_n) == (1, 1, 144)


def test_a_fixed_tail_behind_all_columns_of_a_wide_tile_drops_that_tile() -> None:
    """127 x 256 columns are not behind 127 x 272: the model is asked of such tiles, too."""
    found = lower(program_text(32768, 512, "f8E4M3FN", schedule="tail = 64 after 127"), m=4096, until="schedule")
    assert "block = 128x256x128" in found.schedule
    assert "tail = 64 after 127" in found.schedule


@pytest.mark.parametrize("m", [1, 4096])
def test_other_forms_have_none(m: int) -> None:
    """A stream of weights; clusters."""
    assert not best_tail(fp8_problem(m, 4352, 8192), replace(WIDE, cluster_m=2)).has_tail
    stream = replace(WIDE, family=Family.STREAM, block_m=16, block_n=64, math_warpgroups=1)
    assert not best_tail(half_problem(m, 4352, 8192), stream).has_tail
