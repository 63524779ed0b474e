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
    """The tiles of the CTA of `rank` in each tile that is dealt out, in order; see `dealt`."""
    for segment in segments:
        rows, columns = _cover(kernel, segment, op.tail is not None)
        for index in range(rows * columns):
            row, column = _origin(kernel, op, index, rank, rows, columns)
            row += segment.aligned
            if segment.k_blocks is not None:
                yield Tile(row, column, segment.group, *segment.k_blocks)
                continue
            begin, end = segment.first - row, segment.first + segment.rows - row
            yield Tile(row, column, segment.group, max(0, begin), end)


def own_tiles(
    kernel: hopper.KernelOp, op: hopper.TilesOp, segments: list[Segment], rank: int, index: int, clusters: int
) -> list[Tile]:
    """The tiles of the CTA of `rank` in cluster number `index` of so many; narrower ones are numbered behind others."""
    along_m, along_n = dealt(kernel)
    lists = kernel.cluster.m.data * kernel.cluster.n.data // (along_m * along_n)
    step = clusters * lists
    before = 0 if op.tail is None else number_of_tiles(kernel, segments, wide_only=True)
    return list(tiles_of(kernel, op, segments, rank))[(index * lists + rank % lists - before) % step :: step]


def follow(kernel: hopper.KernelOp, segments: list[Segment], index: int, clusters: int) -> bool:
    """Whether cluster number `index` of so many has narrower tiles after the others."""
    before, all_tiles = number_of_tiles(kernel, segments, wide_only=True), number_of_tiles(kernel, segments)
    return (index - before) % clusters < all_tiles - before


def dealt(kernel: hopper.KernelOp) -> tuple[int, int]:
    """Tiles along M and N that are dealt out at a time: those of a cluster, unless groups' are dealt out by the CTA."""
    counted = next((op for op in kernel.body.block.ops if isinstance(op, hopper.CountTilesOp)), None)
    if counted is not None and counted.per_cluster is None:
        return 1, 1
    return kernel.cluster.m.data, kernel.cluster.n.data


def number_of_tiles(kernel: hopper.KernelOp, segments: list[Segment], wide_only: bool = False) -> int:
    """How many tiles are dealt out; `wide_only`: without the narrower ones of the last columns."""
    kinds = (False,) if wide_only or kernel.tail is None else (False, True)
    covers = (_cover(kernel, segment, tail) for segment in segments for tail in kinds)
    return sum(rows * columns for rows, columns in covers)


def _cover(kernel: hopper.KernelOp, segment: Segment, tail: bool = False) -> tuple[int, int]:
    """How many of them cover a segment, along M and along N; `tail`: how many narrower ones, its last columns."""
    along_m, along_n = dealt(kernel)
    first, last = (kernel.tail_begins, kernel.columns.value.data) if tail else (0, kernel.tail_begins)
    rows, columns = kernel.tile.m.data * along_m, _width(kernel, tail) * along_n
    tall = segment.first + segment.rows - segment.aligned if segment.rows else 0
    return -(-tall // rows), -(-(last - first) // columns)


def _width(kernel: hopper.KernelOp, tail: bool) -> int:
    """Columns of a tile."""
    return kernel.tail.value.data if tail and kernel.tail is not None else kernel.tile.n.data


def _origin(
    kernel: hopper.KernelOp, op: hopper.TilesOp, index: int, rank: int, rows: int, columns: int
) -> tuple[int, int]:
    """First row and column of the tile that the CTA of `rank` computes, of those dealt out as number `index`."""
    along_m = op.raster.data is RasterName.ALONG_M
    grouped, other = (rows, columns) if along_m else (columns, rows)
    most = op.group.value.data
    group, within = divmod(index, most * other)
    size = min(most, grouped - group * most)
    along, across = group * most + within % size, within // size
    tile_row, tile_column = (along, across) if along_m else (across, along)
    cluster_m, cluster_n = dealt(kernel)
    place = rank // kernel.parts % (cluster_m * cluster_n)
    first, width = (0 if op.tail is None else kernel.tail_begins), _width(kernel, op.tail is not None)
    return (
        (tile_row * cluster_m + place // cluster_n) * kernel.tile.m.data,
        first + (tile_column * cluster_n + place % cluster_n) * width,
    )
