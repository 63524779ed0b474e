"""
The search for a tile: every legal block, number of warpgroups, split and cluster, ranked by the cost model.

Tile orders are chosen later, but the first few candidates are ranked as if the best one were. A search has
milliseconds. So tiles that cannot come near the best found so far are dropped by a bound, most rules are
asked once for a shape and only the rest for each of its clusters, and clusters are tried only where they can matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from gemmir.errors import ScheduleError
from gemmir.layouts import PANEL
from gemmir.legality import (
    BLOCK_M,
    CLUSTERS,
    CLUSTERS_OF_FOUR,
    MATH_WARPGROUPS,
    RULES,
    SCALES_STEP,
    SEARCHED_CLUSTER,
    WG_COLUMN_STEP,
    Violation,
    cluster,
    promote_chunk,
    rules_of,
    tma_boxes,
    turns,
)
from gemmir.passes.cost_model import Cost, best_orders, cluster_bound, dram_seconds, predict, tile_bound
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Schedule, Split
from gemmir.tail_legality import tail
from gemmir.target import SM_90A, Target

FIELDS = (
    "block_m",
    "block_n",
    "block_k",
    "math_warpgroups",
    "split",
    "turns",
    "promote_chunk",
    "cluster_m",
    "cluster_n",
)
"""What the search chooses."""

CHUNKS = (1, 4)
"""Of the k-blocks that go in a chunk. Two take 1 to 3% longer than four, eight are no faster (measured)."""

BLOCK_N_MAX = 512
ROWS_FIRST = tuple(sorted(BLOCK_M, key=lambda rows: abs(rows - 128)))
GROUPS_FIRST = tuple(sorted(MATH_WARPGROUPS, key=lambda groups: abs(groups - 2)))
"""In the order in which good tiles are found early."""

CLUSTER_RULES = (cluster, tma_boxes, tail)
SHAPE_RULES = tuple(rule for rule in RULES if rule not in CLUSTER_RULES)

ALIKE = 0.002
"""Times that differ by less are the same to the model."""

ORDERED = 6
"""Candidates that are costed again with the best tile order of each."""

NEAR_BEST = 1.1
"""Tiles that take this many times as long as the best are not even runners-up."""

GROUPS_GAIN = 0.02
"""
Share of the time by which a cluster must be ahead before groups get one unasked: measured, multicast gains them 1% at
best, and a cluster tile more than a group needs costs as much as one that is needed.
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A legal schedule and its cost."""

    schedule: Schedule
    cost: Cost

    @property
    def block(self) -> tuple[int | None, int | None]:
        return self.schedule.block_m, self.schedule.block_n

    @property
    def alone(self) -> bool:
        """Whether its CTAs form no clusters."""
        return self.schedule.cluster_m == self.schedule.cluster_n == 1

    @property
    def shape(self) -> tuple[object, ...]:
        """Everything but the cluster."""
        return *self.block, self.schedule.math_warpgroups, self.schedule.split, self.schedule.promote_chunk

    def rank(self, best: float) -> tuple[float, ...]:
        """
        Less is better: time in steps of `ALIKE` of `best` seconds, then no cluster, two warpgroups, less waste along M,
        chunks (measured: 512x4096x7168 takes 24.9 us with them and 27.0 without), time.
        """
        s = self.schedule
        assert s.cluster_m and s.cluster_n and s.block_m and s.math_warpgroups and s.promote_chunk
        ctas, steps = s.cluster_m * s.cluster_n, int((self.cost.seconds / best - 1) / ALIKE)
        return steps, ctas, abs(s.math_warpgroups - 2), s.block_m, -s.promote_chunk, self.cost.seconds


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a search found: candidates near the best, the best first, and how many legal shapes were costed."""

    candidates: list[Candidate]
    shapes: int

    @property
    def best(self) -> Candidate:
        return self.candidates[0]


def _partitions(problem: GemmProblem, fixed: Schedule, target: Target) -> Iterator[Schedule]:
    """
    Each block_m, number of warpgroups, split and chunk; in turn where that is legal, because it is never slower.

    One warpgroup has nothing to split; it is written along m.
    """
    for block_m in ROWS_FIRST if fixed.block_m is None else (fixed.block_m,):
        for groups in GROUPS_FIRST if fixed.math_warpgroups is None else (fixed.math_warpgroups,):
            splits = (Split.ALONG_M,) if groups == 1 else tuple(Split)
            for split in splits if fixed.split is None else (fixed.split,):
                yield from _loops(problem, fixed.filled(block_m=block_m, math_warpgroups=groups, split=split), target)


