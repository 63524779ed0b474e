"""Files that results are written to: what cannot be written is refused before any work is done."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from gemmir.cli.diagnostics import UsageError

PRIVATE, USUAL = 0o600, 0o666
"""Modes of new files, before the umask."""


def check_destination(path: Path, option: str = "--json") -> None:
    """UsageError, before minutes of work, if nothing can be written to `path`, which `option` named."""
    if is_stream(path):
        return
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: must be a file in a folder that exists and can be written to")


def is_stream(path: Path) -> bool:
    """Whether it is a pipe, a terminal or another device: written to, and never replaced by a file."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_whole(path: Path, data: bytes, mode: int = USUAL) -> None:
    """
    Write the file as a whole or not at all: `OSError` leaves what was there before, and nothing else.

    A file that is there keeps its rights, a new one gets `mode`; a link stays a link, and what is no file is written
    to as it is.
    """
    if is_stream(path):
        path.write_bytes(data)
        return
    target = path.resolve()
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = target.with_name(f".{os.urandom(8).hex()}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            if target.exists():
                os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
