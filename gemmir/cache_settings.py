"""
What the environment says about the kernel cache; nothing in it names code.

GEMMIR_CACHE=0 switches it off, GEMMIR_CACHE_DIR and XDG_CACHE_HOME say where it lies, GEMMIR_CACHE_MAX how large it may
become. They are read each time that the cache is opened.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
from pathlib import Path

logger = logging.getLogger("gemmir.cache")

CAPACITY_BYTES = 1 << 30
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_SIZE = re.compile(r"([0-9]{1,15})([KMG]?)", re.ASCII)
_warned: set[str] = set()


def switched_off() -> bool:
    """Whether GEMMIR_CACHE is 0."""
    value = os.environ.get("GEMMIR_CACHE", "")
    if value not in ("", "0", "1"):
        _warn_once(f"GEMMIR_CACHE={value:.40} is neither 0 nor 1: the kernel cache stays on")
    return value == "0"


def capacity() -> int:
    """Bytes that the cache may hold: GEMMIR_CACHE_MAX, a number of bytes or one of K, M or G, else 1 GiB."""
    value = os.environ.get("GEMMIR_CACHE_MAX", "")
    if not value:
        return CAPACITY_BYTES
    if (found := _SIZE.fullmatch(value)) is None:
        _warn_once(f"GEMMIR_CACHE_MAX={value:.40} is no size such as 500M: the kernel cache holds up to 1G")
        return CAPACITY_BYTES
    return int(found[1]) << _UNITS[found[2]]


def default_directory() -> Path | None:
    """
    `$GEMMIR_CACHE_DIR`, else `$XDG_CACHE_HOME/gemmir`, else `~/.cache/gemmir`; None if there is no home.

    A process with rights that its caller has not got takes no directory from its environment.
    """
    if _is_elevated():
        return _below(_home_of_user())
    if named := os.environ.get("GEMMIR_CACHE_DIR"):
        return _absolute(named)
    if os.path.isabs(xdg := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(xdg) / "gemmir"
    home = os.environ.get("HOME", "")
    return _below(home if os.path.isabs(home) else _home_of_user())


def _is_elevated() -> bool:
    return os.getuid() != os.geteuid() or os.getgid() != os.getegid()


def _absolute(path: str) -> Path | None:
    try:
        return Path(path).absolute()
    except OSError:  # it is relative to a directory that was removed
        return None


def _home_of_user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""


def _below(home: str) -> Path | None:
    """The cache in a home directory, which is not made where it is missing."""
    return Path(home) / ".cache" / "gemmir" if os.path.isdir(home) else None


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        logger.warning("%s", text)
