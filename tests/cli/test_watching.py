"""`gemmir compile`: what it shows of a program's way down."""

import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from gemmir.backends.cuda import nvrtc, sass
from gemmir.cli.main import main
from gemmir.cli.watchers import KERNEL
from gemmir.errors import ToolMissingError
from gemmir.universe import PASSES

ROOT = Path(__file__).resolve().parents[2]
LAYER = str(ROOT / "examples" / "01_down_proj.mlir")
NUMBERED = ["00-input.mlir", *(f"{n:02}-{name}.mlir" for n, name in enumerate(PASSES, 1))]


def test_the_ir_after_each_pass_is_a_numbered_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "a" / "ir"
    assert main(["compile", LAYER, "--print-ir-dir", str(folder)]) == 0
    source = capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == [*NUMBERED, "10-kernel.cu"]
    assert (folder / "10-kernel.cu").read_text() == source
    assert "schedule <" not in (folder / "01-gemm-canonicalize.mlir").read_text()
    assert "schedule <family = tiles>" in (folder / "02-gemm-select-family.mlir").read_text()
    assert "hopper.kernel" in (folder / "08-gemm-lower-to-hopper.mlir").read_text()


@pytest.mark.parametrize(
    ("emit", "suffixes"),
    [
        ("hopper", []),
        ("manifest", ["cu"]),
        ("ptx", ["cu", "ptx"]),
        ("cubin", ["cu", "ptx", "cubin", "sass", "log"]),
        ("bundle", ["cu", "ptx", "cubin", "sass", "log"]),
        ("gemm --fail-on no-wgmma", ["cu", "ptx", "cubin", "sass", "log"]),
    ],
)
def test_what_the_kernel_becomes_is_left_as_far_as_it_is_made(emit: str, suffixes: list[str], tmp_path: Path):
    folder = tmp_path / "ir"
    assert (
        main(["compile", LAYER, "-o", str(tmp_path / "out"), "--print-ir-dir", str(folder), "--emit", *emit.split()])
        == 0
    )
    numbers = {suffix: 1 + len(PASSES) + n for n, suffix in enumerate(KERNEL)}
    kernel = [f"{numbers[suffix]:02}-kernel.{suffix}" for suffix in suffixes]
    assert sorted(path.name for path in folder.iterdir()) == [*NUMBERED, *kernel]


def test_they_are_what_is_emitted_and_made_by_one_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    once, calls = nvrtc.compile_cubin, []
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda *args: calls.append(args) or once(*args))
    monkeypatch.setattr(nvrtc, "compile_ptx", lambda *_: pytest.fail("a second compile"))
    folder, out = tmp_path / "ir", tmp_path / "out"
    command = ["compile", LAYER, "--emit", "cuda,cubin,sass", "-o", f"{out}/", "--print-ir-dir", str(folder)]
    assert main(command) == 0
    assert len(calls) == 1
    for number, suffix in ((10, "cu"), (12, "cubin"), (13, "sass")):
        left = (folder / f"{number:02}-kernel.{suffix}").read_bytes()
        assert left == (out / f"down_proj.{suffix}").read_bytes()
    assert "0 bytes spill stores, 0 bytes spill loads" in (folder / "14-kernel.log").read_text()
    monkeypatch.undo()
    assert main(["compile", LAYER, "--emit", "ptx", "-o", str(tmp_path / "out.ptx")]) == 0
    assert (folder / "11-kernel.ptx").read_bytes() == (tmp_path / "out.ptx").read_bytes()


def test_without_nvdisasm_there_is_no_sass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def gone(name: str) -> Path:
        raise ToolMissingError("GMR-C004", f"{name} was not found")

    monkeypatch.setattr(sass, "find_tool", gone)
    folder, out = tmp_path / "ir", tmp_path / "out"
    assert main(["compile", LAYER, "--emit", "cubin", "-o", str(out), "--print-ir-dir", str(folder)]) == 0
    kernel = ["10-kernel.cu", "11-kernel.ptx", "12-kernel.cubin", "14-kernel.log"]
    assert sorted(path.name for path in folder.iterdir()) == [*NUMBERED, *kernel]
    assert main(["compile", LAYER, "--emit", "sass", "-o", str(out)]) == 3


def test_the_kernel_of_an_earlier_run_is_removed(tmp_path: Path):
    folder, out = tmp_path / "ir", str(tmp_path / "out")
    for emit, count in (("cubin", 5), ("cuda", 1), ("hopper", 0)):
        assert main(["compile", LAYER, "--emit", emit, "-o", out, "--print-ir-dir", str(folder)]) == 0
        assert len(list(folder.glob("*-kernel.*"))) == count


def test_files_of_an_earlier_run_are_removed_and_others_are_left(tmp_path: Path):
    (tmp_path / "notes.mlir").write_text("mine")
    assert main(["compile", LAYER, "--print-ir-dir", str(tmp_path), "-o", str(tmp_path / "out.cu")]) == 0
    short = ["--emit", "schedule", "-p", "gemm-canonicalize,gemm-select-family", "-o", str(tmp_path / "out.mlir")]
    assert main(["compile", LAYER, "--print-ir-dir", str(tmp_path), *short]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*NUMBERED[:3], "notes.mlir", "out.cu", "out.mlir"}


