"""What `gemmir doctor` says about the kernel cache and about the variables that gemmir reads; it changes neither."""

from __future__ import annotations

import os
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
    "GEMMIR_DEBUG": "shows Python tracebacks",
}
"""Every variable that gemmir reads, and what it does."""

READ_ONLY_FIX = "set GEMMIR_CACHE_DIR to a directory that can be written, to keep the kernels that are not in it"


def cache_checks() -> list[Check]:
    """The cache directory, what may be done with it, its size and its entries."""
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
    return [
        Check("cache directory", "ok", where + off, "looking"),
        _access(kept, base),
        Check("cache size", "ok", size, "looking"),
        Check("cache entries", "ok", str(len(entries)), "looking"),
    ]


def _access(kept: Cache, base: Path) -> Check:
    """Whether kernels can be added. What is not there yet is not made for that: its parent is asked."""
    from gemmir.cache import Cache

    if kept.directory is None or not kept.directory.is_dir():
        parent = next(path for path in (base, *base.parents) if path.is_dir())
        if os.access(parent, os.W_OK | os.X_OK):
            return Check("cache access", "ok", "not there yet, will be made", "looking")
        return Check("cache access", "limited", f"cannot be made in {printable(str(parent))}", "looking", READ_ONLY_FIX)
    try:
        Cache(base, required=True)
    except CacheError:
        return Check("cache access", "limited", "read-only", "looking", READ_ONLY_FIX)
    return Check("cache access", "ok", "writable", "looking")


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
