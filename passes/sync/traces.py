"""
Which runs of a kernel are checked: how many k-blocks each tile has.

docs/proof.md says why these stand for all of them.
"""

from __future__ import annotations

Trips = tuple[int, ...]
"""k-blocks of each tile that a CTA makes."""


def default_traces(stages: int, k_blocks: int) -> tuple[Trips, ...]:
    """
    The traces for a ring of `stages` slots, in a kernel whose tiles have `k_blocks` k-blocks.

    A kernel for one k-block need not have a loop over them, so there only the number of tiles varies.
    """
    if k_blocks == 1:
        return (1,), (1,) * (stages + 1), (1,) * (3 * stages + 2)
    return (1,), (stages - 1, 1), (stages + 1, 2), (2 * stages + 1, 1, stages)
