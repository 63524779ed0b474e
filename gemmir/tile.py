"""
The geometry that follows from a schedule: who owns which part of a tile, and where it lies in shared memory.

Derived data only. The rules that a schedule must obey are in `gemmir.legality`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

from gemmir.layouts import STAGED_COLUMNS, STMATRIX_BYTES
from gemmir.problem import SCALE_BLOCK, GemmProblem
from gemmir.schedule import SCALES_OF_TILE, Family, Schedule, Split
from gemmir.target import BARRIER_BYTES, SM_90A, WARP_LANES, Target

STAGE_ROW_BYTES = 128
"""A pipeline stage holds this many bytes of K of each row: one row of the 128-byte swizzle."""

WAVE_ROWS = SM_90A.wgmma_m
MOST_COLUMN_SLICES = 4
"""Slices of the columns of one wave: what more would free is less than a stage."""
SLICED_STAGES = 4
"""Stages that slices of sums in the tensor core make room for."""
SLICES_OF_16_BITS = 2
"""More of them cost more than the stage gains (measured: 192x192 in three)."""
SLICED_K_BLOCKS = 16
"""From so many k-blocks on the stage gains more than slices cost (measured: 8 are too few, 24 enough)."""


@dataclass(frozen=True, slots=True)
class TileGeometry:
    """
    Part of the `block_m` x `block_n` tile that one math warpgroup owns.

    `wg_rows` x `wg_columns` of WGMMA, walked in `waves` of 64 rows. `swapped`: these rows are columns of D. Weight
    scales start at multiples of 128 columns of D and a warpgroup's columns of D at multiples of `column_step`, so one
    scale per `column_step` columns serves any tile.
    """

    wg_rows: int
    wg_columns: int
    swapped: bool = False

    @property
    def waves(self) -> int:
        return self.wg_rows // WAVE_ROWS

    @property
    def fragment_registers(self) -> int:
        """f32 registers per thread of one 64 x `wg_columns` wave."""
        return self.wg_columns // 2

    @property
    def out_rows(self) -> int:
        """Rows of D."""
        return self.wg_columns if self.swapped else self.wg_rows

    @property
    def out_columns(self) -> int:
        """Columns of D."""
        return self.wg_rows if self.swapped else self.wg_columns

    @property
    def column_step(self) -> int:
        return gcd(WAVE_ROWS if self.swapped else self.wg_columns, SCALE_BLOCK)

    @property
    def wg_steps(self) -> int:
        return self.out_columns // self.column_step

    @property
    def sliced_by_columns(self) -> bool:
        """Whether a slice is some columns of the tile, where there is one wave of rows; else it is some waves."""
        return self.waves == 1 and not self.swapped

    def slice_shape(self, slices: int) -> tuple[int, int]:
        """Rows and columns of D in one of `slices` parts."""
        if self.sliced_by_columns:
            return self.out_rows, self.out_columns // slices
        return self.out_rows // slices, self.out_columns


def tile_geometry(schedule: Schedule) -> TileGeometry:
    """Geometry of a schedule whose block, split and math warpgroups are chosen."""
    block_m, block_n, groups = schedule.block_m, schedule.block_n, schedule.math_warpgroups
    assert block_m is not None and block_n is not None and groups is not None
    if schedule.family is Family.STREAM:
        return TileGeometry(block_n // groups, block_m, swapped=True)
    if schedule.split is Split.ALONG_N:
        return TileGeometry(block_m, block_n // groups)
    return TileGeometry(block_m // groups, block_n)


def tail_schedule(problem: GemmProblem, schedule: Schedule) -> Schedule:
    """How the narrower tiles of the last columns are computed, by a schedule that has such."""
    tail = replace(schedule, block_n=schedule.tail_n, tail_n=0, tail_after=0)
    if schedule.scale_batch in (None, 1):
        return tail
    return replace(tail, scale_batch=widest_scale_batch(problem, tail))


def widest_scale_batch(problem: GemmProblem, schedule: Schedule) -> int:
    """k-blocks whose weight scales the lanes of a warp can fetch in one load each; 1 where they do not fetch any so."""
    apart = schedule.family is Family.STREAM or schedule.scale_slots == SCALES_OF_TILE
    if not problem.promoted or problem.column_scales or apart:
        return 1
    assert schedule.block_n is not None
    steps = schedule.block_n // tile_geometry(schedule).column_step
    return max(1, WARP_LANES // (1 << (steps - 1).bit_length()))


@dataclass(frozen=True, slots=True)
class Exchange:
    """
    How two CTAs that sum a part of K each swap what they have of a tile, through slots of their operand rings.

    A CTA finishes one wave of each warpgroup, and gets the other CTA's sums of it: in `parts` slots one after another,
    of A's ring if `in_a`, else of B's. In each, every warpgroup has `registers` registers of its 128 threads.
    """

    parts: int
    in_a: bool
    registers: int

    @property
    def group_bytes(self) -> int:
        """Bytes of one slot that one warpgroup's sums take."""
        return SM_90A.warpgroup_threads * self.registers * 4


