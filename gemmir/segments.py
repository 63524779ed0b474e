"""
Which rows belong to which group: the meaning of the index operand of a product of several groups.

One place for host code; the device code (`GroupTiles` in the CUDA prelude) does the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gemmir.problem import GROUP_ALIGNMENT, Grouping
from gemmir.target import SM_90A

TILE_ALIGNMENT = SM_90A.tma_alignment // 2
"""Rows at whose multiples tiles start: so many of an m-major 16-bit A fill 16 bytes; f32 scales need fewer."""


@dataclass(frozen=True, slots=True)
class Segment:
    """
    Rows `first` .. `first` + `rows` of `group`.

    They are rows of the matrix that all groups share if the grouping is contiguous, else of the group's own matrix.
    `rows` is 0 for what is empty, or skipped because the index operand makes no sense there. Where K is divided,
    `k_blocks` are the first of the group's k-blocks and how many it has: where it has none, one outside of K.
    """

    first: int
    rows: int
    group: int
    k_blocks: tuple[int, int] | None = None

    @property
    def aligned(self) -> int:
        """
        Where its first tile starts: a TMA load that starts at no multiple of 16 bytes along the fastest dimension is an
        illegal instruction (measured), and neighbours there may be rows: of scales, or of a 16-bit A.
        """
        return self.first // TILE_ALIGNMENT * TILE_ALIGNMENT


def ended(ends: Sequence[int], limit: int, step: int = 1) -> Iterator[tuple[int, int]]:
    """
    For each group of those that lie one after another: where it begins, and how many elements it has.

    Group g begins at the largest of 0 and ends[0] .. ends[g - 1]. It has -1 elements if its end lies before that or
    after `limit`, or if either is no multiple of `step`: no element belongs to two groups, whatever `ends` holds.
    """
    begin = 0
    for end in ends:
        valid = begin <= end <= limit and begin % step == end % step == 0
        yield begin, end - begin if valid else -1
        begin = max(begin, end)


def k_segments(ends: Sequence[int], m: int, k: int, block_k: int) -> Iterator[Segment]:
    """All `m` rows for each valid group along K; `block_k` elements of K are a k-block, and `k` is all of K."""
    for group, (begin, elements) in enumerate(ended(ends, k, block_k)):
        blocks = (begin // block_k, elements // block_k) if elements > 0 else (-(-k // block_k), 1)
        yield Segment(0, 0 if elements < 0 else m, group, blocks)


def segments(grouping: Grouping, index: Sequence[int], groups: int, m: int) -> Iterator[Segment]:
    """
    The segments in the order in which kernels compute them; `m` is M of the problem, `index` the index operand.

    - offs: as `ended` says; a group that it finds invalid is skipped.
    - group_ids: one segment for each block of 128 rows: its leading rows of one group.
    - counts: a count below 0 or above `m` skips its group.
    """
    match grouping:
        case Grouping.OFFS:
            for group, (first, rows) in enumerate(ended(index, m)):
                yield Segment(first, max(0, rows), group)
        case Grouping.GROUP_IDS:
            for first in range(0, m, GROUP_ALIGNMENT):
                yield _leading(index[first : min(m, first + GROUP_ALIGNMENT)], first, groups)
        case Grouping.COUNTS:
            for group in range(groups):
                count = index[group]
                yield Segment(0, count if 0 <= count <= m else 0, group)
        case Grouping.BATCH:
            for group in range(groups):
                yield Segment(0, m, group)
        case Grouping.NONE | Grouping.K_OFFS:
            raise ValueError(f"{grouping} does not divide rows")


def _leading(ids: Sequence[int], first: int, groups: int) -> Segment:
    """The leading rows of a block that carry the same number, if that is a group's."""
    group = ids[0]
    if not 0 <= group < groups:
        return Segment(first, 0, group)
    rows = next((i for i, other in enumerate(ids) if other != group), len(ids))
    return Segment(first, rows, group)
