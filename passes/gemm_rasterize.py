"""
`gemm-rasterize`: choose the order in which tiles are visited, by the time that the cost model predicts, and what of
their operands L2 lets go of first.

    schedule <..., cluster = 2x1>                                                     // before
    schedule <..., cluster = 2x1, raster = along_m, group = 8, evict = neither>       // after
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gemmir.decisions import Decision, record
from gemmir.order_legality import evict
from gemmir.passes.cost_model import HINTED_WAVES, Ordered, best_orders
from gemmir.passes.l2_model import Grid, cluster_tiles, grid_of
from gemmir.passes.schedule_pass import named_option, need_tile, read_schedule, write_schedule
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Evict, Family, RasterAxis, Schedule
from gemmir.target import SM_90A, Target


@dataclass(frozen=True)
class GemmRasterizePass(ModulePass):
    """
    Choose the raster axis, the group width (in cluster tiles), and the cache hints of loads.

    They decide what is read from DRAM and what CTAs side by side share, and what has to be written back to DRAM before.

    `ScheduleError` (GMR-S005) if the tile, or who computes it, is still open.
    """

    name = "gemm-rasterize"

    axis: str | None = None
    group: int | None = None
    evict: str | None = None

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        matmul, problem, schedule = read_schedule(op)
        wanted = self._with_options(schedule)
        if None not in (wanted.raster_axis, wanted.raster_group, wanted.evict):
            write_schedule(matmul, problem, wanted)
            return
        need_tile(self.name, wanted, rule="a tile order needs tiles")
        write_schedule(matmul, problem, self._hinted(problem, self._ordered(problem, wanted)))

    def _ordered(self, problem: GemmProblem, wanted: Schedule) -> Schedule:
        if wanted.raster_axis is not None and wanted.raster_group is not None:
            return wanted
        if wanted.family is Family.STREAM:
            because = "tiles with the same weights are neighbours: they pass by all of them at the same time"
            record(Decision(self.name, "raster", "along_n in groups of 1", because))
            return wanted.filled(raster_axis=RasterAxis.ALONG_N, raster_group=1)
        best, *others = best_orders(problem, wanted)
        record(_explain(self.name, grid_of(problem, wanted), best, others))
        return wanted.filled(raster_axis=best.order.axis, raster_group=best.order.group)

    def _hinted(self, problem: GemmProblem, wanted: Schedule) -> Schedule:
        if wanted.evict is not None:
            return wanted
        choice, because = evict_of(problem, wanted)
        record(Decision(self.name, "evict", choice.value, because))
        return wanted.filled(evict=choice)

    def _with_options(self, schedule: Schedule) -> Schedule:
        if self.axis is not None:
            schedule = schedule.filled(raster_axis=named_option(self.name, "axis", self.axis, RasterAxis))
        if self.evict is not None:
            schedule = schedule.filled(evict=named_option(self.name, "evict", self.evict, Evict))
        return schedule.filled(raster_group=self.group)


def evict_of(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> tuple[Evict, str]:
    """
    Whose lines leave L2 first, and why.

    L2 is full of what was written before, and most of that is no longer wanted there. A line that takes its place costs
    a write to DRAM. So lines that nobody asks for again make room for each other.
    """
    if schedule.family is Family.STREAM:
        return Evict.WEIGHTS, "weights are read once, by all at the same time; the few rows of A by every CTA"
    if (refused := evict(problem, replace(schedule, evict=Evict.BOTH), target)) is not None:
        return Evict.NEITHER, refused.rule
    grid = grid_of(problem, schedule, target)
    if problem.grouping is not Grouping.NONE:
        rows, columns = cluster_tiles(problem, schedule)
        return _evict_of_groups(problem, -(-rows * columns // grid.resident))
    if grid.waves == 1:
        return Evict.BOTH, "one wave of tiles: nothing is read again later"
    if grid.waves > HINTED_WAVES:
        return Evict.NEITHER, f"{grid.waves} waves of tiles, which find in L2 what those before them read"
    if grid.operand_bytes > target.l2_bytes:
        return Evict.BOTH, f"{_mb(grid.operand_bytes)} of operands: L2 has none of them when they are read again"
    return Evict.WEIGHTS, f"{grid.waves} waves of tiles, which read A again"


def _evict_of_groups(problem: GemmProblem, waves: int) -> tuple[Evict, str]:
    """As `evict_of`, where all groups are expected to have as many rows, and their tiles to go in so many waves."""
    if problem.grouping is Grouping.COUNTS and waves <= HINTED_WAVES:
        because = "waves of the tiles that are expected, which read the weights of a group together"
        return Evict.WEIGHTS, f"{waves} {because}"
    return Evict.NEITHER, f"{waves} waves of the tiles of {problem.groups} groups by {problem.grouping.value}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _share(ordered: Ordered) -> str:
    return f"{ordered.order.distinct_a + ordered.order.distinct_b:.0%}"


def _explain(name: str, grid: Grid, best: Ordered, others: list[Ordered]) -> Decision:
    order = best.order
    because = (
        f"{grid.rows} x {grid.columns} cluster tiles, {grid.resident} at a time in {grid.waves} waves; a wave reads "
        f"at most {_mb(order.footprint)} of A and B (L2: {SM_90A.l2_bytes >> 20} MiB), all of them "
        f"{_mb(order.dram_bytes)} from DRAM for {_mb(order.operand_bytes)} of operands; {_share(best)} of loads are no "
        f"neighbour's too; {best.cost.microseconds:.1f} us predicted"
    )
    if not others:
        return Decision(name, "raster", str(order), because)
    other = others[0]
    second = (
        f"{other.order} reads {_mb(other.order.dram_bytes)}, {_share(other)} of loads no neighbour's too: "
        f"{other.cost.microseconds:.1f} us"
    )
    return Decision(name, "raster", str(order), because, second)
