"""The products of groups that the GPU tests draw, with the tiles that are chosen and in clusters of two."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from hypothesis import strategies as st

from gemmir.errors import ScheduleError
from gemmir.passes.block_search import search
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Family, Schedule
from gemmir.testing.groups import any_indices, extent_of, grouped_forms, indices, whole_rows
from tests.gpu.problems import distinct

KERNELS, CALLS = 20, 15
"""Drawn of each form, and calls of each kernel with another M or other groups."""
CLUSTER_KERNELS, CLUSTER_CALLS = 12, 5
"""The same for each form and cluster."""
HUNDREDS = 300
DRAWN_ANEW = 3
"""So many examples of each kernel that is wanted: most of them come several times."""
ROWS = (1, 64, 65, 129, 200)
MORE_ROWS = (1, 64, 65, 129, 400)
BLOCKS = st.sampled_from((None, 64, 128, 192))


@dataclass(frozen=True)
class Drawn:
    """
    A kernel, whose problem has the M that its schedule is chosen for, and its calls: M and the groups of each, no two
    alike. `fixed` is what is fixed of its schedule, `apart` whether the rows of its result lie apart.
    """

    problem: GemmProblem
    fixed: Schedule
    calls: tuple[tuple[int, tuple[int, ...]], ...]
    apart: bool


@st.composite
def call(draw: st.DrawFn, problem: GemmProblem, rows: tuple[int, ...], valid: bool) -> tuple[int, tuple[int, ...]]:
    """An M and an index operand for it."""
    m = whole_rows(draw(st.sampled_from(rows) | st.integers(1, rows[-1])), problem.a_major)
    if problem.grouping is Grouping.BATCH:
        return m, ()
    index = indices if valid or draw(st.integers(0, 3)) else any_indices
    return m, tuple(draw(index(problem.grouping, extent_of(replace(problem, m=m)))))


def calls(
    problem: GemmProblem, rows: tuple[int, ...], number: int, valid: bool
) -> st.SearchStrategy[tuple[tuple[int, tuple[int, ...]], ...]]:
    one = call(problem, rows, valid)
    return st.lists(one, min_size=number, max_size=number, unique=True).map(tuple)


@st.composite
def eager_cases(draw: st.DrawFn, grouping: Grouping) -> Drawn:
    problem = draw(grouped_forms(grouping, most_m=200, most_groups=HUNDREDS))
    return Drawn(problem, Schedule(), draw(calls(problem, ROWS, CALLS, valid=True)), draw(st.booleans()))


@st.composite
def cluster_cases(draw: st.DrawFn, grouping: Grouping, cluster: tuple[int, int]) -> Drawn:
    problem = draw(grouped_forms(grouping, most_m=200, most_groups=HUNDREDS))
    open_block = Schedule(family=Family.TILES, cluster_m=cluster[0], cluster_n=cluster[1])
    fixed = replace(open_block, block_m=draw(BLOCKS))
    fixed = fixed if has_a_tile(problem, fixed) else open_block
    return Drawn(problem, fixed, draw(calls(problem, MORE_ROWS, CLUSTER_CALLS, valid=False)), draw(st.booleans()))


def has_a_tile(problem: GemmProblem, fixed: Schedule) -> bool:
    try:
        search(problem, fixed)
    except ScheduleError:
        return False
    return True


@cache
def drawn(grouping: Grouping) -> list[Drawn]:
    """`KERNELS` of a form, no two for one problem, so that no product comes twice."""
    return _kernels(eager_cases(grouping), KERNELS)


def drawn_in_clusters(grouping: Grouping, cluster: tuple[int, int]) -> list[Drawn]:
    return _kernels(cluster_cases(grouping, cluster), CLUSTER_KERNELS)


def _kernels(strategy: st.SearchStrategy[Drawn], number: int) -> list[Drawn]:
    found = distinct(strategy, DRAWN_ANEW * number)
    return list({(replace(one.problem, m=None), one.fixed): one for one in found}.values())[:number]
