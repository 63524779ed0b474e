"""The examples of groups compute on a GPU what they say; tests/test_examples.py runs all of them without one."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example as a program; what it prints."""

    def run(name: str, *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *argv])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_mixture_of_experts_layer(run: Run) -> None:
    """Forward in FP8, gradients in BF16: the rows rounded to 8 bits, the weights' in f32."""
    out = run("moe_layer.py")
    moved = re.search(r"y is \(4096, 2048\) from \d+ rows of 64 experts; FP8 moved it by ([0-9.]+)%", out)
    assert moved is not None
    assert 1 < float(moved.group(1)) < 10
    rows = re.search(r"gradients of the hidden rows are \(\d+, 1024\), off by ([0-9.]+)%", out)
    assert rows is not None
    assert 0 < float(rows.group(1)) < 0.5
    weights = re.findall(r"gradients of 64 (\w+) projections are \(64, 2048, (\d+)\), off by at most (\S+)", out)
    assert [one[:2] for one in weights] == [("down", "1024"), ("up", "2048")]
    assert all(float(worst) < 1e-2 for _, _, worst in weights)


def test_steps_of_decoding(run: Run) -> None:
    out = run("masked_decode.py", "--steps", "5")
    assert "each step is a replay of one CUDA graph\n" in out
    found = re.findall(r"step \d: counts \[.*\], off by at most ([0-9.]+), other rows are as they were\n", out)
    assert len(found) == 5
    assert all(float(worst) < 0.02 for worst in found)
