"""`gemmir opt`: xdsl-opt that knows gemmir, with typed errors."""

import io
import re
import sys
from pathlib import Path

import pytest

from gemmir.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
LAYER = str(ROOT / "examples" / "01_down_proj.mlir")


def test_it_prints_what_it_parsed(capsys: pytest.CaptureFixture[str]):
    assert main(["opt", LAYER]) == 0
    assert "gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128)" in capsys.readouterr().out


def test_generic_form_round_trips(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["opt", LAYER]) == 0
    pretty = capsys.readouterr().out
    assert main(["opt", LAYER, "--print-op-generic"]) == 0
    generic = tmp_path / "generic.mlir"
    generic.write_text(capsys.readouterr().out)
    assert '"gemm.matmul"(' in generic.read_text()
    assert main(["opt", str(generic)]) == 0
    assert capsys.readouterr().out == pretty


def test_a_pass_of_ours_fills_the_schedule(capsys: pytest.CaptureFixture[str]):
    assert main(["opt", LAYER, "-p", "gemm-canonicalize,gemm-select-family"]) == 0
    assert "family = tiles" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["opt"], ["opt", "-"], ["opt", "-", "-p", "gemm-canonicalize"]])
def test_stdin_is_read(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(LAYER).read_bytes())))
    assert main(argv) == 0
    assert "gemm.matmul" in capsys.readouterr().out


def test_xdsl_passes_are_there_too(capsys: pytest.CaptureFixture[str]):
    assert main(["opt", LAYER, "-p", "cse"]) == 0
    assert "gemm.matmul" in capsys.readouterr().out


@pytest.fixture
def hopper_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["compile", LAYER, "--emit", "hopper"]) == 0
    return capsys.readouterr().out.splitlines(keepends=True)


def test_a_right_kernel_is_proven_and_printed_as_it_was(
    hopper_lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    kernel = tmp_path / "kernel.mlir"
    kernel.write_text("".join(hopper_lines))
    assert main(["opt", str(kernel), "-p", "hopper-check-sync"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == "".join(hopper_lines).rstrip("\n")


def test_a_broken_kernel_is_refused_with_its_lines(
    hopper_lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fences = [n for n, line in enumerate(hopper_lines) if line.strip() == "hopper.fence_proxy_async"]
    broken = [line for n, line in enumerate(hopper_lines) if n not in fences]
    kernel = tmp_path / "kernel.mlir"
    kernel.write_text("".join(broken))
    assert main(["opt", str(kernel), "-p", "hopper-check-sync"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error[GMR-Y001]: @down_proj: ")
    assert "rule: R6: " in captured.err
    places = [int(line) for line in re.findall(rf"at {re.escape(str(kernel))}:(\d+):\d+", captured.err)]
    assert len(places) == 2
    assert all("hopper." in broken[line - 1] for line in places)
    assert f"{re.findall(r'hopper[.][a-z_]+', captured.err)[0]} " in broken[places[0] - 1]


@pytest.mark.parametrize(
    ("pipeline", "code"),
    [("gemm-fly", "GMR-R004"), ("gemm-canonicalize{", "GMR-R004"), ("gemm-canonicalize{no-such=1}", "GMR-R004")],
)
def test_a_bad_pipeline_is_an_error_not_a_traceback(pipeline: str, code: str, capsys: pytest.CaptureFixture[str]):
    assert main(["opt", LAYER, "-p", pipeline]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error[{code}]: ")
    assert "Traceback" not in err


def test_text_that_does_not_parse_is_shown_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad = tmp_path / "bad.mlir"
    bad.write_text("func.func @f() {\n  gemm.matmul 7\n}\n")
    assert main(["opt", str(bad)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error[GMR-R001]: ")
    assert f"--> {bad}:2:15" in err


def test_ir_that_does_not_verify_is_an_ir_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad = tmp_path / "bad.mlir"
    bad.write_text(
        "func.func @f(%a: tensor<8x64xbf16>, %b: tensor<32x16xbf16>) -> tensor<8x16xf32> {\n"
        "  %d = gemm.matmul %a, %b : (tensor<8x64xbf16>, tensor<32x16xbf16>) -> tensor<8x16xf32>\n"
        "  func.return %d : tensor<8x16xf32>\n}\n"
    )
    assert main(["opt", str(bad)]) == 1
    assert capsys.readouterr().err.startswith("error[GMR-R002]: ")


def test_its_own_help_is_shown(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["opt", "--help"])
    assert end.value.code == 0
    assert "usage: gemmir opt" in capsys.readouterr().out
