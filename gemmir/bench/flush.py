"""
How L2 is emptied before a launch that is timed with a cold L2.

`zero` writes 512 MB and leaves L2 full of dirty lines, which the timed kernel must first push out to DRAM. `read` reads
512 MB that nobody writes: every line that it leaves is clean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FLUSH_BYTES = 512_000_000
"""Ten times the L2 of an H200."""
FLUSHES = ("zero", "read")

_READ_ROWS = 2048
"""Sums that a reading flush writes, 8 KB: enough for a block each, so that torch sums in one kernel without a fill."""


def flusher(kind: str) -> Callable[[], object]:
    """What puts one flush of `kind`, one of `FLUSHES`, on torch's current stream."""
    return {"zero": _zeroing, "read": _reading}[kind]()


def is_flush(kind: str, name: str) -> bool:
    """Whether something on the GPU with this name, as the profiler tells it, may be a flush of `kind`."""
    if kind == "read":
        return "at::native::reduce_kernel" in name
    return "memset" in name.lower() or "FillFunctor" in name


@functools.cache
def _zeroing() -> Callable[[], object]:
    return _written_once().zero_


@functools.cache
def _reading() -> Callable[[], object]:
    """Has read once: what making the buffer left dirty in L2 is written back."""
    import torch

    rows = _written_once().view(_READ_ROWS, -1)
    sums = torch.empty(_READ_ROWS, dtype=torch.int32, device=rows.device)

    def read() -> object:
        return torch.sum(rows, 1, dtype=torch.int32, out=sums)

    read()
    return read


def _written_once() -> torch.Tensor:
    """So that no series pays for its first touch."""
    import torch

    return torch.zeros(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
