"""
The directory of a bundle: how it is published whole, and how its files are read without following anybody's links.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gemmir.errors import BundleError

MANIFEST = "bundle.json"
MAX_FILES = 16
MAX_FILE_BYTES = 64 << 20
MAX_MANIFEST_BYTES = 1 << 20
FILE_NAME = re.compile(r"[A-Za-z0-9_]{1,64}(\.[a-z0-9]{1,8})?")
"""Names that bundles use: no separator, no leading dot, nothing that a shell or a file system treats specially."""


def unreadable(
    path: Path, why: str, fix: str = "write the bundle again: gemmir compile FILE --emit bundle -o DIR/"
) -> BundleError:
    return BundleError("GMR-B001", f"{path}: {why}", rule="a bundle is a directory of plain files", fix=fix)


@contextmanager
def opened(path: Path) -> Generator[int]:
    """A descriptor of the directory `path` itself, which is no symbolic link; `BundleError` (GMR-B001)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise unreadable(path, f"cannot be opened as a directory ({_reason(error)})") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read(path: Path, directory: int, name: str, limit: int) -> bytes:
    """
    The bytes of file `name` in the open `directory`, which `path` calls for people.

    `BundleError` (GMR-B001) if there is none, it is no plain file, or over `limit` bytes.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        raise unreadable(path / name, f"cannot be read ({_reason(error)})") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise unreadable(path / name, "is no plain file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise unreadable(path / name, f"is over {limit} bytes")
    return data


def publish(path: Path, contents: Mapping[str, bytes], replace: bool) -> None:
    """
    Write a directory under a temporary name beside `path`, then rename it.

    `replace`: a bundle lies at `path` and goes away. `BundleError`
    (GMR-B001) if that cannot be done; nothing is left behind then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".gemmir-bundle-", dir=path.parent))
    except OSError as error:
        raise unreadable(path, f"cannot be written ({_reason(error)})", "choose another directory") from None
    try:
        made = temporary / "new"
        made.mkdir()
        for name, data in contents.items():
            _write(made / name, data)
        if replace:
            os.rename(path, temporary / "old")
        _rename(made, path, temporary / "old")
    except OSError as error:
        raise unreadable(path, f"cannot be written ({_reason(error)})", "choose another directory") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(made: Path, path: Path, old: Path) -> None:
    try:
        os.rename(made, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
