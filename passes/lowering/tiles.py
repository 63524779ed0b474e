"""How each role walks the tiles of its CTA, whether the host or only the device knows how many there are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.dialects.hopper.control import ROWS_OF_GROUP, TILE_ARGUMENTS
from gemmir.passes.lowering.emitter import INDEX, Emitter
from gemmir.passes.lowering.parameters import Parameters
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage
from gemmir.problem import Grouping


@dataclass(frozen=True)
class Tile:
    """
    One tile: its first row and column in D.

    `group`, and which rows of the tile are the group's, from `begin` up to `end`, are None where there is one group.
    Where K is divided, there are the group's first k-block and the number of them instead of those.
    """

    m0: SSAValue
    n0: SSAValue
    group: SSAValue | None = None
    begin: SSAValue | None = None
    end: SSAValue | None = None
    first_block: SSAValue | None = None
    blocks: SSAValue | None = None


def count_tiles(emit: Emitter, plan: Plan, parameters: Parameters) -> SSAValue | None:
    """The number of (cluster) tiles, where it depends on what the device holds; None where the host knows it."""
    if not plan.grouped:
        return None
    index = [] if parameters.index is None else parameters.index
    return emit.value(hopper.CountTilesOp, INDEX, "all_tiles", index, per_cluster=plan.shares_loads)


@contextmanager
def each_tile(emit: Emitter, plan: Plan, storage: Storage) -> Generator[tuple[Emitter, Tile]]:
    """A loop over the tiles of the CTA; yields the emitter of its body, and the tile."""
    names = TILE_ARGUMENTS.get(plan.problem.grouping, ROWS_OF_GROUP)[2:]
    count = [] if storage.tile_count is None else storage.tile_count
    with emit.inside(hopper.TilesOp, "m0", "n0", *names, operands=(count,), **plan.raster) as (body, arguments):
        m0, n0, *others = arguments
        yield body, Tile(m0, n0, **dict(zip(names, others, strict=True)))


def has_blocks(plan: Plan, tile: Tile, but: int) -> bool:
    """Whether a tile may have more than `but` k-blocks."""
    return tile.blocks is not None or plan.k_blocks > but


@contextmanager
def each_block(
    emit: Emitter, plan: Plan, tile: Tile, *, first: int = 0, less: int = 0, step: int | None = None
) -> Generator[tuple[Emitter, SSAValue]]:
    """
    A loop over the k-blocks of a tile from `first` on, but for the last `less`, `step` at a time.

    Yields the emitter of its body, and the block's number.
    """
    known = {"last": plan.k_blocks - less, "step": step} if tile.blocks is None else {"less": less}
    count = [] if tile.blocks is None else tile.blocks
    with emit.inside(hopper.KBlocksOp, "k", operands=(count,), first=first, **known) as (body, (k,)):
        yield body, k


def own_matrix(tile: Tile, plan: Plan, tensor: str) -> list[SSAValue]:
    """The group of a load from, or a store to, `tensor` ("a", "b" or "d"), if it has a matrix for each group."""
    whole = {Grouping.OFFS: "ad", Grouping.GROUP_IDS: "ad", Grouping.K_OFFS: "ab"}
    if tile.group is None or tensor in whole.get(plan.problem.grouping, ""):
        return []
    return [tile.group]
