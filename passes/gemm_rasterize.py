"""
`gemm-rasterize`: choose the order in which tiles are visited, by what a wave of them reads.

    schedule <..., cluster = 2x1>                                   // before
    schedule <..., cluster = 2x1, raster = along_m, group = 8>      // after
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gemmir.decisions import Decision, record
from gemmir.errors import ScheduleError
from gemmir.passes.l2_model import Grid, Traffic, grid_of, tile_orders
from gemmir.passes.schedule_pass import bad_option, read_schedule, write_schedule
from gemmir.schedule import RasterAxis, Schedule
from gemmir.target import SM_90A


@dataclass(frozen=True)
class GemmRasterizePass(ModulePass):
    """
    Choose the raster axis and the group width (in cluster tiles) that read the fewest bytes from DRAM.

    `ScheduleError` (GMR-S005) if the blocks are still open.
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
        if wanted.block_m is None or wanted.block_n is None:
            raise ScheduleError(
                "GMR-S005",
                f"{self.name}: block_m and block_n are open",
                rule="a tile order needs tiles",
                fix="run gemm-select-blocks before",
            )
        grid = grid_of(problem, wanted)
        best, *others = tile_orders(grid, wanted.raster_axis, wanted.raster_group)
        write_schedule(matmul, problem, wanted.filled(raster_axis=best.axis, raster_group=best.group))
        record(_explain(self.name, grid, best, others))

    def _with_options(self, schedule: Schedule) -> Schedule:
        if self.axis is not None:
            names = [axis.value for axis in RasterAxis]
            if self.axis not in names:
                bad_option(self.name, "axis", self.axis, f"one of {', '.join(names)}")
            schedule = schedule.filled(raster_axis=RasterAxis(self.axis))
        return schedule.filled(raster_group=self.group)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _explain(name: str, grid: Grid, best: Traffic, others: list[Traffic]) -> Decision:
    because = (
        f"{grid.rows} x {grid.columns} cluster tiles, {grid.resident} at a time in {grid.waves} waves; a wave reads at "
        f"most {_mb(best.footprint)} of A and B (L2: {SM_90A.l2_bytes >> 20} MiB), all of them {_mb(best.dram_bytes)} "
        f"from DRAM for {_mb(grid.operand_bytes)} of operands"
    )
    second = f"{others[0]} reads {_mb(others[0].dram_bytes)}" if others else ""
    return Decision(name, "raster", str(best), because, second)
