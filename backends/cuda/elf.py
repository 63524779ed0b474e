"""What tools wrote into the files that they made: the build id of a shared library, the toolkit of a cubin."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

_IDENT = b"\x7fELF\x02\x01"
"""ELF, 64 bits, little endian."""
_HEADER = struct.Struct("<32xQ14xHH")
"""Offset of the program headers, the size of one, how many."""
_SEGMENT = struct.Struct("<I4xQ16xQ")
"""Type, offset in the file, size in the file."""
_NOTE = struct.Struct("<III")
"""Size of the name, size of the content, type."""
_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3
_MOST_BYTES = 1 << 16
_RELEASE = b"Cuda compilation tools, release "


def build_id_of(path: Path) -> str | None:
    """The build id of a library, in hexadecimal; None if it has none, or is no 64-bit ELF file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return next(_build_ids(descriptor), None)
    except struct.error:  # it is cut short
        return None
    finally:
        os.close(descriptor)


def toolkit_of(cubin: bytes) -> tuple[int, int] | None:
    """The version of CUDA whose tools made `cubin`, e.g. (13, 0), by their own word; None if it does not say."""
    _, found, rest = cubin.partition(_RELEASE)
    major, _, minor = rest[:16].partition(b",")[0].partition(b".")
    return (int(major), int(minor)) if found and major.isdigit() and minor.isdigit() else None


def _build_ids(descriptor: int) -> Iterator[str]:
    header = os.pread(descriptor, 64, 0)
    if not header.startswith(_IDENT):
        return
    start, size, count = _HEADER.unpack_from(header)
    for number in range(count):
        kind, offset, length = _SEGMENT.unpack_from(os.pread(descriptor, size, start + number * size))
        if kind == _PT_NOTE:
            yield from _in_notes(os.pread(descriptor, min(length, _MOST_BYTES), offset))


def _in_notes(data: bytes) -> Iterator[str]:
    at = 0
    while at + _NOTE.size <= len(data):
        name_bytes, content_bytes, kind = _NOTE.unpack_from(data, at)
        name = at + _NOTE.size
        content = name + _aligned(name_bytes)
        if kind == _NT_GNU_BUILD_ID and data[name : name + name_bytes] == b"GNU\0" and content_bytes:
            yield data[content : content + content_bytes].hex()
        at = content + _aligned(content_bytes)


def _aligned(size: int) -> int:
    return -(-size // 4) * 4
