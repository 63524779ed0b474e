"""The committed measurements: their format, and that each is of a legal kernel that was measured once."""

import json
from pathlib import Path

import pytest

from gemmir.bench.cases import DTYPES, Case
from gemmir.legality import is_legal
from gemmir.target import PEAK_DRAM_BYTES_PER_SECOND
from tests.calibration.data import (
    FILES,
    HERE,
    STREAM_FILES,
    TILES_ROWS_FILES,
    Measurement,
    Point,
    Series,
    load,
    read,
    write,
)

SERIES = Series(
    device="NVIDIA H200",
    method="by hand",
    versions={"nvrtc": "13.0"},
    peers={Case("bf16", 64, 128, 256): 3.25},
    measurements=(Measurement(Point(Case("bf16", 64, 128, 256), "block = 64x64x64"), 4.125),),
)


def test_what_is_written_is_read_back_and_a_point_is_a_line():
    text = write(SERIES)
    again = read(text)
    assert again.peers == SERIES.peers
    assert again.measurements[0].us == 4.12, "two places"
    assert (again.device, again.method, again.versions) == ("NVIDIA H200", "by hand", {"nvrtc": "13.0"})
    assert write(again) == text
    assert sum("block" in line for line in text.splitlines()) == 1
    assert json.loads(write(Series("GPU", "none", {}, {}, ())))["points"] == []


def test_every_data_file_is_used():
    assert sorted(HERE.glob("*.json")) == sorted((*FILES, *STREAM_FILES))
    assert set(TILES_ROWS_FILES) < set(FILES)


@pytest.mark.parametrize("path", [*FILES, *STREAM_FILES], ids=lambda path: path.stem)
def test_files_hold_legal_complete_and_distinct_points(path: Path):
    series = read(path.read_text())
    assert write(series) == path.read_text()
    assert series.device in PEAK_DRAM_BYTES_PER_SECOND
    for measurement in series.measurements:
        problem, schedule = measurement.parsed()
        assert schedule.complete, measurement
        assert is_legal(problem, schedule), measurement
        assert measurement.point.case.dtype in DTYPES
        assert problem.rows == measurement.point.case.m
        assert 1 < measurement.us < 1e5
    assert len({m.point for m in series.measurements}) == len(series.measurements)


def test_the_model_is_calibrated_on_at_least_two_hundred_points():
    assert sum(len(series.measurements) for series in load()) >= 200
