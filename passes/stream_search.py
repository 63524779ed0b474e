"""
The search for a tile of the `stream` family: every legal block and number of warpgroups, ranked by the cost model.

There are few: rows of A come in eights, weights in waves of 64, and nothing is shared between CTAs.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemmir.legality import is_legal
from gemmir.passes.block_search import Candidate, Ranking, no_candidate, search
from gemmir.passes.cost_model import predict
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Family, Schedule, Split
from gemmir.stream_legality import MAX_BLOCK_M, MAX_WARPGROUPS
from gemmir.target import SM_90A, Target

ALIKE, ALIKE_IN_PARTS = 0.04, 0.005
"""
Up to this share of the best time, the tile with fewest rows of tiles is taken: weights then pass once. As fast or
faster where it was measured, and faster by more where kernels overlap, when CTAs that share weights are out of step.
The second where K is split: the model has a price for sharing then.
"""

CHUNK, CHUNK_IN_PARTS = 2, 4
"""
k-blocks that a promoting warpgroup takes at a time: one leaves nothing in flight, four are no faster (measured), but
where K is split, and the weights come sooner than they are promoted: there they are 1.6% faster.
"""


UNEVEN_ROWS = 32
"""
Rows that a tile has at least in groups by `counts`, whose rows are known on the device only: one with more rows than
its tile reads its weights again. 32 groups of 7168 x 2048, one of 128 rows and the rest of 1, take 147 us in tiles of
8x64 and 121 in tiles of 32x128; with 1 row each 120 and 120, of 4096 x 7168 232 and 232 (FP8, H200).
"""


def search_family(problem: GemmProblem, fixed: Schedule, target: Target = SM_90A) -> Ranking:
    """
    The best legal ways to choose what is open of a tile, in the family that `fixed` names.

    `ScheduleError` (GMR-S006) names the rule that the nearest candidate breaks if there is none.
    """
    return search_stream(problem, fixed, target) if fixed.family is Family.STREAM else search(problem, fixed, target)


def search_stream(problem: GemmProblem, fixed: Schedule, target: Target = SM_90A) -> Ranking:
    """As `search_family`, of the `stream` family."""
    shapes = list(_shapes(problem, fixed, target))
    found = [Candidate(shape, predict(problem, shape, target)) for shape in shapes if is_legal(problem, shape, target)]
    if not found:
        raise no_candidate(problem, fixed, shapes, target)
    best = min(candidate.cost.seconds for candidate in found)
    return Ranking(sorted(found, key=lambda c: rank(problem, c.schedule, c.cost.seconds / best - 1)), len(found))


def rank(problem: GemmProblem, schedule: Schedule, slower: float) -> tuple[float, ...]:
    """
    Less is better: whether it is alike, the rows of tiles, time in steps of 0.5%, rows and weights of a tile.

    `slower`: by what share of the best time it takes longer than that.
    """
    assert schedule.block_m is not None and schedule.block_n is not None and schedule.math_warpgroups is not None
    if slower > (ALIKE if problem.numerics.split_k == 1 else ALIKE_IN_PARTS):
        return (1, slower)
    rows = -(-problem.group_rows // schedule.block_m)
    return 0, rows, int(slower * 200), schedule.block_m, schedule.block_n, schedule.math_warpgroups, slower


def _shapes(problem: GemmProblem, fixed: Schedule, target: Target) -> Iterator[Schedule]:
    """Every block and number of warpgroups that there may be, up to the rows and columns of the problem."""
    step, wave = target.wgmma_n_step, target.wgmma_m
    rows = _rows(problem, step)
    waves = max(-(-problem.n // wave), fixed.math_warpgroups or 1)  # each warpgroup has one, needed or not
    most = min(target.max_tma_box, waves * wave)
    open_choices = fixed.filled(
        block_k=problem.block_k,
        split=Split.ALONG_N,
        turns=False,
        promote_chunk=_chunk(problem),
        cluster_m=1,
        cluster_n=1,
    )
    for block_m in rows if fixed.block_m is None else (fixed.block_m,):
        for block_n in range(wave, most + 1, wave) if fixed.block_n is None else (fixed.block_n,):
            yield from _warpgroups(open_choices.filled(block_m=block_m, block_n=block_n))


def _rows(problem: GemmProblem, step: int) -> range:
    """Heights of tiles: up to the rows that there are, for groups by `counts` from `UNEVEN_ROWS` on."""
    covering = max(-(-problem.group_rows // step) * step, step)
    least = step
    if problem.grouping is Grouping.COUNTS:
        least = UNEVEN_ROWS if problem.m is None else min(UNEVEN_ROWS, max(-(-problem.m // step) * step, step))
    return range(least, min(max(covering, least), MAX_BLOCK_M) + 1, step)


def _chunk(problem: GemmProblem) -> int:
    if not problem.promoted:
        return 1
    return CHUNK if problem.numerics.split_k == 1 else CHUNK_IN_PARTS


def _warpgroups(block: Schedule) -> Iterator[Schedule]:
    """A block with each number of math warpgroups."""
    for groups in range(1, MAX_WARPGROUPS + 1) if block.math_warpgroups is None else (block.math_warpgroups,):
        yield block.filled(math_warpgroups=groups)
