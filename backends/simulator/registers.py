"""The registers of a warpgroup: accumulator fragments and scales, thread by thread as the hardware holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gemmir.backends.simulator.barriers import fault
from gemmir.backends.simulator.memory import Index
from gemmir.layouts import STMATRIX_BYTES, fragment_element, store_chunks
from gemmir.tensor_core import NAN, fma, multiply
from gemmir.tile import WAVE_ROWS

Singles = NDArray[np.float32]
Mask = NDArray[np.bool_]

THREADS = 128


@lru_cache(maxsize=64)
def fragment_map(columns: int) -> tuple[Index, Index]:
    """Row and column of each register of each thread in a 64 x `columns` fragment, both (128, columns / 2)."""
    places = [[fragment_element(t, r) for r in range(columns // 2)] for t in range(THREADS)]
    both = np.array(places, dtype=np.int64)
    return both[..., 0], both[..., 1]


@dataclass(slots=True)
class Fragment:
    """
    Accumulators of a warpgroup, (128 threads, columns / 2).

    `garbage` marks registers whose value means nothing. `in_flight`: WGMMAs that no wait has covered. `settled`: a wait
    has named the fragment since. `touched`: used by ordinary instructions since the last `wgmma_fence`.
    """

    columns: int
    name: str
    values: Singles = field(init=False)
    garbage: Mask = field(init=False)
    in_flight: int = 0
    settled: bool = True
    touched: bool = True

    def __post_init__(self) -> None:
        shape = (THREADS, self.columns // 2)
        self.values = np.empty(shape, np.float32)
        self.values.view(np.uint32)[...] = NAN
        self.garbage = np.ones(shape, np.bool_)

    def read(self) -> tuple[Singles, Mask]:
        """What ordinary instructions see: garbage until a wait has covered and named the WGMMAs that write it."""
        self.touched = True
        return self.values, self.garbage if self.settled else np.ones_like(self.garbage)

    def write(self, values: Singles, garbage: Mask) -> None:
        """Set by ordinary instructions."""
        if not self.settled:
            raise fault(
                f"{self.name} is written while WGMMAs into it are in flight", "wait for them, naming the fragment"
            )
        self.touched = True
        self.values, self.garbage = values, garbage

    def matrix(self) -> Singles:
        """The accumulators as 64 x columns."""
        made = np.empty((WAVE_ROWS, self.columns), np.float32)
        made[fragment_map(self.columns)] = self.values
        return made

    def accumulate(self, matrix: Singles, garbage: Mask, fresh: bool) -> None:
        """Set by WGMMA, as 64 x columns; `garbage`: where an operand was."""
        where = fragment_map(self.columns)
        self.values = matrix[where]
        self.garbage = garbage[where] if fresh else garbage[where] | self.garbage


@dataclass(slots=True)
class ScaleRegisters:
    """Scales of one stage: of two rows a wave in each thread (128, waves, 2), and of each column step (steps)."""

    waves: int
    steps: int
    rows: Singles = field(init=False)
    columns: Singles = field(init=False)
    garbage_rows: Mask = field(init=False)
    garbage_columns: Mask = field(init=False)

    def __post_init__(self) -> None:
        self.rows = np.zeros((THREADS, self.waves, 2), np.float32)
        self.columns = np.zeros(self.steps, np.float32)
        self.garbage_rows = np.ones(self.rows.shape, np.bool_)
        self.garbage_columns = np.ones(self.columns.shape, np.bool_)

    def copy_from(self, other: ScaleRegisters) -> None:
        self.rows, self.columns = other.rows, other.columns
        self.garbage_rows, self.garbage_columns = other.garbage_rows, other.garbage_columns


def promote(partial: Fragment, total: Fragment, scales: ScaleRegisters, wave: int, step: int) -> None:
    """Register by register: total = fma(partial, row scale * column scale, total)."""
    register = np.arange(partial.columns // 2)
    row, column = register // 2 % 2, register // 4 * 8 // step
    values, garbage = partial.read()
    sums, garbage_sums = total.read()
    scale = multiply(scales.rows[:, wave, row], scales.columns[column])
    garbage = garbage | garbage_sums | scales.garbage_rows[:, wave, row] | scales.garbage_columns[column]
    total.write(fma(values, scale, sums), garbage)


@lru_cache(maxsize=256)
def staging_offsets(columns: int, rows: int, element_bytes: int, first_row: int) -> Index:
    """
    Where each register of 64 rows from `first_row` on is staged, in bytes from the staging area of `rows` x `columns`,
    (128, columns / 2): 16-bit elements by `stmatrix.x4`, wider ones by ordinary stores.

    stmatrix: lane l of a warp gives the address of row l % 16 in the 8-column group l / 16; matrix j of four has its
    rows from lanes 8j .. 8j + 7, and its elements 2t, 2t + 1 of row r from registers 2j, 2j + 1 of lane 4r + t.
    """
    if element_bytes > STMATRIX_BYTES:
        return _stored_offsets(columns, rows, element_bytes, first_row)
    thread = np.arange(THREADS, dtype=np.int64)[:, None]
    register = np.arange(8, dtype=np.int64)
    warp, lane = thread // 32, thread % 32
    addressing = register // 2 * 8 + lane // 4
    row = first_row + 16 * warp + addressing % 16
    inside = (lane % 4 * 2 + register % 2) * element_bytes
    offsets = np.empty((THREADS, columns // 2), np.int64)
    for chunk in store_chunks(columns, rows, element_bytes):
        permutation = row >> chunk.swizzle.row_shift & chunk.swizzle.row_mask
        for group in range(chunk.columns // 16):
            place = (2 * group + addressing // 16) ^ permutation
            first = chunk.first // 2 + 8 * group
            start = chunk.offset + row * chunk.columns * element_bytes
            offsets[:, first : first + 8] = start + place * 16 + inside
    return offsets


@lru_cache(maxsize=256)
def transposed_offsets(columns: int, rows: int, element_bytes: int, first_column: int) -> Index:
    """
    As `staging_offsets`, of a fragment whose 64 rows are columns of the staging area from `first_column` on, and whose
    columns are its `rows`: by `stmatrix.trans`, (128, rows / 2).

    Lane l of a warp gives the address of row l % 8 of matrix l / 8, the even matrices with the warp's first 8 columns;
    each pair of matrices goes 8 rows further. Elements 2t and 2t + 1 of registers 2j, 2j + 1 of lane 4r + t are those
    of rows 2t, 2t + 1 and column r of matrix j.
    """
    thread = np.arange(THREADS, dtype=np.int64)[:, None]
    register = np.arange(rows // 2, dtype=np.int64)
    warp, lane = thread // 32, thread % 32
    matrix = register // 2
    row = matrix // 2 * 8 + lane % 4 * 2 + register % 2
    (chunk,) = (c for c in store_chunks(columns, rows, element_bytes) if c.first == first_column)
    place = (warp * 2 + matrix % 2) ^ (row >> chunk.swizzle.row_shift & chunk.swizzle.row_mask)
    return chunk.offset + row * chunk.columns * element_bytes + place * 16 + lane // 4 * element_bytes


def _stored_offsets(columns: int, rows: int, element_bytes: int, first_row: int) -> Index:
    """`staging_offsets` of ordinary stores: every thread puts each of its registers where the box has its element."""
    row, column = fragment_map(columns)
    row = row + first_row
    offsets = np.empty((THREADS, columns // 2), np.int64)
    for chunk in store_chunks(columns, rows, element_bytes):
        mine = (column >= chunk.first) & (column < chunk.first + chunk.columns)
        byte = (column - chunk.first) * element_bytes
        place = byte // 16 ^ (row >> chunk.swizzle.row_shift & chunk.swizzle.row_mask)
        offset = chunk.offset + row * chunk.columns * element_bytes + place * 16 + byte % 16
        offsets[mine] = offset[mine]
    return offsets
