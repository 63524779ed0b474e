"""
Files of the kernel cache: their format, and how they are read, published and removed.

An entry: magic, length of the header (8 bytes, little endian), the header as JSON, payload, SHA-256 of all before.

Names are looked up in a directory that is open already (`folder`), so that nobody can put another in its place between
a check and a use.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemmir.records import dataclass

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

MAGIC = b"gemmir kernel 1\n"
MAX_HEADER_BYTES = 1 << 20
MAX_ENTRY_BYTES = 256 << 20
LENGTH = struct.Struct("<Q")
_HASH_BYTES = hashlib.sha256().digest_size
MOST_ATTEMPTS = 100
"""Of making a temporary file: each could only fail in the moment before it is locked."""
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """What one key holds: `header` survives as JSON, `payload` byte for byte."""

    header: dict[str, Json]
    payload: bytes


def encode(key: str, entry: Entry) -> bytes | None:
    """The bytes of an entry, None if it is too large for one; `ValueError` if its header is not JSON."""
    header = json.dumps({"key": key, "header": entry.header}, sort_keys=True, allow_nan=False).encode()
    if len(header) > MAX_HEADER_BYTES or len(entry.payload) > MAX_ENTRY_BYTES - 2 * MAX_HEADER_BYTES:
        return None
    data = MAGIC + LENGTH.pack(len(header)) + header + entry.payload
    return data + hashlib.sha256(data).digest()


def decode(data: bytes, key: str) -> Entry | None:
    """The entry of `key` in `data`, or None if anything about it is wrong."""
    start = len(MAGIC) + LENGTH.size
    if len(data) < start + _HASH_BYTES or not data.startswith(MAGIC):
        return None
    body, trailer = data[:-_HASH_BYTES], data[-_HASH_BYTES:]
    if hashlib.sha256(body).digest() != trailer:
        return None
    (length,) = LENGTH.unpack_from(body, len(MAGIC))
    if length > MAX_HEADER_BYTES or start + length > len(body):
        return None
    try:
        header: Any = json.loads(body[start : start + length])
        if header["key"] != key or len(header) != 2 or not isinstance(header["header"], dict):
            return None
        return Entry(header["header"], body[start + length :])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def distrust(status: os.stat_result) -> str | None:
    """Why a directory must not be used, or None: only its user, or root, may be able to write it."""
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(status.st_mode):
        return "is not a directory"
    if status.st_uid not in (os.geteuid(), 0):
        return "belongs to another user"
    if status.st_mode & 0o022:
        return "can be written by others"
    return None


class UntrustedError(OSError):
    """A directory, or a file in it, that somebody else may have written; `strerror` says why."""

    def __init__(self, why: str):
        super().__init__(errno.EPERM, why)


def open_folder(base: Path, name: str, *, create: bool = False) -> int:
    """
    A descriptor of the directory `base`/`name`, both of which nobody else can write; made if need be with `create`.

    `OSError` if it is not there or cannot be made, `UntrustedError` if it is not to be trusted.
    """
    if create:
        base.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            base.mkdir(mode=0o700)
    outer = _open_directory(base)
    try:
        if create:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=outer)
        return _open_directory(name, outer)
    finally:
        close(outer)


def _open_directory(path: str | Path, folder: int | None = None) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=folder)
    except NotADirectoryError:
        why = distrust(os.stat(path, dir_fd=folder, follow_symlinks=False)) or "lies below a file"
        raise UntrustedError(f"{Path(path).name} {why}") from None
    try:
        why = distrust(os.fstat(descriptor))
        if why is not None:
            raise UntrustedError(f"{Path(path).name} {why}")
    except BaseException:
        close(descriptor)
        raise
    return descriptor


def read(name: str, folder: int, *, touch: bool = True) -> tuple[bytes, os.stat_result]:
    """
    The bytes of a file of ours, which with `touch` is marked as just used.

    `OSError` if it is missing, `UntrustedError` if it is not ours.
    """
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _OPEN, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid in (os.geteuid(), 0)
        if not ours or status.st_mode & 0o022 or status.st_size > MAX_ENTRY_BYTES:
            raise UntrustedError(f"{name} is not a file of ours")
        data = file.read(MAX_ENTRY_BYTES)
        # The time of last access is set by hand: file systems are mounted so that reading does not. Looking at a file
        # leaves it as it was.
        used = time.time_ns() if touch else status.st_atime_ns
        with suppress(OSError):
            os.utime(descriptor, ns=(used, status.st_mtime_ns))
        return data, status


def publish(path: str | Path, data: bytes, folder: int | None = None) -> None:
    """
    Write a private temporary file in the same directory, flush it, then rename it over `path`.

    `path` is relative to the directory `folder`, if one is given. `OSError` if that fails: then nothing is left.
    """
    for _ in range(MOST_ATTEMPTS):
        if _published(path, data, folder):
            break
    else:
        raise BlockingIOError(errno.EAGAIN, "new files are locked by somebody else")
    with suppress(OSError):
        _sync(Path(path).parent if folder is None else ".", folder)


def _published(path: str | Path, data: bytes, folder: int | None) -> bool:
    """False if its temporary file was taken for one that is left over: it is locked a moment after it is made."""
    temporary = f"{path}.{os.urandom(8).hex()}.part"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=folder)
    done = False
    try:
        if _claim(descriptor, temporary, folder):
            _write_all(descriptor, data)
            os.fsync(descriptor)
            os.replace(temporary, path, src_dir_fd=folder, dst_dir_fd=folder)
            done = True
    finally:
        if not done:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
        close(descriptor)
    return done


def _claim(descriptor: int, name: str, folder: int | None) -> bool:
    """Lock a new file; False if somebody who sweeps was faster, and removes it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return goes_by(descriptor, name, folder)
    except BlockingIOError:
        return False
    except OSError:  # no locks here: those who sweep go by its age
        return True


def goes_by(descriptor: int, name: str, folder: int | None) -> bool:
    """Whether an open file still goes by its name."""
    ours = os.fstat(descriptor)
    try:
        there = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def close(descriptor: int) -> None:
    """Close a file of which nothing is to be written any more: what could still fail does not matter."""
    with suppress(OSError):
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync(directory: str | Path, folder: int | None) -> None:
    """Make what was renamed last, too."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(descriptor)
    finally:
        close(descriptor)


def unlink(name: str, folder: int, seen: os.stat_result | None = None) -> bool:
    """Remove a file, unless another process has replaced it since it was `seen`; whether it was removed."""
    try:
        now = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if seen is not None and (now.st_ino, now.st_mtime_ns) != (seen.st_ino, seen.st_mtime_ns):
            return False
        os.unlink(name, dir_fd=folder)
        return True
    except OSError:
        return False
