"""The L2 model: distinct tiles against counting them, and traffic against what was measured on an H200."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.passes.l2_model import GROUPS, Grid, grid_of, tile_orders, touched, traffic
from gemmir.schedule import RasterAxis, Schedule
from tests.schedules import fp8_problem, half_problem

WIDE = Schedule(block_m=128, block_n=256, cluster_m=2, cluster_n=1)


def counted(first: int, last: int, group: int, major: int, minor: int) -> tuple[int, int]:
    """Distinct coordinates, tile by tile, as the kernel computes them."""
    majors: set[int] = set()
    minors: set[int] = set()
    for index in range(first, last):
        band, within = divmod(index, group * minor)
        width = min(group, major - band * group)
        majors.add(band * group + within % width)
        minors.add(within // width)
    return len(majors), len(minors)


@given(major=st.integers(1, 14), minor=st.integers(1, 14), group=st.integers(1, 16), data=st.data())
def test_touched_counts_distinct_tiles(major: int, minor: int, group: int, data: st.DataObject):
    first = data.draw(st.integers(0, major * minor - 1))
    last = data.draw(st.integers(first + 1, major * minor))
    assert touched(first, last, group, major, minor) == counted(first, last, group, major, minor)


def test_grid_counts_cluster_tiles_and_their_bytes():
    grid = grid_of(fp8_problem(4096, 7168, 2048), WIDE)
    assert (grid.rows, grid.columns, grid.resident, grid.waves) == (16, 28, 66, 7)
    assert grid.row_bytes == 256 * 2048
    assert grid.column_bytes == 256 * 2048
    assert grid_of(half_problem(4096, 7168, 2048), WIDE).row_bytes == 2 * 256 * 2048


def test_traffic_of_a_large_square_product_as_measured():
    """8192 cubed read 614 MB in groups of 8; groups of 24 and more were slower."""
    grid = grid_of(fp8_problem(8192, 8192, 8192), WIDE)
    measured = traffic(grid, RasterAxis.ALONG_M, 8)
    assert measured.dram_bytes == pytest.approx(614e6, rel=0.03)
    assert traffic(grid, RasterAxis.ALONG_M, 32).dram_bytes > 1.5 * measured.dram_bytes
    assert traffic(grid, RasterAxis.ALONG_M, 1).dram_bytes > 1.5 * measured.dram_bytes
    best = tile_orders(grid)[0]
    assert (best.axis, best.group) == (RasterAxis.ALONG_M, 8)


def test_a_wide_product_goes_along_the_shorter_side():
    """16 rows by 96 columns: a wave of all rows is the most square."""
    grid = grid_of(fp8_problem(4096, 24576, 1536), WIDE)
    best = tile_orders(grid)[0]
    assert (best.axis, best.group) == (RasterAxis.ALONG_M, 16)
    assert best.dram_bytes < 2.2 * grid.operand_bytes
    assert traffic(grid, RasterAxis.ALONG_M, 1).dram_bytes > 3 * best.dram_bytes


def test_the_axis_follows_the_problem():
    tall = Grid(rows=96, columns=16, resident=66, row_bytes=1 << 20, column_bytes=1 << 20)
    flat = Grid(rows=16, columns=96, resident=66, row_bytes=1 << 20, column_bytes=1 << 20)
    assert tile_orders(tall)[0].axis is RasterAxis.ALONG_N
    assert tile_orders(flat)[0].axis is RasterAxis.ALONG_M


def test_operands_that_fit_are_read_once_in_any_order():
    grid = grid_of(fp8_problem(2048, 2048, 2048), WIDE)
    assert {order.dram_bytes for order in tile_orders(grid)} == {2 * 2048 * 2048}


def test_given_choices_are_kept():
    grid = grid_of(fp8_problem(8192, 8192, 8192), WIDE)
    assert {o.axis for o in tile_orders(grid, axis=RasterAxis.ALONG_N)} == {RasterAxis.ALONG_N}
    assert {o.group for o in tile_orders(grid, group=5)} == {5}
    assert len(tile_orders(grid)) == 2 * len(GROUPS)


def test_an_empty_grid_reads_nothing():
    grid = grid_of(fp8_problem(0, 256, 128), WIDE)
    assert {order.footprint for order in tile_orders(grid)} == {0}


@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    resident=st.sampled_from((66, 132)),
    row_bytes=st.integers(1, 1 << 22),
    column_bytes=st.integers(1, 1 << 22),
)
def test_traffic_lies_between_once_and_once_a_wave(
    rows: int, columns: int, resident: int, row_bytes: int, column_bytes: int
):
    grid = Grid(rows, columns, resident, row_bytes, column_bytes)
    for order in tile_orders(grid):
        assert grid.operand_bytes <= order.dram_bytes <= max(grid.operand_bytes, grid.waves * order.footprint)
        assert order.footprint <= grid.operand_bytes
