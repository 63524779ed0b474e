"""The tile lists of printed kernels, run on the CPU: those of the simulator, and the rows that the reference writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemmir.backends.cuda.prelude import prelude
from gemmir.backends.cuda.target import the_kernel
from gemmir.backends.simulator.schedule import number_of_tiles, own_tiles
from gemmir.compiler import lower
from gemmir.dialects import hopper
from gemmir.groups import Extent, spans
from gemmir.problem import Grouping
from gemmir.schedule import Family, RasterAxis, Schedule
from gemmir.segments import Segment, k_segments, segments
from gemmir.target import balanced_clusters
from gemmir.testing.groups import GROUPINGS, any_indices, indices
from gemmir.testing.strategies import half_problem, program_text
from tests.backends.cuda.host_lists import HostLists, Listed, needs_host_compiler

pytestmark = needs_host_compiler

GROUPS, N, K, BLOCK_K = 5, 200, 1024, 64
SECTIONS = ("Batch", "Counts", "GroupIds", "GroupTiles", "KOffs", "Offs")


@dataclass(frozen=True)
class Kind:
    """A kernel whose list is looked at."""

    grouping: Grouping
    block_m: int
    axis: RasterAxis = RasterAxis.ALONG_M
    balanced: bool = False
    groups: int = GROUPS
    cluster: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        many = f"-{self.groups}" if self.groups != GROUPS else ""
        cluster = "" if self.cluster == (1, 1) else f"-cluster{self.cluster[0]}x{self.cluster[1]}"
        return f"{self.grouping.value}{many}-{self.block_m}-{self.axis.value}{'-balanced' * self.balanced}{cluster}"

    @property
    def text(self) -> str:
        problem = replace(half_problem(None, N, K), grouping=self.grouping, groups=self.groups)
        fixed = Schedule(family=Family.TILES, block_m=self.block_m, block_n=64, raster_axis=self.axis, raster_group=2)
        cluster_m, cluster_n = self.cluster
        return program_text(problem, replace(fixed, balanced=self.balanced, cluster_m=cluster_m, cluster_n=cluster_n))


CLUSTERED = (
    *(Kind(grouping, 64, cluster=cluster) for grouping in GROUPINGS for cluster in ((2, 1), (1, 2))),
    *(Kind(grouping, 64, RasterAxis.ALONG_N, True, cluster=(2, 1)) for grouping in GROUPINGS),
    *(Kind(grouping, 128, RasterAxis.ALONG_N, True, cluster=(1, 2)) for grouping in GROUPINGS),
    *(Kind(grouping, 128, cluster=(2, 1)) for grouping in GROUPINGS if grouping is not Grouping.GROUP_IDS),
    Kind(Grouping.OFFS, 64, groups=40, cluster=(2, 1)),
)
KINDS = (
    *(Kind(grouping, block_m) for grouping in GROUPINGS for block_m in (64, 128)),
    *(Kind(grouping, 64, RasterAxis.ALONG_N, True) for grouping in GROUPINGS),
    *(Kind(grouping, 64, groups=40) for grouping in (Grouping.OFFS, Grouping.COUNTS, Grouping.K_OFFS)),
    *CLUSTERED,
)


@dataclass(frozen=True)
class Built:
    """All kernels, and their lists as device code makes them."""

    kernels: dict[Kind, hopper.KernelOp]
    host: HostLists

    def lists(self, kind: Kind, m: int, clusters: int, index: Sequence[int]) -> list[list[Listed]]:
        ctas = self.kernels[kind].cluster_ctas
        return self.host.lists(list(self.kernels).index(kind), m, clusters * ctas, ctas, index)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    made = {kind: lower(kind.text, m=300) for kind in KINDS}
    sources = [one.source for one in made.values()]
    folder = tmp_path_factory.mktemp("lists")
    kernels = {kind: the_kernel(one.module) for kind, one in made.items()}
    host = HostLists(sources, prelude(SECTIONS), folder)
    yield Built(kernels, host)
    host.close()


def segments_of(kind: Kind, m: int, index: Sequence[int]) -> list[Segment]:
    if kind.grouping is Grouping.K_OFFS:
        return list(k_segments(index, m, K, BLOCK_K))
    return list(segments(kind.grouping, index, kind.groups, m))


def rows_of(kind: Kind, tile: Listed) -> Listed:
    """A tile with no more rows than it has, and none said as 0 to 0; k-blocks as they are."""
    row, column, group, begin, end = tile
    if kind.grouping is Grouping.K_OFFS:
        return tile
    begin, end = max(begin, 0), min(end, kind.block_m)
    return (row, column, group, begin, end) if begin < end else (row, column, group, 0, 0)


def simulated(kind: Kind, kernel: hopper.KernelOp, m: int, clusters: int, index: Sequence[int]) -> list[list[Listed]]:
    """The tiles of each CTA, as the simulator deals them out."""
    found = segments_of(kind, m, index)
    op = next(op for op in kernel.walk() if isinstance(op, hopper.TilesOp))
    tiles = number_of_tiles(kernel, found)
    busy = balanced_clusters(tiles, clusters) if kind.balanced else clusters
    lists: list[list[Listed]] = []
    for cta in range(clusters * kernel.cluster_ctas):
        cluster, rank = divmod(cta, kernel.cluster_ctas)
        mine = own_tiles(kernel, op, found, rank, cluster, busy) if cluster < busy else []
        lists.append([rows_of(kind, (t.row, t.column, t.group, t.begin, t.end)) for t in mine])
    return lists


def written(kind: Kind, lists: list[list[Listed]]) -> Counter[tuple[int, int, int]]:
    """How often each (matrix, row, first column) is stored; of a row, the columns of one tile stand for all."""
    cells: Counter[tuple[int, int, int]] = Counter()
    for row, column, group, begin, end in (tile for mine in lists for tile in mine):
        matrix = 0 if kind.grouping.contiguous else group
        cells.update((matrix, r, column) for r in range(row + begin, row + end) if column < N)
    return cells


def check(built: Built, kind: Kind, m: int, clusters: int, index: Sequence[int]) -> None:
    on_device = [[rows_of(kind, tile) for tile in mine] for mine in built.lists(kind, m, clusters, index)]
    if kind.grouping is not Grouping.GROUP_IDS:  # there the device takes tiles without rows, up to the block's end
        assert on_device == simulated(kind, built.kernels[kind], m, clusters, index)
    if kind.grouping is Grouping.K_OFFS:
        return
    wanted = Counter(
        (0 if kind.grouping.contiguous else span.number, row, column)
        for span in spans(kind.grouping, index, Extent(kind.groups, m, K, BLOCK_K))
        for row in range(span.first, span.last)
        for column in range(0, N, 64)
    )
    assert written(kind, on_device) == wanted


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_lists(built: Built, kind: Kind):
    @settings(suppress_health_check=list(HealthCheck))
    @given(data=st.data(), m=st.integers(1, 700), clusters=st.integers(1, 9), valid=st.booleans())
    def drawn(data: st.DataObject, m: int, clusters: int, valid: bool) -> None:
        extent, index = Extent(kind.groups, m, K, BLOCK_K), []
        if kind.grouping is not Grouping.BATCH:
            index = data.draw((indices if valid else any_indices)(kind.grouping, extent))
        check(built, kind, m, clusters, index)

    drawn()


@pytest.mark.parametrize("kind", CLUSTERED, ids=str)
def test_ctas_of_a_cluster_have_neighbours_of_one_group(built: Built, kind: Kind):
    """Whatever the index holds: as many tiles, of the same groups, side by side, and with the same k-blocks."""
    along_m, _ = kind.cluster

    @settings(suppress_health_check=list(HealthCheck))
    @given(data=st.data(), m=st.integers(1, 700), clusters=st.integers(1, 5), valid=st.booleans())
    def drawn(data: st.DataObject, m: int, clusters: int, valid: bool) -> None:
        extent, index = Extent(kind.groups, m, K, BLOCK_K), []
        if kind.grouping is not Grouping.BATCH:
            index = data.draw((indices if valid else any_indices)(kind.grouping, extent))
        lists = built.lists(kind, m, clusters, index)
        for first, second in zip(lists[::2], lists[1::2], strict=True):
            for one, other in zip(first, second, strict=True):
                down, right = (kind.block_m, 0) if along_m == 2 else (0, 64)
                assert (other[0], other[1], other[2]) == (one[0] + down, one[1] + right, one[2])
                assert kind.grouping is not Grouping.K_OFFS or one[3:] == other[3:]

    drawn()


BROKEN_BLOCKS = (
    [3] * 10 + [4] * 54 + [3] * 64,
    [3] * 64 + [4] * 64,
    [3] * 63 + [-1] + [3] * 64,
    [2] * 128 + [1] * 10 + [0] * 86 + [1] * 90,
)
"""The number changes inside a block of 128 rows, and comes back: rows from there on belong to nobody."""


@pytest.mark.parametrize("index", BROKEN_BLOCKS)
def test_a_number_that_comes_back_in_its_block(built: Built, index: list[int]):
    for kind in KINDS:
        if kind.grouping is Grouping.GROUP_IDS:
            check(built, kind, len(index), 3, index)
