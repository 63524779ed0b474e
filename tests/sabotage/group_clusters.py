"""Faults of clusters that compute products of several groups: their CTAs go through the same tiles together."""

from __future__ import annotations

from xdsl.dialects.builtin import IndexType
from xdsl.ir import Block, Region

from gemmir.dialects import hopper
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import Ir, after, all_of, change, loop, one

CLUSTERS = Collection()
fault = CLUSTERS.add


# Which tiles


def deal_out_by_the_cta(ir: Ir) -> None:
    del one(ir.frame, hopper.CountTilesOp).properties["per_cluster"]


@fault("fp8-offs-2x1", "bf16-counts-1x2", "bf16-k-offs-2x1", rule="R8")
def tiles_by_the_rank(ir: Ir) -> None:
    """Tiles are dealt out by the CTA: those of a cluster have lists of their own, of which one may be shorter."""
    deal_out_by_the_cta(ir)


@fault("fp8-offs-2x1", "bf16-counts-1x2", "bf16-k-offs-2x1", caught_by="verifier")
def operand_shared_by_two_groups(ir: Ir) -> None:
    """An operand is sent to a peer whose tile may be of another group."""
    deal_out_by_the_cta(ir)


@fault("fp8-offs", "fp8-offs-2x1", caught_by="verifier")
def a_second_list(ir: Ir) -> None:
    """The store warp goes through tiles that were counted for it alone."""
    counted = one(ir.frame, hopper.CountTilesOp)
    other = hopper.CountTilesOp.build(
        operands=[counted.index], properties=dict(counted.properties), result_types=[IndexType()]
    )
    after(counted, other)
    change(one(ir.store, hopper.TilesOp), counted.result, other.result)


@fault("bf16-k-offs-2x1", caught_by="verifier")
def blocks_by_the_row(ir: Ir) -> None:
    """How many k-blocks are loaded depends on the tile's row, which differs from the peer's."""
    blocks, tiles = loop(ir.producer), one(ir.producer, hopper.TilesOp)
    assert blocks.count is not None
    change(blocks, blocks.count, tiles.body.block.args[0])


# A CTA whose tile is empty


def only_in_the_first(block: Block) -> None:
    """The second CTA leaves a role's loop over k-blocks out, as where the last tile of a group is empty for it."""
    whole = loop(block)
    body = Block()
    inside = hopper.InPartOp.build(regions=[Region(body)])
    after(whole, inside)
    whole.detach()
    body.add_op(whole)


@fault("fp8-offs-2x1", "bf16-counts-1x2", "bf16-k-offs-2x1", rule="R0")
def an_empty_tile_loads_nothing(ir: Ir) -> None:
    """A CTA whose tile has no rows loads nothing, and its peer waits for its part of what they share."""
    only_in_the_first(ir.producer)


@fault("fp8-offs-2x1", "bf16-counts-1x2", rule="R3")
def an_empty_tile_gives_nothing_back(ir: Ir) -> None:
    """A CTA whose tile has no rows multiplies nothing, and gives its peer no slot back."""
    for op in all_of(ir.math, hopper.KBlocksOp):
        whole = op.parent_block()
        assert whole is not None
        only_in_the_first(whole)


@fault("fp8-offs-2x1", "bf16-k-offs-2x1", rule="R0")
def an_empty_tile_is_not_announced(ir: Ir) -> None:
    """A CTA whose tile has no rows does not say what its peer sends, which never is all that it waits for."""
    expect = one(ir.producer, hopper.ExpectOp)
    body = Block()
    inside = hopper.InPartOp.build(regions=[Region(body)])
    after(expect, inside)
    expect.detach()
    body.add_op(expect)
