"""What `gemmir doctor` says about the kernel cache and about the variables that gemmir reads; it changes neither."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.cli.cache_facts import printable
from gemmir.cli.doctor_check import Check
from gemmir.errors import CacheError

if TYPE_CHECKING:
    from gemmir.cache import Cache

VARIABLES = {
    "GEMMIR_CACHE": "0 switches the kernel cache off",
    "GEMMIR_CACHE_DIR": "where it lies",
    "GEMMIR_CACHE_MAX": "how large it may become",
    "GEMMIR_COMPILE_TIMEOUT": "how many seconds NVRTC may take for a kernel",
    "GEMMIR_DEBUG": "shows Python tracebacks",
    "GEMMIR_WATCHDOG_MS": "ends kernels that wait for so long",
}
"""Every variable that gemmir reads, and what it does."""

READ_ONLY_FIX = "set GEMMIR_CACHE_DIR to a directory that can be written, to keep the kernels that are not in it"
LEAST_FREE = 1 << 30
"""Bytes that the file system of the cache should have left."""
ROOM_FIX = (
    "free 1 GiB there, as `gemmir cache clear` may help to, or set GEMMIR_CACHE_DIR to a directory elsewhere; "
    "on a full disk no kernel is kept"
)


def cache_checks() -> list[Check]:
    """The cache directory, what may be done with it, the room for more if more may be kept, its size, its entries."""
    from gemmir.cache import Cache
    from gemmir.cache_settings import default_directory, switched_off

    off = "  switched off by GEMMIR_CACHE=0" if switched_off() else ""
    base = default_directory()
    kept = Cache(base)
    where = "none" if base is None else printable(str(kept.directory))
    try:
        kept.check()
    except CacheError as error:
        return [Check("cache directory", "missing", f"{where}: {error.what}", "looking", error.fix or "")]
    assert base is not None  # or check() had said so
    entries = kept.entries()
    size = f"{sum(entry.size for entry in entries)} of at most {kept.capacity_bytes} bytes"
    access = _access(kept, base)
    return [
        Check("cache directory", "ok", where + off, "looking"),
        access,
        *([_room(kept.directory or base)] if access.status == "ok" else []),
        Check("cache size", "ok", size, "looking"),
        Check("cache entries", "ok", str(len(entries)), "looking"),
    ]


def _access(kept: Cache, base: Path) -> Check:
    """Whether kernels can be added. What is not there yet is not made for that: its parent is asked."""
    from gemmir.cache import Cache

    if kept.directory is None or not kept.directory.is_dir():
        parent = _there(base)
        if os.access(parent, os.W_OK | os.X_OK):
            return Check("cache access", "ok", "not there yet, will be made", "looking")
        return Check("cache access", "limited", f"cannot be made in {printable(str(parent))}", "looking", READ_ONLY_FIX)
    try:
        Cache(base, required=True)
    except CacheError:
        return Check("cache access", "limited", "read-only", "looking", READ_ONLY_FIX)
    return Check("cache access", "ok", "writable", "looking")


def _room(directory: Path) -> Check:
    """Whether the file system of the cache is nearly full: kernels are then lost, though nothing fails."""
    try:
        usage = shutil.disk_usage(_there(directory))
    except OSError as error:
        return Check("cache room", "ok", f"not known: {error.strerror}", "looking")
    if usage.total == 0:  # how some file systems say that they do not know
        return Check("cache room", "ok", "not known", "looking")
    if usage.free >= LEAST_FREE:
        return Check("cache room", "ok", f"{usage.free} bytes free", "looking")
    return Check("cache room", "limited", f"{usage.free} bytes free, under {LEAST_FREE}", "looking", ROOM_FIX)


def _there(path: Path) -> Path:
    """The directory itself, or the innermost of those around it that exists."""
    return next(found for found in (path, *path.parents) if found.is_dir())


def variable_checks() -> list[Check]:
    """The GEMMIR_* variables that are set; one that gemmir does not read may be a slip of the pen."""
    return [_variable(name) for name in sorted(os.environ) if name.startswith("GEMMIR_")]


def _variable(name: str) -> Check:
    value = printable(os.environ[name])
    if name in VARIABLES:
        return Check(name, "ok", f"{value}  {VARIABLES[name]}", "looking")
    return Check(
        printable(name), "limited", f"{value}  not read by gemmir", "looking", f"gemmir reads {', '.join(VARIABLES)}"
    )
