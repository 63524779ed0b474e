"""`gemmir doctor`: what is here, what is missing, and how to get it."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from gemmir.backends.cuda import nvrtc, sass
from gemmir.cache import Cache
from gemmir.cache_files import Entry
from gemmir.cli import doctor
from gemmir.cli.doctor_settings import ROOM_FIX, VARIABLES
from gemmir.cli.main import main
from gemmir.errors import ToolMissingError

ROOT = Path(__file__).resolve().parents[2]


class Usage(NamedTuple):
    """What `shutil.disk_usage` returns, in bytes."""

    total: int
    used: int
    free: int


ALONE = """
import contextlib, io, os, sys
from gemmir.cli.main import main
with contextlib.redirect_stdout(io.StringIO()):
    main(["doctor"])  # imports: not everybody may read this Python
if os.geteuid() == 0:  # to whom rights mean nothing
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main(["doctor", "--json"]))
"""


def checks(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict[str, str]]:
    """What `gemmir doctor --json` finds, by name."""
    assert main(["doctor", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == code
    return {check["name"]: check for check in found["checks"]}


@pytest.fixture(autouse=True)
def only_variables_of_this_test(monkeypatch: pytest.MonkeyPatch):
    for name in os.environ:
        if name.startswith("GEMMIR_") and name not in ("GEMMIR_CACHE_DIR", "GEMMIR_NVRTC_13_0"):
            monkeypatch.delenv(name)


def test_json_has_every_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path))
    found = checks(capsys)
    names = "python gemmir xdsl torch cuda-bindings nvrtc driver gpu nvdisasm cuobjdump shtab GEMMIR_CACHE_DIR".split()
    caches = [f"cache {what}" for what in ("directory", "access", "room", "size", "entries")]
    assert set(found) - {"GEMMIR_NVRTC_13_0"} == {*names, *caches}
    for check in found.values():
        assert set(check) == {"name", "status", "value", "needed_for", "fix"}
        assert check["status"] in ("ok", "limited", "missing")
        assert (check["status"] == "ok") is not bool(check["fix"])
    assert found["xdsl"]["value"].startswith("0.74.")
    assert found["nvrtc"]["status"] == "ok"


def test_a_cache_is_described_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path / "new"))
    monkeypatch.setenv("GEMMIR_CACHE_MAX", "3M")
    found = checks(capsys)
    assert found["cache directory"]["value"] == str(tmp_path / "new" / "v1")
    assert found["cache access"]["value"] == "not there yet, will be made"
    assert not list(tmp_path.iterdir())
    cache = Cache(tmp_path / "new")
    cache.put("0" * 64, Entry({}, b"machine code"), source="text")
    found = checks(capsys)
    assert found["cache access"]["value"] == "writable"
    assert found["cache entries"]["value"] == "1"
    assert found["cache size"]["value"] == f"{cache.entries()[0].size} of at most {3 << 20} bytes"


def test_a_cache_that_can_only_be_read_is_not_missing():
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "kernels"
        Cache(folder).put("0" * 64, Entry({}, b"machine code"))
        for path in (folder / "v1", folder, Path(place)):
            path.chmod(0o555)
        env = {**os.environ, "GEMMIR_CACHE_DIR": str(folder)}
        done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, env=env, cwd=ROOT)
        Path(place).chmod(0o700)
        for path in (folder, folder / "v1"):
            path.chmod(0o700)
    assert done.returncode == 0, done.stderr
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["cache directory"]["status"] == "ok"
    assert (found["cache access"]["status"], found["cache access"]["value"]) == ("limited", "read-only")
    assert "GEMMIR_CACHE_DIR" in found["cache access"]["fix"]
    assert found["cache entries"]["value"] == "1"
    assert "cache room" not in found


@pytest.mark.parametrize(("free", "status"), [(1 << 30, "ok"), ((1 << 30) - 1, "limited"), (0, "limited")])
def test_a_disk_that_is_nearly_full_is_warned_of(
    free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(1 << 40, (1 << 40) - free, free))
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path / "not" / "there"))
    room = checks(capsys)["cache room"]
    assert asked == [tmp_path]
    assert room == {
        "name": "cache room",
        "status": status,
        "value": f"{free} bytes free" + ("" if status == "ok" else ", under 1073741824"),
        "needed_for": "looking",
        "fix": "" if status == "ok" else ROOM_FIX,
    }
    assert main(["doctor"]) == 0
    text = f"{status:8} cache room       {room['value']}\n"
    assert text + ("" if status == "ok" else f"{'':25} for looking: {ROOM_FIX}\n") in capsys.readouterr().out


def test_the_room_is_that_of_the_file_system_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(0, 0, 0))
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path / "kernels"))
    Cache(tmp_path / "kernels").put("0" * 64, Entry({}, b"machine code"))
    room = checks(capsys)["cache room"]
    assert asked == [tmp_path / "kernels" / "v1"]
    assert (room["status"], room["value"], room["fix"]) == ("ok", "not known", "")


def test_a_file_system_that_does_not_say_is_no_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def unanswered(path: Path) -> Usage:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(shutil, "disk_usage", unanswered)
    room = checks(capsys)["cache room"]
    assert (room["status"], room["value"], room["fix"]) == ("ok", "not known: Input/output error", "")


def test_a_cache_that_others_can_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    found = checks(capsys)
    assert found["cache directory"]["status"] == "missing"
    assert "0700" in found["cache directory"]["fix"]
    assert "cache access" not in found


def test_variables_that_are_set_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("GEMMIR_CACHE", "0")
    monkeypatch.setenv("GEMMIR_CASHE_DIR", "a\x1b[2Jb")
    found = checks(capsys)
    assert found["GEMMIR_CACHE"]["status"] == "ok"
    assert found["cache directory"]["value"].endswith("switched off by GEMMIR_CACHE=0")
    wrong = found["GEMMIR_CASHE_DIR"]
    assert (wrong["status"], wrong["value"]) == ("limited", "a\\x1b[2Jb  not read by gemmir")
    assert "GEMMIR_CACHE_DIR" in wrong["fix"]


def test_every_variable_that_is_read_is_known():
    texts = [path.read_text() for folder in ("gemmir", "passes", "backends") for path in (ROOT / folder).rglob("*.py")]
    named = {name for text in texts for name in re.findall(r"GEMMIR_[A-Z0-9_]+", text)} - {"GEMMIR_UNIVERSE"}
    assert named == set(VARIABLES)


def test_a_line_says_ok_or_missing_and_how_to_fix_it(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["ok", "python"]
    for number, line in enumerate(lines):
        if line.startswith("missing"):
            assert lines[number + 1].split()[0] == "for"


def test_without_nvrtc_nothing_compiles_and_the_exit_code_is_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def gone() -> tuple[int, int]:
        raise ToolMissingError("GMR-C003", "NVRTC is not installed", fix="pip install nvidia-cuda-nvrtc")

    monkeypatch.setattr(nvrtc, "version", gone)
    assert main(["doctor"]) == 3
    assert "for compiling: pip install nvidia-cuda-nvrtc" in capsys.readouterr().out


def test_a_missing_tool_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def gone(name: str) -> str:
        raise ToolMissingError("GMR-C004", f"{name} was not found", fix="pip install 'gemmir[tools]'")

    monkeypatch.setattr(sass, "find_tool", gone)
    assert main(["doctor"]) == 0
    assert "nvdisasm was not found" in capsys.readouterr().out


def test_a_package_that_is_not_installed_says_how_to_install_it():
    check = doctor.package("no-such-package", "no-such-package>=1")
    assert (check.status, check.fix) == ("missing", 'pip install "no-such-package>=1"')
