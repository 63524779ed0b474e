"""
Work in a thread of its own, for calls that cannot be interrupted: who waits for them can.

Python handles a signal between two of its instructions, in the main thread. A call into NVRTC lasts seconds, and takes
no request to end. So it is made in another thread, and Ctrl-C, or the end of the time for it, leaves it to itself: it
ends when it ends, cleans up, and what it made is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

NAME = "gemmir-compile"


class TimeIsUpError(Exception):
    """The work is not done, and goes on in its thread."""


class _Work(Generic[T]):
    """A call, and what came of it."""

    def __init__(self, call: Callable[[], T]):
        self._call = call
        self._done = threading.Event()
        self._results: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._results.append(self._call())
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def result(self, seconds: float | None) -> T:
        if not self._done.wait(seconds):
            raise TimeIsUpError
        if self._error is not None:
            raise self._error
        return self._results[0]


def apart(call: Callable[[], T], seconds: float | None = None) -> T:
    """
    What `call()` returns or raises; made in a thread of its own, which the interpreter waits for before it exits.

    `TimeIsUpError` if it takes longer than `seconds` (None: as long as it takes). Like any other wait, this one is left
    at once where a signal raises `KeyboardInterrupt`.
    """
    work = _Work(call)
    threading.Thread(target=work.run, name=NAME).start()
    return work.result(seconds)


def left_behind() -> bool:
    """Whether some work goes on in its thread."""
    return any(thread.name == NAME for thread in threading.enumerate())
