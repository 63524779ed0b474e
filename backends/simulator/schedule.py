"""Which tiles a cluster computes: the arithmetic of `Tiles` in the CUDA prelude."""

from __future__ import annotations

from gemmir.dialects import hopper
from gemmir.dialects.hopper.types import RasterName


def tile_rows_and_columns(kernel: hopper.KernelOp, m: int) -> tuple[int, int]:
    """How many cluster tiles cover D, along M and along N."""
    rows, columns = kernel.tile.m.data * kernel.cluster.m.data, kernel.tile.n.data * kernel.cluster.n.data
    return -(-m // rows), -(-kernel.columns.value.data // columns)


def tile_origin(kernel: hopper.KernelOp, op: hopper.TilesOp, index: int, rank: int, m: int) -> tuple[int, int]:
    """First row and column of the tile that the CTA of `rank` computes in cluster tile number `index`."""
    rows, columns = tile_rows_and_columns(kernel, m)
    along_m = op.raster.data is RasterName.ALONG_M
    grouped, other = (rows, columns) if along_m else (columns, rows)
    most = op.group.value.data
    group, within = divmod(index, most * other)
    size = min(most, grouped - group * most)
    along, across = group * most + within % size, within // size
    tile_row, tile_column = (along, across) if along_m else (across, along)
    cluster_m, cluster_n = kernel.cluster.m.data, kernel.cluster.n.data
    return (
        (tile_row * cluster_m + rank // cluster_n) * kernel.tile.m.data,
        (tile_column * cluster_n + rank % cluster_n) * kernel.tile.n.data,
    )
