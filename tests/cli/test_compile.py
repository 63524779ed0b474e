"""`gemmir compile` and `gemmir explain`: every kind of output, where it goes, and what is refused."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gemmir.backends.cuda import nvrtc
from gemmir.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
LAYER = str(ROOT / "examples" / "01_down_proj.mlir")
ALL_KINDS = "gemm,schedule,hopper,cuda,ptx,cubin,sass,manifest"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every kind of output of one layer, by the name of its file."""
    folder = tmp_path_factory.mktemp("out")
    assert main(["compile", LAYER, "--emit", ALL_KINDS, "-o", f"{folder}/"]) == 0
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_kind_is_a_file_of_its_own(everything: dict[str, bytes]):
    suffixes = "gemm.mlir schedule.mlir hopper.mlir cu ptx cubin sass json"
    assert set(everything) == {f"down_proj.{suffix}" for suffix in suffixes.split()}


def test_the_levels_differ_in_what_is_decided(everything: dict[str, bytes]):
    assert b"schedule <" not in everything["down_proj.gemm.mlir"]
    schedule = everything["down_proj.schedule.mlir"]
    assert b"schedule <family = tiles, block = 128x256x128, warpgroups = 2 along n, turns = false" in schedule
    assert b", slices = 2, stages = 4>\n" in schedule
    assert b"hopper.kernel" in everything["down_proj.hopper.mlir"]
    assert b"gemm.matmul" not in everything["down_proj.hopper.mlir"]


def test_the_machine_code_uses_the_hardware(everything: dict[str, bytes]):
    assert everything["down_proj.cubin"].startswith(b"\x7fELF")
    for opcode in (b"QGMMA", b"UTMALDG", b"UTMASTG", b"USETMAXREG"):
        assert opcode in everything["down_proj.sass"], opcode
    assert b"wgmma.mma_async" in everything["down_proj.ptx"]
    assert b"#include" not in everything["down_proj.cu"]


def test_the_manifest_names_the_kernel_in_the_source(everything: dict[str, bytes]):
    manifest = json.loads(everything["down_proj.json"])
    assert (manifest["name"], manifest["n"], manifest["k"]) == ("down_proj", 7168, 2048)
    assert manifest["entry"].encode() in everything["down_proj.cu"]


def test_cuda_goes_to_stdout_by_default(everything: dict[str, bytes], capsys: pytest.CaptureFixture[str]):
    assert main(["compile", LAYER]) == 0
    captured = capsys.readouterr()
    assert captured.out.encode() == everything["down_proj.cu"]
    assert captured.err == ""


@pytest.mark.parametrize("level", ["schedule", "hopper"])
def test_what_is_printed_can_be_fed_back(level: str, everything: dict[str, bytes], tmp_path: Path):
    (tmp_path / "again.mlir").write_bytes(everything[f"down_proj.{level}.mlir"])
    out = tmp_path / "again.cu"
    assert main(["compile", str(tmp_path / "again.mlir"), "-o", str(out)]) == 0
    assert out.read_bytes() == everything["down_proj.cu"]


def test_a_level_above_the_input_is_refused(
    everything: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "low.mlir").write_bytes(everything["down_proj.hopper.mlir"])
    out = tmp_path / "out"
    assert main(["compile", str(tmp_path / "low.mlir"), "--emit", "cuda,gemm", "-o", f"{out}/"]) == 2
    assert "--emit gemm: the input is below that level already" in capsys.readouterr().err
    assert not out.exists()


def test_stdin_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(LAYER).read_bytes())))
    assert main(["compile", "-", "--emit", "gemm"]) == 0
    assert "gemm.matmul" in capsys.readouterr().out


def test_errors_on_stdin_say_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"func.func @f( {}\xff")))
    assert main(["compile"]) == 1
    assert "--> <stdin>:1:" in capsys.readouterr().err


def test_several_kinds_need_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compile", LAYER, "--emit", "cuda,ptx"]) == 2
    assert main(["compile", LAYER, "--emit", "cuda,ptx", "-o", str(tmp_path / "file.cu")]) == 2
    assert capsys.readouterr().err.count("needs a folder: -o DIR/") == 2


def test_a_cubin_is_not_written_to_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["compile", LAYER, "--emit", "cubin"]) == 2
    assert "a cubin is binary" in capsys.readouterr().err


