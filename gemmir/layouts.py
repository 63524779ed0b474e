"""
Where bytes and values lie: swizzles, WGMMA descriptors and accumulator fragments.

Plain Python and the one source of truth: the printer emits these formulas, and whoever checks or simulates a kernel
evaluates them. Sources: PTX ISA, "Asynchronous warpgroup level matrix shared memory layout" and "matrix fragments";
confirmed bit for bit on an H200.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from gemmir.records import dataclass


class Swizzle(Enum):
    """
    Shared-memory swizzle: within rows of `span` bytes, 16-byte chunks are permuted by the row number.

    The value is the span in bytes (16: no swizzle, rows of any width).
    """

    NONE = 16
    B32 = 32
    B64 = 64
    B128 = 128

    @property
    def span(self) -> int:
        return self.value

    @property
    def ir_name(self) -> str:
        return self.name.lower()

    @property
    def tma(self) -> str:
        """Suffix of `CU_TENSOR_MAP_SWIZZLE_`."""
        return "NONE" if self is Swizzle.NONE else f"{self.value}B"

    @property
    def descriptor_mode(self) -> int:
        """Bits 62-63 of a WGMMA descriptor; TMA's own numbering runs the other way."""
        return {Swizzle.NONE: 0, Swizzle.B128: 1, Swizzle.B64: 2, Swizzle.B32: 3}[self]

    @property
    def row_shift(self) -> int:
        """`chunk ^= (row >> row_shift) & row_mask` is the permutation."""
        return {Swizzle.NONE: 0, Swizzle.B32: 2, Swizzle.B64: 1, Swizzle.B128: 0}[self]

    @property
    def row_mask(self) -> int:
        return self.value // 16 - 1

    @property
    def alignment(self) -> int:
        """Bytes at whose multiples the pattern starts anew: 8 rows of the span (16 rows never differ from 8)."""
        return {Swizzle.NONE: 16, Swizzle.B32: 256, Swizzle.B64: 512, Swizzle.B128: 1024}[self]

    def chunk(self, row: int, chunk: int) -> int:
        """Where the 16-byte chunk number `chunk` of `row` lies within that row."""
        return chunk ^ ((row >> self.row_shift) & self.row_mask)

    def offset(self, row: int, byte: int, row_bytes: int | None = None) -> int:
        """Byte offset of byte `byte` of row `row` in a tile whose rows are `row_bytes` (default: the span) wide."""
        width = self.span if row_bytes is None else row_bytes
        return row * width + self.chunk(row, byte // 16) * 16 + byte % 16


SWIZZLES: dict[str, Swizzle] = {s.ir_name: s for s in Swizzle}


def swizzle_for_row(row_bytes: int) -> Swizzle:
    """The widest swizzle whose span is exactly one row of `row_bytes`, else none."""
    return {32: Swizzle.B32, 64: Swizzle.B64, 128: Swizzle.B128}.get(row_bytes, Swizzle.NONE)


def descriptor_high_bits(swizzle: Swizzle, stride_bytes: int, leading_bytes: int = 0) -> int:
    """
    The constant part of a 64-bit WGMMA descriptor.

    Bits 0-13 (added later) hold address >> 4, bits 16-29 the distance of panels >> 4 (if the operand is not K-major),
    bits 32-45 the distance of 8-row groups >> 4, bits 62-63 the swizzle.
    """
    return (swizzle.descriptor_mode << 62) | ((stride_bytes >> 4) << 32) | ((leading_bytes >> 4) << 16)


DESCRIPTOR_STEP = 2
"""Added to a descriptor per 32 bytes of K inside a 128-byte swizzled row."""


PANEL = 64
"""
Elements of M or N in a panel of an operand that is not K-major: one swizzled row of 128 bytes holds them for one k, and
the rows of a k-block follow one another. So `PANEL` rows of D are as many bytes as in a K-major slot.
"""

PANEL_BYTES = PANEL * 128
"""A panel of one k-block, which is 64 16-bit elements deep."""

PANEL_STEP = 16 * 128 >> 4
"""Added to a descriptor per 16 elements of K of such an operand."""


class FragmentElement(NamedTuple):
    row: int
    column: int


def fragment_element(thread: int, register: int) -> FragmentElement:
    """Row (0..63) and column of accumulator `register` of `thread` (0..127) in a 64 x N f32 WGMMA fragment."""
    warp, lane = divmod(thread, 32)
    row = 16 * warp + lane // 4 + 8 * (register // 2 % 2)
    return FragmentElement(row, 8 * (register // 4) + 2 * (lane % 4) + register % 2)


STMATRIX_BYTES = 2
"""Elements that `stmatrix` stores. Wider ones are staged by ordinary stores: two neighbours, 8 bytes, at a time."""


@dataclass(frozen=True, slots=True)
class StoreChunk:
    """Columns of a staged output tile that leave in one TMA box: `columns` from `first`, in their own swizzle."""

    first: int
    columns: int
    swizzle: Swizzle
    offset: int
    """Bytes from the start of the warpgroup's staging area."""


STAGED_COLUMNS = 16
"""Columns of a fragment that leave together: those of one `stmatrix.x4`."""


def store_chunks(columns: int, rows: int, element_bytes: int = 2) -> tuple[StoreChunk, ...]:
    """
    Split a warpgroup's `rows` x `columns` output into TMA boxes of one swizzle row each.

    As many 128-byte wide boxes as fit, then one of 64 and one of 32 bytes: `columns` is a multiple of 16 for 2-byte
    elements, of 8 for 4-byte ones. Widest first, so that every box starts where its swizzle pattern does.
    """
    chunks: list[StoreChunk] = []
    first = offset = 0
    for width_bytes in (128, 64, 32):
        width = width_bytes // element_bytes
        while columns - first >= width:
            chunks.append(StoreChunk(first, width, swizzle_for_row(width_bytes), offset))
            first += width
            offset += rows * width_bytes
    if first != columns:
        raise ValueError(f"{columns} columns do not divide into boxes of 32 bytes")
    return tuple(chunks)
