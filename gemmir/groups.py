"""
What of the operands and of the result belongs to each group, out of the index operand; on plain integers.

What an index may hold is said by `gemmir.problem.Grouping`, and which rows follow from it by `gemmir.segments`. Here
are the elements of K too, and the first entry that is invalid: what it stands for is left out. Nothing of the result is
written for it, and nothing out of bounds is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gemmir.problem import GROUP_ALIGNMENT, Grouping
from gemmir.segments import ended, segments

K_ALIGNMENT_BYTES = 128
"""Bytes of K at whose multiples groups of K begin and end: one row of a swizzled tile."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The sizes that an index divides. `k_step`: elements of K in `K_ALIGNMENT_BYTES`."""

    groups: int
    m: int
    k: int
    k_step: int


@dataclass(frozen=True, slots=True)
class Span:
    """
    A part of group `number`: rows `[first, last)`, the elements `[k_first, k_last)` of K.

    Rows are counted in A where the groups' rows are contiguous, else in the matrix of the group.
    """

    number: int
    first: int
    last: int
    k_first: int
    k_last: int


def spans(grouping: Grouping, index: Sequence[int], extent: Extent) -> list[Span]:
    """
    The parts that are written, in the order of rows, or of groups. No two of them write the same.

    Those without rows are left out; those without K are not, for their result is zero, or C. `index` is empty where
    the grouping has no index operand.
    """
    m, k = extent.m, extent.k
    if grouping is Grouping.NONE:
        return [Span(0, 0, m, 0, k)] if m else []
    if grouping is Grouping.K_OFFS:
        parts = enumerate(ended(index, k, extent.k_step))
        return [Span(group, 0, m, begin, begin + size) for group, (begin, size) in parts if m and size >= 0]
    found = segments(grouping, index, extent.groups, m)
    return [Span(s.group, s.first, s.first + s.rows, 0, k) for s in found if s.rows > 0]


def first_fault(grouping: Grouping, index: Sequence[int], extent: Extent) -> str | None:
    """The first entry of the index that breaks a rule, the entry and the rule in words; None for a valid index."""
    if not index:
        return None
    faults = {
        Grouping.OFFS: _faults_of_ends(index, "M", extent.m, 1),
        Grouping.K_OFFS: _faults_of_ends(index, "K", extent.k, extent.k_step),
        Grouping.COUNTS: _faults_of_counts(index, extent.m),
        Grouping.GROUP_IDS: _faults_of_ids(index, extent.groups),
    }
    return next(faults[grouping], None)


def _faults_of_ends(index: Sequence[int], name: str, limit: int, step: int) -> Iterator[str]:
    for group, (end, (begin, size)) in enumerate(zip(index, ended(index, limit, step), strict=True)):
        if size < 0:
            what = f"offs[{group}] = {end}: group {group} begins at {begin}"
            inside = begin <= end <= limit
            yield f"{what}, and groups end at multiples of {step}" if inside else f"{what}, {name} is {limit}"


def _faults_of_counts(index: Sequence[int], m: int) -> Iterator[str]:
    for group, count in enumerate(index):
        if not 0 <= count <= m:
            yield f"counts[{group}] = {count}: from 0 to M = {m}"


def _faults_of_ids(index: Sequence[int], groups: int) -> Iterator[str]:
    for row, number in enumerate(index):
        start = row - row % GROUP_ALIGNMENT
        if not -1 <= number < groups:
            yield f"group_ids[{row}] = {number}: from 0 to {groups - 1}, or -1 for padding"
        elif number != -1 and row != start and index[row - 1] != number:
            rule = f"the rows of a group start at a multiple of {GROUP_ALIGNMENT}, and only padding follows them"
            yield f"group_ids[{row}] = {number}: {rule}"
