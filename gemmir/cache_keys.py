"""
Keys of the kernel cache: the facts that a kernel depends on, and their digest.

Two kernels that could differ have facts that differ. Nothing here imports xDSL, torch or CUDA.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from importlib.util import find_spec

from gemmir.cache_files import LENGTH, MAGIC, Json

LONGEST_RECORDED = 4096
"""Characters of a fact that an entry records as they are; of a longer one it records the digest."""


def digest(facts: Mapping[str, str | bytes]) -> str:
    """
    The key of `facts`: SHA-256, in hexadecimal.

    Names and values are length-prefixed and sorted by name, so no two mappings share an encoding.
    """
    hashed = hashlib.sha256(MAGIC + LENGTH.pack(len(facts)))
    for name, value in sorted(facts.items()):
        kind, data = (b"s", _utf8(value)) if isinstance(value, str) else (b"b", value)
        encoded = _utf8(name)
        hashed.update(LENGTH.pack(len(encoded)) + encoded + kind + LENGTH.pack(len(data)))
        hashed.update(data)
    return hashed.hexdigest()


def recorded(facts: Mapping[str, str]) -> dict[str, Json]:
    """`facts` as an entry records them, to be compared when it is found again."""
    return {name: value if len(value) <= LONGEST_RECORDED else _shortened(value) for name, value in facts.items()}


def canonical(value: object) -> str:
    """
    `value` as JSON text: equal for equal values, in every process, and for no others.

    It is made of None, booleans, integers, strings, tuples, enums, dataclasses and torch dtypes; `TypeError` for
    anything else, whose text might not say what it is.
    """
    return json.dumps(_plain(value), separators=(",", ":"))


def _plain(value: object) -> Json:
    if value is None or isinstance(value, bool | int) or type(value) is str:
        return value
    kind = type(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return {kind.__name__: value.name}
    if is_dataclass(value) and not isinstance(value, type):
        return {kind.__name__: {f.name: _plain(getattr(value, f.name)) for f in fields(value)}}
    if (kind.__module__, kind.__name__) == ("torch", "dtype"):
        return {"dtype": str(value)}
    raise TypeError(f"{kind.__name__} has no canonical text")


@cache
def sources_digest() -> str:
    """SHA-256 of gemmir's own code: a kernel made by other code has another key."""
    root = os.path.dirname(os.path.abspath(__file__))
    hashed = hashlib.sha256()
    for path in sorted(source_files(root)):
        data = _bytes(path)
        name = path[len(root) :].encode()
        hashed.update(LENGTH.pack(len(name)) + name + LENGTH.pack(len(data)))
        hashed.update(data)
    return hashed.hexdigest()


@cache
def xdsl_version() -> str:
    """The version of xDSL that is installed: its passes and printer have a hand in a kernel. xDSL is not imported."""
    spec = find_spec("xdsl")
    folder = os.path.dirname(os.path.dirname(spec.origin)) if spec is not None and spec.origin is not None else ""
    names = [name for name in _names(folder) if name.startswith("xdsl-") and name.endswith(".dist-info")]
    if len(names) == 1:  # a third of the time that importlib.metadata takes
        return names[0].removeprefix("xdsl-").removesuffix(".dist-info")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xdsl")
    except PackageNotFoundError:
        return "unknown"


def source_files(directory: str) -> Iterator[str]:
    """The files below `directory` that hold code."""
    with os.scandir(directory) as items:
        for item in items:
            if item.name.endswith((".py", ".cuh")):
                yield item.path
            elif "." not in item.name and item.name != "__pycache__" and item.is_dir():
                yield from source_files(item.path)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder) if folder else []
    except OSError:
        return []


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


def _shortened(value: str) -> str:
    data = _utf8(value)
    return f"sha256:{hashlib.sha256(data).hexdigest()} of {len(data)} bytes"


def _utf8(text: str) -> bytes:
    """Lone surrogates too: texts that are no text are told apart like any other, and refused by those who read them."""
    return text.encode(errors="surrogatepass")
