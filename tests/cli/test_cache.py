"""`gemmir cache`: path, ls, clear."""

from pathlib import Path

import pytest

from gemmir.cache import Cache
from gemmir.cache_files import Entry
from gemmir.cache_keys import digest
from gemmir.cli.main import main


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def test_path_is_below_the_directory_that_is_set(directory: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cache", "path"]) == 0
    assert Path(capsys.readouterr().out.strip()).parent == directory


def test_an_empty_cache_lists_nothing(directory: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cache", "ls"]) == 0
    assert capsys.readouterr().out == "0 kernels, 0 bytes\n"


def test_clear_without_a_directory_that_can_be_written_is_an_error(directory: Path, capsys: pytest.CaptureFixture[str]):
    directory.write_text("a file where the folder should be")
    assert main(["cache", "clear"]) == 1
    assert capsys.readouterr().err.startswith("error[GMR-K001]: ")


def test_the_cache_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("GEMMIR_CACHE", "0")
    assert main(["cache", "path"]) == 0
    assert "GEMMIR_CACHE=0" in capsys.readouterr().out


def test_kernels_are_listed_and_removed(directory: Path, capsys: pytest.CaptureFixture[str]):
    key = digest({"source": "one"})
    assert Cache().put(key, Entry({"name": "one"}, b"\0" * 100))
    assert main(["cache", "ls"]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith(key[:16])
    assert listed.splitlines()[-1].startswith("1 kernels, ")
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "1 kernels removed\n"
    assert Cache().entries() == ()
