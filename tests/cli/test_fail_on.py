"""`gemmir compile --fail-on`: nothing is written for machine code that is not wanted."""

from pathlib import Path

import pytest

from gemmir.backends.cuda import code_conditions, nvrtc
from gemmir.cli.main import main
from tests.backends.cuda.test_compiler_log import SOURCES

ROOT = Path(__file__).resolve().parents[2]
LAYER = str(ROOT / "examples" / "01_down_proj.mlir")
ALL = "spill,local-memory,no-wgmma"


@pytest.mark.parametrize("emit", ["gemm", "cuda", "cubin"])
def test_a_kernel_of_ours_passes(emit: str, tmp_path: Path):
    assert main(["compile", LAYER, "--emit", emit, "-o", str(tmp_path / "plain")]) == 0
    assert main(["compile", LAYER, "--emit", emit, "-o", str(tmp_path / "checked"), "--fail-on", ALL]) == 0
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "checked").read_bytes()


@pytest.mark.parametrize("emit", ["gemm", "cubin"])
def test_machine_code_without_wgmma_is_refused(
    emit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The compiler makes something else of the source."""
    other = nvrtc.compile_cubin(SOURCES["shared"])
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda *_: other)
    command = ["compile", LAYER, "--emit", emit, "-o", str(tmp_path / "out")]
    assert main([*command, "--fail-on", ALL]) == 1
    assert capsys.readouterr().err.startswith("error[GMR-C002]: no-wgmma: none of ")
    assert not list(tmp_path.iterdir())
    assert main([*command, "--fail-on", "spill,local-memory"]) == 0


def test_a_defect_has_the_same_exit_code_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: object) -> None:
        raise KeyError("no such word")

    monkeypatch.setattr(code_conditions, "check_conditions", broken)
    assert main(["compile", LAYER, "-o", str(tmp_path / "out"), "--fail-on", ALL]) == 1
    assert capsys.readouterr().err.startswith("error: internal error: KeyError: 'no such word'\n")
    assert not list(tmp_path.iterdir())


def test_refused_code_is_left_in_the_folder_of_ir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Spills are refused without --fail-on; the machine code and its log are there to be looked at."""
    other = nvrtc.compile_cubin(SOURCES["spill"])
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda *_: other)
    folder, out = tmp_path / "ir", tmp_path / "out"
    assert main(["compile", LAYER, "--emit", "sass", "-o", str(out), "--print-ir-dir", str(folder)]) == 1
    assert not out.exists()
    assert (folder / "12-kernel.cubin").read_bytes() == other.cubin
    assert (folder / "11-kernel.ptx").read_text() == other.ptx
    assert "bytes spill stores" in (folder / "14-kernel.log").read_text()
    assert "STL" in (folder / "13-kernel.sass").read_text()


@pytest.mark.parametrize("words", ["spills", "spill,", "", "spill,no-wgmma,fast"])
def test_an_unknown_word_is_wrong_usage_and_lists_the_choices(words: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["compile", LAYER, "--fail-on", words])
    assert end.value.code == 2
    assert " is not one of spill, local-memory, no-wgmma" in capsys.readouterr().err
