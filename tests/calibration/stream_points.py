"""Which points of the `stream` family are measured: every tile that may be any good, for each shape of few rows."""

from __future__ import annotations

from collections.abc import Iterator

from gemmir.bench.cases import DECODE, Case
from tests.calibration.data import Point

DTYPES = ("f8E4M3FN", "bf16")
BLOCK_M = (8, 16, 32, 64, 128)
TILES = {"f8E4M3FN": ((64, 1), (128, 2)), "bf16": ((64, 1), (128, 1), (128, 2), (192, 1))}
"""Weights of a tile, and math warpgroups."""

MOST_CTAS = 520
MOST_SPLIT_CTAS = 140
"""Where K is split, no more than run at once."""

FEWEST_CTAS = 30


def stream_points() -> list[Point]:
    """All of them, shape by shape, each once; for the parts of K one after another."""
    return [point for dtype in DTYPES for shape in DECODE for point in _of(Case(dtype, *shape))]


def _of(case: Case) -> Iterator[Point]:
    covering = next(block for block in BLOCK_M if block >= case.m)
    for parts in (1, 2, 3):
        for block_m in (block for block in BLOCK_M if covering // 4 <= block <= covering):
            yield from _tiles(case, block_m, parts)


def _tiles(case: Case, block_m: int, parts: int) -> Iterator[Point]:
    block_k = 128 if case.dtype.startswith("f8") else 64
    for weights, groups in TILES[case.dtype]:
        ctas = -(-case.n // weights) * -(-case.m // block_m) * parts
        most = MOST_CTAS if parts == 1 else MOST_SPLIT_CTAS
        if FEWEST_CTAS <= ctas <= most and (parts == 1 or weights == 64 * groups):
            block = f"block = {block_m}x{weights}x{block_k}, warpgroups = {groups} along n"
            yield Point(Case(case.dtype, *case.shape, parts), f"family = stream, {block}")
