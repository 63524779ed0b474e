"""
Hypothesis strategies for products of several groups: problems, index operands that are valid, and any that are not.

Needs hypothesis.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from hypothesis import strategies as st

from gemmir.dtypes import BF16, F16, F32
from gemmir.groups import K_ALIGNMENT_BYTES, Extent
from gemmir.problem import GROUP_ALIGNMENT, SCALE_BLOCK, GemmProblem, Grouping, Recipe
from gemmir.testing.strategies import FP8_PAIRS, fp8_problem, half_problem, sizes

INDEXED = (Grouping.OFFS, Grouping.GROUP_IDS, Grouping.COUNTS, Grouping.K_OFFS)
"""The forms with an index operand."""
GROUPINGS = (*INDEXED, Grouping.BATCH)
NEAR_BLOCKS = tuple(block + off for block in (64, GROUP_ALIGNMENT) for off in (-1, 0, 1))
"""Rows of a group that fill a tile, or lack one row, or have one more."""
NEAR_STEPS = (0, 1, 2)
"""The same along K, where groups end at multiples of a step."""
MAJORS = st.sampled_from((("k", "k"), ("m", "n"), ("m", "k"), ("k", "n")))


def extent_of(problem: GemmProblem) -> Extent:
    """The sizes that an index operand of `problem`, whose M is fixed, divides."""
    assert problem.m is not None
    return Extent(problem.groups, problem.m, problem.k, K_ALIGNMENT_BYTES // problem.a.bytes)


@st.composite
def lengths(draw: st.DrawFn, groups: int, limit: int, near: tuple[int, ...] = NEAR_BLOCKS) -> list[int]:
    """
    How many of `limit` elements each group has: even, uneven, all in one, none, and while they last one in each, or any
    of `near`.
    """
    kind = draw(st.sampled_from(("any", "one", "none", "single", "even", "near")))
    if kind == "one":
        huge = draw(st.integers(0, groups - 1))
        return [limit if g == huge else 0 for g in range(groups)]
    if kind == "even":
        return [limit // groups] * groups
    if kind == "single":
        return [1 if g < limit else 0 for g in range(groups)]
    if kind == "none":
        return [0] * groups
    if kind == "near":
        wanted = draw(st.lists(st.sampled_from(near), min_size=groups, max_size=groups))
        cuts = [min(limit, end) for end in accumulate(wanted)]
    else:
        cuts = sorted(draw(st.lists(st.integers(0, limit), min_size=groups, max_size=groups)))
    return [end - start for start, end in zip([0, *cuts], cuts, strict=False)]


@st.composite
def indices(draw: st.DrawFn, grouping: Grouping, extent: Extent) -> list[int]:
    """Valid index operands: groups may be empty, and some rows or elements of K belong to none."""
    if grouping is Grouping.COUNTS:
        edges = [n for n in (0, 1, *NEAR_BLOCKS, extent.m) if n <= extent.m]
        some = st.sampled_from(edges) if draw(st.booleans()) else st.integers(0, extent.m)
        return draw(st.lists(some, min_size=extent.groups, max_size=extent.groups))
    if grouping is Grouping.GROUP_IDS:
        return draw(_ids(extent))
    if grouping is Grouping.K_OFFS:
        steps = draw(lengths(extent.groups, extent.k // extent.k_step, NEAR_STEPS))
        return [end * extent.k_step for end in accumulate(steps)]
    return list(accumulate(draw(lengths(extent.groups, extent.m))))


@st.composite
def _ids(draw: st.DrawFn, extent: Extent) -> list[int]:
    """Each block of rows, or two of them, has a group or none, and padding at its end."""
    ids: list[int] = []
    while len(ids) < extent.m:
        group = draw(st.integers(-1, extent.groups - 1))
        rows = draw(st.sampled_from((GROUP_ALIGNMENT, 1, *NEAR_BLOCKS)) | st.integers(1, GROUP_ALIGNMENT))
        ids += [group] * rows + [-1] * (-rows % GROUP_ALIGNMENT)
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


@st.composite
def grouped_forms(draw: st.DrawFn, grouping: Grouping, most_m: int = 140, most_groups: int = 4) -> GemmProblem:
    """Those of `grouped_problems` with f32 or 16-bit results, with and without C, scales and layouts of every kind."""
    problem = draw(grouped_problems(grouping, most_m, most_groups))
    problem = replace(problem, d=draw(st.sampled_from((F32, problem.d))), has_c=draw(st.booleans()))
    if problem.promoted:
        columns = grouping is Grouping.K_OFFS or draw(st.booleans())
        return replace(problem, scale_b=Recipe.BLOCK_WISE_1X128 if columns else problem.scale_b)
    a_major, b_major = draw(MAJORS)
    return replace(problem, m=whole_rows(problem.m or 1, a_major), a_major=a_major, b_major=b_major)


def whole_rows(m: int, a_major: str) -> int:
    """The next M that a 16-bit A may have: where it is m-major, its rows in memory are whole 16 bytes."""
    return m if a_major == "k" else -(-m // 8) * 8
