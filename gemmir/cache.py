"""
The kernel cache: content-addressed files, one per kernel.

Whoever can write the cache can run code on the GPU as its reader, so a directory is read only if it belongs to the
reader and nobody else can write it. A file is trusted only if its hash and its key fit. There is no pickle. Nothing
that goes wrong here stops a compilation: the cache then forgets, and says so once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gemmir.cache_files import (
    LENGTH,
    MAGIC,
    Entry,
    acquire,
    decode,
    distrust,
    encode,
    publish,
    read,
    unlink,
)
from gemmir.errors import CacheError

logger = logging.getLogger("gemmir.cache")

SCHEMA = "v1"
CAPACITY_BYTES = 1 << 30
LOCK_TIMEOUT_SECONDS = 30.0
STALE_SECONDS = 24 * 3600.0
"""Temporary and lock files older than this were left by a process that died."""

_KEY = re.compile(r"[0-9a-f]{64}")
_WRITABLE = "set GEMMIR_CACHE_DIR to a directory that can be written"
_warned: set[Path | None] = set()


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry on disk: its key, size in bytes (with its source) and when it was last used, in seconds since 1970."""

    key: str
    size: int
    last_used: float


def digest(fields: Mapping[str, str | bytes]) -> str:
    """
    The key of `fields`: SHA-256, in hexadecimal.

    Names and values are length-prefixed and sorted by name, so no two mappings share an encoding.
    """
    hashed = hashlib.sha256(MAGIC + LENGTH.pack(len(fields)))
    for name, value in sorted(fields.items()):
        kind, data = (b"s", value.encode()) if isinstance(value, str) else (b"b", value)
        encoded = name.encode()
        hashed.update(LENGTH.pack(len(encoded)) + encoded + kind + LENGTH.pack(len(data)))
        hashed.update(data)
    return hashed.hexdigest()


@cache
def sources_digest() -> str:
    """SHA-256 of gemmir's own code: a kernel made by other code has another key."""
    root = os.path.dirname(os.path.abspath(__file__))
    hashed = hashlib.sha256()
    for path in sorted(_source_files(root)):
        data = _bytes(path)
        name = path[len(root) :].encode()
        hashed.update(LENGTH.pack(len(name)) + name + LENGTH.pack(len(data)))
        hashed.update(data)
    return hashed.hexdigest()


