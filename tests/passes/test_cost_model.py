"""The cost model, term by term; how well it meets measurements is in `tests/calibration`."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.bench.cases import DENSE, Case, Shape
from gemmir.passes.block_search import search
from gemmir.passes.cost_constants import DEFAULT, Constants
from gemmir.passes.cost_model import (
    best_orders,
    cluster_bound,
    dram_seconds,
    fitting_stages,
    operand_bytes,
    predict,
    tile_bound,
)
from gemmir.passes.l2_model import resident_clusters
from gemmir.problem import GemmProblem
from gemmir.schedule import Evict, RasterAxis, Schedule, Split
from gemmir.target import SM_90A
from gemmir.tile import tile_geometry
from tests.calibration.data import Measurement, load
from tests.schedules import fp8_problem, half_problem, legal_schedules, problems


def tile(
    block_m: int, block_n: int, split: str = "m", warpgroups: int = 2, cluster: tuple[int, int] = (1, 1)
) -> Schedule:
    """An FP8 tile; in turn where that is what the measured kernels do."""
    schedule = Schedule(
        block_m=block_m,
        block_n=block_n,
        block_k=128,
        math_warpgroups=warpgroups,
        split=Split(split),
        cluster_m=cluster[0],
        cluster_n=cluster[1],
    )
    return replace(schedule, turns=warpgroups == 2 and tile_geometry(schedule).waves == 1)


WIDE = tile(128, 256, "n")
TALL = tile(256, 128)
TURNS = tile(128, 192)
SQUARE = tile(128, 128)

FEW_TILES = (512, 4096, 7168)
"""At most one round: every load comes from DRAM first."""

H200 = load()[0].measurements
C = DEFAULT


def fp8_microseconds(shape: Shape, schedule: Schedule) -> float:
    return predict(fp8_problem(*shape), schedule).microseconds


def measured(m: Measurement) -> tuple[Shape, Schedule]:
    """The shape and the schedule of a measurement, but for its tile order."""
    schedule = m.parsed()[1]
    names = "family tail_n tail_after raster_axis raster_group evict balanced scale_batch scale_slots num_stages"
    open_fields = dict.fromkeys(names.split())
    return m.point.case.shape, replace(schedule, **open_fields)


def test_bf16_measured_order_is_reproduced():
    """One wave a warpgroup before two: wide tiles, then square ones, then tall ones. 256x128 is thought 3% too fast."""
    case, names = Case("bf16", 4096, 7168, 16384), ((128, 256), (192, 176), (256, 144))
    points = {(s.block_m, s.block_n): m for m in H200 if m.point.case == case for s in [m.parsed()[1]]}
    taken = [points[name] for name in names]
    assert [m.us for m in taken] == sorted(m.us for m in taken)
    times = [predict(*m.parsed()).microseconds for m in taken]
    assert times == sorted(times)


def test_a_cluster_costs_more_than_it_gains():
    """On average over FP8 tiles of two rounds or more, beside the same tile alone in its best order."""
    alone: dict[tuple[Shape, Schedule], Measurement] = {}
    paired: list[Measurement] = []
    for m in H200:
        (shape, schedule), fp8 = measured(m), m.point.case.dtype == "f8E4M3FN"
        if schedule.cluster_m == 2 and fp8 and shape != FEW_TILES:
            paired.append(m)
        elif (shape, schedule) not in alone or m.us < alone[shape, schedule].us:
            alone[shape, schedule] = m
    pairs = [(m, alone[shape, replace(s, cluster_m=1)]) for m in paired for shape, s in [measured(m)]]
    assert len(pairs) >= 12
    assert sum(p.us / q.us for p, q in pairs) / len(pairs) > 1.03
    ratios = [predict(*p.parsed()).seconds / predict(*q.parsed()).seconds for p, q in pairs]
    assert 1 < sum(ratios) / len(ratios) < 1.08


@pytest.mark.parametrize("schedule", [WIDE, TURNS, tile(128, 160), SQUARE], ids=lambda s: f"{s.block_m}x{s.block_n}")
def test_a_k_block_takes_what_it_was_measured_to(schedule: Schedule):
    """The slope from K = 2048 to K = 16384 of 4096 x 7168 holds neither stores nor launch."""
    wanted = replace(schedule, promote_chunk=1, store_slices=tile_geometry(schedule).waves)
    short, long = (next(m for m in H200 if measured(m) == ((4096, 7168, k), wanted)) for k in (2048, 16384))
    predicted = [predict(*m.parsed()).microseconds for m in (short, long)]
    assert (predicted[1] - predicted[0]) / (long.us - short.us) == pytest.approx(1, abs=0.03)


def test_two_warpgroups_of_one_wave_need_turns():
    problem = fp8_problem(8192, 8192, 8192)
    free = predict(problem, replace(TURNS, turns=False))
    assert free.math / predict(problem, TURNS).math == pytest.approx(C.convoy)


def test_one_warpgroup_exposes_its_promotion():
    cost = predict(fp8_problem(64, 7168, 2048), tile(64, 128, warpgroups=1))
    assert cost.tensor == 256
    assert cost.math == 256 + 64 + C.wave_latency + C.scale_step


def test_a_chunk_exposes_its_last_promotion():
    """An estimate: 2 x tensor + promotion + latency a pair of k-blocks; falling into step costs that much less, too."""
    problem = fp8_problem(64, 7168, 2048)
    one, pair, four = (replace(tile(64, 128, warpgroups=1), promote_chunk=chunk) for chunk in (1, 2, 4))
    assert predict(problem, one) == predict(problem, replace(one, promote_chunk=None))
    assert predict(problem, pair).math == 256 + (64 + C.wave_latency + C.scale_step) / 2
    assert predict(problem, four).math == 256 + (64 + C.wave_latency + C.scale_step) / 4
    assert predict(fp8_problem(64, 7168, 128), four).math == predict(problem, one).math, "one k-block is no chunk"
    assert predict(problem, pair).tile == predict(problem, one).tile, "one tile a CTA: nothing goes on behind it"
    large = fp8_problem(4096, 4096, 128)
    free = replace(SQUARE, turns=False, promote_chunk=1)
    assert predict(large, free).rounds == 8
    more = predict(large, replace(free, promote_chunk=2)).tile - predict(large, free).tile
    assert more == pytest.approx(C.chunk_bubble * 7 / 8)
    chunked = predict(fp8_problem(512, 4096, 7168), replace(free, promote_chunk=2))
    assert chunked.math == 512 * (1 + (C.convoy - 1) / 2)


def test_a_chunk_holds_two_stages():
    problem = fp8_problem(512, 4096, 7168)
    slots = replace(SQUARE, scale_slots=1)
    one, pair = (replace(slots, num_stages=3, promote_chunk=chunk) for chunk in (1, 2))
    transfer = predict(problem, replace(slots, num_stages=8)).loads
    assert predict(problem, one).loads == pytest.approx((1000 + transfer) / 2)
    assert predict(problem, pair).loads == pytest.approx(1000 + transfer)


def loads(problem: GemmProblem, schedule: Schedule) -> float:
    return predict(problem, schedule).loads


@pytest.mark.parametrize("slots", [0, 1, 2, 4])
def test_scales_cost_a_fence_a_slot_or_one_for_several(slots: int):
    problem, schedule = fp8_problem(512, 4096, 7168), replace(SQUARE, num_stages=7)
    own = C.scales_by_warp - C.scales_at_once * (1 - 1 / max(1, slots))
    more = loads(problem, replace(schedule, scale_slots=slots)) - loads(problem, replace(schedule, scale_slots=1))
    assert more == pytest.approx((own if slots else C.scales_by_producer) - C.scales_by_warp)
    assert C.scales_by_producer > C.scales_by_warp > C.scales_at_once > 0


@pytest.mark.parametrize(
    ("k", "chunk", "slots"), [(1920, 1, 0), (2048, 1, 1), (2048, None, 1), (2048, 2, 4), (2304, 2, 2), (1920, 2, 0)]
)
def test_who_fills_in_scales_is_who_will(k: int, chunk: int | None, slots: int):
    """While that is open: the warp that `gemm-plan-pipeline` chooses."""
    schedule = replace(SQUARE, turns=False, promote_chunk=chunk, num_stages=7)
    problem = fp8_problem(512, 4096, k)
    assert predict(problem, schedule) == predict(problem, replace(schedule, scale_slots=slots))


def test_loads_that_l2_is_told_to_let_go_of_are_faster():
    """While that is open: those of one wave of tiles or two, of CTAs that stand alone."""
    schedule = replace(SQUARE, num_stages=6, scale_slots=0)
    for m, hinted in ((512, True), (1024, True), (2048, False)):
        problem = fp8_problem(m, 4096, 7168)
        without, with_ = (loads(problem, replace(schedule, evict=e)) for e in (Evict.NEITHER, Evict.WEIGHTS))
        assert with_ - C.scales_by_producer == pytest.approx(C.hinted_loads * (without - C.scales_by_producer))
        assert loads(problem, schedule) == (with_ if hinted else without)
    paired = replace(schedule, cluster_m=2)
    assert loads(fp8_problem(512, 4096, 7168), paired) == loads(
        fp8_problem(512, 4096, 7168), replace(paired, evict=Evict.NEITHER)
    )


def test_rows_past_the_last_one_are_filled():
    """By TMA, with zeros: those of one tile, of which a CTA with several has no more."""
    schedule = replace(SQUARE, num_stages=6, scale_slots=0, evict=Evict.NEITHER)
    for rows, rounds in ((256, 1), (4096, 8)):
        whole, less = (fp8_problem(m, 4096, 7168) for m in (rows, rows - 28))
        assert predict(whole, schedule).rounds == predict(less, schedule).rounds == rounds
        assert loads(less, schedule) - loads(whole, schedule) == pytest.approx(28 * C.fill_clocks / rounds)


def test_three_stages_slow_sums_in_place_a_little():
    problem, schedule = half_problem(4096, 4096, 4096), replace(tile(128, 256), block_k=64)
    three, four = (predict(problem, replace(schedule, num_stages=n, store_slices=1)) for n in (3, 4))
    assert three.math == pytest.approx((1 + C.in_place_shallow) * four.math)


def test_a_slice_of_sums_in_place_waits_for_the_one_before():
    problem, schedule = half_problem(4096, 4096, 4096), replace(tile(128, 256), block_k=64, num_stages=4)
    one, two, four = (predict(problem, replace(schedule, store_slices=n)).tile for n in (1, 2, 4))
    bubble = C.in_place_bubble * 3 / 4  # behind the last of four tiles there is none to go on with
    leaving = (one - bubble) / C.in_place_store_exposed
    assert two - one == pytest.approx(C.in_place_slice_exposed * leaving)
    assert four - one == pytest.approx(3 * C.in_place_slice_exposed * leaving)


def test_the_clock_falls_where_l2_is_busy():
    """Not under tiles that load little for what they multiply, nor under those whose sums are promoted."""
    sums_in_place, promoted = half_problem(8192, 8192, 8192), fp8_problem(8192, 8192, 8192)
    without, half = replace(C, l2_drop_hz=0.0), replace(C, l2_drop_hz=C.l2_drop_hz / 2)

    def lower(problem: GemmProblem, schedule: Schedule, constants: Constants = C) -> float:
        clocks = (predict(problem, schedule, SM_90A, c).clock_hz for c in (without, constants))
        return next(clocks) - next(clocks)

    large, square, small = (replace(tile(m, n), block_k=64) for m, n in ((128, 256), (128, 128), (64, 128)))
    assert 0 == lower(sums_in_place, large) < lower(sums_in_place, square) < lower(sums_in_place, small)
    assert lower(sums_in_place, square, half) == pytest.approx(lower(sums_in_place, square) / 2)
    assert lower(promoted, SQUARE) == lower(promoted, WIDE) == 0


@pytest.mark.parametrize("shape", [shape for shape in DENSE if shape[0] > 512], ids=str)
def test_chunks_are_not_chosen_where_a_cta_has_many_tiles(shape: Shape):
    assert search(fp8_problem(*shape), Schedule()).best.schedule.promote_chunk == 1


def test_accumulating_in_place_exposes_nothing():
    cost = predict(half_problem(4096, 4096, 4096), replace(tile(128, 128, warpgroups=1), block_k=64))
    assert cost.tensor == 512
    assert 512 < cost.math < 1.06 * 512, "reads from shared memory, and the second wave, get in the way a little"


def test_rounds_and_residents():
    pairs = replace(WIDE, cluster_m=2)
    cost = predict(fp8_problem(4096, 7168, 2048), pairs)
    assert (resident_clusters(WIDE), resident_clusters(pairs)) == (132, 66)
    assert cost.tiles == 32 * 28
    assert cost.rounds == 7  # 448 clusters on 66
    assert cost.tensor == 1024


def test_few_stages_slow_the_loads():
    problem = fp8_problem(4096, 4096, 7168)
    many, two = (predict(problem, replace(TURNS, num_stages=n)) for n in (4, 2))
    assert fitting_stages(problem, TURNS) == 4
    assert predict(problem, TURNS) == many
    assert two.loads == pytest.approx(1000 + many.loads)
    assert two.seconds > 1.5 * many.seconds


def test_limiters_are_named():
    assert predict(fp8_problem(64, 24576, 16384), tile(64, 128, "n")).limiter == "DRAM"
    assert predict(fp8_problem(8192, 8192, 8192), SQUARE).limiter == "L2"
    assert predict(fp8_problem(8192, 8192, 8192), WIDE).limiter == "the warpgroups' chain"
    in_place = replace(tile(128, 256), block_k=64)
    assert predict(half_problem(8192, 8192, 8192), in_place).limiter == "tensor cores"
    assert predict(fp8_problem(4096, 2112, 7168), tile(128, 176, cluster=(2, 1))).limiter == "the warpgroups' chain"


def test_dram_floor_counts_each_operand_once():
    problem = fp8_problem(64, 7168, 16384)
    assert operand_bytes(problem) == 64 * 16384 + 7168 * 16384
    assert dram_seconds(problem) == operand_bytes(problem) / (C.dram_efficiency * SM_90A.dram_bytes_per_second)
    assert predict(problem, tile(64, 64, "n")).seconds > dram_seconds(problem) > 26e-6


@pytest.mark.parametrize("problem", [fp8_problem(128, 256, 0), fp8_problem(0, 256, 128)], ids=["K = 0", "M = 0"])
def test_empty_products_cost_a_launch(problem: GemmProblem):
    assert C.launch_seconds <= predict(problem, SQUARE).seconds < C.launch_seconds + 2e-6


@given(st.data())
def test_bounds_are_below_every_prediction(data: st.DataObject):
    problem = data.draw(problems())
    schedule = data.draw(legal_schedules(problem))
    block_m, block_n = schedule.block_m, schedule.block_n
    assert block_m is not None
    assert block_n is not None
    schedule = replace(schedule, num_stages=None, tail_n=0, tail_after=0)
    cost = predict(problem, schedule)
    slack = 1 + 1e-9
    assert tile_bound(problem, block_m, block_n, dram_seconds(problem)) <= cost.seconds * slack
    alone = predict(problem, replace(schedule, cluster_m=None, cluster_n=None))
    assert cluster_bound(problem, alone) <= cost.seconds * slack
    assert 0 <= cost.utilisation <= 1
    assert 1.2e9 < cost.clock_hz <= C.boost_clock_hz
    assert cost.k_block >= max(cost.math, cost.loads)
    assert cost.seconds >= max(cost.dram_seconds, cost.cycles / cost.clock_hz)


def test_the_bound_of_a_tile_in_place_counts_loads_as_the_prediction_does():
    """Drawn by chance before: in clocks, L2 delivers 16-bit operands faster."""
    problem = replace(half_problem(None, 24, 2824, expected_m=500), a_major="m")
    tiles = Schedule(block_m=192, block_n=16, block_k=64, math_warpgroups=1, split=Split.ALONG_M, store_slices=1)
    schedule = replace(tiles, turns=False, promote_chunk=1, raster_axis=RasterAxis.ALONG_N, raster_group=1)
    assert tile_bound(problem, 192, 16, dram_seconds(problem)) <= predict(problem, schedule).seconds


def test_results_that_stay_in_l2_are_not_written():
    """Of 4096 x 8192 x 2 bytes, all but what L2 holds at the end."""
    small, large = fp8_problem(128, 4096, 512), fp8_problem(4096, 8192, 512)
    rate = C.dram_efficiency * SM_90A.dram_bytes_per_second
    assert dram_seconds(small) * rate == pytest.approx(operand_bytes(small))
    assert dram_seconds(large) * rate == pytest.approx(operand_bytes(large) + 4096 * 8192 * 2 - C.l2_dirty_bytes)


def test_an_order_costs_dram_traffic_and_loads():
    """Measured on an H100: rows one by one take half as long again as columns one by one."""
    problem = fp8_problem(4096, 24576, 1536)
    rows, columns = (replace(TURNS, raster_axis=axis, raster_group=1) for axis in RasterAxis)
    slow, fast = predict(problem, rows), predict(problem, columns)
    assert slow.loads > fast.loads
    assert slow.dram_seconds > 2 * fast.dram_seconds
    assert slow.seconds > 1.15 * fast.seconds
    assert predict(problem, TURNS).seconds == pytest.approx(fast.seconds, rel=0.05), "open: a good one"


def test_orders_are_ranked_by_time():
    ordered = best_orders(fp8_problem(4096, 24576, 1536), replace(TURNS, raster_axis=RasterAxis.ALONG_M))
    assert {o.order.axis for o in ordered} == {RasterAxis.ALONG_M}
    times = [round(o.cost.seconds * 1e9) for o in ordered]
    assert times == sorted(times)
    fixed = replace(TURNS, raster_axis=ordered[-1].order.axis, raster_group=ordered[-1].order.group)
    assert predict(fp8_problem(4096, 24576, 1536), fixed) == ordered[-1].cost


def test_the_clock_falls_with_work_and_with_time():
    short, long = (predict(fp8_problem(4096, 7168, k), WIDE) for k in (2048, 16384))
    idle = predict(fp8_problem(64, 7168, 2048), tile(64, 64, "n"))
    assert long.clock_hz < short.clock_hz < idle.clock_hz < C.boost_clock_hz
    assert long.clock_hz == pytest.approx(1.6e9, rel=0.05)


def test_constants_can_be_varied():
    problem, slow = fp8_problem(4096, 7168, 2048), replace(C, store_exposed=2.0, sliced_store_exposed=1.0)
    whole = replace(WIDE, store_slices=1)
    assert predict(problem, WIDE).tile < predict(problem, WIDE, SM_90A, slow).tile
    assert predict(problem, whole).tile < predict(problem, whole, SM_90A, slow).tile


@pytest.mark.parametrize("m", [1, 64, 4096])
@pytest.mark.parametrize("dtype", [fp8_problem, half_problem])
def test_products_of_days_have_a_real_cost(dtype: Callable[[int, int, int], GemmProblem], m: int):
    """Sizes that the verifier lets through: the clock that a kernel settles at does not fall below zero."""
    for n, k in ((1 << 30, 1 << 30), ((1 << 31) - 8, (1 << 31) - 128), (1 << 31, 1 << 25), (128, (1 << 31) - 128)):
        best = search(dtype(m, n, k), Schedule()).best.cost
        assert 0 < best.seconds < float("inf")
        assert best.clock_hz >= C.boost_clock_hz / 2
