"""`gemm-select-blocks`: what it chooses and why, what it keeps, and what it refuses."""

import re
import time
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmir.bench.cases import Case
from gemmir.errors import InputError, ScheduleError
from gemmir.legality import is_legal
from gemmir.passes.block_search import (
    ALIKE,
    CHUNKS,
    FIELDS,
    ORDERED,
    Ranking,
    clusters_of,
    legal_shapes,
    search,
)
from gemmir.passes.cost_model import best_orders, predict
from gemmir.passes.l2_model import touched
from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule, Split
from gemmir.testing.strategies import columns_problem
from gemmir.tile import default_store_slices, tile_geometry
from tests.calibration.data import load
from tests.passes.run_passes import fp8_text, plain_text, run
from tests.schedules import fp8_problem, half_problem, legal_schedules, placed_schedules, problems

NAME = "gemm-select-blocks"


def chosen(m: int | str, n: int, k: int) -> tuple[object, ...]:
    return as_chosen(run(fp8_text(m, n, k), NAME)[1])


def as_chosen(s: Schedule) -> tuple[object, ...]:
    return s.block_m, s.block_n, s.math_warpgroups, s.split, s.turns, (s.cluster_m, s.cluster_n)


WIDE = (128, 256, 2, Split.ALONG_N, False, (1, 1))
TURNS = (128, 192, 2, Split.ALONG_M, True, (1, 1))


@pytest.mark.parametrize(
    ("shape", "loop"),
    [
        ((4096, 7168, 2048), WIDE),
        ((4096, 4096, 7168), WIDE),
        ((4096, 7168, 16384), WIDE),
        ((1024, 7168, 16384), WIDE),
        ((4096, 24576, 1536), WIDE),
        ((4096, 32768, 512), WIDE),
        ((4096, 2112, 7168), TURNS),
        ((8192, 8192, 8192), TURNS),
        ((512, 4096, 7168), (128, 128, 2, Split.ALONG_M, False, (1, 1))),
        ((2048, 2112, 7168), (192, 192, 2, Split.ALONG_N, False, (1, 1))),
    ],
)
def test_measured_products_take_a_fast_measured_loop(shape: tuple[int, int, int], loop: tuple[object, ...]):
    """Of all legal schedules one that was measured, within 2.5% of the fastest that was on the same GPU."""
    assert chosen(*shape) == loop
    problem, case = fp8_problem(*shape), Case("f8E4M3FN", *shape)
    slices = default_store_slices(problem, search(problem, Schedule()).best.schedule)
    compared = 0
    for series in load():
        times = {m.point: m.us for m in series.measurements if m.point.case == case}
        parsed = {point: point.parsed()[1] for point in times}
        mine = [times[p] for p, s in parsed.items() if as_chosen(s) == loop and s.store_slices == slices]
        if mine:
            compared += 1
            assert min(mine) <= 1.025 * min(times.values())
    assert compared


def test_unknown_m_is_taken_as_expected():
    assert chosen("?", 7168, 2048) == chosen(4096, 7168, 2048)
    _, small, _ = run(fp8_text("?", 7168, 2048, "expect <m = 64>"), NAME)
    assert small == run(fp8_text(64, 7168, 2048), NAME)[1]


def test_waves_are_filled():
    """4096 x 2112: 352 tiles of 128x192 fill 89% of three rounds; 2048 x 2112: one round, 92% full."""
    assert search(fp8_problem(4096, 2112, 7168), Schedule()).best.cost.rounds == 3
    one_round = search(fp8_problem(2048, 2112, 7168), Schedule()).best
    assert one_round.cost.rounds == 1
    assert one_round.cost.tiles == 121
    assert one_round.cost.microseconds < 56


@pytest.mark.parametrize(("m", "n", "k"), [(1, 7168, 2048), (64, 7168, 16384), (64, 4096, 7168), (128, 7168, 2048)])
def test_few_rows_take_low_tiles_on_most_sms(m: int, n: int, k: int):
    best = search(fp8_problem(m, n, k), Schedule()).best
    assert best.schedule.block_m == 64
    assert 100 <= best.cost.tiles <= 132
    assert best.cost.rounds == 1


