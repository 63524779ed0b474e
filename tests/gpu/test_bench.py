"""The command on a Hopper GPU, on one small shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmir.bench.report import Report
from gemmir.cli.main import main

pytestmark = pytest.mark.gpu


def test_one_small_shape_is_checked_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    options = ["--launches", "5", "--repeat", "2", "--hot", "--json", str(out)]
    assert main(["bench", "--shape", "128x512x512", *options]) == 0
    report = Report.from_json(out.read_text())
    assert [row.case.dtype for row in report.rows] == ["f8E4M3FN", "bf16"]
    for row in report.rows:
        assert row.timing is not None
        assert [len(samples) for samples in row.timing.series] == [5, 5]
        assert all(1.0 < sample < 1000.0 for samples in row.timing.series for sample in samples)
        assert row.timing.hot_us is not None
        assert 1.0 < row.timing.hot_us < 1000.0
        assert row.peers["cublas"].timing is not None
    assert "128x512x512" in capsys.readouterr().out


def test_layers_in_a_graph_are_checked_and_timed_and_l2_is_flushed_by_reading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    options = [
        "--launches",
        "5",
        "--peers",
        "cublas",
        "--graph",
        "--layers",
        "8",
        "--flush",
        "read",
        "--json",
        str(out),
    ]
    assert main(["bench", "--shape", "8x512x1024", *options]) == 0
    report = Report.from_json(out.read_text())
    assert report.method["flush"] == "read"
    assert [row.case.dtype for row in report.rows] == ["f8E4M3FN", "bf16"]
    for row in report.rows:
        assert row.timing is not None
        assert all(1.0 < sample < 1000.0 for samples in row.timing.series for sample in samples)
        assert row.graph is not None
        assert (row.graph.layers, row.graph.weights, row.graph.fault) == (8, 8, "")
        times = [row.graph.plain, row.graph.overlap, row.graph.peers["cublas"].timing]
        for timing in times:
            assert timing is not None
            assert [len(samples) for samples in timing.series] == [20]
            assert all(0.5 < sample < 1000.0 for samples in timing.series for sample in samples)
    assert "cublas, graph with overlap: worst" in capsys.readouterr().out


def test_layers_of_masked_groups_are_checked_and_timed(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    case = ["--shape", "4x8x512x1024", "--grouping", "counts", "--dtype", "f8E4M3FN", "--schedule", "family = stream"]
    options = ["--launches", "5", "--graph", "--layers", "8", "--json", str(out)]
    assert main(["bench", *case, *options]) == 0
    (row,) = Report.from_json(out.read_text()).rows
    assert row.graph is not None
    assert (row.graph.layers, row.graph.weights, row.graph.fault) == (8, 8, "")
    for timing in (row.graph.plain, row.graph.overlap):
        assert timing is not None
        assert all(0.5 < sample < 1000.0 for samples in timing.series for sample in samples)