def _loops(problem: GemmProblem, partition: Schedule, target: Target) -> Iterator[Schedule]:
    """A partition with each way to go through its k-blocks."""
    assert partition.math_warpgroups is not None
    narrow = partition.filled(block_n=partition.math_warpgroups * WG_COLUMN_STEP)
    for chunk in CHUNKS if partition.promote_chunk is None else (partition.promote_chunk,):
        in_turn = chunk == 1 and turns(problem, narrow.filled(turns=True), target) is None
        choices = {"promote_chunk": chunk, "turns": in_turn}
        if chunk == partition.promote_chunk or promote_chunk(problem, narrow.filled(**choices), target) is None:
            yield partition.filled(**choices)


def _everything(block_m: int, block_n: int) -> bool:
    return True


def _shapes(
    problem: GemmProblem, partition: Schedule, worth: Callable[[int, int], bool] = _everything
) -> Iterator[Schedule]:
    """
    Each block_n of a partition that is worth it, in ascending order, up to the first that covers N.

    Where batches of scales are fixed they go on: a batch asks for tiles of a certain width, and that may be wider.
    """
    if partition.block_n is not None:
        yield partition
        return
    assert partition.math_warpgroups is not None and partition.block_m is not None
    step = WG_COLUMN_STEP * (partition.math_warpgroups if partition.split is Split.ALONG_N else 1)
    for block_n in range(step, BLOCK_N_MAX + 1, step):
        if worth(partition.block_m, block_n):
            yield replace(partition, block_n=block_n)
        covered = block_n >= max(problem.n, _least_columns(problem, step // WG_COLUMN_STEP))
        if covered and partition.scale_batch in (None, 1):
            return


def _least_columns(problem: GemmProblem, parts: int) -> int:
    """Columns of the narrowest tile, of so many parts along N, that is legal in every cluster."""
    if problem.b_major != "k":
        return PANEL * parts * SEARCHED_CLUSTER
    return SCALES_STEP * parts if problem.column_scales else 0


def legal_shapes(
    problem: GemmProblem,
    fixed: Schedule,
    target: Target = SM_90A,
    worth: Callable[[int, int], bool] = _everything,
) -> Iterator[Schedule]:
    """
    Every way to choose the open ones of `FIELDS` but the cluster that keeps the rules of shapes.

    `worth(block_m, block_n)` says whether a tile is looked at; a fixed block_n always is.
    """
    for partition in _partitions(problem, fixed.filled(block_k=problem.block_k), target):
        for shape in _shapes(problem, partition, worth):
            found = next((v for rule in SHAPE_RULES if (v := rule(problem, shape, target)) is not None), None)
            if found is None:
                yield shape
            elif found.code in ("GMR-S001", "GMR-S002"):
                break  # memory and registers only grow with block_n


def clusters_of(problem: GemmProblem, shape: Schedule, target: Target = SM_90A) -> Iterator[Schedule]:
    """A shape with each legal cluster; with one of four only where it is asked for: two are slower (measured)."""
    fixed = shape.cluster_m, shape.cluster_n
    asked = CLUSTERS_OF_FOUR if None not in fixed or 4 in fixed else ()
    for cluster_m, cluster_n in (*CLUSTERS, *asked):
        if shape.cluster_m in (None, cluster_m) and shape.cluster_n in (None, cluster_n):
            placed = replace(shape, cluster_m=cluster_m, cluster_n=cluster_n)
            if all(rule(problem, placed, target) is None for rule in CLUSTER_RULES):
                yield placed


def _costed_shapes(problem: GemmProblem, fixed: Schedule, target: Target) -> list[Candidate]:
    """Legal shapes that may be near the best, with their cost without a cluster if that is open, cheapest first."""
    best, dram = float("inf"), dram_seconds(problem, target)

    def worth(block_m: int, block_n: int) -> bool:
        return tile_bound(problem, block_m, block_n, dram, target) <= best * NEAR_BEST

    shapes: list[Candidate] = []
    for shape in legal_shapes(problem, fixed, target, worth):
        cost = predict(problem, shape, target)
        shapes.append(Candidate(shape, cost))
        if cost.seconds < best and all(rule(problem, shape, target) is None for rule in CLUSTER_RULES):
            best = cost.seconds
    return sorted(shapes, key=lambda c: c.cost.seconds)


def search(problem: GemmProblem, fixed: Schedule, target: Target = SM_90A) -> Ranking:
    """
    The best legal ways to choose the open ones of `FIELDS`; what is fixed stays.

    `ScheduleError` (GMR-S006) names the rule that the nearest candidate breaks if there is none.
    """
    shapes = _costed_shapes(problem, fixed, target)
    candidates: list[Candidate] = []
    blocks: set[tuple[int | None, int | None]] = set()
    best, gain = float("inf"), _gain(problem, fixed)
    for shape in shapes:
        if len(blocks) > 1 and cluster_bound(problem, shape.cost) > best:
            continue
        for schedule in clusters_of(problem, shape.schedule, target):
            alone = schedule.cluster_m == schedule.cluster_n == 1
            cost = shape.cost if alone else predict(problem, schedule, target)
            candidates.append(Candidate(schedule, cost))
            blocks.add(shape.block)
            best = min(best, cost.seconds) if alone or not gain else best
    if not candidates:
        partitions = _partitions(problem, fixed.filled(block_k=problem.block_k), target)
        shapes_tried = (shape for partition in partitions for shape in _shapes(problem, partition))
        raise no_candidate(problem, fixed, shapes_tried, target)
    return Ranking(_with_orders(problem, _ranked(candidates, gain), gain, target), len(shapes))


def _gain(problem: GemmProblem, fixed: Schedule) -> float:
    """By how much a cluster that nobody asked for must be ahead of what does without."""
    asked = fixed.cluster_m is not None and fixed.cluster_n is not None
    return 0.0 if asked or problem.grouping is Grouping.NONE else GROUPS_GAIN


def _ranked(candidates: list[Candidate], gain: float) -> list[Candidate]:
    """The best first; clusters that are not ahead by `gain` of all that do without, if that is asked, behind those."""
    compared = [c for c in candidates if c.alone] if gain else []
    best = min(c.cost.seconds for c in compared or candidates)
    enough = (1 - gain) * best if compared else float("inf")
    return sorted(candidates, key=lambda c: (not c.alone and c.cost.seconds > enough, *c.rank(best)))


def _with_orders(problem: GemmProblem, ranked: list[Candidate], gain: float, target: Target) -> list[Candidate]:
    """The first candidates of a ranking anew, each with the tile order that suits it; the others behind them."""
    first = [Candidate(c.schedule, best_orders(problem, c.schedule, target)[0].cost) for c in ranked[:ORDERED]]
    return _ranked(first, gain) + ranked[ORDERED:]


def _first_broken(problem: GemmProblem, schedule: Schedule, target: Target) -> tuple[int, Violation] | None:
    """Number of rules kept before the first that is broken, and what breaks it."""
    for kept, rule in enumerate(rules_of(schedule)):
        if (found := rule(problem, schedule, target)) is not None:
            return kept, found
    return None


def no_candidate(
    problem: GemmProblem, fixed: Schedule, shapes: Iterable[Schedule], target: Target = SM_90A
) -> ScheduleError:
    """The error for a fixed part that none of `shapes` completes; the nearest is the one that keeps most rules."""
    broken = [(*found, s) for s in shapes if (found := _first_broken(problem, s, target)) is not None]
    given = ", ".join(f"{name} = {_text(getattr(fixed, name))}" for name in fixed_names(fixed))
    _, why, nearest = max(broken, key=lambda b: b[0])
    groups = f"{nearest.math_warpgroups} math warpgroup" + ("" if nearest.math_warpgroups == 1 else "s")
    return ScheduleError(
        "GMR-S006",
        f"nothing completes {given}: the nearest, {nearest.block_m}x{nearest.block_n} with {groups}, has {why.what}",
        rule=f"{why.code}: {why.rule}",
        fix=f"{why.fix}, or leave more of the schedule open",
    )


def fixed_names(schedule: Schedule) -> tuple[str, ...]:
    """Names of the choices that are made, of those that the search looks at."""
    names = (*FIELDS, "store_slices", "num_stages")
    return tuple(name for name in names if getattr(schedule, name) is not None)


def _text(value: object) -> str:
    return str(value.value if isinstance(value, Split) else value).lower()