def test_bf16_accumulates_wide_tiles_in_place():
    _, s, _ = run(plain_text("?", 4096, 7168), NAME)
    assert (s.block_m, s.block_n, s.block_k, s.math_warpgroups, s.turns) == (128, 256, 64, 2, False)


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((4096, 7168, 2048), (128, 256)),
        ((4096, 4096, 7168), (128, 256)),
        ((4096, 7168, 16384), (128, 256)),
        ((4096, 2112, 7168), (128, 176)),
        ((4096, 24576, 1536), (128, 208)),
        ((4096, 32768, 512), (128, 208)),
    ],
)
def test_bf16_takes_tiles_that_were_measured(shape: tuple[int, int, int], block: tuple[int, int]):
    """The fastest that was measured, or one within 3% of it."""
    assert search(half_problem(*shape), Schedule()).best.block == block


def best_of_all(problem: GemmProblem) -> float:
    """The best of every legal schedule, one by one, but for chunks of two, which are by hand only."""
    return min(predict(problem, s).seconds for s in placed_schedules(problem) if s.promote_chunk in CHUNKS)


@pytest.mark.parametrize(
    "problem",
    [
        fp8_problem(4096, 2112, 7168),
        fp8_problem(2048, 2112, 7168),
        fp8_problem(128, 32768, 512),
        fp8_problem(1, 7168, 2048),
        half_problem(4096, 24576, 1536),
        half_problem(64, 4096, 7168),
        half_problem(333, 1000, 1000),
    ],
    ids=str,
)
def test_no_legal_schedule_is_better(problem: GemmProblem):
    """Before tile orders are looked at; then the first few are ranked anew."""
    found = search(problem, Schedule())
    assert is_legal(problem, found.best.schedule)
    assert best_found(problem, found) == pytest.approx(best_of_all(problem), abs=1e-9)


def test_the_first_few_are_ranked_with_their_best_tile_orders():
    problem = fp8_problem(8192, 8192, 8192)
    found = search(problem, Schedule())
    for candidate in found.candidates[:ORDERED]:
        assert candidate.cost == best_orders(problem, candidate.schedule)[0].cost
        assert candidate.schedule.raster_axis is None, "chosen later"
    fastest = min(candidate.cost.seconds for candidate in found.candidates[:ORDERED])
    assert found.best.cost.seconds <= (1 + ALIKE) * fastest


def best_found(problem: GemmProblem, found: Ranking) -> float:
    """The least time of a candidate whose tile order is open."""
    return min(predict(problem, candidate.schedule).seconds for candidate in found.candidates)


@settings(max_examples=20)
@given(problems(min_k=1))
def test_pruning_loses_nothing(problem: GemmProblem):
    found = search(problem, Schedule())
    assert is_legal(problem, found.best.schedule)
    everything = [
        predict(problem, s).seconds for shape in legal_shapes(problem, Schedule()) for s in clusters_of(problem, shape)
    ]
    assert best_found(problem, found) == pytest.approx(min(everything), abs=1e-9)


@pytest.mark.parametrize("problem", [fp8_problem(4096, 512, 512), half_problem(4096, 512, 512)], ids=str)
def test_the_search_sees_the_whole_space(problem: GemmProblem):
    """
    All legal schedules but chunks of two and those that are dominated: free running where turns are legal, a split of
    one.
    """
    seen = {s for shape in legal_shapes(problem, Schedule()) for s in clusters_of(problem, shape)}
    assert all(is_legal(problem, s) for s in seen)
    everything = {replace(s, family=None) for s in placed_schedules(problem)}
    space = {s for s in everything if s.promote_chunk != 2}
    assert seen <= space
    assert {s.promote_chunk for s in seen} == ({1, 4} if problem.promoted else {1})
    missing = space - seen
    assert all(s.math_warpgroups == 1 or replace(s, turns=True) in seen for s in missing)
    assert all(s.split is Split.ALONG_N for s in missing if s.math_warpgroups == 1)


def test_the_search_takes_milliseconds():
    def seconds(problem: GemmProblem) -> float:
        touched.cache_clear()  # as in a new process
        start = time.process_time()
        search(problem, Schedule())
        return time.process_time() - start

    for problem in (fp8_problem(4096, 7168, 2048), half_problem(8192, 8192, 8192), fp8_problem(64, 32768, 512)):
        assert min(seconds(problem) for _ in range(5)) < 0.25, "0.03 on an idle machine"


@settings(max_examples=20)
@given(st.data())
def test_what_is_fixed_stays(data: st.DataObject):
    problem = data.draw(problems(min_k=1))
    complete = data.draw(legal_schedules(problem))
    names = data.draw(st.sets(st.sampled_from([f.name for f in fields(Schedule)])))
    fixed = replace(complete, **dict.fromkeys(names))
    if fixed.cluster_m is None or fixed.cluster_n is None:
        fixed = replace(fixed, cluster_m=None, cluster_n=None, block_n=None)
    found = search(problem, fixed).best.schedule
    assert is_legal(problem, found)
    for field in fields(Schedule):
        if (value := getattr(fixed, field.name)) is not None:
            assert getattr(found, field.name) == value
    assert all(getattr(found, name) is not None for name in FIELDS)


