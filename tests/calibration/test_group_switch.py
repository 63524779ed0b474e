"""The arithmetic of the experiment and its tables, on given times; which tiles there are to pin."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gemmir.bench.grouped import GroupedCase
from gemmir.compiler import lower
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.ir_text import parse_module
from gemmir.legality import is_legal
from tests.calibration import group_switch
from tests.calibration.group_switch import (
    GROUPS,
    ROOM,
    SHAPES,
    TILES,
    mean,
    measure,
    pinned,
    switch_us,
    text,
    tile_us,
    vectors,
)

STEPS = {1: 10.0, 20: 14.0, 64: 24.0, 128: 40.0}
"""Microseconds by count: 8 and 1 more for every 4 rows, about."""


def test_between_counts_time_is_linear_in_the_tiles():
    assert [tile_us(8, STEPS, count) for count in (1, 8, 20, 24, 64, 128)] == [10.0, 10.0, 14.0, 14.0, 24.0, 40.0]
    assert tile_us(8, STEPS, 9) == 12.0, "two tiles, between one and three"
    assert tile_us(8, STEPS, 96) == tile_us(8, STEPS, 89) == 32.0
    assert tile_us(64, STEPS, 63) == 10.0, "one tile, by the fastest count that makes one"
    assert tile_us(64, STEPS, 65) == 40.0
    assert {tile_us(128, STEPS, count) for count in (1, 77, 128)} == {10.0}


def test_a_switch_takes_the_fastest_tile_of_each_group():
    narrow, wide = {1: 10.0, 20: 20.0, 64: 60.0, 128: 120.0}, {1: 30.0, 20: 30.0, 64: 31.0, 128: 50.0}
    times = {(8, 64): narrow, (64, 64): wide}
    assert [switch_us(times, (count,) * 4) for count in (1, 20, 64, 128)] == [10.0, 20.0, 30.0, 50.0]
    assert switch_us(times, (1, 1, 1, 128)) == (10.0 + 10.0 + 10.0 + 50.0) / 4


def test_the_counts_that_are_timed():
    found = vectors()
    assert list(found) == ["all 1", "all 20", "all 64", "all 128", "drawn", "one 128"]
    assert {len(counts) for counts in found.values()} == {GROUPS}
    assert len(set(found["drawn"])) > GROUPS // 2
    assert all(1 <= count <= ROOM for counts in found.values() for count in counts)
    assert (sum(found["one 128"]), max(found["one 128"]), mean(found["one 128"])) == (159, 128, 5)


def test_every_tile_that_is_pinned_is_legal_and_there_are_no_others():
    (n, k), _ = SHAPES
    case = GroupedCase("f8E4M3FN", "counts", GROUPS, ROOM, n, k)
    problem = problem_of(the_matmul(parse_module(case.text)))
    every = [(rows, weights) for rows in (8, 16, 32, 64, 128) for weights in (64, 128)]
    assert [tile for tile in every if is_legal(problem, pinned(tile))] == list(TILES)
    assert "family = stream, block = 64x128x128, warpgroups = 2" in lower(case.program(pinned((64, 128)))).schedule


@dataclass
class Kernel:
    """Writes a number to the rows that count; takes `each` microseconds a tile of so many rows of the fullest group."""

    rows: int
    each: float
    number: float = 1.0
    us: float = 0.0

    @property
    def manifest(self) -> SimpleNamespace:
        return SimpleNamespace(entry=f"by {self.rows}")

    def __call__(self, *tensors: torch.Tensor, out: torch.Tensor) -> "Kernel":
        counts = tensors[-1].tolist()
        for group, count in enumerate(counts):
            out[group, :count] = self.number
        self.us = self.each * -(-max(counts) // self.rows)
        return self


def on_the_cpu(monkeypatch: pytest.MonkeyPatch, found: dict[Any, Kernel]) -> dict[str, Any]:
    monkeypatch.setattr(group_switch, "DEVICE", "cpu")
    monkeypatch.setattr(group_switch, "kernel_us", lambda launch, launches, _: [launch().us] * launches)
    return measure(8, 16, found)  # type: ignore[arg-type]


def test_every_kernel_is_timed_with_every_vector(monkeypatch: pytest.MonkeyPatch):
    found: dict[Any, Kernel] = {tile: Kernel(tile[0], 10.0 + tile[0] + tile[1] / 64) for tile in TILES}
    found |= {rows: Kernel(ROOM, 300.0) for rows in map(mean, vectors().values())} | {ROOM: Kernel(ROOM, 200.0)}
    measured = on_the_cpu(monkeypatch, found)
    assert {name: row["switch"] for name, row in measured["rows"].items() if name != "drawn"} == {
        "all 1": 19.0,
        "all 20": 43.0,
        "all 64": 75.0,
        "all 128": 139.0,
        "one 128": (31 * 19.0 + 139.0) / 32,
    }
    assert measured["tiles"]["16x128"] == {name: -(-max(counts) // 16) * 28.0 for name, counts in vectors().items()}
    assert measured["rows"]["one 128"]["by room"] == (200.0, "by 128")
    assert measured["rows"]["one 128"]["by mean"] == (300.0, "by 128")
    assert measured["rows"]["all 20"]["fastest tile"] == (43.0, "32x64")
    found[16, 64].number = 2.0
    with pytest.raises(AssertionError, match="by 16 has other bits"):
        on_the_cpu(monkeypatch, found)


def test_the_tables():
    rows: dict[str, Any] = {
        name: {"by room": (20.0, "wide"), "by mean": (12.0, "narrow"), "fastest tile": (11.0, "8x64"), "switch": 10.0}
        for name in vectors()
    }
    found = {"n": 4096, "k": 7168, "tiles": {"8x64": dict.fromkeys(vectors(), 11.0)}, "rows": rows}
    lines = text(found).splitlines()
    assert lines[0] == "32 x 128, 4096 x 7168"
    assert lines[2] == "| 8x64 |" + " 11.0 |" * 6
    assert lines[4] == "| all 1 | 20.0 wide | 12.0 narrow | 11.0 8x64 | 10.0 | 2.000 | 1.200 |"
    assert {line.count("|") for line in lines[3:]} == {8}
