"""The examples do what they say. None needs a GPU."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmir.cli.main import main as command

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
LAYERS = sorted(EXAMPLES.glob("*.mlir"))

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example as a program; what it prints."""

    def run(name: str, *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *argv])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_help_is_the_docstring(path: Path, run: Run, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        run(path.name, "--help")
    assert end.value.code == 0
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("path", LAYERS, ids=lambda path: path.name)
def test_a_layer_runs(path: Path, capsys: pytest.CaptureFixture[str]):
    assert command(["run", str(path), "--shape", "M=2", "--backend", "reference"]) == 0
    assert "result   2x7168 bf16" in capsys.readouterr().out


@pytest.mark.parametrize("path", LAYERS, ids=lambda path: path.name)
def test_every_element_of_a_narrow_layer_is_within_its_bound(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # All 7168 columns take minutes where K is 16384, in the simulator and in the bound.
    narrow = tmp_path / "narrow.mlir"
    narrow.write_text(path.read_text().replace("x7168x", "x128x").replace("x56x", "x1x"))
    backend = "simulator" if "f8E4M3FN" in path.read_text() else "reference"
    assert command(["run", str(narrow), "--shape", "M=65", "--check", "--backend", backend]) == 0
    out = capsys.readouterr().out
    assert f"({backend})" in out
    assert "result   65x128 bf16" in out
    assert "every element is within its bound" in out


@pytest.mark.parametrize("name", ["02_down_proj.py", "03_o_proj_bf16.py"])
def test_python_and_text_are_the_same_program(name: str, capsys: pytest.CaptureFixture[str]):
    layer = str(EXAMPLES / name.replace(".py", ".mlir").replace("02_", "01_"))
    texts: list[str] = []
    for file in (str(EXAMPLES / name), layer):
        assert command(["compile", file, "--emit", "cuda"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_02_compiles_and_runs_the_layer(run: Run):
    out = run("02_down_proj.py", "--m", "4")
    assert "hopper.kernel" in out
    found = re.search(r"y is \(4, 7168\); quantising x and w to FP8 moved it by at most ([0-9.]+)", out)
    assert found is not None
    assert 0 < float(found.group(1)) < 0.5


def test_03_explains_and_runs_the_layer(run: Run):
    out = run("03_o_proj_bf16.py", "--m", "2")
    assert "gemm-select-blocks: block = " in out
    found = re.search(r"y is \(2, 7168\) torch.bfloat16, standard deviation ([0-9.]+)", out)
    assert found is not None
    assert 0.95 < float(found.group(1)) < 1.05


def test_04_matches_torch_to_half_a_unit(run: Run):
    out = run("04_bias_silu.py")
    assert "epilogue (%bias by column)" in out
    found = re.search(r"float64: ([0-9.]+)%", out)
    assert found is not None
    assert float(found.group(1)) <= 0.4


def test_05_shows_each_schedule(run: Run):
    out = run("05_edit_schedule.py", "--stages", "2")
    chosen, edited, reopened, refused = out.split("== ")[1:]
    stages = [re.search(r"stages = (\d+)>", text) for text in (chosen, edited, reopened)]
    numbers = [found.group(1) for found in stages if found is not None]
    assert numbers[0] == numbers[2]
    assert numbers[1] == "2"
    assert "gemm-plan-pipeline: stages" in chosen
    assert "gemm-plan-pipeline: stages" not in edited
    assert "gemm-plan-pipeline: stages" in reopened
    assert "GMR-S001: 5 stages x" in refused


def test_a_mixture_of_experts_layer(run: Run):
    out = run("moe_layer.py", "--tokens", "5")
    found = re.search(r"y is \(5, 256\) from (\d+) rows of 4 experts; FP8 moved it by ([0-9.]+)%", out)
    assert found is not None
    assert int(found.group(1)) % 128 == 0
    assert 1 < float(found.group(2)) < 10
    rows = re.search(r"gradients of the hidden rows are \((\d+), 128\), off by ([0-9.]+)%", out)
    assert rows is not None
    assert rows.group(1) == found.group(1)
    assert 0 < float(rows.group(2)) < 0.5
    gradients = re.findall(r"gradients of 4 (\w+) projections are \(4, 256, (\d+)\), off by at most (\S+)", out)
    assert [one[:2] for one in gradients] == [("down", "128"), ("up", "256")]
    assert all(float(worst) < 1e-5 for _, _, worst in gradients)


def test_steps_of_decoding(run: Run):
    out = run("masked_decode.py", "--steps", "2")
    found = re.findall(r"step \d: counts \[.*\], off by at most ([0-9.]+), other rows are as they were\n", out)
    assert len(found) == 2
    assert all(float(worst) < 0.02 for worst in found)


def test_layers_of_decoding_that_overlap(run: Run):
    out = run("decode_layer.py", "--steps", "2", "--layers", "3", "--tokens", "5")
    found = re.findall(r"step \d: FP8 moved the result by ([0-9.]+)%, overlap changed no bit\n", out)
    assert len(found) == 2
    assert all(1 < float(moved) < 10 for moved in found)


def test_the_demo_runs_and_checks_the_kernel(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gemmir.cli.backends.has_hopper", lambda: False)
    narrow = tmp_path / "narrow.mlir"
    narrow.write_text((EXAMPLES / "01_down_proj.mlir").read_text().replace("x7168x", "x512x").replace("x56x", "x4x"))
    out = run("demo.py", "--m", "3", str(narrow))
    for line in (
        "program   narrow.mlir",
        "problem   ?x512x2048",
        "source    ",
        "block = ",
        "kernel    ready in",
        "proven    it neither hangs nor races",
        "run       no Hopper GPU: the kernel itself is simulated, bit for bit",
        "ran       on the CPU (simulator): ",
    ):
        assert f"\n{line}" in f"\n{out}"
    assert "check     every element is within its bound; worst element [" in out


def test_the_epilogue_of_04_is_within_its_bound(capsys: pytest.CaptureFixture[str]):
    assert (
        command(["run", str(EXAMPLES / "04_bias_silu.py"), "--shape", "M=9", "--backend", "reference", "--check"]) == 0
    )
    assert "every element is within its bound" in capsys.readouterr().out