def test_options_count_as_fixed():
    _, s, decisions = run(fp8_text("?", 7168, 2048), NAME + "{block=128,192 cluster=1,2}")
    assert (s.block_m, s.block_n, s.block_k) == (128, 192, 128)
    assert (s.cluster_m, s.cluster_n, s.turns, s.promote_chunk) == (1, 2, True, 1)
    assert [d.subject for d in decisions] == ["block", "warpgroups"]
    _, s, _ = run(fp8_text("?", 7168, 2048), NAME + "{warpgroups=3 split=m turns=false}")
    assert (s.block_m, s.math_warpgroups, s.split, s.turns) == (192, 3, Split.ALONG_M, False)


def test_a_chunk_is_chosen_like_the_rest():
    """Where a CTA has one small tile: the next wave runs while one is promoted, and there is no next tile to begin."""
    _, few, (_, warpgroups, _) = run(fp8_text(64, 4096, 7168), NAME)
    assert (few.block_m, few.block_n, few.promote_chunk, few.turns) == (64, 32, 4, False)
    assert warpgroups.choice == "1, chunks of 4"
    assert warpgroups.runner_up == "2 along n, chunks of 4 at 13.5 us"
    _, many, _ = run(fp8_text(4096, 7168, 16384), NAME)
    assert many.promote_chunk == 1
    for chunk in (1, 2, 4):
        _, fixed, _ = run(fp8_text(64, 4096, 7168), f"{NAME}{{chunk={chunk}}}")
        assert (fixed.promote_chunk, fixed.turns) == (chunk, chunk == 1)
    _, s, decisions = run(fp8_text(64, 4096, 7168, "schedule <chunk = 2, block = 128x112x128>"), NAME + "{chunk=1}")
    assert (s.promote_chunk, s.math_warpgroups, s.turns) == (2, 2, False)
    assert [d.subject for d in decisions] == ["warpgroups", "cluster"]


def test_chunks_are_for_promoted_sums():
    assert run(plain_text("?", 4096, 7168), NAME)[1].promote_chunk == 1
    with pytest.raises(ScheduleError, match="promote_chunk = 2 for bf16") as caught:
        run(plain_text("?", 4096, 7168), NAME + "{chunk=2}")
    assert caught.value.code == "GMR-S006"


def test_options_do_not_override_the_ir():
    text = fp8_text("?", 7168, 2048, "schedule <block = 256x128x128>")
    _, s, _ = run(text, NAME + "{block=128,192}")
    assert (s.block_m, s.block_n) == (256, 128)


def test_runs_twice_with_the_same_result():
    once, _, first = run(fp8_text("?", 7168, 2048), NAME)
    twice, _, second = run(str(once), NAME)
    assert str(twice) == str(once)
    assert len(first) == 3
    assert second == []


def test_prints_the_choice():
    module, _, _ = run(fp8_text("?", 7168, 2048), NAME)
    assert "block = 128x256x128, warpgroups = 2 along n, turns = false, chunk = 1, cluster = 1x1" in str(module)


def test_explains_with_numbers_and_runners_up():
    _, _, (block, warpgroups, cluster) = run(fp8_text(4096, 7168, 2048), NAME)
    assert (block.choice, warpgroups.choice, cluster.choice) == ("128x256x128", "2 along n", "1x1")
    for number in ("83.8 us", "896 tiles on 132 clusters", "7 rounds of 16 k-blocks x 1129 + 1096 cycles at 1.69"):
        assert number in block.because
    assert block.runner_up == "256x128x128 at 86.7 us"
    assert "2 x 64 rows x 128 columns" in warpgroups.because
    assert "nothing is shared" in cluster.because
    assert cluster.runner_up == "2x1 at 84.8 us"


