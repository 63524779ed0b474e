"""`gemm-plan-pipeline`: batches of scales, slices of a tile, the most stages that fit and are of use, and why."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.decisions import Decision
from gemmir.errors import ScheduleError
from gemmir.legality import MAX_STAGES, MIN_STAGES, is_legal
from gemmir.passes import gemm_plan_pipeline
from gemmir.passes.cost_model import predict
from gemmir.passes.gemm_plan_pipeline import SCALE_LOAD_CLOCKS, useful_stages
from gemmir.schedule import SCALES_OF_TILE
from gemmir.tile import fitting_stages, widest_scale_batch
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


@pytest.mark.parametrize(
    ("block_n", "split", "k", "chosen", "because"),
    [
        (256, "n", 2048, (2, 4), "each of 2 waves leaves in the shared memory of one; 4 stages fit"),
        (256, "m", 2048, (2, 4), "some columns leaves in the shared memory of one; 4 stages fit"),
        (256, "m", 960, (1, 3), ""),
        (192, "m", 2048, (1, 4), ""),
    ],
)
def test_a_tile_that_is_summed_in_place_leaves_whole_or_where_a_stage_more_fits_so_in_two(
    block_n: int, split: str, k: int, chosen: tuple[int, int], because: str
):
    text = f"schedule <block = 128x{block_n}x64, warpgroups = 2 along {split}, turns = false, cluster = 2x1>"
    _, schedule, (*slices, stages) = run(plain_text("?", 7168, k, text), NAME)
    assert (schedule.store_slices, schedule.num_stages) == chosen
    assert stages.subject == "stages"
    assert [(d.subject, d.because, d.runner_up) for d in slices] == (
        [("slices", because, "1, with which 3 stages fit")] if because else []
    )


@pytest.mark.parametrize(
    ("block", "groups", "widest", "chosen"),
    [
        ("64x64x128", "1 along m", 32, 32),
        ("64x128x128", "1 along m", 32, 32),
        ("64x96x128", "2 along n", 4, 4),
        ("128x256x128", "2 along n", 16, 1),
        ("128x192x128", "2 along n", 4, 1),
        ("128x160x128", "2 along m", 4, 1),
    ],
)
def test_scales_of_short_k_blocks_are_fetched_in_batches(block: str, groups: str, widest: int, chosen: int):
    """As many k-blocks as the lanes of a warp hold the scales of, where a k-block is over before a load would be."""
    text = f"schedule <block = {block}, warpgroups = {groups}, turns = false, cluster = 1x1>"
    module, schedule, (decision, *_) = run(fp8_text("?", 7168, 2048, text), NAME)
    assert (schedule.scale_batch, widest_scale_batch(fp8_problem(None, 7168, 2048), schedule)) == (chosen, widest)
    clocks = predict(fp8_problem(None, 7168, 2048), replace(schedule, scale_batch=None, num_stages=None)).k_block
    assert (clocks < SCALE_LOAD_CLOCKS) is (chosen > 1)
    assert f"scale_batch = {chosen}, " in str(module)
    assert (decision.by, decision.subject, decision.choice) == (NAME, "scale_batch", str(chosen))
    less = "less" if chosen > 1 else "not less"
    assert decision.because == f"a k-block takes {clocks:.0f} cycles, {less} than the 800 of a load of its scales"
    assert decision.runner_up == ("1" if chosen > 1 else str(widest))


@pytest.mark.parametrize(("clocks", "chosen"), [(800.0, 1), (799.9, 16)])
def test_a_batch_needs_k_blocks_shorter_than_a_load(clocks: float, chosen: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gemm_plan_pipeline, "predict", lambda *_: SimpleNamespace(k_block=clocks))
    assert run(fp8_text("?", 7168, 2048, tile("128x128x128")), NAME)[1].scale_batch == chosen


def test_without_weight_scales_there_is_nothing_to_say_of_batches():
    text = "schedule <block = 64x64x64, warpgroups = 1 along m, turns = false, cluster = 1x1>"
    _, schedule, decisions = run(plain_text("?", 7168, 2048, text), NAME)
    assert schedule.scale_batch == 1
    assert "scale_batch" not in [d.subject for d in decisions]


@pytest.mark.parametrize(
    ("block", "batch", "fix"), [("128x256x128", 32, 16), ("128x192x128", 16, 4), ("64x64x128", 8, 16)]
)
def test_refuses_a_batch_that_does_not_fill_a_warp(block: str, batch: int, fix: int):
    with pytest.raises(ScheduleError) as caught:
        run(fp8_text("?", 7168, 2048, tile(block)), f"{NAME}{{scale-batch={batch}}}")
    assert caught.value.code == "GMR-S003"
    assert caught.value.what == f"scale_batch = {batch} with block_n = {block.split('x')[1]}"
    assert caught.value.fix == f"use scale_batch = {fix}"


def test_explains_the_slices():
    _, _, (_, decision, *_) = run(fp8_text("?", 7168, 2048, tile("128x256x128")), NAME)
    assert (decision.by, decision.subject, decision.choice) == (NAME, "slices", "2")
    assert decision.because == "each of 2 waves leaves while the next one is computed; 4 stages fit"
    assert decision.runner_up == "1, with which 3 stages fit"


def test_explains_the_byte_budget():
    _, _, (_, _, decision, _) = run(fp8_text("?", 7168, 2048, tile("128x256x128")), NAME)
    assert (decision.by, decision.subject, decision.choice) == (NAME, "stages", "4")
    assert "4 x 49696 (A 16384, B 32768, scales 528, barriers) + 32800" in decision.because
    assert "= 231584 of 232448 bytes; one more would need 281280" in decision.because


def test_explains_the_byte_budget_beside_a_whole_tile():
    _, _, (_, decision, _) = run(fp8_text("?", 7168, 2048, tile("128x256x128", ", slices = 1")), NAME)
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
    _, schedule, (_, decision, _) = run(fp8_text(128, 256, 256, tile("64x64x128")), NAME)
    assert schedule.num_stages == 3  # 2 k-blocks of one tile a CTA, and one
    assert "a CTA loads 2 stages in all" in decision.because
    assert useful_stages(fp8_problem(None, 256, 256), schedule) == MAX_STAGES


def test_twelve_are_the_most():
    _, _, (_, decision, _) = run(fp8_text("?", 7168, 2048, tile("64x64x128")), NAME)
    assert decision.choice == "12"
    assert "12 are the most" in decision.because


def test_k_of_zero_has_two_stages():
    assert run(fp8_text(64, 64, 0, tile("64x64x128")), NAME)[1].num_stages == MIN_STAGES


def test_what_is_fixed_stays():
    text = fp8_text("?", 7168, 2048, tile("128x128x128", ", scale_batch = 1, scale_slots = 1, slices = 1, stages = 4"))
    for pipeline in (NAME, NAME + "{scale-batch=16 scale-slots=0 slices=2 stages=3}"):
        _, schedule, decisions = run(text, pipeline)
        assert (schedule.scale_batch, schedule.scale_slots) == (1, 1)
        assert (schedule.store_slices, schedule.num_stages) == (1, 4)
        assert decisions == []


@pytest.mark.parametrize(
    ("fixed", "options", "chosen", "subjects"),
    [
        (", stages = 4", "", (16, 2, 4), ["scale_batch", "slices"]),
        ("", "{stages=2}", (1, 2, 2), ["scale_batch", "slices"]),
        (", slices = 1", "", (16, 1, 8), ["scale_batch", "stages"]),
        ("", "{slices=1}", (16, 1, 8), ["scale_batch", "stages"]),
        (", stages = 4", "{slices=1}", (16, 1, 4), ["scale_batch"]),
        (", slices = 2", "{stages=2}", (1, 2, 2), ["scale_batch"]),
        (", scale_batch = 16", "", (16, 2, 8), ["slices", "stages"]),
        ("", "{scale-batch=16}", (16, 2, 8), ["slices", "stages"]),
        (", scale_batch = 1, slices = 2", "{stages=3}", (1, 2, 3), []),
        (", scale_batch = 1, scale_slots = 0, slices = 2", "{stages=3}", (1, 2, 3), []),
        ("", "{scale-slots=1 stages=3}", (1, 2, 3), ["scale_batch", "slices"]),
    ],
)
def test_what_is_open_is_chosen(fixed: str, options: str, chosen: tuple[int, int, int], subjects: list[str]):
    _, schedule, decisions = run(fp8_text("?", 7168, 2048, tile("128x64x128", fixed)), NAME + options)
    assert (schedule.scale_batch, schedule.store_slices, schedule.num_stages) == chosen
    slots = [] if "slots" in fixed + options else ["scale_slots"]
    assert [d.subject for d in decisions] == [*subjects, *slots]


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
    ("text", "slices", "batch"),
    [
        (fp8_text("?", 7168, 2048), 2, 1),
        (plain_text("?", 4096, 7168), 2, 1),
        (plain_text("?", 4096, 512), 1, 1),
        (fp8_text(8, 8, 16, d="f32"), 1, 1),
    ],
    ids=["two waves", "in place", "in place, few k-blocks", "scales at once"],
)
def test_the_passes_complete_a_schedule_and_then_rest(text: str, slices: int, batch: int):
    module, schedule, decisions = run(text, ALL)
    assert schedule.complete
    pipeline = [*(["slices"] if slices > 1 else []), "stages"]
    if "xf8" in text:
        at_once = schedule.scale_slots == SCALES_OF_TILE
        pipeline = ["scale_slots", *pipeline] if at_once else ["scale_batch", *pipeline, "scale_slots"]
    subjects = [d.subject for d in decisions]
    assert subjects == ["family", "block", "warpgroups", "cluster", "raster", "evict", "balanced", *pipeline]
    assert (schedule.scale_batch, schedule.store_slices) == (batch, slices)
    again, _, nothing = run(str(module), ALL)
    assert str(again) == str(module)
    assert nothing == []


def chunked(chunk: int, stages: int) -> str:
    rest = f"turns = false, chunk = {chunk}, cluster = 1x1, stages = {stages}"
    return f"schedule <block = 64x64x128, warpgroups = 2 along n, {rest}>"


def slots_of(k: int, schedule: str, options: str = "") -> tuple[int | None, list[Decision]]:
    """How many slots are filled with scales at a time, and what is said of it."""
    _, found, decisions = run(fp8_text("?", 7168, k, schedule), NAME + options)
    return found.scale_slots, [d for d in decisions if d.subject == "scale_slots"]


@pytest.mark.parametrize(
    ("k", "schedule", "slots", "because"),
    [
        (15 * 128, chunked(1, 8), 0, "15 k-blocks: with fewer than 16, loads that are ahead delay stores"),
        (15 * 128, chunked(4, 8), 0, "15 k-blocks: with fewer than 16, loads that are ahead delay stores"),
        (15 * 128 + 16, chunked(1, 8), 1, "16 k-blocks, whose operands then wait for no fence"),
        (16 * 128, tile("128x256x128", ", chunk = 1"), 1, "16 k-blocks, whose operands then wait for no fence"),
        (16 * 128, tile("192x96x128", ", chunk = 1"), 0, "3 waves a warpgroup: k-blocks so long that the producer is"),
        (16 * 128, chunked(2, 5), 1, "short k-blocks: 1 of 5 slots at a time have one fence"),
        (16 * 128, chunked(2, 6), 2, "short k-blocks: 2 of 6 slots at a time have one fence"),
        (16 * 128, chunked(2, 7), 4, "short k-blocks: 4 of 7 slots at a time have one fence"),
        (16 * 128, chunked(4, 8), 4, "short k-blocks: 4 of 8 slots at a time have one fence"),
        (17 * 128, chunked(2, 8), 1, "short k-blocks: 1 of 8 slots at a time have one fence"),
        (18 * 128, chunked(2, 8), 2, "short k-blocks: 2 of 8 slots at a time have one fence"),
    ],
)
def test_scales_have_a_warp_of_their_own_from_16_k_blocks_on(k: int, schedule: str, slots: int, because: str):
    """Where k-blocks are not three waves long; for chunks it fills as many slots at a time as the rule lets it."""
    chosen, (decision,) = slots_of(k, schedule)
    assert chosen == slots
    assert (decision.by, decision.choice, decision.runner_up) == (NAME, str(slots), "0" if slots else "1")
    assert decision.because.startswith(because)


def at_once(m: int, block: str, rest: str = "") -> int | None:
    """`scale_slots` of a chunked schedule for M = `m`, N = 7168, K = 2048."""
    text = f"schedule <block = {block}x128, warpgroups = 2 along m, turns = false, chunk = 4, cluster = 1x1{rest}>"
    return run(fp8_text(m, 7168, 2048, text), NAME)[1].scale_slots


def test_scales_of_a_tile_come_at_once_where_no_tile_waits_for_them():
    """One tile a CTA, or two whose scales fit; not where they cost stages below six, or chunks are not asked for."""
    assert at_once(256, "128x112") == SCALES_OF_TILE
    assert at_once(4096, "128x112") == SCALES_OF_TILE, "those of two tiles fit"
    assert at_once(4096, "128x96", ", stages = 7") != SCALES_OF_TILE, "seven stages leave no room"
    assert at_once(256, "128x112", ", scale_batch = 4") != SCALES_OF_TILE, "who asks for batches gets slots"
    flat = chunked(4, 12).replace(", stages = 12", "")
    assert slots_of(2048, flat)[0] == 4, "many flat tiles"
    _, found, decisions = run(fp8_text(64, 7168, 2048, flat), NAME)
    assert (found.scale_slots, found.scale_batch) == (SCALES_OF_TILE, 1)
    (decision,) = [d for d in decisions if d.subject == "scale_slots"]
    assert (decision.choice, decision.runner_up) == ("tile", "1")
    assert decision.because == "short k-blocks; those of all 16 are there when the first is multiplied"


def test_several_slots_need_batches_of_scales():
    text = chunked(2, 8).replace("stages = 8", "scale_batch = 1, stages = 8")
    assert slots_of(16 * 128, text)[0] == 1


@pytest.mark.parametrize("slots", [0, 1, 2])
def test_a_warp_for_scales_may_be_asked_for(slots: int):
    assert slots_of(16 * 128, chunked(2, 8), f"{{scale-slots={slots}}}") == (slots, [])
    assert slots_of(128, chunked(2, 8), f"{{scale-slots={min(slots, 1)}}}") == (min(slots, 1), [])


def test_a_warp_for_several_slots_is_refused_where_there_are_few():
    with pytest.raises(ScheduleError, match="scale_slots = 4 of 6 stages") as caught:
        slots_of(16 * 128, chunked(2, 6), "{scale-slots=4}")
    assert (caught.value.code, caught.value.fix) == ("GMR-S003", "use scale_slots = 1")


def test_without_scales_there_is_no_warp_for_them_and_nothing_to_say():
    text = "schedule <block = 64x64x64, warpgroups = 1 along m, turns = false, cluster = 1x1>"
    _, schedule, decisions = run(plain_text("?", 7168, 2048, text), NAME)
    assert schedule.scale_slots == 0
    assert "scale_slots" not in [d.subject for d in decisions]
