"""
Files of the kernel cache: their format, and how they are read, published, locked and removed.

An entry: magic, length of the header (8 bytes, little endian), the header as JSON, payload, SHA-256 of all before.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import struct
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

MAGIC = b"gemmir kernel 1\n"
MAX_HEADER_BYTES = 1 << 20
MAX_ENTRY_BYTES = 256 << 20
LENGTH = struct.Struct("<Q")
_HASH_BYTES = hashlib.sha256().digest_size
_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Entry:
    """What one key holds: `header` survives as JSON, `payload` byte for byte."""

    header: dict[str, Json]
    payload: bytes


def encode(key: str, entry: Entry) -> bytes:
    """The bytes of an entry; `ValueError` if its header is too large or not JSON."""
    header = json.dumps({"key": key, "header": entry.header}, sort_keys=True, allow_nan=False).encode()
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(header)} bytes, at most {MAX_HEADER_BYTES}")
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
    """Why a directory must not be used, or None: only its user may be able to write it."""
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(status.st_mode):
        return "is not a directory"
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    if status.st_mode & 0o022:
        return "can be written by others"
    return None


def read(path: Path) -> tuple[bytes, os.stat_result]:
    """The bytes of a file of ours, marked as just used; `OSError` if it is missing or not ours."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not ours or status.st_mode & 0o022 or status.st_size > MAX_ENTRY_BYTES:
            raise PermissionError("not a file of ours")
        with suppress(OSError):
            os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
        return file.read(), status


def publish(path: Path, data: bytes) -> None:
    """Write a private temporary file in the same directory, flush it, then rename it over `path`."""
    descriptor, temporary = tempfile.mkstemp(suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    with suppress(OSError):
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unlink(path: Path, seen: os.stat_result | None = None) -> None:
    """Remove `path`, unless another process has replaced it since it was `seen`."""
    with suppress(OSError):
        now = os.lstat(path)
        if seen is None or (now.st_ino, now.st_mtime_ns) == (seen.st_ino, seen.st_mtime_ns):
            os.unlink(path)


def acquire(path: Path, timeout: float) -> int | None:
    """A descriptor that holds the lock file `path`, or None after `timeout` seconds or without file locks."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    held = False
    try:
        held = _wait_for(descriptor, time.monotonic() + timeout)
    finally:
        if not held:
            os.close(descriptor)
    return descriptor if held else None


def _wait_for(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        except OSError:
            return False
