"""
`gemm-fit-tail`: choose narrower tiles for the last columns where the last round of tiles is then a shorter one.

    schedule <block = 128x192x128, ..., cluster = 1x1>                            // before
    schedule <block = 128x192x128, ..., cluster = 1x1, tail = 144 after 8>        // after

Tiles are computed in rounds, one tile an SM. 4096 x 2112 in tiles of 128x192 are 352, on 132 SMs two rounds and two
thirds of a third, which takes as long as a whole one. Behind 8 columns of tiles, 256 in two rounds, the other 576
columns are 128 tiles of 144 columns in the third. Whether that is faster depends on what limits the narrower tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gemmir.decisions import Decision, record
from gemmir.legality import WG_COLUMN_STEP, is_legal
from gemmir.passes.cost_model import predict
from gemmir.passes.l2_model import group_tiles, resident_clusters
from gemmir.passes.schedule_pass import need_tile, read_schedule, write_schedule
from gemmir.passes.tail_model import deal
from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule, Split
from gemmir.tail_legality import form_without_tail
from gemmir.target import SM_90A, Target

GAIN = 0.05
"""
Share of the predicted time that narrower tiles must save. Measured, they saved 2 to 3% less than is predicted, and in
hot loops they cost 3%: what is read of A again, and tiles that L2 limits more than the tensor cores.
"""

COSTED = 4
"""Candidates whose time is predicted, of those whose busiest CTA computes the fewest columns."""


@dataclass(frozen=True)
class GemmFitTailPass(ModulePass):
    """
    Choose the width of narrower tiles, and how many columns of others come before them; 0 and 0 for none.

    `ScheduleError`: GMR-S005 if the tile, or who computes it, is still open, GMR-S003 if such tiles are not possible.
    """

    name = "gemm-fit-tail"

    n: int | None = None
    after: int | None = None

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        matmul, problem, schedule = read_schedule(op)
        wanted = schedule.filled(tail_n=self.n, tail_after=self.after)
        if None not in (wanted.tail_n, wanted.tail_after):
            write_schedule(matmul, problem, wanted)
            return
        need_tile(self.name, wanted, rule="a last round needs tiles")
        chosen = best_tail(problem, wanted)
        write_schedule(matmul, problem, chosen)
        if chosen.has_tail:
            record(_explain(self.name, problem, chosen))


def best_tail(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> Schedule:
    """`schedule` with the narrower tiles that are predicted to save most, or with none."""
    none = replace(schedule, tail_n=0, tail_after=0)
    asked = bool(schedule.tail_n or schedule.tail_after)
    if not asked and form_without_tail(problem, none) is not None:
        return none
    candidates = list(_candidates(problem, schedule, target))
    # Of equals the widest: narrow tiles load more for what they compute.
    candidates.sort(key=lambda c: (columns_of_busiest(problem, c), -(c.tail_n or 0)))
    if not asked:
        whole = columns_of_busiest(problem, none)
        candidates = [candidate for candidate in candidates if columns_of_busiest(problem, candidate) < whole]
    legal = islice((c for c in candidates if is_legal(problem, c, target)), COSTED)
    costed = [(predict(problem, candidate, target).seconds, candidate) for candidate in legal]
    if not costed:
        return schedule.filled(tail_n=0, tail_after=0)
    seconds, best = min(costed, key=lambda c: c[0])
    return best if asked or seconds <= (1 - GAIN) * predict(problem, none, target).seconds else none


def columns_of_busiest(problem: GemmProblem, schedule: Schedule) -> float:
    """Columns that the CTA with most of them computes, of a tile's rows."""
    assert schedule.block_n is not None
    return deal(problem, schedule).longest(schedule.block_n, schedule.tail_n or 0)


def _candidates(problem: GemmProblem, schedule: Schedule, target: Target) -> Iterator[Schedule]:
    """Ways to deal out the last one or two rounds anew, where one of the two numbers may be fixed."""
    assert schedule.block_n is not None and schedule.math_warpgroups is not None
    step = WG_COLUMN_STEP * (schedule.math_warpgroups if schedule.split is Split.ALONG_N else 1)
    usual = range(step, schedule.block_n, step)
    for after in _columns_before(problem, schedule, target) if schedule.tail_after is None else (schedule.tail_after,):
        left = problem.n - after * schedule.block_n
        counts = {-(-left // width) for width in usual if left > 0}
        widths = {-(-left // (count * step)) * step for count in counts}  # the narrowest of each number of columns
        for tail_n in widths if schedule.tail_n is None else (schedule.tail_n,):
            if tail_n < schedule.block_n:
                yield replace(schedule, tail_n=tail_n, tail_after=after)


def _columns_before(problem: GemmProblem, schedule: Schedule, target: Target) -> list[int]:
    """As many columns of tiles as rounds hold, of which one or two are left, and up to two fewer; or nearly all."""
    rows, columns = group_tiles(problem, schedule)
    resident = resident_clusters(schedule, target)
    rounds = -(-rows * columns // resident)
    held = [whole * resident // max(rows, 1) for whole in (rounds - 1, rounds - 2)]
    found = {most - fewer for most in (*held, columns - 1) for fewer in range(3)}
    return sorted(after for after in found if 0 < after < columns)


def _explain(name: str, problem: GemmProblem, chosen: Schedule) -> Decision:
    none = replace(chosen, tail_n=0, tail_after=0)
    dealt, all_wide = deal(problem, chosen), deal(problem, none)
    because = (
        f"{dealt.wide} + {dealt.narrow} tiles on {dealt.ctas} CTAs, the busiest computes "
        f"{columns_of_busiest(problem, chosen):.0f} columns; {predict(problem, chosen).microseconds:.1f} us predicted"
    )
    second = (
        f"none, {all_wide.wide} tiles, {columns_of_busiest(problem, none):.0f} columns: "
        f"{predict(problem, none).microseconds:.1f} us"
    )
    return Decision(name, "tail", f"{chosen.tail_n} after {chosen.tail_after}", because, second)
