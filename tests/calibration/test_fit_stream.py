"""The fit of the model for few rows, on made-up data; how well what is committed meets what was measured."""

from dataclasses import fields, replace

import numpy as np
import pytest

from gemmir.bench.cases import Case
from gemmir.compiler import lower
from gemmir.decode import decode_split_k
from gemmir.dialects.gemm import schedule_of, the_matmul
from gemmir.passes.cost_model import predict_stream
from gemmir.passes.stream_model import STREAM, StreamConstants
from gemmir.schedule import Family
from tests.calibration.data import SCALES_FILE, STREAM_FILES, TILES_ROWS_FILES, Measurement, Series, load
from tests.calibration.fit import target_of
from tests.calibration.fit_stream import FAR, FITTED, errors, fitted, fitted_to, main, regrets, weights_of
from tests.calibration.stream_points import stream_points

DATA = load(STREAM_FILES)
H100, H100_ROWS, H200, H200_ROWS = DATA
TILES_ROWS = load(TILES_ROWS_FILES)
(SCALES,) = load((SCALES_FILE,))
UP_TO_FAMILY = "gemm-canonicalize,gemm-select-family"


def synthetic(constants: StreamConstants) -> list[Series]:
    """The points of the data with the times that the model says."""
    return [
        replace(
            series,
            measurements=tuple(
                Measurement(m.point, predict_stream(*m.parsed(), target_of(series.device), constants).microseconds)
                for m in series.measurements
            ),
        )
        for series in DATA
    ]


def test_constants_are_recovered_from_what_they_predict():
    names = ("in_place_chain", "promoted_chain", "gather_clocks", "dram_efficiency", "launch_seconds")
    true = replace(STREAM, in_place_chain=240.0, gather_clocks=1500.0, dram_efficiency=0.8, launch_seconds=4e-6)
    found = fitted(synthetic(true), {name: FITTED[name] for name in names})
    for name in names:
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=0.08), name


def test_the_committed_constants_are_what_the_fit_finds():
    found = fitted_to(STREAM_FILES)
    for field in fields(StreamConstants):
        assert getattr(STREAM, field.name) == pytest.approx(getattr(found, field.name), rel=0.01), field.name


@pytest.mark.parametrize("series", [H100, H200], ids=lambda series: series.device)
def test_every_point_was_measured(series: Series):
    """But for those whose sums do not fit the registers."""
    measured = {(m.point.case, m.point.schedule.split(", turns")[0]) for m in series.measurements}
    wanted = {(point.case, point.schedule) for point in stream_points()}
    assert measured <= wanted
    missing = {schedule.split(", ")[1] for _, schedule in wanted - measured}
    assert missing == {"block = 128x128x128"}


def test_errors():
    off = np.expm1(errors(DATA))
    near = off[weights_of(DATA) > FAR]
    assert len(off) > 750
    assert len(near) > 400
    assert np.abs(off).mean() < 0.036
    assert np.abs(near).mean() < 0.034
    assert -0.24 < off.min()
    assert off.max() < 0.17
    assert np.expm1(errors([H100, H100_ROWS])).max() < 0.15


def test_of_what_was_measured_the_first_choice_is_near_the_fastest():
    """With the parts of K that there are by default: but for one, within 3.3%."""
    default = {
        (device, case): regret
        for (device, case), regret in regrets(DATA).items()
        if case.split_k == decode_split_k(case.n, case.k, case.dtype)
    }
    assert len(default) == 108
    assert np.mean(list(default.values())) < 0.004
    far = {key: regret for key, regret in default.items() if regret > 0.033}
    assert list(far) == [(H200.device, Case("bf16", 128, 7168, 16384))]
    assert max(far.values()) < 0.055


@pytest.mark.parametrize(
    ("series", "dtype", "worst", "mean"),
    [
        (H100, "f8E4M3FN", 1.0, 1.08),
        (H100, "bf16", 1.0, 1.17),
        (H200, "f8E4M3FN", 0.94, 1.08),
        (H200, "bf16", 1.0, 1.14),
    ],
    ids=["H100, FP8", "H100, BF16", "H200, FP8", "H200, BF16"],
)
def test_cases_against_cublas_with_the_tile_that_is_chosen(series: Series, dtype: str, worst: float, mean: float):
    """Per tensor, in the same run: the worst ratio, and the geometric mean of 17."""
    ratios, target = [], target_of(series.device)
    for case, peer in series.peers.items():
        parts = decode_split_k(case.n, case.k, case.dtype)
        ours = [m for m in series.measurements if m.point.case == replace(case, split_k=parts)]
        if case.dtype == dtype:
            ratios.append(peer / min(ours, key=lambda m: predict_stream(*m.parsed(), target).seconds).us)
    assert len(ratios) == 17
    assert min(ratios) > worst
    assert np.exp(np.mean(np.log(ratios))) > mean


def test_the_report_names_constants_errors_and_regrets(capsys: pytest.CaptureFixture[str]):
    assert main([str(path) for path in STREAM_FILES]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in FITTED)
    assert "mean error" in out
    assert "regret: mean" in out


def fastest(series: Series) -> dict[Case, float]:
    found: dict[Case, float] = {}
    for m in series.measurements:
        found[m.point.case] = min(m.us, found.get(m.point.case, m.us))
    return found


@pytest.mark.parametrize(
    ("stream", "tiles", "mean", "far"),
    [
        (H100_ROWS, TILES_ROWS[0], 0.006, {"bf16-256x2112x7168"}),
        (H200_ROWS, TILES_ROWS[1], 0.003, {"bf16-256x2112x7168"}),
    ],
    ids=["H100", "H200"],
)
def test_up_to_256_rows_the_family_that_is_chosen_is_near_the_faster_one(
    stream: Series, tiles: Series, mean: float, far: set[str]
):
    """
    Products of 136 to 256 rows, of both families the tile that was first then: but for some within 5%. FP8 tiles load
    scales in another way since, which was measured on the H200 for 24 of the 30.
    """
    first: dict[Case, float] = {}
    for m in stream.measurements:
        first.setdefault(m.point.case, m.us)
    assert len(first) == len(tiles.measurements) == 60
    since = {} if tiles.device != SCALES.device else fastest(SCALES)
    regret = {}
    for m in tiles.measurements:
        if m.point.case.dtype != "bf16" and m.point.case not in since:
            continue
        us = {Family.TILES: since.get(m.point.case, m.us), Family.STREAM: first[m.point.case]}
        chosen = lower(m.point.case.text, m=m.point.case.m, until="schedule", pipeline=UP_TO_FAMILY).module
        family = schedule_of(the_matmul(chosen)).family
        assert family is not None
        regret[m.point.case] = us[family] / min(us.values()) - 1
    assert len(regret) == 30 + (24 if since else 0)
    assert np.mean(list(regret.values())) < mean
    assert {str(case) for case, share in regret.items() if share > 0.05} == far
