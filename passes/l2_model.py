"""
What the tile order costs: DRAM traffic, and how much of what is loaded is shared by CTAs that run side by side.

All resident CTAs compute one wave of tiles at a time and walk K together. A wave therefore reads each row of A-tiles
and each column of B-tiles that it touches once from DRAM, unless L2 still has it: from the wave before, or from the
last time that the order came by. Results go through L2 too. On an H200, 8192 x 8192 x 8192 in groups of 8 read 614 MB
for 134 MB of operands, and this model, whose constants are fitted to times, says 511 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from gemmir.passes.cost_constants import DEFAULT, Constants
from gemmir.problem import GemmProblem
from gemmir.schedule import RasterAxis, Schedule
from gemmir.target import SM_90A, Target

GROUPS = (1, 2, 4, 6, 8, 12, 16, 24, 32)
"""Group widths that are worth telling apart."""

NEIGHBOURS_A = 16
NEIGHBOURS_B = 4
"""
Clusters in a row whose loads of the same bytes of A, or of B, are cheaper than loads of other bytes. Of 2 to 64 for
either, these fit raster sweeps best; the hardware's reason is not known.
"""

WAVES_LOOKED_AT = 24
"""Waves are alike after a few: beyond this many, the traffic of the first ones is scaled up."""


@dataclass(frozen=True, slots=True)
class Grid:
    """
    The cluster tiles of a problem: `rows` x `columns`, of which `resident` are computed at a time.

    `row_bytes` is one row of tiles of A over all of K, `column_bytes` one column of tiles of B, `result_bytes` one tile
    of D; a tile is of `cluster_m` x `cluster_n` CTAs.
    """

    rows: int
    columns: int
    resident: int
    row_bytes: int
    column_bytes: int
    result_bytes: int
    cluster_m: int = 1
    cluster_n: int = 1

    @property
    def waves(self) -> int:
        return -(-self.rows * self.columns // self.resident)

    @property
    def operand_bytes(self) -> int:
        return self.rows * self.row_bytes + self.columns * self.column_bytes


@dataclass(frozen=True, slots=True)
class Traffic:
    """
    A tile order and what it moves: `footprint` bytes of A and B in its largest wave, `operand_bytes` of A and B in all,
    each once, and `dram_again` bytes that DRAM reads more than once.

    `distinct_a` is the part of all loads which are of A and which no neighbouring CTA does too; `distinct_b` of B.
    """

    axis: RasterAxis
    group: int
    footprint: int
    operand_bytes: int
    dram_again: int
    distinct_a: float
    distinct_b: float

    @property
    def dram_bytes(self) -> int:
        """Of A and B, read."""
        return self.operand_bytes + self.dram_again

    def __str__(self) -> str:
        return f"{self.axis.value} in groups of {self.group}"


def resident_clusters(schedule: Schedule, target: Target = SM_90A, *, split_k: int = 1) -> int:
    """Clusters that run at once, one CTA an SM; where K is split, a CTA of each tile for each part."""
    ctas = (schedule.cluster_m or 1) * (schedule.cluster_n or 1) * split_k
    clusters = target.sms // ctas
    return min(clusters, target.clusters_of_four) if ctas == 4 else clusters


def cluster_tiles(problem: GemmProblem, schedule: Schedule) -> tuple[int, int]:
    """Rows and columns of the grid of cluster tiles, the rows of all groups one after another."""
    rows, columns = group_tiles(problem, schedule)
    return problem.groups * rows, columns


def group_tiles(problem: GemmProblem, schedule: Schedule) -> tuple[int, int]:
    """Rows and columns of one group's grid of cluster tiles."""
    assert schedule.block_m is not None and schedule.block_n is not None
    rows = -(-problem.group_rows // (schedule.block_m * (schedule.cluster_m or 1)))
    return rows, -(-problem.n // (schedule.block_n * (schedule.cluster_n or 1)))


def grid_of(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> Grid:
    """The grid of a schedule whose blocks and cluster are chosen; that of one group where there are several."""
    assert schedule.block_m is not None and schedule.block_n is not None
    cluster_m, cluster_n = schedule.cluster_m or 1, schedule.cluster_n or 1
    tile_m = min(schedule.block_m * cluster_m, problem.group_rows)
    tile_n = min(schedule.block_n * cluster_n, problem.n)
    rows, columns = group_tiles(problem, schedule)
    return Grid(
        rows=rows,
        columns=columns,
        resident=resident_clusters(schedule, target, split_k=problem.numerics.split_k),
        row_bytes=tile_m * problem.k * problem.a.bytes,
        column_bytes=tile_n * problem.k * problem.b.bytes,
        result_bytes=tile_m * tile_n * problem.d.bytes,
        cluster_m=cluster_m,
        cluster_n=cluster_n,
    )


@lru_cache(maxsize=1 << 14)
def touched(first: int, last: int, group: int, major: int, minor: int) -> tuple[int, int]:
    """
    Distinct (major, minor) coordinates of tiles `first` up to `last`, exclusive, in a grid of `major` x `minor`.

    Tiles are counted through bands of `group` majors; within a band minor by minor, majors first.
    """
    band_tiles = group * minor
    first_band, last_band = first // band_tiles, (last - 1) // band_tiles
    majors = max(0, last_band - first_band - 1) * group  # bands between, whole
    spans = [(0, minor)] if last_band - first_band > 1 else []
    for band in {first_band, last_band}:
        width = min(group, major - band * group)
        begin, end = max(first - band * band_tiles, 0), min(last - band * band_tiles, width * minor)
        majors += min(width, end - begin)
        spans.append((begin // width, (end - 1) // width + 1))
    return majors, _union(spans)


def _union(spans: list[tuple[int, int]]) -> int:
    total = covered = 0
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, covered))
        covered = max(covered, end)
    return total


def _along(grid: Grid, axis: RasterAxis) -> tuple[int, int, int, int]:
    """How many majors and minors there are, and the bytes of each."""
    if axis is RasterAxis.ALONG_M:
        return grid.rows, grid.columns, grid.row_bytes, grid.column_bytes
    return grid.columns, grid.rows, grid.column_bytes, grid.row_bytes


def _waves(grid: Grid, axis: RasterAxis, group: int) -> Iterator[tuple[int, int]]:
    """Bytes of A and B that each of the first waves needs, and how many of them the wave before needed too."""
    major, minor, major_bytes, minor_bytes = _along(grid, axis)

    def read(first: int, last: int) -> int:
        majors, minors = touched(first, min(last, major * minor), group, major, minor)
        return majors * major_bytes + minors * minor_bytes

    before = 0
    for wave in range(min(grid.waves, WAVES_LOOKED_AT)):
        first, last = wave * grid.resident, (wave + 1) * grid.resident
        footprint = read(first, last)
        both = read(first - grid.resident, last) if wave else footprint
        yield footprint, footprint + before - both
        before = footprint


def _distinct(grid: Grid, axis: RasterAxis, group: int) -> tuple[float, float]:
    """
    Of the bytes that a CTA computes with, those of A and those of B that no neighbouring cluster loads too.

    As shares of all, the mean over where the neighbours begin in a band.
    """
    a, b = grid.row_bytes / grid.cluster_m, grid.column_bytes / grid.cluster_n
    along_m = axis is RasterAxis.ALONG_M
    rows = _side_by_side(grid, axis, group, NEIGHBOURS_A)[0 if along_m else 1]
    columns = _side_by_side(grid, axis, group, NEIGHBOURS_B)[1 if along_m else 0]
    return rows * a / (a + b or 1), columns * b / (a + b or 1)


def _side_by_side(grid: Grid, axis: RasterAxis, group: int, neighbours: int) -> tuple[float, float]:
    """Majors and minors that so many clusters in a row touch, per cluster."""
    major, minor, _, _ = _along(grid, axis)
    count = max(1, min(neighbours, major * minor))
    width = max(1, min(group, major))
    bands = count / (width * max(1, minor))
    majors = min(width, count) if bands <= 1 else min(major, width * bands)
    return majors / count, min(minor, 1 + (count - 1) / width) / count


def traffic(grid: Grid, axis: RasterAxis, group: int, constants: Constants = DEFAULT) -> Traffic:
    """
    What one tile order moves.

    Each wave reads its distinct operands. What the wave before read too was last used one wave's bytes ago; what comes
    back later, one band of `group` rows or columns ago. A share that falls with that distance is still in L2.
    """
    waves = list(_waves(grid, axis, group)) or [(0, 0)]
    seen = max(1, grid.waves) / len(waves)
    results = grid.resident * grid.result_bytes
    total, common = sum(read for read, _ in waves), sum(both for _, both in waves)
    soon = seen * sum(both * _gone(read + results, constants) for read, both in waves)
    band_waves = max(1.0, group * _along(grid, axis)[1] / grid.resident)
    late = max(0.0, seen * (total - common) - grid.operand_bytes)
    late *= _gone(band_waves * (total / len(waves) + results), constants)
    largest = max(read for read, _ in waves)
    return Traffic(axis, group, largest, grid.operand_bytes, int(soon + late), *_distinct(grid, axis, group))


def _gone(distance: float, constants: Constants) -> float:
    """The share of bytes that L2 has lost when they are read again after `distance` bytes."""
    return 1 - 1 / (1 + (distance / constants.l2_reuse_bytes) ** constants.l2_reuse_order)


def orders_of(grid: Grid, axis: RasterAxis | None = None, group: int | None = None) -> list[tuple[RasterAxis, int]]:
    """
    The tile orders with the given axis and group width (None: any) that are worth telling apart.

    All rows in one group is the same order as columns one by one, so that wider groups need no look.
    """
    if group is not None:
        return [(along, group) for along in (tuple(RasterAxis) if axis is None else (axis,))]
    if axis is not None:
        return [(axis, width) for width in GROUPS]
    return [(along, w) for along in RasterAxis for w in GROUPS if w == 1 or w < _along(grid, along)[0]]
