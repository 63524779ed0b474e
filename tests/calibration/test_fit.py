"""The fit, on made-up data; and how well the committed constants meet the committed measurements."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from gemmir.passes.cost_constants import DEFAULT, Constants
from gemmir.passes.cost_model import best_orders, predict
from gemmir.passes.l2_model import grid_of
from gemmir.schedule import RasterAxis
from tests.calibration.data import Measurement, Series, load
from tests.calibration.fit import (
    FITTED,
    REFERENCE,
    Choice,
    Fit,
    Group,
    choices,
    errors,
    fitted,
    main,
    report,
    target_of,
)

DATA = load()
H200, GAPS, H100, SLOTS, CHOICES, SCALES, DRAWN, *ROWS = DATA
OTHERS = {"NVIDIA H100 80GB HBM3": 1.037}
COMMITTED = Fit(DEFAULT, OTHERS)
"""The factor by which the H100's kernels take longer than its DRAM explains, to three digits."""


def synthetic(constants: Constants, factor: float, noise: float = 0.0) -> list[Series]:
    """The points of the data with the times that the model says."""
    source = np.random.default_rng(3)
    made: list[Series] = []
    for series in DATA:
        target, times = target_of(series.device), factor if series.device != REFERENCE else 1.0
        measurements = tuple(
            Measurement(
                m.point,
                predict(*m.parsed(), target, constants).microseconds * times * np.exp(noise * source.normal()),
            )
            for m in series.measurements
        )
        made.append(replace(series, measurements=measurements))
    return made


def test_constants_are_recovered_from_what_they_predict():
    names = ("wave_latency", "spread_b", "l2_reuse_bytes", "sliced_store_exposed", "launch_seconds")
    true = replace(DEFAULT, wave_latency=300.0, spread_b=0.3, l2_reuse_bytes=60e6, sliced_store_exposed=0.5)
    found = fitted(synthetic(true, 1.1), {name: FITTED[name] for name in names})
    for name in names:
        assert getattr(found.constants, name) == pytest.approx(getattr(true, name), rel=0.07), name
    assert found.machines["NVIDIA H100 80GB HBM3"] == pytest.approx(1.1, rel=0.01)


def test_noise_moves_constants_by_little():
    names = {"wave_latency": 200.0, "spread_b": 0.3}
    found = fitted(synthetic(DEFAULT, 1.0, noise=0.02), names)
    assert found.constants.wave_latency == pytest.approx(DEFAULT.wave_latency, rel=0.05)
    assert found.constants.spread_b == pytest.approx(DEFAULT.spread_b, rel=0.2)
    assert found == fitted(synthetic(DEFAULT, 1.0, noise=0.02), names), "the same every time"


def test_what_the_data_cannot_tell_stays_where_it_was():
    """No tile that was measured has parts of K, whose CTAs exchange sums."""
    found = fitted([GAPS], {"exchange_bytes_per_clock": 20.0, "wave_latency": 260.0})
    assert found.constants.exchange_bytes_per_clock == pytest.approx(20.0)
    assert found.constants.wave_latency != pytest.approx(260.0, rel=0.005)


def test_the_committed_constants_are_what_the_fit_finds():
    """
    Constants, data and script belong together; constants are written with three digits.

    From them on: a fit from the round numbers goes the same way in a minute and a half. Where the sum of squares is
    flat, the two end 2% apart.
    """
    found = fitted(DATA, near=COMMITTED, iterations=2)
    assert found.machines == pytest.approx(OTHERS, rel=0.005)
    for name in FITTED:
        assert getattr(DEFAULT, name) == pytest.approx(getattr(found.constants, name), rel=0.03), name


def test_regret_is_of_what_the_model_ranks_first():
    m = H200.measurements
    group = (REFERENCE, m[0].point.case, False)
    assert Choice(group, replace(m[0], us=11.0), replace(m[1], us=10.0)).regret == pytest.approx(0.1)
    reversed_times = replace(H200, measurements=tuple(replace(p, us=1e4 / p.us) for p in m))
    assert max(c.regret for c in choices([reversed_times], COMMITTED)) > 0.2


