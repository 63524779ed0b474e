"""Valid index operands of grouped products, out of random numbers: uneven groups, some of them empty, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from gemmir.groups import Extent
from gemmir.problem import GROUP_ALIGNMENT, Grouping

DRAWN_PER_GROUP = 2
EMPTY = 0.2
"""How often a group is made empty."""
UNUSED = 0.1
"""How much of M or K may belong to no group."""


def draw_index(grouping: Grouping, extent: Extent, drawn: Sequence[float]) -> list[int]:
    """An index operand without a fault; `drawn` has `DRAWN_PER_GROUP` numbers in [0, 1) for each group."""
    first, second = drawn[: extent.groups], drawn[extent.groups : 2 * extent.groups]
    shares = [share if empty >= EMPTY else 0.0 for share, empty in zip(first, second, strict=True)]
    if grouping is Grouping.COUNTS:
        return [round(share * extent.m) for share in shares]
    if grouping is Grouping.OFFS:
        return _ends(shares, extent.m, second[0])
    if grouping is Grouping.K_OFFS:
        return [end * extent.k_step for end in _ends(shares, extent.k // extent.k_step, second[0])]
    return _ids(_ends(shares, -(-extent.m // GROUP_ALIGNMENT), second[0]), extent.m, second)


def _ends(shares: Sequence[float], limit: int, unused: float) -> list[int]:
    """Where groups of the given shares end along `limit` elements."""
    whole, used = sum(shares) or 1.0, limit * (1.0 - UNUSED * unused)
    return [min(limit, round(part / whole * used)) for part in accumulate(shares)]


def _ids(ends: Sequence[int], m: int, padding: Sequence[float]) -> list[int]:
    """A group for each row, given where groups end in blocks of rows; up to a block of padding ends each."""
    ids = [-1] * m
    start = 0
    for group, (end, share) in enumerate(zip(ends, padding, strict=True)):
        last = min(m, max(start, end) * GROUP_ALIGNMENT) - int(share * GROUP_ALIGNMENT)
        rows = range(start * GROUP_ALIGNMENT, last) if end > start else range(0)
        for row in rows:
            ids[row] = group
        start = end
    return ids
