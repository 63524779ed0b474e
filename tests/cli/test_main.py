"""Exit codes, and how the command speaks when something is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gemmir.cli import cache, explain
from gemmir.cli.diagnostics import report
from gemmir.cli.main import main
from gemmir.errors import IRError, SourceLocation

ROOT = Path(__file__).resolve().parents[2]
LAYER = str(ROOT / "examples" / "01_down_proj.mlir")


def test_help_names_every_subcommand(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in ("compile", "run", "bench", "opt", "explain", "doctor", "cache", "completion", "errors"):
        assert re.search(rf"^    {name}\s", text, re.MULTILINE), name


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["compile", LAYER, "--emit", "fortran"],
        ["compile", LAYER, "--fast"],
        ["run", LAYER, "--shape", "N=7"],
        ["run", LAYER, "--shape", "M=0"],
        ["run", LAYER, "--backend", "cpu"],
        ["cache", "burn"],
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert "usage: gemmir" in capsys.readouterr().err


def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["compile", "no/such.mlir"]) == 1
    assert capsys.readouterr().err == "error: no/such.mlir: No such file or directory\n"


def test_bad_ir_is_shown_with_a_caret_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad = tmp_path / "bad.mlir"
    bad.write_text("func.func @f(%a: tensor<2x3xf32>) {\n  gemm.matmul %a }\n")
    assert main(["compile", str(bad)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error[GMR-R001]: ")
    assert lines[1] == f"  --> {bad}:2:18"
    assert lines[3:5] == ["2 |   gemm.matmul %a }", "  |                  ^"]


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert main(["--debug", "compile", "no/such.mlir"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("GEMMIR_DEBUG", "1")
    assert main(["compile", "no/such.mlir"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "execute", interrupted)
    assert main(["cache", "ls"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_defect_is_called_one_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(_: object) -> int:
        raise ZeroDivisionError("one by zero")

    monkeypatch.setattr(explain, "execute", broken)
    assert main(["explain", LAYER]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: internal error: ZeroDivisionError: one by zero\n")
    assert "Traceback" not in err


def test_colour_only_where_it_is_wanted():
    error = IRError("GMR-R001", "expected ','", fix="add it", location=SourceLocation("f", 1, 3, "a b", 1))
    plain = report(error, colour=False)
    assert plain == "error[GMR-R001]: expected ','\n  --> f:1:3\n  |\n1 | a b\n  |   ^\n  fix: add it"
    coloured = report(error, colour=True)
    assert "\x1b[1;31merror[GMR-R001]\x1b[0m" in coloured
    assert "\x1b[36mfix\x1b[0m" in coloured


@pytest.mark.parametrize(
    ("env", "coloured"), [({"FORCE_COLOR": "1"}, True), ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False)]
)
def test_no_color_wins_over_force_color(
    env: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    main(["compile", LAYER, "--target", "sm_90", "--emit", "cuda"])
    assert ("\x1b[" in capsys.readouterr().err) is coloured


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m gemmir opt {LAYER} | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_gemmir_is_the_command():
    done = subprocess.run([sys.executable, "-m", "gemmir", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert done.stdout.startswith("gemmir ")