def exchange(schedule: Schedule) -> Exchange:
    """
    The exchange for a schedule whose blocks are chosen, with the fewest parts that fit the larger ring's slots.

    `gemmir.legality.split_k` says where registers fall into that many parts.
    """
    block_m, block_n, groups = schedule.block_m, schedule.block_n, schedule.math_warpgroups
    assert block_m is not None and block_n is not None and groups is not None
    registers = tile_geometry(schedule).fragment_registers
    wave_bytes = groups * SM_90A.warpgroup_threads * registers * 4
    parts = -(-wave_bytes // (max(block_m, block_n) * STAGE_ROW_BYTES))
    return Exchange(parts, block_m >= block_n, registers // parts)


def default_store_slices(problem: GemmProblem, schedule: Schedule) -> int:
    """
    The slices of a schedule that leaves them open, for the sake of the ring, which gets the shared memory.

    Where sums are promoted, one a wave: a wave's total is final while the next wave of the last k-block runs, so that
    nothing waits. Sums in the tensor core are final all at once, and each slice waits for the one before. f32 ones,
    which would take the shared memory of a stage or two, leave wave by wave, or one wave in as many slices as leave
    four stages. 16-bit ones leave in two where that leaves four stages and k-blocks are many enough (measured: up to 9%
    faster; 2% slower with eight k-blocks).
    """
    legal, wide = legal_store_slices(problem, schedule), problem.d.bytes > STMATRIX_BYTES
    if problem.promoted or (wide and not tile_geometry(schedule).sliced_by_columns):
        return legal[-1]
    if problem.has_c or (problem.part_k_blocks < SLICED_K_BLOCKS and not wide):
        return 1
    sliced = (replace(schedule, store_slices=n) for n in legal if wide or n <= SLICES_OF_16_BITS)
    fitting = (s for s in sliced if shared_layout(problem, s, SLICED_STAGES).total_bytes <= SM_90A.shared_bytes)
    return next((s.store_slices for s in fitting if s.store_slices), legal[-1] if wide else 1)


def legal_store_slices(problem: GemmProblem, schedule: Schedule) -> tuple[int, ...]:
    """The numbers of slices that a schedule with these blocks may have."""
    geometry = tile_geometry(schedule)
    if problem.numerics.split_k > 1 or geometry.swapped:
        return (1,)
    if geometry.waves > 1:
        return 1, geometry.waves
    if problem.promoted:
        return (1,)
    return tuple(n for n in range(1, MOST_COLUMN_SLICES + 1) if geometry.out_columns % (n * STAGED_COLUMNS) == 0)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True, slots=True)
class SharedLayout:
    """
    Shared memory of one CTA: byte offsets and sizes.

    A ring of `num_stages` slots for A, B and, if promoted with block scales, for the row scales of A (`scale_a`, one
    f32 a row) and the column scales of B (`scale_b`, one f32 a column step or, if each has its own, a column); a
    staging area a warpgroup for one slice of the outgoing tile; then the barriers, with `room_barriers` for the
    exchange where K is split.
    """

    num_stages: int
    math_warpgroups: int
    a_bytes: int
    b_bytes: int
    scale_a_bytes: int
    scale_b_bytes: int
    staging_bytes: int
    room_barriers: int = 0
    scale_tiles: int = 0
    """Slots for the scales of all k-blocks of a tile; 0 where every stage holds those of its k-block."""
    sum_slots: int = 0
    """Slots of `sums_bytes` for the sums of other parts of K, if one CTA finishes all of a tile."""
    sums_bytes: int = 0

    @property
    def scale_slots(self) -> int:
        return self.scale_tiles or self.num_stages

    @property
    def stage_bytes(self) -> int:
        """Bytes that one more stage costs, its two barriers included."""
        scales = 0 if self.scale_tiles else self.scale_a_bytes + self.scale_b_bytes
        return self.a_bytes + self.b_bytes + scales + 2 * BARRIER_BYTES

    @property
    def fixed_bytes(self) -> int:
        barriers = 2 * self.math_warpgroups + self.room_barriers
        scales = self.scale_tiles * (self.scale_a_bytes + self.scale_b_bytes + 2 * BARRIER_BYTES)
        sums = self.sum_slots * (self.sums_bytes + 2 * BARRIER_BYTES)
        return self.math_warpgroups * self.staging_bytes + barriers * BARRIER_BYTES + scales + sums

    @property
    def total_bytes(self) -> int:
        return self.num_stages * self.stage_bytes + self.fixed_bytes

    @property
    def a_offset(self) -> int:
        return 0

    @property
    def b_offset(self) -> int:
        return self.num_stages * self.a_bytes

    @property
    def staging_offset(self) -> int:
        return self.b_offset + self.num_stages * self.b_bytes

    @property
    def sums_offset(self) -> int:
        return self.staging_offset + self.math_warpgroups * self.staging_bytes

    @property
    def scale_a_offset(self) -> int:
        return self.sums_offset + self.sum_slots * self.sums_bytes

    @property
    def scale_b_offset(self) -> int:
        return self.scale_a_offset + self.scale_slots * self.scale_a_bytes

    @property
    def full_offset(self) -> int:
        return self.scale_b_offset + self.scale_slots * self.scale_b_bytes

    @property
    def empty_offset(self) -> int:
        return self.full_offset + self.num_stages * BARRIER_BYTES

    @property
    def staged_offset(self) -> int:
        return self.empty_offset + self.num_stages * BARRIER_BYTES

    @property
    def drained_offset(self) -> int:
        return self.staged_offset + self.math_warpgroups * BARRIER_BYTES

    @property
    def room_offset(self) -> int:
        return self.drained_offset + self.math_warpgroups * BARRIER_BYTES

    @property
    def scaled_offset(self) -> int:
        """Of the barriers of `scale_tiles`."""
        return self.room_offset + self.room_barriers * BARRIER_BYTES

    @property
    def unscaled_offset(self) -> int:
        return self.scaled_offset + self.scale_tiles * BARRIER_BYTES

    @property
    def summed_offset(self) -> int:
        """Of the barriers of `sum_slots`."""
        return self.unscaled_offset + self.scale_tiles * BARRIER_BYTES

    @property
    def unsummed_offset(self) -> int:
        return self.summed_offset + self.sum_slots * BARRIER_BYTES


def shared_layout(problem: GemmProblem, schedule: Schedule, num_stages: int | None = None) -> SharedLayout:
    """
    The layout for `num_stages` (default: the schedule's) of a schedule whose blocks are chosen.

    Where `store_slices` is open, the usual one is assumed.
    """
    stages = schedule.num_stages if num_stages is None else num_stages
    block_m, block_n, groups = schedule.block_m, schedule.block_n, schedule.math_warpgroups
    assert block_m is not None and block_n is not None and groups is not None and stages is not None
    geometry = tile_geometry(schedule)
    steps = block_n if problem.column_scales else block_n // geometry.column_step
    if schedule.tail_n and not problem.column_scales:
        steps = max(steps, schedule.tail_n // tile_geometry(tail_schedule(problem, schedule)).column_step)
    slices = schedule.store_slices or default_store_slices(problem, schedule)
    parts = 1 if geometry.swapped else problem.numerics.split_k
    rows, columns = geometry.slice_shape(slices)
    slice_bytes = rows // parts * columns * problem.d.bytes
    if geometry.swapped:
        return _stream_layout(problem, schedule, stages, slice_bytes)
    of_tile = schedule.scale_slots == SCALES_OF_TILE
    scaled_blocks = (scale_rows(problem) if of_tile else 1) if problem.promoted else 0
    scale_a, scale_b = scaled_blocks * block_m * 4, _round_up(scaled_blocks * steps * 4, 16)
    return SharedLayout(
        num_stages=stages,
        math_warpgroups=groups,
        a_bytes=block_m * STAGE_ROW_BYTES,
        b_bytes=block_n * STAGE_ROW_BYTES,
        scale_a_bytes=scale_a,
        scale_b_bytes=scale_b,
        scale_tiles=_scale_tiles(scale_a + scale_b) if of_tile else 0,
        staging_bytes=_round_up(slice_bytes, SM_90A.shared_alignment),
        room_barriers=1 if parts > 1 else 0,
    )


def fitting_stages(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> int:
    """The most stages that shared memory holds, however few."""
    layout = shared_layout(problem, schedule, 1)
    return (target.shared_bytes - layout.fixed_bytes) // layout.stage_bytes


PREFETCHED_BYTES = 64 << 10
"""Of the weights of its first tile that a CTA asks L2 for while the kernel before ends (measured: 16 KB to all)."""

SCALE_ROWS_STEP = 4
"""k-blocks whose scales of 8 rows fill what TMA writes to at least."""

SCALE_TILES_BYTES = 32 << 10
"""Scales of two tiles are held, those of the next one ahead, if they take no more than this."""


def _scale_tiles(bytes_: int) -> int:
    """Tiles whose scales are held, each of so many bytes."""
    return 2 if 2 * bytes_ <= SCALE_TILES_BYTES else 1


def scale_rows(problem: GemmProblem) -> int:
    """k-blocks whose scales a slot for whole tiles holds: those of a tile, and what fills it up."""
    return _round_up(problem.part_k_blocks, SCALE_ROWS_STEP)


def _stream_layout(problem: GemmProblem, schedule: Schedule, stages: int, slice_bytes: int) -> SharedLayout:
    """That of the `stream` family: scales of all k-blocks of a tile in one slot."""
    block_m, block_n, groups = schedule.block_m, schedule.block_n, schedule.math_warpgroups
    assert block_m is not None and block_n is not None and groups is not None
    rows, parts = scale_rows(problem), problem.numerics.split_k
    scale_a, scale_b = rows * block_m * 4, rows * (block_n // WAVE_ROWS) * 4
    return SharedLayout(
        num_stages=stages,
        math_warpgroups=groups,
        a_bytes=block_m * STAGE_ROW_BYTES,
        b_bytes=block_n * STAGE_ROW_BYTES,
        scale_a_bytes=scale_a if problem.promoted else 0,
        scale_b_bytes=scale_b if problem.promoted else 0,
        staging_bytes=_round_up(slice_bytes, SM_90A.shared_alignment),
        scale_tiles=_scale_tiles(scale_a + scale_b) if problem.promoted else 0,
        room_barriers=1 if parts > 1 else 0,
        sum_slots=parts - 1,
        sums_bytes=block_m * block_n * 4 if parts > 1 else 0,
    )
