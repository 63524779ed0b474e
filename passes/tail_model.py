"""How long the busiest CTA works where the last columns are computed in narrower tiles, behind all others."""

from __future__ import annotations

from dataclasses import dataclass

from gemmir.passes.l2_model import group_tiles, resident_clusters
from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule
from gemmir.target import SM_90A, Target, balanced_clusters, columns_of_tiles


@dataclass(frozen=True, slots=True)
class Deal:
    """
    How tiles are dealt out to `ctas` CTAs in turn: `wide` ones, then `narrow` ones, which go on where those ended.
    """

    wide: int
    narrow: int
    ctas: int

    def longest(self, wide: float, narrow: float) -> float:
        """What the tiles of the busiest CTA add up to, where a tile counts so much."""
        each, more = divmod(self.wide, self.ctas)
        tails, further = divmod(self.narrow, self.ctas)
        late = each * wide + (tails + (further > 0)) * narrow  # CTAs with one wide tile less are the first to go on
        early = (each + 1) * wide + (tails + (further > self.ctas - more)) * narrow if more else 0.0
        return max(late, early)


def deal(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> Deal:
    """The deal of one product's tiles, each of which one CTA computes."""
    rows, _ = group_tiles(problem, schedule)
    assert schedule.block_n is not None
    tail = schedule.tail_n or 0, schedule.tail_after or 0
    wide, narrow = (rows * columns for columns in columns_of_tiles(problem.n, schedule.block_n, *tail))
    resident = resident_clusters(schedule, target)
    tiles = wide + narrow
    return Deal(wide, narrow, balanced_clusters(tiles, resident) if schedule.balanced else min(resident, tiles))
