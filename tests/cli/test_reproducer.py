"""`gemmir compile --crash-reproducer`: a pass that fails leaves a file that fails again on its own."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from xdsl.passes import ModulePass

from gemmir.cli.main import main
from gemmir.errors import SyncError
from gemmir.passes.gemm_balance import GemmBalancePass
from gemmir.passes.hopper_check_sync import HopperCheckSyncPass
from gemmir.universe import PASSES

ROOT = Path(__file__).resolve().parents[2]
LAYER = str(ROOT / "examples" / "01_down_proj.mlir")


def again(file: Path) -> list[str]:
    """The arguments of `gemmir` that the file says run it again."""
    (command,) = re.findall(r"^// run again: gemmir (.+)$", file.read_text(), re.MULTILINE)
    return shlex.split(command)


def fail(pass_: type[ModulePass], error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(*_: object) -> None:
        raise error

    monkeypatch.setattr(pass_, "apply", apply)


@pytest.mark.parametrize(
    ("pass_", "error", "shown"),
    [
        (GemmBalancePass, ZeroDivisionError("one\nby\x1b[2J zero"), "error: internal error: ZeroDivisionError"),
        (HopperCheckSyncPass, SyncError("GMR-Y001", "a race", rule="R1"), "error[GMR-Y001]: a race"),
    ],
)
def test_a_pass_that_fails_fails_again(
    pass_: type[ModulePass], error: Exception, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "a file.mlir"
    name = pass_.name
    with pytest.MonkeyPatch.context() as patch:
        fail(pass_, error, patch)
        assert main(["compile", LAYER, "--crash-reproducer", str(file), "--print-ir-dir", str(tmp_path / "ir")]) == 1
        assert shown in capsys.readouterr().err
        assert main(again(file)) == 1
        assert shown in capsys.readouterr().err
    comments = [line for line in file.read_text().splitlines() if line.startswith("//")]
    left = PASSES[PASSES.index(name) :]
    assert comments[0] == f"// failed: {name}"
    assert f"// passes left: {','.join(left)}" in comments
    assert re.search(r"^// versions: gemmir [0-9.]+, xdsl 0\.74\.[0-9]+, Python 3\.", "\n".join(comments), re.MULTILINE)
    before = (tmp_path / "ir" / f"{PASSES.index(name):02}-{PASSES[PASSES.index(name) - 1]}.mlir").read_text()
    assert file.read_text() == "".join(f"{line}\n" for line in comments) + before
    assert "\x1b" not in file.read_text()
    assert main(again(file)) == 0  # with the pass repaired


def test_it_is_run_again_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The schedule leaves its stages open where the kernel needs them: a failure that no test made up."""
    file = tmp_path / "crash.txt"
    pipeline = "gemm-canonicalize,gemm-select-blocks{block=128,256,128},gemm-lower-to-hopper,hopper-check-sync"
    assert main(["compile", LAYER, "-p", pipeline, "--crash-reproducer", str(file)]) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[0].startswith(f"wrote {file}: gemmir opt ")
    assert "passes left: gemm-lower-to-hopper,hopper-check-sync" in file.read_text()
    done = subprocess.run([sys.executable, "-m", "gemmir", *again(file)], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == err.partition("\n")[2]


def test_a_kernel_that_cannot_be_printed_leaves_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from gemmir.backends.cuda import printer

    def unprintable(*_: object) -> None:
        raise KeyError("no such word")

    file = tmp_path / "crash.mlir"
    monkeypatch.setattr(printer, "print_kernel", unprintable)
    assert main(["compile", LAYER, "--crash-reproducer", str(file)]) == 1
    assert file.read_text().startswith("// failed: verifying or printing the kernel\n")
    assert again(file) == ["compile", str(file)]
    assert main(again(file)) == 1
    assert capsys.readouterr().err.count("internal error: KeyError: 'no such word'") == 2


@pytest.mark.parametrize("wrong", [["-p", "no-such-pass"], ["--emit", "gemm", "-o", "no/such/folder/file"], []])
def test_nothing_is_written_where_no_pass_fails(wrong: list[str], tmp_path: Path):
    file = tmp_path / "crash.mlir"
    assert main(["compile", LAYER, *wrong, "--crash-reproducer", str(file)]) == (1 if wrong else 0)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_no_failure_of_a_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "ir" / "10-kernel.cu").mkdir(parents=True)
    file = tmp_path / "crash.mlir"
    assert main(["compile", LAYER, "--print-ir-dir", str(tmp_path / "ir"), "--crash-reproducer", str(file)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'ir' / '10-kernel.cu'}: ")
    assert not file.exists()


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compile", "no/such.mlir", "--crash-reproducer", str(tmp_path / "none" / "x")]) == 2
    assert capsys.readouterr().err.startswith("error: --crash-reproducer ")
