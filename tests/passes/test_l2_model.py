"""The model of tile orders: distinct tiles against counting them, traffic against what was measured on an H200."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.passes.cost_constants import DEFAULT
from gemmir.passes.l2_model import GROUPS, Grid, grid_of, orders_of, touched, traffic
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
    """8192 cubed read 614 MB in groups of 8 on an H200; groups of 24 and more were slower."""
    grid = grid_of(fp8_problem(8192, 8192, 8192), WIDE)
    measured = traffic(grid, RasterAxis.ALONG_M, 8)
    assert measured.dram_bytes == pytest.approx(614e6, rel=0.2)
    assert traffic(grid, RasterAxis.ALONG_M, 32).dram_bytes > 1.5 * measured.dram_bytes
    assert traffic(grid, RasterAxis.ALONG_M, 1).dram_bytes > 1.5 * measured.dram_bytes


def test_what_comes_back_soon_is_still_there():
    """16 rows by 96 columns: all rows at once read B once and have A in L2; row by row, B comes 16 times."""
    grid = grid_of(fp8_problem(4096, 24576, 1536), WIDE)
    assert traffic(grid, RasterAxis.ALONG_N, 1).dram_bytes < 1.5 * grid.operand_bytes
    assert traffic(grid, RasterAxis.ALONG_M, 1).dram_bytes > 7.5 * grid.operand_bytes
    none = replace(DEFAULT, l2_reuse_bytes=1.0)
    cold = traffic(grid, RasterAxis.ALONG_M, 1, none)
    assert cold.dram_bytes == pytest.approx(sum_of_waves(grid, RasterAxis.ALONG_M, 1), rel=0.02)


def sum_of_waves(grid: Grid, axis: RasterAxis, group: int) -> int:
    """Bytes of A and B that all waves need, counted."""
    along_m = axis is RasterAxis.ALONG_M
    major, minor = (grid.rows, grid.columns) if along_m else (grid.columns, grid.rows)
    major_bytes, minor_bytes = (grid.row_bytes, grid.column_bytes) if along_m else (grid.column_bytes, grid.row_bytes)
    total = 0
    for first in range(0, major * minor, grid.resident):
        majors, minors = counted(first, min(first + grid.resident, major * minor), group, major, minor)
        total += majors * major_bytes + minors * minor_bytes
    return total


def test_results_push_operands_out():
    """With K = 512 a wave's results are three times its operands."""
    grid = grid_of(fp8_problem(4096, 32768, 512), WIDE)
    light = replace(grid, result_bytes=0)
    assert traffic(grid, RasterAxis.ALONG_M, 2).dram_again > 2 * traffic(light, RasterAxis.ALONG_M, 2).dram_again


@pytest.mark.parametrize(
    ("axis", "group", "a", "b"),
    [
        (RasterAxis.ALONG_M, 1, 1 / 16, 1.0),  # 16 CTAs share one row; each has its own column
        (RasterAxis.ALONG_M, 4, 4 / 16, 1.75 / 4),
        (RasterAxis.ALONG_M, 16, 1.0, (1 + 3 / 16) / 4),
        (RasterAxis.ALONG_N, 1, 1.0, 1 / 4),
        (RasterAxis.ALONG_N, 4, (1 + 15 / 4) / 16, 1.0),
    ],
)
def test_what_neighbours_do_not_share(axis: RasterAxis, group: int, a: float, b: float):
    """Rows of A-tiles among 16 CTAs in a row and columns of B-tiles among 4, each with half of the bytes."""
    grid = Grid(rows=64, columns=64, resident=132, row_bytes=1 << 20, column_bytes=1 << 20, result_bytes=1 << 15)
    order = traffic(grid, axis, group)
    assert (order.distinct_a, order.distinct_b) == pytest.approx((a / 2, b / 2))


def test_few_rows_are_shared_by_all():
    grid = Grid(rows=2, columns=64, resident=132, row_bytes=1 << 20, column_bytes=1 << 20, result_bytes=1 << 15)
    order = traffic(grid, RasterAxis.ALONG_N, 1)
    assert (order.distinct_a, order.distinct_b) == pytest.approx((2 / 32, 2 / 8))


def test_orders_that_are_the_same_are_looked_at_once():
    grid = grid_of(fp8_problem(1024, 8192, 8192), WIDE)
    assert (grid.rows, grid.columns) == (4, 32)
    orders = orders_of(grid)
    assert [group for axis, group in orders if axis is RasterAxis.ALONG_M] == [1, 2]
    assert [group for axis, group in orders if axis is RasterAxis.ALONG_N] == [1, 2, 4, 6, 8, 12, 16, 24]


def test_given_choices_are_kept():
    grid = grid_of(fp8_problem(8192, 8192, 8192), WIDE)
    assert orders_of(grid, axis=RasterAxis.ALONG_N) == [(RasterAxis.ALONG_N, group) for group in GROUPS]
    assert orders_of(grid, group=5) == [(RasterAxis.ALONG_M, 5), (RasterAxis.ALONG_N, 5)]
    assert orders_of(grid, RasterAxis.ALONG_M, 64) == [(RasterAxis.ALONG_M, 64)]


def test_an_empty_grid_reads_nothing():
    grid = grid_of(fp8_problem(0, 256, 128), WIDE)
    for axis, group in orders_of(grid):
        order = traffic(grid, axis, group)
        assert (order.footprint, order.dram_again, order.distinct_a) == (0, 0, 0)


@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    resident=st.sampled_from((66, 132)),
    row_bytes=st.integers(1, 1 << 22),
    column_bytes=st.integers(1, 1 << 22),
    result_bytes=st.integers(1, 1 << 18),
)
def test_traffic_lies_between_once_and_once_a_wave(
    rows: int, columns: int, resident: int, row_bytes: int, column_bytes: int, result_bytes: int
):
    grid = Grid(rows, columns, resident, row_bytes, column_bytes, result_bytes)
    for axis, group in orders_of(grid):
        order = traffic(grid, axis, group)
        assert 0 <= order.dram_again
        assert order.dram_bytes <= max(grid.operand_bytes, grid.waves * order.footprint)
        assert order.footprint <= grid.operand_bytes
        assert 0 < order.distinct_a + order.distinct_b <= 1 + 1e-9
