"""`gemmir completion`: what a real shell completes with the script that it prints."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemmir.bench.peers import PEERS
from gemmir.cli.compile import SUFFIXES
from gemmir.cli.completion import SHELLS
from gemmir.cli.main import COMMANDS, main

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_gemmir
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The script for each shell, in a file."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in SHELLS:
        command = [sys.executable, "-m", "gemmir", "completion", shell]
        (folder / shell).write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {shell: folder / shell for shell in SHELLS}


def completed(script: Path, line: str, folder: Path) -> set[str]:
    """What bash offers at the end of `line`, in a folder."""
    command = ["bash", "-c", ASK, "bash", str(script), *line.split(" ")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == ""
    return {word for word in done.stdout.splitlines() if word}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gemmir ", set(COMMANDS)),
        ("gemmir com", {"compile", "completion"}),
        ("gemmir cache ", {"path", "ls", "show", "clear"}),
        ("gemmir completion ", set(SHELLS)),
        ("gemmir compile --print", {"--print-ir-after-all", "--print-ir-dir"}),
        ("gemmir compile --emit ", set(SUFFIXES)),
        ("gemmir compile --emit c", {"cuda", "cubin"}),
        ("gemmir compile --fail-on ", {"spill", "local-memory", "no-wgmma"}),
        ("gemmir compile a.mlir --crash-reproducer ", {"a.mlir", "folder"}),
        ("gemmir compile --print-ir-dir ", {"folder"}),
        ("gemmir compile a", {"a.mlir"}),
        ("gemmir run --backend ", {"auto", "cuda", "simulator", "reference"}),
        ("gemmir bench --peers ", {*PEERS, "none"}),
        ("gemmir cache ls --j", {"--json"}),
        ("gemmir doctor --emit", set[str]()),
    ],
)
def test_bash_completes(line: str, words: set[str], scripts: dict[str, Path], tmp_path: Path):
    (tmp_path / "a.mlir").touch()
    (tmp_path / "folder").mkdir()
    assert completed(scripts["bash"], line, tmp_path) == words


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shutil.which(shell)])
def test_every_shell_that_is_here_can_read_its_script(shell: str, scripts: dict[str, Path]):
    done = subprocess.run([shell, "-n", str(scripts[shell])], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_knows_every_command_and_option(shell: str, scripts: dict[str, Path]):
    text = scripts[shell].read_text()
    dashes = "" if shell == "fish" else "--"
    for word in (*COMMANDS, *(dashes + option for option in ("crash-reproducer", "older-than", "fail-on", "version"))):
        assert word in text, word


def test_without_shtab_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error[GMR-C004]: the package shtab is not installed\n")
    assert 'fix: pip install "gemmir[completion]"' in captured.err
