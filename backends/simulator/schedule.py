"""Which tiles a cluster computes: the arithmetic of `Tiles` and `GroupTiles` in the CUDA prelude."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gemmir.dialects import hopper
from gemmir.dialects.hopper.types import RasterName
from gemmir.segments import Segment


@dataclass(frozen=True, slots=True)
class Tile:
    """
    First row and column, the group (0 without groups), and which rows of the tile are that group's.

    Where K is divided, `begin` is the group's first k-block instead, and `end` how many it has.
    """

    row: int
    column: int
    group: int
    begin: int
    end: int


def tiles_of(kernel: hopper.KernelOp, op: hopper.TilesOp, segments: list[Segment], rank: int) -> Iterator[Tile]:
    """The tiles of the CTA of `rank` in each cluster tile of the grid, in order."""
    for segment in segments:
        rows, columns = _cover(kernel, segment)
        for index in range(rows * columns):
            row, column = _origin(kernel, op, index, rank, rows, columns)
            row += segment.aligned
            if segment.k_blocks is not None:
                yield Tile(row, column, segment.group, *segment.k_blocks)
                continue
            begin, end = segment.first - row, segment.first + segment.rows - row
            yield Tile(row, column, segment.group, max(0, begin), end)


def number_of_tiles(kernel: hopper.KernelOp, segments: list[Segment]) -> int:
    """How many cluster tiles there are."""
    covers = (_cover(kernel, segment) for segment in segments)
    return sum(rows * columns for rows, columns in covers)


def _cover(kernel: hopper.KernelOp, segment: Segment) -> tuple[int, int]:
    """How many cluster tiles cover a segment, along M and along N."""
    rows, columns = kernel.tile.m.data * kernel.cluster.m.data, kernel.tile.n.data * kernel.cluster.n.data
    tall = segment.first + segment.rows - segment.aligned if segment.rows else 0
    return -(-tall // rows), -(-kernel.columns.value.data // columns)


def _origin(
    kernel: hopper.KernelOp, op: hopper.TilesOp, index: int, rank: int, rows: int, columns: int
) -> tuple[int, int]:
    """First row and column of the tile that the CTA of `rank` computes in cluster tile number `index`."""
    along_m = op.raster.data is RasterName.ALONG_M
    grouped, other = (rows, columns) if along_m else (columns, rows)
    most = op.group.value.data
    group, within = divmod(index, most * other)
    size = min(most, grouped - group * most)
    along, across = group * most + within % size, within // size
    tile_row, tile_column = (along, across) if along_m else (across, along)
    cluster_m, cluster_n, place = kernel.cluster.m.data, kernel.cluster.n.data, rank // kernel.parts
    return (
        (tile_row * cluster_m + place // cluster_n) * kernel.tile.m.data,
        (tile_column * cluster_n + place % cluster_n) * kernel.tile.n.data,
    )
