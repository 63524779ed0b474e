"""
Which runs of a kernel are checked: how many k-blocks each tile has.

docs/proof.md says why these stand for all of them.
"""

from __future__ import annotations

Trips = tuple[int, ...]
"""k-blocks of each tile that a CTA makes."""


def default_traces(
    stages: int, k_blocks: int, chunk: int = 1, exchanges: bool = False, tile_slots: int = 1
) -> tuple[Trips, ...]:
    """
    The traces for a ring of `stages` slots, in a kernel whose tiles have `k_blocks` k-blocks.

    Where loops do `chunk` k-blocks at a time and leave the rest to the ops after them, every tile leaves the same rest.
    A kernel for one k-block need not have a loop over them, so there only the number of tiles varies. With `exchanges`
    in the ring at the end of each tile, one follows another at every distance up to that of a whole round and more.
    With `tile_slots` there is a ring of so many slots of which a tile takes one: it goes round as that of a kernel of
    one k-block does.
    """
    if k_blocks == 1:
        stages = max(stages, tile_slots)
        return (1,), (1,) * (stages + 1), (1,) * (3 * stages + 2)
    fewest = (k_blocks - 1) % chunk + 1
    if tile_slots > 1:
        return (*default_traces(stages, k_blocks, chunk, exchanges), (fewest,) * (3 * tile_slots + 2))
    if exchanges:
        return (*default_traces(stages, k_blocks, chunk), tuple(range(fewest, stages + 2, chunk)))

    def least(wanted: int) -> int:
        """The fewest k-blocks, from `wanted` on, that leave that rest."""
        return fewest + max(0, -(-(wanted - fewest) // chunk)) * chunk

    return (
        (fewest,),
        (least(stages - 1), fewest),
        (least(stages + 1), fewest + chunk),
        (least(2 * stages + chunk), fewest, least(stages)),
    )
