"""
The shared memory of one CTA: bytes, and what is known of each byte.

A byte may be read by TMA or WGMMA only if its state is `VALID`. It is not while nothing was written to it, while TMA is
on its way to it, and after an ordinary store until the storing warp has fenced, met (`sync_warp`) and signalled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmir.errors import UnsupportedError
from gemmir.layouts import DESCRIPTOR_STEP, PANEL, PANEL_BYTES, PANEL_STEP, Swizzle, descriptor_high_bits

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]

CHUNK = 16
"""TMA and WGMMA move whole chunks of 16 bytes."""
PATTERN = 1024
"""Every swizzle repeats after so many bytes."""
UNWRITTEN = 0xFF

VALID = 1
UNFENCED = 2
"""Written by an ordinary store that no `fence.proxy.async` has followed yet."""
PRIVATE = 4
"""Written by an ordinary store that no signal has published yet."""
IN_FLIGHT = 8
"""The target of a TMA load that has not arrived."""


@dataclass(frozen=True, slots=True)
class Region:
    """Elements of shared memory: byte offsets, and bytes per element."""

    offsets: Index
    size: int


@dataclass(slots=True)
class SharedMemory:
    """`size` bytes of shared memory that start at address 0."""

    size: int
    data: Bytes = field(init=False)
    state: Bytes = field(init=False)

    def __post_init__(self) -> None:
        padded = -(-self.size // PATTERN) * PATTERN
        self.data = np.full(padded, UNWRITTEN, np.uint8)
        self.state = np.zeros(padded, np.uint8)

    def chunks(self, index: Index) -> tuple[Bytes, Bytes]:
        """Bytes and states of 16-byte chunks: `index` (...) -> two copies (..., 16)."""
        return self.data.reshape(-1, CHUNK)[index], self.state.reshape(-1, CHUNK)[index]

    def put_chunks(self, index: Index, data: Bytes) -> None:
        self.data.reshape(-1, CHUNK)[index] = data
        self.state.reshape(-1, CHUNK)[index] = VALID

    def mark_chunks(self, index: Index, state: int) -> None:
        self.state.reshape(-1, CHUNK)[index] = state

    def write(self, region: Region, values: NDArray[Any]) -> None:
        """Ordinary stores of `values`, whose elements are `region.size` bytes wide."""
        self.data.view(values.dtype)[region.offsets // region.size] = values
        self.mark(region, VALID | UNFENCED | PRIVATE)

    def mark(self, region: Region, state: int) -> None:
        word = np.dtype(f"u{region.size}")
        self.state.view(word)[region.offsets // region.size] = state * (256**region.size - 1) // 255

    def load_f32(self, offsets: Index) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Ordinary loads: values, and which of them are garbage."""
        states = self.state.view(np.uint32)[offsets // 4] & ~np.uint32(UNFENCED * 0x01010101)
        return self.data.view(np.float32)[offsets // 4], states != VALID * 0x01010101


def load_words(shared: SharedMemory, offsets: Index, size: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Ordinary loads of elements of `size` bytes: raw bits, and which of them are garbage."""
    word = np.dtype(f"u{size}")
    ones = (256**size - 1) // 255
    states = shared.state.view(word)[offsets // size] & word.type(~(UNFENCED * ones) & 256**size - 1)
    return shared.data.view(word)[offsets // size], states != VALID * ones


def swizzled(address: Index, swizzle: Swizzle) -> Index:
    """Where a linearly addressed byte lies: 16-byte chunks are permuted within rows of the swizzle's span."""
    row = address // swizzle.span
    return address ^ ((row >> swizzle.row_shift & swizzle.row_mask) << 4)


@lru_cache(maxsize=256)
def _box(rows: int, row_bytes: int, swizzle: Swizzle, phase: int) -> Index:
    linear = phase + np.arange(0, rows * row_bytes, CHUNK, dtype=np.int64)
    return (swizzled(linear, swizzle) - phase) // CHUNK


def box_chunks(address: int, rows: int, row_bytes: int, swizzle: Swizzle) -> Index:
    """Chunk numbers of a TMA box that starts at `address`, row by row, (rows * row_bytes / 16)."""
    if address % CHUNK or row_bytes % CHUNK or (swizzle is not Swizzle.NONE and row_bytes != swizzle.span):
        raise UnsupportedError(
            "GMR-U001",
            f"a box of {row_bytes}-byte rows at shared address {address} in swizzle {swizzle.ir_name}",
            rule="rows are multiples of 16 bytes, and as wide as their swizzle",
        )
    return address // CHUNK + _box(rows, row_bytes, swizzle, address % PATTERN)


_MODES = {s.descriptor_mode: s for s in Swizzle}


def operand_descriptor(address: int) -> int:
    """The 64-bit descriptor of a K-major operand in 128-byte swizzled rows."""
    return descriptor_high_bits(Swizzle.B128, 8 * Swizzle.B128.span) | (address & 0x3FFFF) >> 4


@lru_cache(maxsize=1024)
def descriptor_chunks(descriptor: int, rows: int) -> Index:
    """Chunk numbers that one WGMMA reads through a descriptor, (rows, 2): 32 bytes of K of each row."""
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    swizzle = _MODES[descriptor >> 62]
    row, byte = np.arange(rows, dtype=np.int64)[:, None], np.arange(0, 32, CHUNK, dtype=np.int64)
    linear = start + row // 8 * stride + row % 8 * swizzle.span + byte
    return swizzled(linear, swizzle) // CHUNK


@lru_cache(maxsize=1024)
def slot_chunks(address: int, rows: int) -> Index:
    """Chunk numbers of the four WGMMAs that multiply a slot, (rows, 8): 128 bytes of K of each row."""
    first = operand_descriptor(address)
    parts = [descriptor_chunks(first + DESCRIPTOR_STEP * i, rows) for i in range(4)]
    return np.concatenate(parts, axis=1)


def panel_descriptor(address: int) -> int:
    """The 64-bit descriptor of an operand in panels."""
    return descriptor_high_bits(Swizzle.B128, 8 * Swizzle.B128.span, PANEL_BYTES) | (address & 0x3FFFF) >> 4


@lru_cache(maxsize=1024)
def panel_elements(descriptor: int, rows: int) -> Index:
    """Byte offsets of the 16-bit elements that one WGMMA reads and transposes, (rows of A or columns of B, 16)."""
    start, leading, stride = ((descriptor >> bit & 0x3FFF) << 4 for bit in (0, 16, 32))
    swizzle = _MODES[descriptor >> 62]
    row, k = np.arange(rows, dtype=np.int64)[:, None], np.arange(16, dtype=np.int64)
    linear = start + row // PANEL * leading + k // 8 * stride + k % 8 * swizzle.span + row % PANEL * 2
    return swizzled(linear, swizzle)


@lru_cache(maxsize=1024)
def slot_panels(address: int, rows: int) -> Index:
    """Byte offsets of what the four WGMMAs that multiply a slot read, (rows, 64)."""
    first = panel_descriptor(address)
    return np.concatenate([panel_elements(first + PANEL_STEP * i, rows) for i in range(4)], axis=1)
