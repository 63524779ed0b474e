"""
Hypothesis strategies for products of several groups: problems, index operands that are valid, and any that are not.

Needs hypothesis.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from hypothesis import strategies as st

from gemmir.dtypes import BF16, F16
from gemmir.groups import K_ALIGNMENT_BYTES, Extent
from gemmir.problem import GROUP_ALIGNMENT, SCALE_BLOCK, GemmProblem, Grouping, Recipe
from gemmir.testing.strategies import FP8_PAIRS, fp8_problem, half_problem, sizes

INDEXED = (Grouping.OFFS, Grouping.GROUP_IDS, Grouping.COUNTS, Grouping.K_OFFS)
"""The forms with an index operand."""
GROUPINGS = (*INDEXED, Grouping.BATCH)


def extent_of(problem: GemmProblem) -> Extent:
    """The sizes that an index operand of `problem`, whose M is fixed, divides."""
    assert problem.m is not None
    return Extent(problem.groups, problem.m, problem.k, K_ALIGNMENT_BYTES // problem.a.bytes)


@st.composite
def lengths(draw: st.DrawFn, groups: int, limit: int) -> list[int]:
    """How many of `limit` elements each group has: even, uneven, all in one, none, or one in each while they last."""
    kind = draw(st.sampled_from(("any", "one", "none", "single", "even")))
    if kind == "one":
        huge = draw(st.integers(0, groups - 1))
        return [limit if g == huge else 0 for g in range(groups)]
    if kind == "even":
        return [limit // groups] * groups
    if kind == "single":
        return [1 if g < limit else 0 for g in range(groups)]
    if kind == "none":
        return [0] * groups
    cuts = sorted(draw(st.lists(st.integers(0, limit), min_size=groups, max_size=groups)))
    return [end - start for start, end in zip([0, *cuts], cuts, strict=False)]


@st.composite
def indices(draw: st.DrawFn, grouping: Grouping, extent: Extent) -> list[int]:
    """Valid index operands: groups may be empty, and some rows or elements of K belong to none."""
    if grouping is Grouping.COUNTS:
        some = st.sampled_from((0, 1, extent.m)) | st.integers(0, extent.m)
        return draw(st.lists(some.map(lambda n: min(n, extent.m)), min_size=extent.groups, max_size=extent.groups))
    if grouping is Grouping.GROUP_IDS:
        return draw(_ids(extent))
    limit, step = (extent.k // extent.k_step, extent.k_step) if grouping is Grouping.K_OFFS else (extent.m, 1)
    return [end * step for end in accumulate(draw(lengths(extent.groups, limit)))]


@st.composite
def _ids(draw: st.DrawFn, extent: Extent) -> list[int]:
    """Each block of rows has a group, or none, and padding at its end."""
    ids: list[int] = []
    while len(ids) < extent.m:
        group = draw(st.integers(-1, extent.groups - 1))
        rows = draw(st.sampled_from((GROUP_ALIGNMENT, 1)) | st.integers(1, GROUP_ALIGNMENT))
        ids += [group] * rows + [-1] * (GROUP_ALIGNMENT - rows)
    return ids[: extent.m]


def any_indices(grouping: Grouping, extent: Extent) -> st.SearchStrategy[list[int]]:
    """Index operands of the right size with any numbers in them, mostly invalid."""
    size = extent.m if grouping is Grouping.GROUP_IDS else extent.groups
    near = st.sampled_from((-1, 0, 1, extent.groups, extent.m, extent.m + 1, extent.k, extent.k_step))
    numbers = near | st.integers(-(2**31), 2**31 - 1) | st.integers(0, max(extent.m, extent.k))
    return st.lists(numbers, min_size=size, max_size=size)


@st.composite
def grouped_problems(draw: st.DrawFn, grouping: Grouping, most_m: int = 200, most_groups: int = 5) -> GemmProblem:
    """
    Small problems of a form with a fixed M, k-major and without C or epilogue, that kernels are made for.

    FP8 operands have scales 1x128 x 128x128, or with `k_offs` 1x128 x 1x128. Groups have few rows, or there are
    hundreds of groups where `most_groups` allows it.
    """
    m, n = draw(sizes(1, 64, most_m)), draw(sizes(8, 64, 136))
    groups = draw(st.sampled_from((1, 2, 3, most_groups)) | st.integers(1, most_groups))
    along_k = grouping is Grouping.K_OFFS
    if draw(st.booleans()):
        k = SCALE_BLOCK * draw(st.integers(1, 4)) if along_k else draw(sizes(16, SCALE_BLOCK, 3 * SCALE_BLOCK))
        problem = fp8_problem(m, n, k, *draw(st.sampled_from(FP8_PAIRS)), draw(st.sampled_from((BF16, F16))))
        problem = replace(problem, scale_b=Recipe.BLOCK_WISE_1X128) if along_k else problem
    else:
        k = 64 * draw(st.integers(1, 5)) if along_k else draw(sizes(8, 64, 192))
        problem = half_problem(m, n, k, draw(st.sampled_from((BF16, F16))), draw(st.sampled_from((BF16, F16))))
    return replace(problem, grouping=grouping, groups=groups)