@pytest.mark.parametrize(
    ("options", "what", "rule"),
    [
        ("block=256,256", "256x256 with 2 math warpgroups", "GMR-S002: setmaxnreg gives a math thread 232"),
        ("block=128,100", "100 columns a warpgroup", "GMR-S003: a multiple of 16 from 16 to 256"),
        ("block=96,128", "block_m = 96", "GMR-S003"),
        ("block=128,128,64", "64 bytes", "GMR-S003: a stage holds one swizzle row of 128 bytes"),
        ("cluster=4,2", "cluster of 4 x 2 CTAs", "GMR-S004: one of 1x1, 2x1, 1x2, 4x1, 1x4, 2x2"),
        ("warpgroups=5", "math_warpgroups = 5", "GMR-S003: one of (1, 2, 3)"),
        ("chunk=3", "promote_chunk = 3", "GMR-S003: one of (1, 2, 4)"),
        ("chunk=2 block=256,128", "2 waves a warpgroup", "GMR-S003"),
        ("chunk=2 turns=true", "promote_chunk = 2 in turn", "GMR-S003"),
        ("chunk=2 block=128,192", "1 x 96 accumulators + 2 x 96 partial + 32 = 320", "GMR-S002"),
        ("turns=true warpgroups=3", "turns with 3 math warpgroups", "GMR-S003"),
    ],
)
def test_refuses_what_nothing_completes(options: str, what: str, rule: str):
    with pytest.raises(ScheduleError) as caught:
        run(fp8_text("?", 7168, 2048), f"{NAME}{{{options}}}")
    assert caught.value.code == "GMR-S006"
    assert "nothing completes" in caught.value.what
    assert what in caught.value.what
    assert rule in (caught.value.rule or "")


@pytest.mark.parametrize("slices", [1, 2, 3, 4])
def test_slices_that_are_fixed_choose_the_waves(slices: int):
    _, s, _ = run(fp8_text("?", 7168, 2048, f"schedule <slices = {slices}>"), NAME)
    assert s.store_slices == slices
    assert slices in (1, tile_geometry(s).waves)


def test_batches_of_scales_that_are_fixed_choose_a_width_beyond_n():
    """Four k-blocks a batch: a tile has 5 to 8 scales a k-block, far wider than these 8 columns."""
    best = search(fp8_problem(1, 8, 16), Schedule(scale_batch=4)).best.schedule
    assert is_legal(fp8_problem(1, 8, 16), best)
    assert best.block_n is not None
    assert 4 < best.block_n // tile_geometry(best).column_step <= 8


def test_slices_that_no_tile_has_are_refused_by_name():
    with pytest.raises(ScheduleError) as caught:
        run(plain_text("?", 7168, 2048, "schedule <slices = 5>"), NAME)
    assert caught.value.code == "GMR-S006"
    assert caught.value.what.startswith("nothing completes store_slices = 5: the nearest, ")
    assert "has slices = 5 of " in caught.value.what
    rule = "a tile leaves in one slice, in one a wave, or, where sums are not promoted, one wave in whole 16 columns"
    assert caught.value.rule == f"GMR-S003: {rule}"
    assert re.fullmatch("use slices = [1-4]( or [2-4])*, or leave more of the schedule open", caught.value.fix or "")


def test_a_complete_choice_that_breaks_a_rule_says_which():
    with pytest.raises(ScheduleError, match="registers a thread") as caught:
        run(fp8_text("?", 256, 256), NAME + "{block=128,256,128 warpgroups=2 split=m cluster=1,1 turns=false chunk=1}")
    assert caught.value.code == "GMR-S002"


@pytest.mark.parametrize("options", ["block=128", "block=0,128", "cluster=2", "cluster=0,1", "split=k"])
def test_refuses_options_that_mean_nothing(options: str):
    with pytest.raises(InputError) as caught:
        run(fp8_text("?", 7168, 2048), f"{NAME}{{{options}}}")
    assert caught.value.code == "GMR-I009"
    assert options in caught.value.what


@pytest.mark.parametrize("text", [fp8_text("?", 64, 0), fp8_text(0, 64, 128), fp8_text(1, 8, 16)])
def test_the_smallest_products_have_a_tile(text: str):
    _, s, _ = run(text, NAME)
    assert (s.block_m, s.block_n) != (None, None)
    assert (s.block_n or 0) <= 64


@pytest.mark.parametrize("n", [8, 40, 72])
@pytest.mark.parametrize(
    "problem", [replace(half_problem(64, 8, 64), b_major="n"), columns_problem(64, 8, 128)], ids=["panels", "scales"]
)
def test_few_columns_have_a_tile_of_whole_panels(problem: GemmProblem, n: int):
    """The narrowest legal tile is wider than N: of panels, or of as many column scales as TMA loads."""
    best = search(replace(problem, n=n), Schedule()).best.schedule
    assert best.block_n is not None
    assert best.block_n % (32 if problem.a.is_fp8 else 64) == 0