def test_files_of_a_person_are_no_files_of_an_earlier_run(tmp_path: Path):
    mine = ("01-layer.mlir", "42-my-notes.mlir", "source.cu", "10-kernel.txt")
    for name in mine:
        (tmp_path / name).write_bytes(Path(LAYER).read_bytes())
    short = ["--emit", "schedule", "-p", "gemm-canonicalize", "--print-ir-dir", str(tmp_path)]
    assert main(["compile", str(tmp_path / mine[0]), *short]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*NUMBERED[:2], *mine}
    assert main(["compile", str(tmp_path / mine[0]), *short]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*NUMBERED[:2], *mine}


def test_each_file_can_be_compiled_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compile", LAYER, "--m", "64", "--print-ir-dir", str(tmp_path)]) == 0
    source = capsys.readouterr().out
    for name in ("00-input.mlir", "03-gemm-select-blocks.mlir", "09-hopper-check-sync.mlir"):
        assert main(["compile", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out == source, name


def test_a_file_is_no_folder_for_ir(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "ir").write_text("")
    assert main(["compile", LAYER, "--print-ir-dir", str(tmp_path / "ir")]) == 2
    assert capsys.readouterr().err == f"error: --print-ir-dir {tmp_path / 'ir'}: it is a file; pass a folder\n"


def test_the_diff_of_each_pass_that_changes_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Put one after another, the diffs lead from the input to the kernel: checked for the lines that they add."""
    assert main(["compile", LAYER, "--emit", "hopper", "--diff", "--print-ir-dir", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    names = re.findall(r"^[-+]{3} (.+)$", captured.err, re.MULTILINE)
    texts = {path.stem[3:]: path.read_text() for path in sorted(tmp_path.iterdir())}
    kept = list(dict.fromkeys(texts.values()))
    changed = [next(name for name, text in texts.items() if text == one) for one in kept]
    assert names == [name for pair in pairwise(changed) for name in pair]
    assert "hopper-check-sync" not in names
    for header, diff in zip(changed[1:], re.split(r"^--- .+\n\+\+\+ .+\n", captured.err, flags=re.M)[1:], strict=True):
        added = [line[1:] for line in diff.splitlines() if line.startswith("+")]
        assert added
        assert set(added) <= set(texts[header].splitlines()), header
    assert "\x1b" not in captured.err
    assert "@@" not in captured.out


@pytest.mark.parametrize(("variable", "is_coloured"), [("FORCE_COLOR", True), ("NO_COLOR", False)])
def test_a_diff_is_coloured_where_a_person_reads_it(
    variable: str, is_coloured: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    pipeline = "gemm-canonicalize,gemm-select-family"
    assert main(["compile", LAYER, "--emit", "schedule", "-p", pipeline, "--diff"]) == 0
    captured = capsys.readouterr().err
    (line,) = [line for line in captured.splitlines() if "schedule <family = tiles>" in line]
    assert ("\x1b[36m@@" in captured) is is_coloured
    assert (line.startswith("\x1b[32m+") and line.endswith("\x1b[0m")) is is_coloured


def test_the_time_of_each_stage_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compile", LAYER, "--emit", "ptx,sass", "-o", f"{tmp_path}/", "--time-passes"]) == 0
    captured = capsys.readouterr()
    found = re.findall(r"^(\S.*?) +([0-9.]+) ms +([0-9.]+) %$", captured.err, re.MULTILINE)
    stages = ["printing CUDA", "NVRTC, to cubin", "disassembling", "rest", "total"]  # whose PTX is on the way
    assert [name for name, *_ in found] == ["reading", *PASSES, *stages]
    times = {name: float(ms) for name, ms, _ in found}
    total = times.pop("total")
    assert sum(times.values()) == pytest.approx(total, abs=0.1)
    assert times["NVRTC, to cubin"] > 20 > times["gemm-canonicalize"] > 0
    assert found[-1][2] == "100.0"


def test_ptx_alone_has_a_stage_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compile", LAYER, "--emit", "ptx", "-o", str(tmp_path / "out.ptx"), "--time-passes"]) == 0
    err = capsys.readouterr().err
    assert re.search(r"^NVRTC, to PTX +[0-9.]+ ms", err, re.MULTILINE)
    assert "to cubin" not in err


def test_the_times_of_a_failed_run_are_shown(capsys: pytest.CaptureFixture[str]):
    assert main(["compile", LAYER, "-p", "gemm-canonicalize,gemm-lower-to-hopper", "--time-passes"]) == 1
    err = capsys.readouterr().err
    assert re.findall(r"^(\S+) .+ %$", err, re.MULTILINE) == ["reading", "gemm-canonicalize", "rest", "total"]
    assert "error[GMR-S005]" in err
