"""The cost model against what was measured on an H200 with the kernel that the `tiles` family emits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.passes.cost_model import (
    cluster_bound,
    dram_seconds,
    fitting_stages,
    predict,
    resident_clusters,
    tile_bound,
    unique_bytes,
)
from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule, Split
from gemmir.tile import tile_geometry
from tests.schedules import fp8_problem, half_problem, legal_schedules, problems


def tile_name(schedule: Schedule) -> str:
    """E.g. `128x192, 2 warpgroups along m in turn, cluster 2x1`."""
    groups = schedule.math_warpgroups
    along = "" if groups == 1 else " along n" if schedule.split is Split.ALONG_N else " along m"
    turns = " in turn" if schedule.turns else ""
    count = f"{groups} warpgroup" + ("" if groups == 1 else "s")
    cluster = f"{schedule.cluster_m or 1}x{schedule.cluster_n or 1}"
    return f"{schedule.block_m}x{schedule.block_n}, {count}{along}{turns}, cluster {cluster}"


def tile(
    block_m: int, block_n: int, split: str = "m", warpgroups: int = 2, cluster: tuple[int, int] = (1, 1)
) -> Schedule:
    """An FP8 tile; in turn where that is what the measured kernel does."""
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


WIDE = tile(128, 256, "n", cluster=(2, 1))
TALL = tile(256, 128)
TURNS = tile(128, 192)
TURNS_CLUSTER = tile(128, 192, cluster=(2, 1))
SQUARE = tile(128, 128)
ODD = tile(256, 136)
THREE = tile(192, 128, warpgroups=3)

MEASURED = [
    ((64, 32768, 512), SQUARE, 9.50),
    ((128, 32768, 512), SQUARE, 9.82),
    ((128, 24576, 1536), TURNS, 17.28),
    ((1024, 7168, 16384), WIDE, 187.04),
    ((2048, 2112, 7168), ODD, 56.22),
    ((2048, 2112, 7168), TURNS, 65.0),
    ((2048, 2112, 7168), tile(192, 176, "n"), 58.0),
    ((4096, 2112, 7168), TURNS_CLUSTER, 97.31),
    ((4096, 2112, 7168), tile(128, 176), 102.0),
    ((4096, 2112, 7168), ODD, 107.0),
    ((4096, 4096, 7168), WIDE, 170.85),
    ((4096, 7168, 2048), WIDE, 92.64),
    ((4096, 7168, 16384), WIDE, 656.57),
    ((4096, 24576, 1536), WIDE, 231.58),
    ((4096, 32768, 512), TURNS_CLUSTER, 129.12),
    ((8192, 8192, 8192), WIDE, 766.27),
    ((8192, 8192, 8192), TURNS_CLUSTER, 770.0),
    ((8192, 8192, 8192), THREE, 808.0),
    ((16384, 8192, 8192), WIDE, 1544.02),
]
"""M x N x K, tile, microseconds: GPU time, median of 20, cold L2. Two tiles have widths that only a hand writes."""

OVER, UNDER = 1.07, 0.89
"""Furthest that a prediction may be above and below the measurement."""


def microseconds(shape: tuple[int, int, int], schedule: Schedule) -> float:
    return predict(fp8_problem(*shape), schedule).microseconds


@pytest.mark.parametrize(("shape", "schedule", "measured"), MEASURED, ids=lambda v: str(v) if type(v) is tuple else "")
def test_prediction_is_near_the_measurement(shape: tuple[int, int, int], schedule: Schedule, measured: float):
    ratio = microseconds(shape, schedule) / measured
    assert UNDER <= ratio <= OVER, f"{tile_name(schedule)}: {ratio:.3f}"


def test_predictions_are_off_by_three_percent_on_average():
    ratios = [microseconds(shape, schedule) / measured for shape, schedule, measured in MEASURED]
    assert sum(abs(r - 1) for r in ratios) / len(ratios) < 0.04
    assert 0.97 < sum(ratios) / len(ratios) < 1.0


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((2048, 2112, 7168), [ODD, TURNS]),
        ((2048, 2112, 7168), [tile(192, 176, "n"), TURNS]),
        ((4096, 2112, 7168), [TURNS_CLUSTER, tile(128, 176), ODD]),
        ((4096, 4096, 7168), [WIDE, TURNS_CLUSTER, SQUARE]),
        ((4096, 7168, 16384), [WIDE, TURNS_CLUSTER]),
        ((8192, 8192, 8192), [WIDE, TURNS_CLUSTER, THREE]),
        ((8192, 8192, 8192), [WIDE, replace(WIDE, cluster_m=1)]),
    ],
)
def test_measured_order_is_reproduced(shape: tuple[int, int, int], order: list[Schedule]):
    times = [microseconds(shape, schedule) for schedule in order]
    assert times == sorted(times), [f"{tile_name(s)}: {t:.1f}" for s, t in zip(order, times, strict=True)]
    assert len(set(times)) == len(times)


@pytest.mark.parametrize(
    ("schedule", "without_loads", "everything"),
    [
        (TURNS, (768, 768), (804, 880)),
        (replace(TURNS, turns=False), (940, 980), (980, 1040)),
        (TALL, (1024, 1144), (1043, 1120)),
    ],
    ids=["in turn", "free running", "two waves"],
)
def test_decomposition_of_a_k_block(
    schedule: Schedule, without_loads: tuple[float, float], everything: tuple[float, float]
):
    """Cycles per k-block of the slope between K = 8192 and 32768; 804-833, 1020 and 1043-1105 were measured."""
    cost = predict(fp8_problem(16896, 8192, 8192), schedule)
    assert without_loads[0] <= cost.math <= without_loads[1]
    assert everything[0] <= cost.k_block <= everything[1]


def test_two_warpgroups_of_one_wave_need_turns():
    problem = fp8_problem(8192, 8192, 8192)
    free = predict(problem, replace(TURNS, turns=False))
    assert free.math / predict(problem, TURNS).math == pytest.approx(1.25)


def test_one_warpgroup_exposes_its_promotion():
    cost = predict(fp8_problem(64, 7168, 2048), tile(64, 128, warpgroups=1))
    assert cost.tensor == 256
    assert cost.math == 256 + 64 + 190 + 24


def test_accumulating_in_place_exposes_nothing():
    cost = predict(half_problem(4096, 4096, 4096), replace(tile(128, 128, warpgroups=1), block_k=64))
    assert cost.math == cost.tensor == 512


def test_rounds_and_residents():
    cost = predict(fp8_problem(4096, 7168, 2048), WIDE)
    assert resident_clusters(WIDE) == 66
    assert cost.tiles == 32 * 28
    assert cost.rounds == 7  # 448 clusters on 66
    assert cost.tensor == 1024


def test_few_stages_slow_the_loads():
    problem = fp8_problem(4096, 4096, 7168)
    many, two = (predict(problem, replace(TURNS, num_stages=n)) for n in (4, 2))
    assert fitting_stages(problem, TURNS) == 4
    assert predict(problem, TURNS) == many
    assert two.loads == pytest.approx(700 + many.loads)
    assert two.seconds > 1.5 * many.seconds


def test_limiters_are_named():
    assert predict(fp8_problem(16, 7168, 16384), tile(64, 64, "n")).limiter == "DRAM"
    assert predict(fp8_problem(8192, 8192, 8192), SQUARE).limiter == "L2"
    assert predict(fp8_problem(8192, 8192, 8192), WIDE).limiter == "tensor cores"
    assert predict(fp8_problem(4096, 2112, 7168), tile(128, 176, cluster=(2, 1))).limiter == "the warpgroups' chain"


def test_dram_floor_counts_each_operand_once():
    problem = fp8_problem(64, 7168, 16384)
    assert unique_bytes(problem) == 64 * 16384 + 7168 * 16384 + 64 * 7168 * 2
    assert predict(problem, tile(64, 64, "n")).seconds > dram_seconds(problem) > 30e-6


@pytest.mark.parametrize("problem", [fp8_problem(128, 256, 0), fp8_problem(0, 256, 128)], ids=["K = 0", "M = 0"])
def test_empty_products_cost_a_launch(problem: GemmProblem):
    assert 3e-6 <= predict(problem, SQUARE).seconds < 5e-6


@given(st.data())
def test_bounds_are_below_every_prediction(data: st.DataObject):
    problem = data.draw(problems())
    schedule = data.draw(legal_schedules(problem))
    assert schedule.block_m is not None
    assert schedule.block_n is not None
    schedule = replace(schedule, num_stages=None)
    cost = predict(problem, schedule)
    slack = 1 + 1e-9
    assert tile_bound(problem, schedule.block_m, schedule.block_n, dram_seconds(problem)) <= cost.seconds * slack
    alone = predict(problem, replace(schedule, cluster_m=None, cluster_n=None))
    assert cluster_bound(problem, alone) <= cost.seconds * slack
    assert 0 <= cost.utilisation <= 1
    assert 1.48e9 <= cost.clock_hz <= 1.98e9
    assert cost.k_block >= max(cost.math, cost.loads)
    assert cost.seconds >= max(cost.dram_seconds, cost.cycles / cost.clock_hz)