def _bytes(path: str) -> bytes:
    """A whole small file; a third of the time that `open` takes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts: list[bytes] = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _source_files(directory: str) -> Iterator[str]:
    with os.scandir(directory) as items:
        for item in items:
            if item.name.endswith((".py", ".cuh")):
                yield item.path
            elif "." not in item.name and item.name != "__pycache__" and item.is_dir():
                yield from _source_files(item.path)


def default_directory() -> Path | None:
    """`$GEMMIR_CACHE_DIR`, else `$XDG_CACHE_HOME/gemmir`, else `~/.cache/gemmir`; None if there is no home."""
    if named := os.environ.get("GEMMIR_CACHE_DIR"):
        return Path(named).absolute()
    if (xdg := os.environ.get("XDG_CACHE_HOME")) and os.path.isabs(xdg):
        return Path(xdg) / "gemmir"
    try:
        return Path.home() / ".cache" / "gemmir"
    except RuntimeError:
        return None


class Cache:
    """
    Kernels by key, on disk and, where the disk cannot be used, in memory.

    `directory` None: the default one, and none at all if `GEMMIR_CACHE=0`. `required`: the user asked for this cache,
    so what cannot be used raises `CacheError` (GMR-K001) instead of being passed over with a warning. Safe to use from
    several threads and processes.
    """

    def __init__(self, directory: Path | None = None, *, required: bool = False, capacity_bytes: int = CAPACITY_BYTES):
        self.enabled = directory is not None or required or os.environ.get("GEMMIR_CACHE") != "0"
        base = default_directory() if directory is None else directory.absolute()
        self._base = base
        self._directory = None if base is None else base / SCHEMA
        self._required = required
        self._capacity = capacity_bytes
        self._memory: dict[str, Entry] = {}
        if required:
            self._probe()

    @property
    def directory(self) -> Path | None:
        """Where entries lie, whether it exists or not."""
        return self._directory if self.enabled else None

    def path_of(self, key: str) -> Path | None:
        """The file of `key`, whether it exists or not; None without a directory."""
        return None if self.directory is None else self.directory / f"{_checked(key)}.kernel"

    def source_path(self, key: str) -> Path | None:
        """The readable source beside the entry of `key`, if it was written."""
        path = self.path_of(key)
        if path is None or not self._trusted():
            return None
        source = path.with_suffix(".cu")
        return source if source.is_file() else None

    def get(self, key: str) -> Entry | None:
        """The entry of `key`, or None. A file that is damaged or holds another key is removed."""
        path = self.path_of(key)
        if path is None or not self._trusted():
            return self._memory.get(key)
        try:
            data, status = read(path)
        except OSError:
            return self._memory.get(key)
        entry = decode(data, key)
        if entry is None:
            logger.warning("removed a damaged entry of the kernel cache: %s", path.name)
            unlink(path, status)
        return entry

    def put(self, key: str, entry: Entry) -> bool:
        """Keep `entry` under `key`; whether it reached the disk."""
        path = self.path_of(key)
        if not self.enabled:
            return False
        written = path is not None and self._write(path, encode(key, entry))
        if not written:
            self._memory[key] = entry
            return False
        self._evict()
        return True

    def write_source(self, key: str, text: str) -> Path | None:
        """Put a readable `.cu` beside the entry of `key`; its path, or None."""
        path = self.path_of(key)
        if path is None or not self._write(path.with_suffix(".cu"), text.encode()):
            return None
        return path.with_suffix(".cu")

    @contextmanager
    def lock(self, key: str, timeout: float = LOCK_TIMEOUT_SECONDS) -> Generator[bool]:
        """
        Hold the lock of `key` so that one process compiles and the others wait; yields whether it is held.

        After `timeout` seconds, or where files cannot be locked, the caller goes on without: nothing depends on it.
        """
        path = self.path_of(key)
        descriptor = None
        if path is not None and self._prepare():
            descriptor = acquire(path.with_suffix(".lock"), timeout)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def entries(self) -> tuple[Stored, ...]:
        """What is on disk, most recently used first."""
        stored = (Stored(path.stem, size, used) for path, size, used in self._files(".kernel"))
        return tuple(sorted(stored, key=lambda s: (-s.last_used, s.key)))

    def clear(self) -> int:
        """Remove every entry; how many there were."""
        self._memory.clear()
        files = self._files(".kernel")
        for suffix in (".kernel", ".cu", ".lock", ".part"):
            for path, _, _ in self._files(suffix):
                unlink(path)
        return len(files)

    def _probe(self) -> None:
        """Raise unless the directory can be trusted and written."""
        directory = self._directory
        if directory is None:
            self._refuse("there is no home directory", "set GEMMIR_CACHE_DIR")
        elif self._prepare():
            probe = directory / "probe"
            if self._write(probe, b""):
                unlink(probe)

    def _refuse(self, why: str, fix: str) -> None:
        """Report that the cache cannot be used: by raising if it is required, else by one warning."""
        if self._required:
            raise CacheError(
                "GMR-K001",
                f"the cache directory {self._base} cannot be used: {why}",
                rule="a directory that only its user can write",
                fix=fix,
            )
        if self._base not in _warned:
            _warned.add(self._base)
            logger.warning("kernels are cached in memory only, %s: %s (%s)", self._base, why, fix)

    def _trusted(self) -> bool:
        """Whether the directory exists and nobody else can have written it."""
        if self._base is None or self._directory is None:
            return False
        for path in (self._base, self._directory):
            try:
                status = os.lstat(path)
            except OSError:
                return False
            if (why := distrust(status)) is not None:
                self._refuse(f"{path.name} {why}", "use a directory of your own with mode 0700")
                return False
        return True

    def _prepare(self) -> bool:
        """Create the directory if need be; whether it may be used."""
        if self._directory is None or self._base is None:
            self._refuse("there is no home directory", "set GEMMIR_CACHE_DIR")
            return False
        try:
            self._base.parent.mkdir(parents=True, exist_ok=True)
            for path in (self._base, self._directory):
                with suppress(FileExistsError):
                    path.mkdir(mode=0o700)
        except OSError as error:
            self._refuse(_reason(error), _WRITABLE)
            return False
        return self._trusted()

    def _write(self, path: Path, data: bytes) -> bool:
        """Publish `data` as `path`, whole or not at all."""
        if not self._prepare():
            return False
        try:
            publish(path, data)
        except OSError as error:
            self._refuse(_reason(error), _WRITABLE)
            return False
        return True

    def _files(self, suffix: str) -> list[tuple[Path, int, float]]:
        """Path, size and last use of the files that end in `suffix`; an entry's size includes its source."""
        if self.directory is None or not self._trusted():
            return []
        found: list[tuple[Path, int, float]] = []
        with suppress(OSError), os.scandir(self.directory) as items:
            for item in items:
                if item.name.endswith(suffix) and (status := _status(item)) is not None:
                    found.append((Path(item.path), status.st_size, status.st_atime))
        return found

    def _evict(self) -> None:
        """Remove what was left behind, then the least recently used entries over the capacity."""
        now = time.time()
        for suffix in (".part", ".lock"):
            for path, _, used in self._files(suffix):
                if now - used > STALE_SECONDS:
                    unlink(path)
        sources = {path.stem: size for path, size, _ in self._files(".cu")}
        files = sorted(self._files(".kernel"), key=lambda f: f[2])
        total = sum(size + sources.get(path.stem, 0) for path, size, _ in files)
        for path, size, _ in files[:-1]:
            if total <= self._capacity:
                return
            unlink(path)
            unlink(path.with_suffix(".cu"))
            total -= size + sources.get(path.stem, 0)


def _checked(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        raise ValueError("a cache key is 64 hexadecimal digits")
    return key


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _status(item: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return item.stat(follow_symlinks=False)
    except OSError:
        return None
