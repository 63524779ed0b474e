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
