"""
What the tile order costs in DRAM traffic.

All resident CTAs compute one wave of tiles at a time and walk K together. A wave therefore reads each row of A-tiles
and each column of B-tiles that it touches once from DRAM; the more square the wave, the fewer distinct bytes. What the
wave before left in L2 is not read again, but L2 keeps two copies, one in each half, so little is left: on an H200,
8192 x 8192 x 8192 in groups of 8 read 614 MB for 134 MB of operands, and this model says 612 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gemmir.problem import GemmProblem
from gemmir.schedule import RasterAxis, Schedule
from gemmir.target import SM_90A, Target

GROUPS = (1, 2, 4, 8, 16, 32)
"""Group widths that are worth telling apart."""

L2_COPIES = 2
"""Both halves of L2 keep a line that SMs of both sides read."""

WAVES_LOOKED_AT = 24
"""Waves are alike after a few: beyond this many, the traffic of the first ones is scaled up."""


@dataclass(frozen=True, slots=True)
class Grid:
    """
    The cluster tiles of a problem: `rows` x `columns`, of which `resident` are computed at a time.

    `row_bytes` is one row of tiles of A over all of K, `column_bytes` one column of tiles of B.
    """

    rows: int
    columns: int
    resident: int
    row_bytes: int
    column_bytes: int

    @property
    def waves(self) -> int:
        return -(-self.rows * self.columns // self.resident)

    @property
    def operand_bytes(self) -> int:
        return self.rows * self.row_bytes + self.columns * self.column_bytes


@dataclass(frozen=True, slots=True)
class Traffic:
    """A tile order and what it reads: `footprint` bytes in its largest wave, `dram_bytes` in all."""

    axis: RasterAxis
    group: int
    footprint: int
    dram_bytes: int
    steady_footprint: int
    """Footprint in a grid without borders; decides where the borders make orders equal."""

    def __str__(self) -> str:
        return f"{self.axis.value} in groups of {self.group}"


def grid_of(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> Grid:
    """The grid of a schedule whose blocks and cluster are chosen."""
    assert schedule.block_m is not None and schedule.block_n is not None
    cluster_m, cluster_n = schedule.cluster_m or 1, schedule.cluster_n or 1
    tile_m, tile_n = schedule.block_m * cluster_m, schedule.block_n * cluster_n
    return Grid(
        rows=-(-problem.rows // tile_m),
        columns=-(-problem.n // tile_n),
        resident=target.sms // (cluster_m * cluster_n),
        row_bytes=min(tile_m, problem.rows) * problem.k * problem.a.bytes,
        column_bytes=min(tile_n, problem.n) * problem.k * problem.b.bytes,
    )


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


def _waves(grid: Grid, axis: RasterAxis, group: int) -> Iterator[tuple[int, int]]:
    """Bytes that each of the first waves reads, and how many of them the wave before read too."""
    along_m = axis is RasterAxis.ALONG_M
    major, minor = (grid.rows, grid.columns) if along_m else (grid.columns, grid.rows)
    major_bytes, minor_bytes = (grid.row_bytes, grid.column_bytes) if along_m else (grid.column_bytes, grid.row_bytes)

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


def _steady_footprint(grid: Grid, axis: RasterAxis, group: int) -> int:
    along_m = axis is RasterAxis.ALONG_M
    major, minor = (grid.row_bytes, grid.column_bytes) if along_m else (grid.column_bytes, grid.row_bytes)
    return group * major + -(-grid.resident // group) * minor


def traffic(grid: Grid, axis: RasterAxis, group: int, target: Target = SM_90A) -> Traffic:
    """
    Bytes that one tile order reads from DRAM.

    Each wave reads its distinct operands. Of those that the wave before read too, the share 1 - footprint / L2 is
    still there.
    """
    capacity = target.l2_bytes // L2_COPIES
    total = largest = 0
    for footprint, common in _waves(grid, axis, group):
        kept = max(0.0, 1 - footprint / capacity)
        total += footprint - int(kept * common)
        largest = max(largest, footprint)
    looked_at = min(grid.waves, WAVES_LOOKED_AT)
    total = total * grid.waves // max(1, looked_at)
    # Operands that fit L2 together are read once, whatever the order.
    dram = grid.operand_bytes if grid.operand_bytes <= capacity else max(total, grid.operand_bytes)
    return Traffic(axis, group, largest, dram, _steady_footprint(grid, axis, group))


def tile_orders(
    grid: Grid, axis: RasterAxis | None = None, group: int | None = None, target: Target = SM_90A
) -> list[Traffic]:
    """All tile orders with the given axis and group width (None: any), the best first."""
    axes = tuple(RasterAxis) if axis is None else (axis,)
    groups = GROUPS if group is None else (group,)
    orders = [traffic(grid, a, g, target) for a in axes for g in groups]
    return sorted(orders, key=lambda t: (t.dram_bytes, t.footprint, t.steady_footprint))
