"""
Locks of the kernel cache: for each key one that holds among processes, and one that holds among threads.

A lock file is removed by who holds it, so none is left; one whose owner died is free, and swept up.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import field

from gemmir.cache_files import close, goes_by
from gemmir.records import dataclass

_SHORTEST_POLL_SECONDS = 0.001
_LONGEST_POLL_SECONDS = 0.05


@contextmanager
def file_lock(name: str, folder: int, timeout: float) -> Generator[bool]:
    """
    Hold the lock file `name` in the directory `folder`; yields whether it is held.

    It is not after `timeout` seconds, where files cannot be locked, or where none can be made.
    """
    descriptor = _acquire(name, folder, time.monotonic() + timeout)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _release(descriptor, name, folder)


def _acquire(name: str, folder: int, deadline: float) -> int | None:
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        except OSError:
            return None
        held, waited = False, None
        try:
            waited = _wait_for(descriptor, deadline)
            held = waited is True and goes_by(descriptor, name, folder)
        except OSError:
            waited = None
        finally:
            if not held:
                close(descriptor)
        if held:
            return descriptor
        if waited is None:
            _remove(name, folder)
        if not waited:
            return None


def _wait_for(descriptor: int, deadline: float) -> bool | None:
    """Whether the file could be locked in time; None where files cannot be locked."""
    pause = _SHORTEST_POLL_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL_SECONDS)
        except OSError:
            return None


def _release(descriptor: int, name: str, folder: int) -> None:
    try:
        _remove(name, folder)
    finally:
        _unlock(descriptor)


def _unlock(descriptor: int) -> None:
    try:
        with suppress(OSError):  # a process that was forked off meanwhile has the file open too: closing would not do
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        close(descriptor)


def _remove(name: str, folder: int) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)


def sweep(name: str, folder: int, *, old: bool) -> None:
    """Remove a lock file or temporary file that nobody holds; where files cannot be locked, one that is `old`."""
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if goes_by(descriptor, name, folder):
            _remove(name, folder)
    except BlockingIOError:
        return
    except OSError:
        if old:
            _remove(name, folder)
    finally:
        close(descriptor)


@dataclass
class _Shared:
    """The lock of a key, and how many threads hold it or wait for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class ThreadLocks:
    """A lock for each key, among the threads of this process; keys that nobody holds cost nothing."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._shared: dict[str, _Shared] = {}
        os.register_at_fork(after_in_child=self._forget)

    @contextmanager
    def hold(self, key: str, timeout: float) -> Generator[bool]:
        """Hold the lock of `key`; yields whether it is held, which it is not after `timeout` seconds."""
        with self._guard:
            shared = self._shared.setdefault(key, _Shared())
            shared.users += 1
        held = shared.lock.acquire(timeout=timeout)
        try:
            yield held
        finally:
            if held:
                shared.lock.release()
            self._leave(key, shared)

    def _leave(self, key: str, shared: _Shared) -> None:
        with self._guard:
            shared.users -= 1
            if not shared.users and self._shared.get(key) is shared:
                del self._shared[key]

    def _forget(self) -> None:
        """A child has none of the threads that held something when it was forked off."""
        self._guard = threading.Lock()
        self._shared = {}
