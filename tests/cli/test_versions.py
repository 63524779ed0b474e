"""`gemmir --version`: gemmir's version and those of what decides machine code and results."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from gemmir import __version__
from gemmir.backends.cuda import nvrtc
from gemmir.cli import versions
from gemmir.cli.main import main
from gemmir.errors import ToolMissingError
from tests.backends.cuda.oldest_nvrtc import OLDEST, needs_oldest_nvrtc


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `--version` prints, by name, in order."""
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return dict(line.split(" ", 1) for line in captured.out.splitlines())


def test_the_versions_one_a_line(capsys: pytest.CaptureFixture[str]):
    found = printed(capsys)
    assert list(found) == ["gemmir", "python", "xdsl", "torch", "cuda-bindings", "nvrtc"]
    packages = {name: version(name) for name in ("xdsl", "torch", "cuda-bindings")}
    assert found == {
        "gemmir": __version__,
        "python": platform.python_version(),
        **packages,
        "nvrtc": "{}.{}".format(*nvrtc.version()),
    }


def test_what_is_missing_is_not_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def gone() -> Path:
        raise ToolMissingError("GMR-C003", "NVRTC is not installed")

    monkeypatch.setattr(nvrtc, "library_path", gone)
    monkeypatch.setattr(versions, "PACKAGES", ("xdsl", "no-such-package"))
    found = printed(capsys)
    assert (found["no-such-package"], found["nvrtc"], found["gemmir"]) == ("not found", "not found", __version__)


def test_a_file_that_is_no_nvrtc_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    broken = tmp_path / "libnvrtc.so.13"
    broken.write_bytes(b"not ELF")
    for path in (broken, Path("libc.so.6")):  # none that loads, and one without NVRTC's functions
        monkeypatch.setattr(nvrtc, "library_path", lambda path=path: path)
        assert printed(capsys)["nvrtc"] == "not found"


@needs_oldest_nvrtc
def test_the_nvrtc_that_would_compile_is_the_one_that_is_named():
    program = (
        "import sys\nfrom pathlib import Path\nfrom gemmir.backends.cuda.nvrtc import preload\n"
        "from gemmir.cli.main import main\npreload(Path(sys.argv[1]))\nmain(['--version'])"
    )
    command = [sys.executable, "-c", program, f"{OLDEST}/nvidia/cu13/lib"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "nvrtc 13.0"
