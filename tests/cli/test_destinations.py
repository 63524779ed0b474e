"""Files that the command writes: whole or not at all, and never in place of what is no file."""

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from gemmir.cli.destinations import check_destination, write_whole
from gemmir.cli.diagnostics import UsageError
from gemmir.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
LAYER = str(ROOT / "examples" / "01_down_proj.mlir")
FAILING = ["-p", "gemm-canonicalize,gemm-lower-to-hopper", "--crash-reproducer"]
"""Passes of which the last one fails."""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def read_while(work: Callable[[], object], pipe: Path) -> bytes:
    """What `work` writes into `pipe`."""
    found: list[bytes] = []
    reader = Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    work()
    reader.join(timeout=20)
    return found[0]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path):
    """The file system takes 8 KiB a file."""
    out = tmp_path / "out.cu"
    out.write_text("older, and whole\n")
    done = subprocess.run(
        [sys.executable, "-m", "gemmir", "compile", LAYER, "-o", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert (done.returncode, done.stderr) == (1, f"error: {out}: File too large\n")
    assert out.read_text() == "older, and whole\n"
    assert list(tmp_path.iterdir()) == [out]


def test_rights_are_those_of_the_file_before_or_of_any_new_file(tmp_path: Path):
    old, new, private = (tmp_path / name for name in ("old", "new", "private"))
    old.touch()
    old.chmod(0o640)
    umask = os.umask(0o022)
    try:
        write_whole(old, b"1")
        write_whole(new, b"2")
        write_whole(private, b"3", 0o600)
    finally:
        os.umask(umask)
    assert [(path.read_bytes(), mode(path)) for path in (old, new, private)] == [
        (b"1", 0o640),
        (b"2", 0o644),
        (b"3", 0o600),
    ]


def test_a_link_stays_a_link(tmp_path: Path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_whole(link, b"new")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"new")


@pytest.mark.parametrize("options", [["-o"], FAILING], ids=["-o", "--crash-reproducer"])
def test_a_pipe_is_written_to_and_not_replaced(options: list[str], tmp_path: Path):
    """What holds for a pipe holds for /dev/null, which a privileged user could replace."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    written = read_while(lambda: main(["compile", LAYER, *options, str(pipe)]), pipe)
    assert written.startswith(b"// D[M, 7168]" if options == ["-o"] else b"// failed: gemm-lower-to-hopper\n")
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_reproducer_is_for_its_owner_alone(tmp_path: Path):
    file = tmp_path / "crash.mlir"
    assert main(["compile", LAYER, *FAILING, str(file)]) == 1
    assert mode(file) == 0o600


def test_run_refuses_what_it_cannot_write_before_it_computes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for output in (tmp_path, tmp_path / "none" / "out.npz"):
        assert main(["run", "no/such.mlir", "--output", str(output)]) == 2
        assert capsys.readouterr().err.startswith(f"error: --output {output}: must be a file in a folder")


def test_devices_are_destinations_and_folders_are_not(tmp_path: Path):
    check_destination(Path(os.devnull))
    with pytest.raises(UsageError, match="must be a file"):
        check_destination(tmp_path)
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, b"")
    assert not list(tmp_path.iterdir())
