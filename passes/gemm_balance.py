"""
`gemm-balance`: choose whether every SM gets a CTA, or only as many as the rounds of tiles need.

    schedule <..., raster = along_m, group = 8>                       // before
    schedule <..., raster = along_m, group = 8, balanced = true>      // after

Tiles are computed in rounds; with as few clusters as make the same number of rounds, the last round is as full as the
others. Nothing gets faster in cycles, but a GPU at its power limit runs its SMs at a higher clock if fewer of them are
busy. Where only the device knows how many tiles groups have, it is the kernel that drops CTAs.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gemmir.decisions import Decision, record
from gemmir.errors import ScheduleError
from gemmir.passes.cost_model import predict
from gemmir.passes.l2_model import cluster_tiles, resident_clusters
from gemmir.passes.schedule_pass import read_schedule, write_schedule
from gemmir.target import balanced_clusters

LONG_TILE_CLOCKS = 40_000
"""
Tensor-core clocks of a tile from which on a GPU runs into its power limit (measured: 128x256 tiles with K of 7168 and
more gain 0.7 to 1.6% from a balanced grid; with K of 2048 nothing, of 1536 and 512 they lose 4 to 7%).
"""


@dataclass(frozen=True)
class GemmBalancePass(ModulePass):
    """
    Choose whether the grid is balanced.

    `ScheduleError` (GMR-S005) if the blocks are still open.
    """

    name = "gemm-balance"

    balanced: bool | None = None

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        matmul, problem, schedule = read_schedule(op)
        wanted = schedule.filled(balanced=self.balanced)
        if wanted.balanced is not None:
            write_schedule(matmul, problem, wanted)
            return
        if wanted.block_m is None or wanted.block_n is None or wanted.math_warpgroups is None:
            raise ScheduleError(
                "GMR-S005",
                f"{self.name}: the blocks are open",
                rule="rounds of tiles need tiles",
                fix="run gemm-select-blocks before",
            )
        rows, columns = cluster_tiles(problem, wanted)
        resident = resident_clusters(wanted, split_k=problem.numerics.split_k)
        clocks = problem.part_k_blocks * predict(problem, wanted).tensor
        chosen = clocks >= LONG_TILE_CLOCKS
        write_schedule(matmul, problem, wanted.filled(balanced=chosen))
        tiles, than = rows * columns, "at least" if chosen else "less than"
        because = (
            f"a tile keeps the tensor cores busy for {clocks:.0f} cycles, {than} {LONG_TILE_CLOCKS}; "
            f"{tiles} tiles need {balanced_clusters(tiles, resident)} of {resident} clusters"
        )
        record(Decision(self.name, "balanced", str(chosen).lower(), because, str(not chosen).lower()))
