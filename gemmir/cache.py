"""
The kernel cache: content-addressed files, one per kernel.

Whoever can write the cache can run code on the GPU as its reader, so a directory is read only if it belongs to the
reader, or to root, and nobody else can write it. A file is trusted only if its hash and its key fit. There is no
pickle. Nothing that goes wrong here stops a compilation: the cache then forgets, and says so once.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from gemmir.cache_files import Entry, UntrustedError, close, decode, encode, open_folder, publish, read, unlink
from gemmir.cache_keys import recorded
from gemmir.cache_locks import ThreadLocks, file_lock, sweep
from gemmir.cache_settings import capacity, default_directory, switched_off
from gemmir.errors import CacheError
from gemmir.records import dataclass

logger = logging.getLogger("gemmir.cache")

SCHEMA = "v1"
LOCK_TIMEOUT_SECONDS = 30.0
STALE_SECONDS = 24 * 3600.0
"""Files without an owner that are older than this were left by a process that died."""
MAX_IN_MEMORY = 256
"""Kernels of a directory that cannot be written which are kept in memory, the newest."""

Kind = Literal["kernel", "call"]
"""What an entry is: a kernel, or the key of the kernel that a call needs."""

_KEY = re.compile(r"[0-9a-f]{64}")
_OWNED = (".part", ".lock")
"""Files that whoever made them holds a lock on and removes."""
_NO_HOME, _NAMED = "there is no home directory", "set GEMMIR_CACHE_DIR"
_PRIVATE = "use a directory of your own with mode 0700"
_WRITABLE = "set GEMMIR_CACHE_DIR to a directory that can be written"
_warned: set[tuple[Path | None, str]] = set()
_memories: dict[Path | None, dict[str, Entry]] = {}
_threads = ThreadLocks()


@dataclass(frozen=True, slots=True)
class Stored:
    """A kernel on disk: its key, size in bytes (with its source), when it was made and last used (s since 1970)."""

    key: str
    size: int
    made: float
    last_used: float


@dataclass(frozen=True, slots=True)
class Removed:
    """How many kernels were removed, and how many bytes they had."""

    kernels: int
    size: int


class Cache:
    """
    Kernels by key, on disk and, where the disk cannot be used, in memory.

    `directory` None: the default one, and none at all if `GEMMIR_CACHE=0`. `required`: the user asked for this cache,
    so what cannot be used raises `CacheError` (GMR-K001) instead of being passed over with a warning. `capacity_bytes`:
    how much the disk may hold, by default what `gemmir.cache_settings.capacity` says. Safe to use from several threads
    and processes.
    """

    def __init__(self, directory: Path | None = None, *, required: bool = False, capacity_bytes: int | None = None):
        self.enabled = directory is not None or required or not switched_off()
        base = default_directory() if directory is None else directory.absolute()
        self._base = base
        self._directory = None if base is None else base / SCHEMA
        self._required = required
        self.capacity_bytes = capacity() if capacity_bytes is None else capacity_bytes
        self._memory = _memories.setdefault(base, {})
        if required:
            self._probe()

    @property
    def directory(self) -> Path | None:
        """Where entries lie, whether it exists or not."""
        return self._directory if self.enabled else None

    def path_of(self, key: str) -> Path | None:
        """The file of kernel `key`, whether it exists or not; None without a directory."""
        name = _name(key, "kernel")
        return None if self.directory is None else self.directory / name

    def source_path(self, key: str) -> Path | None:
        """The readable source beside the entry of `key`, if it was written."""
        path = self.path_of(key)
        source = None if path is None else path.with_suffix(".cu")
        return source if source is not None and os.path.isfile(source) else None

    def get(self, key: str, kind: Kind = "kernel", *, touch: bool = True) -> Entry | None:
        """
        The entry of `key`, or None. A file that is damaged or holds another key is removed.

        `touch`: mark it as just used, and repair what is damaged; without, only look.
        """
        name = _name(key, kind)
        with self._folder() as folder:
            entry = None if folder is None else self._read(name, key, folder, touch)
        return self._memory.get(name) if entry is None and self.enabled else entry

    def found(self, key: str, facts: Mapping[str, str]) -> Entry | None:
        """The entry of `key`, if it was made from these facts, and from others that its maker recorded."""
        entry = self.get(key)
        made_from = None if entry is None else entry.header.get("facts")
        return entry if isinstance(made_from, dict) and recorded(facts).items() <= made_from.items() else None

    def put(self, key: str, entry: Entry, kind: Kind = "kernel", *, source: str = "") -> bool:
        """
        Keep `entry` under `key`, and its readable `source`, if it has one, beside it; whether they reached the disk.

        Of a call that cannot be kept nothing is said: its kernel is found all the same. `ValueError` if the entry's
        header is not JSON.
        """
        name, data = _name(key, kind), encode(key, entry)
        if not self.enabled:
            return False
        if kind == "call":
            return data is not None and self._note(name, data)
        if data is None:
            self._refuse("a kernel is too large for an entry", "compile smaller IR texts", about=name)
        if data is None or not self._write(name, data, source.encode()):
            self._remember(name, entry)
            return False
        return True

    @contextmanager
    def lock(self, key: str, timeout: float = LOCK_TIMEOUT_SECONDS) -> Generator[bool]:
        """
        Hold the lock of `key` so that one thread of one process compiles and the others wait; whether it is held.

        After `timeout` seconds, or where files cannot be locked, the caller goes on without: nothing depends on it.
        """
        name = _name(key, "kernel").replace(".kernel", ".lock")
        if not self.enabled:  # what one has compiled, another would not find
            yield False
            return
        start = time.monotonic()
        with _threads.hold(key, timeout) as alone, self._folder(create=True) as folder:
            if folder is None or not alone:
                yield False
                return
            with file_lock(name, folder, timeout - (time.monotonic() - start)) as held:
                yield held

    def entries(self) -> tuple[Stored, ...]:
        """The kernels on disk, most recently used first."""
        with self._folder() as folder:
            files = {} if folder is None else _scan(folder)
        stored = (_stored(name, files) for name in files if _is_entry(name, "kernel"))
        return tuple(sorted(stored, key=lambda s: (-s.last_used, s.key)))

    def clear(self, keep: int = 0, unused_for: float = 0.0) -> Removed:
        """Remove kernels but for the `keep` that were used last and those used in the last `unused_for` seconds."""
        self._memory.clear()
        latest = time.time() - unused_for if unused_for else float("inf")
        chosen = [stored for stored in self.entries()[keep:] if stored.last_used <= latest]
        with self._folder() as folder:
            if folder is None:
                return Removed(0, 0)
            removed = [stored for stored in chosen if _drop(_name(stored.key, "kernel"), folder)]
            self._sweep(folder, strays=True)
        return Removed(len(removed), sum(stored.size for stored in removed))

    def check(self) -> None:
        """`CacheError` (GMR-K001) if there is no home, or a directory that is not to be trusted; it may be missing."""
        required, self._required = self._required, True
        try:
            if self._base is None:
                self._refuse(_NO_HOME, _NAMED)
            with self._folder():
                return
        finally:
            self._required = required

    def find(self, prefix: str) -> str:
        """The key that begins with `prefix`; `CacheError` (GMR-K002) unless there is exactly one."""
        keys = sorted(stored.key for stored in self.entries() if prefix and stored.key.startswith(prefix))
        if len(keys) == 1:
            return keys[0]
        what = f"no kernel has key {prefix!r:.70}"
        if keys:
            what = f"{len(keys)} kernels have keys that begin with {prefix}: {', '.join(key[:16] for key in keys[:4])}"
        rule = "a key, or the digits that it begins with and no other does"
        raise CacheError("GMR-K002", what, rule=rule, fix="gemmir cache ls")

    def _probe(self) -> None:
        """Raise unless the directory can be trusted and written."""
        with self._folder(create=True) as folder:
            if folder is not None and self._attempt(lambda: publish("probe", b"", folder)):
                unlink("probe", folder)

    def _refuse(self, why: str, fix: str, about: str = "") -> None:
        """Report that the cache cannot be used: by raising if it is required, else by one warning."""
        where = "" if self._base is None else f"{self._base}: "
        if self._required:
            rule = "a directory that only its user can write"
            raise CacheError("GMR-K001", f"the kernel cache cannot be used: {where}{why}", rule=rule, fix=fix)
        if (self._base, about) not in _warned:
            _warned.add((self._base, about))
            logger.warning("kernels are cached in memory only: %s%s (%s)", where, why, fix)

    @contextmanager
    def _folder(self, *, create: bool = False) -> Generator[int | None]:
        """A descriptor of the directory, made if need be with `create`; None if it cannot be used, or is not there."""
        folder = self._opened(create)
        try:
            yield folder
        finally:
            if folder is not None:
                close(folder)

    def _opened(self, create: bool) -> int | None:
        if not self.enabled:
            return None
        if self._base is None:
            if create:
                self._refuse(_NO_HOME, _NAMED)
            return None
        try:
            return open_folder(self._base, SCHEMA, create=create)
        except FileNotFoundError as error:
            if create:
                self._refuse(_reason(error), _WRITABLE)
        except UntrustedError as error:
            self._refuse(_reason(error), _PRIVATE)
        except OSError as error:
            self._refuse(_reason(error), _WRITABLE)
        return None

    def _read(self, name: str, key: str, folder: int, touch: bool) -> Entry | None:
        try:
            data, status = read(name, folder, touch=touch)
        except OSError:
            return None
        entry = decode(data, key)
        if entry is None and touch:
            removed = unlink(name, folder, status)
            if removed or (self._base, name) not in _warned:
                _warned.add((self._base, name))
                logger.warning("%s a damaged entry of the kernel cache: %s", "removed" if removed else "ignored", name)
        return entry

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Do something that the disk may refuse; whether it was done."""
        try:
            action()
        except OSError as error:
            self._refuse(_reason(error), _WRITABLE)
            return False
        return True

    def _write(self, name: str, data: bytes, source: bytes) -> bool:
        """Publish an entry and its source, each whole or not at all, and make room for them."""

        def write(folder: int) -> None:
            # The source first: an entry without one would stay without.
            if source:
                publish(name.replace(".kernel", ".cu"), source, folder)
            publish(name, data, folder)
            self._sweep(folder)

        with self._folder(create=True) as folder:
            return folder is not None and self._attempt(lambda: write(folder))

    def _note(self, name: str, data: bytes) -> bool:
        with self._folder() as folder, suppress(OSError):
            if folder is not None:
                publish(name, data, folder)
                self._sweep(folder)
                return True
        return False

    def _remember(self, name: str, entry: Entry) -> None:
        self._memory[name] = entry
        for oldest in list(self._memory)[:-MAX_IN_MEMORY]:
            self._memory.pop(oldest, None)

    def _sweep(self, folder: int, *, strays: bool = False) -> None:
        """
        Remove what was left behind, then the least recently used entries over the capacity, but never the last kernel.

        `strays`: also sources and calls of kernels that are gone, which may just have been written for one to come.
        """
        files = _scan(folder)
        now = time.time()
        for name, status in files.items():
            old = now - status.st_mtime > STALE_SECONDS
            if name.endswith(_OWNED):
                sweep(name, folder, old=old)
            elif (strays or old) and _is_stray_source(name, files):
                unlink(name, folder, status)
            elif strays and self._is_stray_call(name, files, folder):
                unlink(name, folder, status)
        self._evict(files, folder)

    def _evict(self, files: dict[str, os.stat_result], folder: int) -> None:
        entries = sorted(filter(_is_entry, files), key=lambda name: files[name].st_atime_ns)
        newest = next((name for name in reversed(entries) if name.endswith(".kernel")), None)
        total = sum(_size(name, files) for name in entries)
        for name in entries:
            if total <= self.capacity_bytes:
                return
            if name != newest:
                _drop(name, folder, files[name])
                total -= _size(name, files)

    def _is_stray_call(self, name: str, files: dict[str, os.stat_result], folder: int) -> bool:
        if not _is_entry(name, "call"):
            return False
        entry = self._read(name, name.removesuffix(".call"), folder, touch=False)
        return entry is None or f"{entry.header.get('kernel')}.kernel" not in files


