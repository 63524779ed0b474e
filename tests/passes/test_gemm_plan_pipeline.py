"""`gemm-plan-pipeline`: the most stages that fit and are of use, with the arithmetic."""

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
    ("block", "stages"), [("128x256x128", 3), ("128x128x128", 5), ("64x64x128", MAX_STAGES), ("128x192x128", 4)]
)
def test_as_many_as_fit(block: str, stages: int):
    module, schedule, _ = run(fp8_text("?", 7168, 2048, tile(block)), NAME)
    assert schedule.num_stages == stages
    assert f"stages = {stages}>" in str(module)


def test_explains_the_byte_budget():
    _, _, (decision,) = run(fp8_text("?", 7168, 2048, tile("128x256x128")), NAME)
    assert (decision.by, decision.subject, decision.choice) == (NAME, "stages", "3")
    assert "3 x 49696 (A 16384, B 32768, scales 528, barriers) + 65568" in decision.because
    assert "= 214656 of 232448 bytes; one more would need 264352" in decision.because


def test_the_budget_adds_up():
    assert 16384 + 32768 + 528 + 2 * 8 == 49696
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
    text = fp8_text("?", 7168, 2048, tile("128x128x128", ", stages = 4"))
    for pipeline in (NAME, NAME + "{stages=3}"):
        _, schedule, decisions = run(text, pipeline)
        assert schedule.num_stages == 4
        assert decisions == []
    assert run(fp8_text("?", 7168, 2048, tile("128x128x128")), NAME + "{stages=3}")[1].num_stages == 3


def test_refuses_stages_that_do_not_fit():
    with pytest.raises(ScheduleError, match="264352 bytes") as caught:
        run(fp8_text("?", 7168, 2048, tile("128x256x128")), NAME + "{stages=4}")
    assert caught.value.code == "GMR-S001"


def test_needs_the_tile():
    with pytest.raises(ScheduleError, match="split open") as caught:
        run(fp8_text("?", 7168, 2048, "schedule <block = 128x128x128>"), NAME)
    assert caught.value.code == "GMR-S005"


@given(st.data())
def test_what_fits_is_what_is_legal(data: st.DataObject):
    problem = data.draw(problems())
    drawn = replace(data.draw(legal_schedules(problem)), num_stages=None)
    legal = [n for n in range(MIN_STAGES, MAX_STAGES + 1) if is_legal(problem, replace(drawn, num_stages=n))]
    assert min(fitting_stages(problem, drawn), MAX_STAGES) == legal[-1]
    assert useful_stages(problem, drawn) >= MIN_STAGES


@pytest.mark.parametrize("text", [fp8_text("?", 7168, 2048), plain_text("?", 4096, 7168), fp8_text(1, 8, 16)])
def test_the_four_passes_complete_a_schedule_and_then_rest(text: str):
    module, schedule, decisions = run(text, ALL)
    assert schedule.complete
    assert [d.subject for d in decisions] == ["family", "block", "warpgroups", "cluster", "raster", "stages"]
    again, _, nothing = run(str(module), ALL)
    assert str(again) == str(module)
    assert nothing == []
