"""
`gemm-rasterize`: choose the order in which tiles are visited, by the time that the cost model predicts.

    schedule <..., cluster = 2x1>                                   // before
    schedule <..., cluster = 2x1, raster = along_m, group = 8>      // after
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gemmir.decisions import Decision, record
from gemmir.passes.cost_model import Ordered, best_orders
from gemmir.passes.l2_model import Grid, grid_of
from gemmir.passes.schedule_pass import bad_option, need_tile, read_schedule, write_schedule
from gemmir.schedule import Family, RasterAxis, Schedule
from gemmir.target import SM_90A


@dataclass(frozen=True)
class GemmRasterizePass(ModulePass):
    """
    Choose the raster axis and the group width (in cluster tiles).

    They decide what is read from DRAM, and what CTAs side by side share.

    `ScheduleError` (GMR-S005) if the tile, or who computes it, is still open.
    """

    name = "gemm-rasterize"

    axis: str | None = None
    group: int | None = None

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        matmul, problem, schedule = read_schedule(op)
        wanted = self._with_options(schedule)
        if wanted.raster_axis is not None and wanted.raster_group is not None:
            write_schedule(matmul, problem, wanted)
            return
        need_tile(self.name, wanted, rule="a tile order needs tiles")
        if wanted.family is Family.STREAM:
            order = {"raster_axis": RasterAxis.ALONG_N, "raster_group": 1}
            write_schedule(matmul, problem, wanted.filled(**order))
            because = "tiles with the same weights are neighbours: they pass by all of them at the same time"
            record(Decision(self.name, "raster", "along_n in groups of 1", because))
            return
        best, *others = best_orders(problem, wanted)
        order = best.order
        write_schedule(matmul, problem, wanted.filled(raster_axis=order.axis, raster_group=order.group))
        record(_explain(self.name, grid_of(problem, wanted), best, others))

    def _with_options(self, schedule: Schedule) -> Schedule:
        if self.axis is not None:
            names = [axis.value for axis in RasterAxis]
            if self.axis not in names:
                bad_option(self.name, "axis", self.axis, f"one of {', '.join(names)}")
            schedule = schedule.filled(raster_axis=RasterAxis(self.axis))
        return schedule.filled(raster_group=self.group)


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