def _drop(name: str, folder: int, seen: os.stat_result | None = None) -> bool:
    """Remove an entry, after its source, which would be left over; whether it was removed."""
    if name.endswith(".kernel"):
        unlink(name.replace(".kernel", ".cu"), folder)
    return unlink(name, folder, seen)


def _is_stray_source(name: str, files: dict[str, os.stat_result]) -> bool:
    return name.endswith(".cu") and name.replace(".cu", ".kernel") not in files


def is_key(text: str) -> bool:
    """Whether `text` is a whole key: 64 hexadecimal digits."""
    return _KEY.fullmatch(text) is not None


def _name(key: str, kind: Kind) -> str:
    """The file of `key`: nothing but a digest is a key, so no name leads out of the directory."""
    if not is_key(key):
        raise ValueError("a cache key is 64 hexadecimal digits")
    return f"{key}.{kind}"


def _is_entry(name: str, kind: Kind | None = None) -> bool:
    """Whether a file is an entry by its name: what else lies there is not touched."""
    key, _, suffix = name.partition(".")
    return is_key(key) and suffix in ((kind,) if kind else ("kernel", "call"))


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _scan(folder: int) -> dict[str, os.stat_result]:
    """The files of the directory; what is gone before it is looked at is not among them."""
    found: dict[str, os.stat_result] = {}
    with suppress(OSError):
        for name in os.listdir(folder):
            with suppress(OSError):
                found[name] = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return found


def _size(name: str, files: dict[str, os.stat_result]) -> int:
    """Bytes of an entry with its source."""
    source = files.get(name.replace(".kernel", ".cu")) if name.endswith(".kernel") else None
    return files[name].st_size + (0 if source is None else source.st_size)


def _stored(name: str, files: dict[str, os.stat_result]) -> Stored:
    status = files[name]
    return Stored(name.removesuffix(".kernel"), _size(name, files), status.st_mtime, status.st_atime)
