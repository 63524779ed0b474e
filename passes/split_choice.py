"""In how many parts K is summed where the bits of a result may depend on M: as many as are fastest."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from gemmir.decode import is_worth
from gemmir.errors import ScheduleError
from gemmir.passes.stream_search import search_family
from gemmir.problem import GemmProblem
from gemmir.schedule import Family, Schedule
from gemmir.stream_legality import MAX_PARTS


def fastest_split_k(problem: GemmProblem) -> int:
    """The parts of K with which a product takes least time by the cost model, for its own M."""
    parts = (p for p in range(1, MAX_PARTS + 1) if p == 1 or is_worth(problem.k_blocks, p))
    return min(parts, key=lambda p: (_seconds(problem, p), p))


def _seconds(problem: GemmProblem, parts: int) -> float:
    split, found = replace(problem, numerics=replace(problem.numerics, split_k=parts)), float("inf")
    for family in Family:
        with suppress(ScheduleError):
            found = min(found, search_family(split, Schedule(family=family)).best.cost.seconds)
    return found
