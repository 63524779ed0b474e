"""Faults in what a process asks of the operating system while it uses the kernel cache."""

import fcntl
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("open", "write", "fsync", "replace", "close", "unlink", "mkdir", "fstat", "stat")),
    *((os, name) for name in ("listdir", "utime")),
    (fcntl, "flock"),
)
"""Everything that the cache calls and that can fail."""

Fault = Callable[[Callable[..., Any], str, tuple[Any, ...]], None]
"""Takes the call that is about to be made: the function, its name, its arguments. It returns if all goes on."""


@contextmanager
def watched(fault: Fault) -> Generator[list[str]]:
    """Let `fault` see every call before it is made; yields the names of those made so far."""
    made: list[str] = []
    real = [(module, name, getattr(module, name)) for module, name in CALLS]

    def wrap(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            fault(function, name, args)
            return function(*args, **kwargs)

        return call

    for module, name, function in real:
        setattr(module, name, wrap(function, name))
    try:
        yield made
    finally:
        for module, name, function in real:
            setattr(module, name, function)


def at_call(number: int, fault: Fault) -> Fault:
    """`fault` at the call of that number only, counted from 0."""
    left = [number]

    def once(function: Callable[..., Any], name: str, args: tuple[Any, ...]) -> None:
        left[0] -= 1
        if left[0] == -1:
            fault(function, name, args)

    return once


def kill(function: Callable[..., Any], name: str, args: tuple[Any, ...]) -> None:
    """The process is killed; what it was writing is there by half."""
    if name == "write":
        function(args[0], args[1][: len(args[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def failing(code: int) -> Fault:
    """The call fails with `code`; a file is closed even so."""

    def fail(function: Callable[..., Any], name: str, args: tuple[Any, ...]) -> None:
        if name == "close":
            function(*args)
        raise OSError(code, os.strerror(code))

    return fail


def nothing(function: Callable[..., Any], name: str, args: tuple[Any, ...]) -> None:
    """All goes well."""
