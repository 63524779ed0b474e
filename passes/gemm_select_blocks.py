"""
`gemm-select-blocks`: choose the tile, who computes which part of it, and the cluster, by the cost model.

    schedule <family = tiles>                                                         // before
    schedule <family = tiles, block = 128x256x128, warpgroups = 2 along n,
              turns = false, chunk = 1, cluster = 1x1>                                // after

Every legal combination is costed; there is no table of tiles. Options count as choices that the user made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gemmir.decisions import Decision, record
from gemmir.passes.block_search import FIELDS, GROUPS_GAIN, Candidate, Ranking, fixed_names
from gemmir.passes.l2_model import resident_clusters
from gemmir.passes.schedule_pass import bad_option, read_schedule, write_schedule
from gemmir.passes.stream_search import search_family
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Family, Schedule, Split
from gemmir.tile import tile_geometry


@dataclass(frozen=True)
class GemmSelectBlocksPass(ModulePass):
    """
    Choose block_m, block_n, block_k, math warpgroups and their split, turns, promote_chunk, and the cluster.

    `block` is block_m,block_n[,block_k], `cluster` cluster_m,cluster_n, `split` m or n. `ScheduleError` (GMR-S006)
    names the rule in the way if nothing legal has what is fixed.
    """

    name = "gemm-select-blocks"

    block: tuple[int, ...] | None = None
    warpgroups: int | None = None
    split: str | None = None
    turns: bool | None = None
    chunk: int | None = None
    cluster: tuple[int, ...] | None = None

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        matmul, problem, schedule = read_schedule(op)
        wanted = self._with_options(schedule)
        if all(getattr(wanted, name) is not None for name in FIELDS):
            write_schedule(matmul, problem, wanted)
            return
        ranking = search_family(problem, wanted)
        write_schedule(matmul, problem, ranking.best.schedule)
        for decision in explain(problem, wanted, ranking):
            record(decision)

    def _with_options(self, schedule: Schedule) -> Schedule:
        if self.block is not None:
            if len(self.block) not in (2, 3) or min(self.block) < 1:
                bad_option(self.name, "block", self.block, "block_m,block_n or block_m,block_n,block_k, all positive")
            names = ("block_m", "block_n", "block_k")
            schedule = schedule.filled(**dict(zip(names, self.block, strict=False)))
        if self.cluster is not None:
            if len(self.cluster) != 2 or min(self.cluster) < 1:
                bad_option(self.name, "cluster", self.cluster, "cluster_m,cluster_n, both positive")
            schedule = schedule.filled(cluster_m=self.cluster[0], cluster_n=self.cluster[1])
        if self.split is not None:
            if self.split not in [s.value for s in Split]:
                bad_option(self.name, "split", self.split, "m or n")
            schedule = schedule.filled(split=Split(self.split))
        return schedule.filled(math_warpgroups=self.warpgroups, turns=self.turns, promote_chunk=self.chunk)


def explain(problem: GemmProblem, wanted: Schedule, ranking: Ranking) -> list[Decision]:
    """The decisions behind the best of a search, for what was open in `wanted`."""
    decisions: list[Decision] = []
    if wanted.block_m is None or wanted.block_n is None or wanted.block_k is None:
        decisions.append(_explain_block(problem, wanted, ranking))
    if None in (wanted.math_warpgroups, wanted.split, wanted.turns, wanted.promote_chunk):
        decisions.append(_explain_warpgroups(ranking))
    if wanted.cluster_m is None or wanted.cluster_n is None:
        decisions.append(_explain_cluster(problem, ranking))
    return decisions


def _first(ranking: Ranking, wanted: Callable[[Candidate], bool]) -> Candidate | None:
    return next((candidate for candidate in ranking.candidates if wanted(candidate)), None)


def _block(schedule: Schedule) -> str:
    return f"{schedule.block_m}x{schedule.block_n}x{schedule.block_k}"


def _groups(schedule: Schedule) -> str:
    assert schedule.split is not None
    along = "" if schedule.math_warpgroups == 1 else f" along {schedule.split.value}"
    chunk = f", chunks of {schedule.promote_chunk}" if schedule.promote_chunk != 1 else ""
    return f"{schedule.math_warpgroups}{along}" + (", in turn" if schedule.turns else "") + chunk


def _cluster(schedule: Schedule) -> str:
    return f"{schedule.cluster_m}x{schedule.cluster_n}"


def _explain_block(problem: GemmProblem, wanted: Schedule, ranking: Ranking) -> Decision:
    best, cost = ranking.best, ranking.best.cost
    fixed = fixed_names(wanted)
    given = f" with {', '.join(fixed)} given" if fixed else ""
    clusters = resident_clusters(best.schedule, split_k=problem.numerics.split_k)
    because = (
        f"{cost.microseconds:.1f} us predicted: {cost.tiles} tiles on {clusters} clusters in "
        f"{cost.rounds} rounds of {problem.part_k_blocks} k-blocks x {cost.k_block:.0f} + {cost.tile:.0f} cycles at "
        f"{cost.clock_hz / 1e9:.2f} GHz; tensor cores {cost.utilisation:.0%} busy; {cost.dram_seconds * 1e6:.1f} us of "
        f"DRAM; limited by {cost.limiter}; {ranking.shapes} shapes costed{given}"
    )
    other = _first(ranking, lambda c: c.block != best.block)
    second = "" if other is None else f"{_block(other.schedule)} at {other.cost.microseconds:.1f} us"
    return Decision(GemmSelectBlocksPass.name, "block", _block(best.schedule), because, second)


def _explain_warpgroups(ranking: Ranking) -> Decision:
    best, cost = ranking.best, ranking.best.cost
    tile = tile_geometry(best.schedule)
    because = (
        f"each computes {tile.waves} x 64 rows x {tile.wg_columns} columns; a k-block takes {cost.math:.0f} cycles of "
        f"which the tensor cores need {cost.tensor:.0f}"
    )
    groups = _groups(best.schedule)
    other = _first(ranking, lambda c: c.block == best.block and _groups(c.schedule) != groups)
    second = "" if other is None else f"{_groups(other.schedule)} at {other.cost.microseconds:.1f} us"
    return Decision(GemmSelectBlocksPass.name, "warpgroups", groups, because, second)


def _explain_cluster(problem: GemmProblem, ranking: Ranking) -> Decision:
    best, cost = ranking.best, ranking.best.cost
    shared = {"1x1": "nothing is shared", "2x1": "two CTAs share B", "1x2": "two CTAs share A"}
    text = _cluster(best.schedule)
    because = f"{shared.get(text, text)}; a k-block's operands take {cost.loads:.0f} cycles from L2"
    if problem.grouping is not Grouping.NONE and best.schedule.family is not Family.STREAM:
        because += f"; groups form clusters where that is predicted to save {GROUPS_GAIN:.0%}"
    other = _first(ranking, lambda c: c.shape == best.shape and _cluster(c.schedule) != text)
    second = "" if other is None else f"{_cluster(other.schedule)} at {other.cost.microseconds:.1f} us"
    return Decision(GemmSelectBlocksPass.name, "cluster", text, because, second)
