"""What processes do with the kernel cache in tests: find or "compile" a kernel, and say so in a file."""

import os
import time
from pathlib import Path

from gemmir.cache import Cache
from gemmir.cache_files import Entry
from gemmir.cache_keys import digest
from gemmir.compiler import _found_or_built  # pyright: ignore[reportPrivateUsage]

SOURCE = "// source"


def facts_of(name: str) -> dict[str, str]:
    return {"program": name}


def key_of(name: str) -> str:
    return digest(facts_of(name))


def kernel_of(name: str) -> Entry:
    """What compiling `name` gives: the same in each process."""
    return Entry({"facts": {"program": name}, "source": SOURCE}, name.encode() * 100)


def found_or_built(folder: Path, name: str, log: Path | None = None, seconds: float = 0.0) -> Entry:
    """As the compiler does it; each compilation takes `seconds` and adds a line to `log`."""

    def build() -> Entry:
        if log is not None:
            note(log, name)
        time.sleep(seconds)
        return kernel_of(name)

    return _found_or_built(Cache(folder), key_of(name), facts_of(name), build)


def note(log: Path, text: str) -> None:
    """Add a line; so short a one is written whole or not at all."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)