def test_a_cubin_goes_through_a_pipe(everything: dict[str, bytes]):
    command = [sys.executable, "-m", "gemmir", "compile", LAYER, "--emit", "cubin"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    assert done.stdout == everything["down_proj.cubin"]


@pytest.mark.parametrize("kinds", ["ptx,cubin", "cubin,ptx,cuda"])
def test_ptx_beside_machine_code_is_of_the_same_compile(
    kinds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "compile_ptx", lambda *_: pytest.fail("a second compile"))
    assert main(["compile", LAYER, "--emit", kinds, "-o", f"{tmp_path}/"]) == 0
    ptx, cubin = ((tmp_path / f"down_proj.{kind}").read_bytes() for kind in ("ptx", "cubin"))
    assert b"wgmma.mma_async" in ptx
    assert cubin.startswith(b"\x7fELF")


def test_the_ir_after_each_pass_goes_to_stderr(capsys: pytest.CaptureFixture[str]):
    assert main(["compile", LAYER, "--emit", "hopper", "--print-ir-after-all"]) == 0
    captured = capsys.readouterr()
    ours = "canonicalize select-family select-blocks fit-tail rasterize balance plan-pipeline lower-to-hopper".split()
    passes = [*(f"gemm-{name}" for name in ours), "hopper-check-sync"]
    titles = [line for line in captured.err.splitlines() if line.startswith("// ----- after ")]
    assert titles == [f"// ----- after {name}" for name in passes]
    assert "// -----" not in captured.out


def test_a_pipeline_of_ones_own_is_obeyed(capsys: pytest.CaptureFixture[str]):
    pipeline = "gemm-canonicalize,gemm-select-family"
    assert main(["compile", LAYER, "--emit", "schedule", "-p", pipeline]) == 0
    assert "schedule <family = tiles>" in capsys.readouterr().out


def test_m_changes_the_schedule(capsys: pytest.CaptureFixture[str]):
    schedules: list[str] = []
    for m in ("4096", "64"):
        assert main(["compile", LAYER, "--emit", "schedule", "--m", m]) == 0
        schedules.append(capsys.readouterr().out)
    assert schedules[0] != schedules[1]


def test_another_target_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["compile", LAYER, "--target", "sm_90"]) == 1
    assert capsys.readouterr().err.startswith("error[GMR-U002]: target 'sm_90'")


def test_a_name_out_of_the_ir_is_no_path(tmp_path: Path):
    text = Path(LAYER).read_text().replace("@down_proj", '@"../../escape"')
    (tmp_path / "layer.mlir").write_text(text)
    folder = tmp_path / "a" / "b" / "out"
    assert main(["compile", str(tmp_path / "layer.mlir"), "--emit", "gemm,schedule", "-o", f"{folder}/"]) == 0
    assert {path.name for path in folder.iterdir()} == {"kernel.gemm.mlir", "kernel.schedule.mlir"}
    assert not list(tmp_path.glob("escape*"))


def test_explain_says_what_was_chosen_and_why(capsys: pytest.CaptureFixture[str]):
    assert main(["explain", LAYER]) == 0
    out = capsys.readouterr().out
    assert out.startswith("?x7168x2048 f8E4M3FN x f8E4M3FN -> bf16, scales 1x128 x 128x128, sm_90a\n")
    for subject, by in [
        ("block = ", "gemm-select-blocks"),
        ("cluster = ", "gemm-select-blocks"),
        ("raster = ", "gemm-rasterize"),
        ("stages = ", "gemm-plan-pipeline"),
    ]:
        (line,) = [line for line in out.splitlines() if line.startswith(subject)]
        assert line.endswith(f"({by})")
    assert "    next best: " in out


def test_explain_shows_the_terms_of_the_cost_model(capsys: pytest.CaptureFixture[str]):
    """Of the schedule and of the best one with another tile: k-block, tile, rounds, clock, DRAM, and what they make."""
    assert main(["explain", LAYER]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("predicted"))
    assert lines[start].split()[1:] == ["128x256x128", "256x128x128"]
    values = {line[:32].strip(): line[32:].split() for line in lines[start + 1 : -1]}
    assert values["k-block: tensor cores, clocks"] == ["1024", "1024"]
    assert values["tiles"] == ["896", "896"]
    assert values["rounds"] == ["7", "7"]
    assert values["tiles of busiest SM over mean"] == ["1.03", "1.03"], "7 where 896 tiles on 132 SMs are 6.79 each"
    for column in range(2):
        number = {name: float(cells[column].rstrip("%")) for name, cells in values.items()}
        k_blocks, tile = 16 * number["k-block, clocks"], number["tile beside k-blocks, clocks"]
        assert number["all rounds, clocks"] == pytest.approx(7 * (k_blocks + tile), rel=1e-3)
        rounds = number["all rounds, us"]
        assert rounds == pytest.approx(number["all rounds, clocks"] / number["clock, GHz"] / 1e3, rel=5e-3)
        parts = number["launch and first reads, us"]
        assert rounds + parts <= number["in all, us"] + 0.2 <= rounds + parts + number["DRAM, us"]
    assert lines[-1].startswith("limited by")


def test_explain_compares_the_families(capsys: pytest.CaptureFixture[str]):
    """For few rows and for many: each at what it would cost, then the terms of the one that is chosen."""
    for m, chosen, other, tile in (("16", "stream", "tiles", "16x64x128"), ("4096", "tiles", "", "128x256x128")):
        assert main(["explain", LAYER, "--m", m]) == 0
        out = capsys.readouterr().out
        assert f"family = {chosen}  (gemm-select-family)" in out
        if other:
            found = re.search(r"([0-9.]+) us\s+predicted for its\s+best tile\s+next best: tiles at ([0-9.]+) us", out)
            assert found is not None
            assert float(found[1]) < float(found[2])
        header = next(line for line in out.splitlines() if line.startswith("predicted"))
        assert header.split()[1] == tile
        (total,) = [line for line in out.splitlines() if line.startswith("in all, us")]
        best, next_best = map(float, total.split()[3:])
        assert best <= next_best


def test_explain_leaves_out_what_the_program_fixes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = Path(LAYER).read_text().replace("128x128)\n", "128x128) schedule <stages = 2>\n")
    (tmp_path / "layer.mlir").write_text(text)
    assert main(["explain", str(tmp_path / "layer.mlir")]) == 0
    assert "stages = " not in capsys.readouterr().out