@pytest.mark.parametrize(
    ("series", "mean", "least", "most"),
    [
        (H200, 0.033, -0.14, 0.18),
        (GAPS, 0.031, -0.145, 0.11),
        (H100, 0.033, -0.16, 0.145),
        (SLOTS, 0.03, -0.175, 0.152),
        (CHOICES, 0.027, -0.125, 0.125),
        (SCALES, 0.044, -0.265, 0.245),
        (DRAWN, 0.028, -0.15, 0.115),
        (ROWS[0], 0.069, -0.31, 0.175),
        (ROWS[1], 0.063, -0.375, 0.15),
    ],
    ids=[
        *("schedules", "gaps", "orders", "scales and slices", "choices", "scales at once", "drawn"),
        *("few rows, H100", "few rows, H200"),
    ],
)
def test_errors(series: Series, mean: float, least: float, most: float):
    """
    Of schedules of all kinds, far from the best ones too: tiles of 128x112 for large products are 20% off, orders of
    tiles that take half as long again as the best 15%. FP8 256 x 7168 x 16384 in 128x128 with only four stages is 24%
    slower by the model than it is: never taken. Of 136 rows of 16 bits in tiles whose last rows are zeros, more than a
    third: those count a fifth in the fit (`FILLED`), and `stream` computes them.
    """
    off = np.expm1(errors([series], COMMITTED))
    assert np.mean(np.abs(off)) < mean
    assert off.min() > least
    assert off.max() < most


@cache
def committed_choices() -> dict[Group, Choice]:
    return {choice.group: choice for choice in choices(DATA, COMMITTED)}


FAR = {
    "H200 f8E4M3FN-136x7168x16384": 0.458,
    "H200 f8E4M3FN-136x2112x7168": 0.084,
    "H200 f8E4M3FN-136x4096x7168": 0.076,
    "H200 bf16-804x4352x4992": 0.078,
    "H200 f8E4M3FN-1500x6000x1024": 0.056,
}
"""What is further than 5% from the fastest. Those of 136 rows the other family computes, so that nobody gets them."""


def test_of_what_was_measured_the_first_choice_is_within_five_percent():
    """On one GPU the fastest kernel of a product, of four and more, is what the passes would take, or near it."""
    found = committed_choices()
    assert len(found) > 220
    far = {f"{c.group[0].split()[1]} {c.group[1]}": c.regret for c in found.values() if c.regret > 0.05}
    assert far == pytest.approx(FAR, abs=0.002)


def test_of_what_was_measured_the_first_choice_is_the_fastest_but_for_less_than_a_percent():
    assert np.mean([choice.regret for choice in committed_choices().values()]) < 0.0085


def test_what_was_drawn_and_the_dense_table_get_what_is_fastest():
    """30 products of each type that were drawn, and the 11 of the table, of four tiles each: within 5% but for one."""
    cases = {m.point.case for m in DRAWN.measurements}
    assert len(cases) == 82
    regrets = {c.group[1]: c.regret for c in committed_choices().values() if c.group[2] and c.group[1] in cases}
    assert len(regrets) == 82
    assert sorted(regrets.values())[-2] < 0.027
    assert np.mean(list(regrets.values())) < 0.005


def sweeps() -> dict[tuple[object, ...], list[Measurement]]:
    """The raster sweeps: measurements that differ in the tile order only."""
    found: dict[tuple[object, ...], list[Measurement]] = {}
    for m in H100.measurements:
        _, schedule = m.parsed()
        found.setdefault((m.point.case, replace(schedule, raster_axis=None, raster_group=None)), []).append(m)
    return found


def same_order(a: tuple[RasterAxis, int], m: Measurement) -> bool:
    """Whether tiles are visited in order `a`: all rows in one group are columns one by one."""
    problem, schedule = m.parsed()
    grid = grid_of(problem, schedule)

    def plain(axis: RasterAxis | None, group: int | None) -> tuple[RasterAxis | None, int | None]:
        if axis is RasterAxis.ALONG_M and group is not None and group >= grid.rows:
            return RasterAxis.ALONG_N, 1
        if axis is RasterAxis.ALONG_N and group is not None and group >= grid.columns:
            return RasterAxis.ALONG_M, 1
        return axis, group

    return plain(*a) == plain(schedule.raster_axis, schedule.raster_group)


@pytest.mark.parametrize("sweep", sweeps().values(), ids=lambda s: f"{s[0].point.case}-{s[0].parsed()[1].block_n}")
def test_the_order_that_is_chosen_is_within_two_percent_of_the_best(sweep: list[Measurement]):
    """But for 8192 cubed in tiles of 128x192: 2.5%."""
    problem, schedule = sweep[0].parsed()
    open_order = replace(schedule, raster_axis=None, raster_group=None)
    order = best_orders(problem, open_order)[0].order
    taken = [m.us for m in sweep if same_order((order.axis, order.group), m)]
    large = sweep[0].point.case.shape == (8192, 8192, 8192)
    assert min(taken) <= (1.025 if large else 1.02) * min(m.us for m in sweep)


def test_the_report_names_constants_errors_and_regrets(capsys: pytest.CaptureFixture[str]):
    assert main(["--keep"]) == 0
    text = capsys.readouterr().out
    for words in ("wave_latency", "NVIDIA H200, 418 points, new: mean error", "regret: mean", "fastest:"):
        assert words in text
    assert "times x 1.0" in report(DATA, COMMITTED, COMMITTED)
