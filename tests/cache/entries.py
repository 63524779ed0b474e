"""Entries that the tests of the kernel cache keep, and what they say about the log."""

import logging
from pathlib import Path

import pytest

from gemmir.cache import Cache
from gemmir.cache_files import Entry
from gemmir.cache_keys import digest

KEY = digest({"name": "a kernel"})
OTHER = digest({"name": "another"})
ENTRY = Entry({"manifest": "{}", "log": "ptxas", "n": 3, "nested": [1, None, {"a": 1.5}]}, bytes(range(256)) * 40)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "gemmir.cache" and r.levelno == logging.WARNING]


def stored_bytes(folder: Path) -> tuple[Path, bytes]:
    """The file of `KEY` after it was put, and what is in it."""
    cache = Cache(folder)
    cache.put(KEY, ENTRY)
    path = cache.path_of(KEY)
    assert path is not None
    return path, path.read_bytes()


def names_in(folder: Path) -> list[str]:
    """What lies in the cache `folder`, by suffix."""
    return sorted(path.suffix for path in (folder / "v1").iterdir())
