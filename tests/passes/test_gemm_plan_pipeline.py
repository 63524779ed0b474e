"""`gemm-plan-pipeline`: slices of a tile, then the most stages that fit and are of use, with the arithmetic."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.errors import ScheduleError
from gemmir.legality import MAX_STAGES, MIN_STAGES, is_legal
from gemmir.passes.cost_model import fitting_stages
from gemmir.passes.gemm_plan_pipeline import useful_stages
from tests.passes.run_passes import ALL, fp8_text, plain_text, run
from tests.schedules import fp8_problem, legal_schedules, problems

NAME = "gemm-plan-pipeline"


def tile(block: str, rest: str = "") -> str:
    return f"schedule <block = {block}, warpgroups = 2 along n, turns = false, cluster = 2x1{rest}>"


@pytest.mark.parametrize(
    ("block", "slices", "stages"),
    [("128x256x128", 2, 4), ("128x128x128", 2, 6), ("64x64x128", 1, MAX_STAGES), ("128x192x128", 2, 5)],
)
def test_as_many_as_fit(block: str, slices: int, stages: int):
    module, schedule, _ = run(fp8_text("?", 7168, 2048, tile(block)), NAME)
    assert (schedule.store_slices, schedule.num_stages) == (slices, stages)
    assert f"slices = {slices}, stages = {stages}>" in str(module)


@pytest.mark.parametrize(("block", "stages"), [("128x256x128", 3), ("128x128x128", 5), ("128x192x128", 4)])
def test_as_many_as_fit_beside_a_whole_tile(block: str, stages: int):
    module, schedule, _ = run(fp8_text("?", 7168, 2048, tile(block, ", slices = 1")), NAME)
    assert schedule.num_stages == stages
    assert f"slices = 1, stages = {stages}>" in str(module)


def test_a_tile_that_is_summed_in_place_leaves_whole():
    text = "schedule <block = 128x256x64, warpgroups = 2 along n, turns = false, cluster = 2x1>"
    _, schedule, decisions = run(plain_text("?", 7168, 2048, text), NAME)
    assert (schedule.store_slices, schedule.num_stages) == (1, 3)
    assert [d.subject for d in decisions] == ["stages"]


def test_explains_the_slices():
    _, _, (decision, _) = run(fp8_text("?", 7168, 2048, tile("128x256x128")), NAME)
    assert (decision.by, decision.subject, decision.choice) == (NAME, "slices", "2")
    assert decision.because == "each of 2 waves leaves while the next one is computed; 4 stages fit"
    assert decision.runner_up == "1, with which 3 stages fit"


def test_explains_the_byte_budget():
    _, _, (_, decision) = run(fp8_text("?", 7168, 2048, tile("128x256x128")), NAME)
    assert (decision.by, decision.subject, decision.choice) == (NAME, "stages", "4")
    assert "4 x 49696 (A 16384, B 32768, scales 528, barriers) + 32800" in decision.because
    assert "= 231584 of 232448 bytes; one more would need 281280" in decision.because


def test_explains_the_byte_budget_beside_a_whole_tile():
    _, _, (decision,) = run(fp8_text("?", 7168, 2048, tile("128x256x128", ", slices = 1")), NAME)
    assert (decision.by, decision.subject, decision.choice) == (NAME, "stages", "3")
    assert "3 x 49696 (A 16384, B 32768, scales 528, barriers) + 65568" in decision.because
    assert "= 214656 of 232448 bytes; one more would need 264352" in decision.because


def test_the_budget_adds_up():
    assert 16384 + 32768 + 528 + 2 * 8 == 49696
    assert 64 * 256 * 2 + 4 * 8 == 32800
    assert 4 * 49696 + 32800 == 231584
    assert 231584 + 49696 == 281280 > 232448
    assert 3 * 49696 + 65568 == 214656
    assert 214656 + 49696 == 264352 > 232448


def test_no_more_than_are_ever_loaded():
    _, schedule, (decision,) = run(fp8_text(128, 256, 256, tile("64x64x128")), NAME)
    assert schedule.num_stages == 3  # 2 k-blocks of one tile a CTA, and one
    assert "a CTA loads 2 stages in all" in decision.because
    assert useful_stages(fp8_problem(None, 256, 256), schedule) == MAX_STAGES


def test_twelve_are_the_most():
    _, _, (decision,) = run(fp8_text("?", 7168, 2048, tile("64x64x128")), NAME)
    assert decision.choice == "12"
    assert "12 are the most" in decision.because


def test_k_of_zero_has_two_stages():
    assert run(fp8_text(64, 64, 0, tile("64x64x128")), NAME)[1].num_stages == MIN_STAGES


def test_what_is_fixed_stays():
    text = fp8_text("?", 7168, 2048, tile("128x128x128", ", slices = 1, stages = 4"))
    for pipeline in (NAME, NAME + "{slices=2 stages=3}"):
        _, schedule, decisions = run(text, pipeline)
        assert (schedule.store_slices, schedule.num_stages) == (1, 4)
        assert decisions == []


@pytest.mark.parametrize(
    ("fixed", "options", "chosen", "subjects"),
    [
        (", stages = 4", "", (2, 4), ["slices"]),
        ("", "{stages=3}", (2, 3), ["slices"]),
        (", slices = 1", "", (1, 5), ["stages"]),
        ("", "{slices=1}", (1, 5), ["stages"]),
        (", stages = 4", "{slices=1}", (1, 4), []),
        (", slices = 2", "{stages=3}", (2, 3), []),
    ],
)
def test_what_is_open_is_chosen(fixed: str, options: str, chosen: tuple[int, int], subjects: list[str]):
    _, schedule, decisions = run(fp8_text("?", 7168, 2048, tile("128x128x128", fixed)), NAME + options)
    assert (schedule.store_slices, schedule.num_stages) == chosen
    assert [d.subject for d in decisions] == subjects


@pytest.mark.parametrize(
    ("options", "message", "fix"),
    [
        ("{stages=5}", "5 stages x 49696 + 32800 (outgoing tile, barriers) = 281280 bytes", "use num_stages = 4"),
        (
            "{slices=1 stages=4}",
            "4 stages x 49696 + 65568 (outgoing tile, barriers) = 264352 bytes",
            "use num_stages = 3",
        ),
        ("{slices=3}", "slices = 3 of 2 waves a warpgroup", "use slices = 1 or 2"),
    ],
)
def test_refuses_what_does_not_fit(options: str, message: str, fix: str):
    with pytest.raises(ScheduleError) as caught:
        run(fp8_text("?", 7168, 2048, tile("128x256x128")), NAME + options)
    assert caught.value.code == ("GMR-S003" if options == "{slices=3}" else "GMR-S001")
    assert (caught.value.what, caught.value.fix) == (message, fix)


def test_needs_the_tile():
    with pytest.raises(ScheduleError, match="split open") as caught:
        run(fp8_text("?", 7168, 2048, "schedule <block = 128x128x128>"), NAME)
    assert caught.value.code == "GMR-S005"


@given(st.data())
def test_what_fits_is_what_is_legal(data: st.DataObject):
    problem = data.draw(problems())
    drawn = replace(data.draw(legal_schedules(problem)), num_stages=None)
    if data.draw(st.booleans()):
        drawn = replace(drawn, store_slices=None)
    legal = [n for n in range(MIN_STAGES, MAX_STAGES + 1) if is_legal(problem, replace(drawn, num_stages=n))]
    assert min(fitting_stages(problem, drawn), MAX_STAGES) == legal[-1]
    assert useful_stages(problem, drawn) >= MIN_STAGES


@pytest.mark.parametrize(
    ("text", "waves"),
    [(fp8_text("?", 7168, 2048), 2), (plain_text("?", 4096, 7168), 1), (fp8_text(1, 8, 16), 1)],
    ids=["two waves", "in place", "one wave"],
)
def test_the_four_passes_complete_a_schedule_and_then_rest(text: str, waves: int):
    module, schedule, decisions = run(text, ALL)
    assert schedule.complete
    sliced = ["slices"] if waves > 1 else []
    assert [d.subject for d in decisions] == ["family", "block", "warpgroups", "cluster", "raster", *sliced, "stages"]
    assert schedule.store_slices == waves
    again, _, nothing = run(str(module), ALL)
    assert str(again) == str(module)
    assert nothing == []
