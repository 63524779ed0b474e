"""`gemmir doctor`: what is here, what is missing, and how to get it."""

import json

import pytest

from gemmir.backends.cuda import nvrtc, sass
from gemmir.cli import doctor
from gemmir.cli.main import main
from gemmir.errors import ToolMissingError


def test_json_has_every_check(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = "python gemmir xdsl torch cuda-bindings nvrtc driver gpu nvdisasm cuobjdump cache"
    assert set(found) == set(names.split())
    assert found["xdsl"]["found"].startswith("0.74.")
    assert found["nvrtc"]["ok"]
    assert all(check["fix"] for check in found.values() if not check["ok"])


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
    assert (check.ok, check.fix) == (False, 'pip install "no-such-package>=1"')
