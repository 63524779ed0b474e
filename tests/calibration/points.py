"""
Which points are measured: a menu of schedules for the dense shapes, and the model's own first choices for drawn shapes.

A choice that the model makes and nobody measured is how a model stays wrong. What a schedule leaves open the passes
choose, when it is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemmir.bench.cases import DENSE, Case, Shape, drawn
from gemmir.dialects.gemm_attributes import schedule_text
from gemmir.errors import ScheduleError
from gemmir.passes.block_search import search
from gemmir.schedule import Schedule
from tests.calibration.data import Point

FP8, BF16 = "f8E4M3FN", "bf16"

WIDE = "block = 128x256x128, warpgroups = 2 along n"
TURNS = "block = 128x192x128, warpgroups = 2 along m, turns = true"

FP8_MENU = (
    WIDE,
    TURNS,
    "block = 256x128x128, warpgroups = 2 along m",
    "block = 128x224x128, warpgroups = 2 along n",
    "block = 192x192x128, warpgroups = 2 along n",
    "block = 192x128x128, warpgroups = 3 along m",
    "block = 128x240x128, warpgroups = 3 along n",
    "block = 128x176x128, warpgroups = 2 along m, turns = true",
    "block = 128x160x128, warpgroups = 2 along m, turns = true",
    "block = 128x128x128, warpgroups = 2 along m, turns = true",
    "block = 128x128x128, warpgroups = 2 along m, turns = false",
    "block = 128x112x128, warpgroups = 2 along m, chunk = 2",
    WIDE + ", slices = 1",
    WIDE + ", stages = 3",
    WIDE + ", stages = 2",
    WIDE + ", cluster = 2x1",
    TURNS + ", cluster = 1x2",
    *(f"{tile}, raster = {order}" for tile in (WIDE, TURNS) for order in ("along_m, group = 2", "along_n, group = 8")),
)

BF16_MENU = (
    "block = 128x256x64, warpgroups = 2 along m",
    "block = 256x128x64, warpgroups = 2 along m",
    "block = 256x144x64, warpgroups = 2 along m",
    "block = 192x176x64, warpgroups = 3 along m",
    "block = 128x192x64, warpgroups = 2 along m",
    "block = 128x128x64, warpgroups = 2 along m",
    "block = 128x256x64, warpgroups = 2 along m, raster = along_n, group = 8",
)

FIRST = 5
"""So many tiles that the search ranks first are measured of each drawn shape."""

FP8_DRAWN, BF16_DRAWN = 14, 8
"""Drawn shapes of each type."""


def points() -> list[Point]:
    """All of them, shape by shape, FP8 and BF16, each legal and once; the same every time for the same model."""
    shapes = drawn()
    found = [
        *_menu(FP8, DENSE, FP8_MENU),
        *_menu(BF16, DENSE, BF16_MENU),
        *(point for shape in shapes[:FP8_DRAWN] for point in first_tiles(Case(FP8, *shape))),
        *(point for shape in shapes[FP8_DRAWN : FP8_DRAWN + BF16_DRAWN] for point in first_tiles(Case(BF16, *shape))),
    ]
    return list(dict.fromkeys(found))


def ranked(number: int) -> list[Point]:
    """The tiles that the model ranks first of each drawn product and each of the dense table, in both types."""
    cases = [Case(dtype, *shape) for shape in (*drawn(), *DENSE) for dtype in (FP8, BF16)]
    return [point for case in cases for point in first_tiles(case, number)]


def _menu(dtype: str, shapes: tuple[Shape, ...], menu: tuple[str, ...]) -> Iterator[Point]:
    """The schedules of a menu that some kernel of each shape can have."""
    for shape in shapes:
        for text in menu:
            point = Point(Case(dtype, *shape), text)
            if _completes(point):
                yield point


def _completes(point: Point) -> bool:
    problem, schedule = point.parsed()
    try:
        search(problem, schedule)
    except ScheduleError:
        return False
    return True


def first_tiles(case: Case, number: int = FIRST) -> Iterator[Point]:
    """The first of the model's choices for each of the `number` tiles that it ranks first."""
    problem, _ = Point(case, "").parsed()
    blocks: set[tuple[int | None, int | None]] = set()
    for candidate in search(problem, Schedule()).candidates:
        if len(blocks) < number and candidate.block not in blocks:
            blocks.add(candidate.block)
            yield Point(case, schedule_text(candidate.schedule))
