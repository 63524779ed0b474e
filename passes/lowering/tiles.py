"""How each role walks the tiles of its CTA, whether the host or only the device knows how many there are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.dialects.hopper.control import TILE_ARGUMENTS
from gemmir.passes.lowering.emitter import INDEX, Emitter
from gemmir.passes.lowering.kernel import Parameters, Plan, Storage


@dataclass(frozen=True)
class Tile:
    """
    One tile: its first row and column in D.

    `group`, and which rows of the tile are the group's, from `begin` up to `end`, are None where there is one group.
    """

    m0: SSAValue
    n0: SSAValue
    group: SSAValue | None = None
    begin: SSAValue | None = None
    end: SSAValue | None = None


def count_tiles(emit: Emitter, plan: Plan, parameters: Parameters) -> SSAValue | None:
    """The number of tiles, where it depends on what the device holds; None where the host knows it."""
    if not plan.grouped:
        return None
    return emit.value(hopper.CountTilesOp, INDEX, "tile_count", [] if parameters.index is None else parameters.index)


@contextmanager
def each_tile(emit: Emitter, plan: Plan, storage: Storage) -> Generator[tuple[Emitter, Tile]]:
    """A loop over the tiles of the CTA; yields the emitter of its body, and the tile."""
    names = ("m0", "n0", *TILE_ARGUMENTS[2:]) if plan.grouped else ("m0", "n0")
    count = [] if storage.tile_count is None else storage.tile_count
    with emit.inside(hopper.TilesOp, *names, operands=(count,), **plan.raster) as (body, arguments):
        yield body, Tile(*arguments)


def own_matrix(tile: Tile, plan: Plan, tensor: str) -> list[SSAValue]:
    """The group of a load from, or a store to, `tensor` ("a", "b" or "d"), if it has a matrix for each group."""
    if tile.group is None or (tensor != "b" and plan.problem.grouping.contiguous):
        return []
    return [tile.group]
