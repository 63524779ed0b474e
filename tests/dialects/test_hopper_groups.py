"""What the verifier asks of kernels of groups: one list of tiles, dealt out to whoever shares operands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.dialects.builtin import UnitAttr
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects import hopper
from gemmir.ir_text import parse_module
from tests.sabotage.kernels import Ir, change, kernel_in, loop, module_of, one

CLUSTERED = ("fp8-offs-2x1", "bf16-counts-1x2", "bf16-k-offs-2x1")
ALONE = ("fp8-offs", "bf16-offs-c", "bf16-k-offs")


@pytest.mark.parametrize("name", [*CLUSTERED, *ALONE])
def test_round_trip(name: str) -> None:
    module = module_of(name)
    text = str(module)
    assert ("hopper.count_tiles per_cluster %index" in text) == (name in CLUSTERED)
    assert str(parse_module(text)) == text


def deal_out_by_the_cta(ir: Ir) -> None:
    del one(ir.frame, hopper.CountTilesOp).properties["per_cluster"]


def deal_out_by_the_cluster(ir: Ir) -> None:
    one(ir.frame, hopper.CountTilesOp).properties["per_cluster"] = UnitAttr()


def over_the_column(ir: Ir) -> None:
    blocks, tiles = loop(ir.math), one(ir.math, hopper.TilesOp)
    assert blocks.count is not None
    change(blocks, blocks.count, tiles.body.block.args[1])


def over_the_first_block(ir: Ir) -> None:
    blocks, tiles = loop(ir.producer), one(ir.producer, hopper.TilesOp)
    assert blocks.count is not None
    change(blocks, blocks.count, tiles.body.block.args[3])


@pytest.mark.parametrize(
    ("name", "plant", "message"),
    [
        *((name, deal_out_by_the_cta, "may be of different groups") for name in CLUSTERED),
        *((name, deal_out_by_the_cluster, "where its CTAs have tiles of their own") for name in ALONE),
        ("bf16-k-offs", over_the_column, "not that of the tile's k-blocks"),
        ("bf16-k-offs-2x1", over_the_first_block, "not that of the tile's k-blocks"),
    ],
)
def test_refused(name: str, plant: Callable[[Ir], None], message: str) -> None:
    ir = Ir(kernel_in(module_of(name)))
    ir.kernel.verify()
    plant(ir)
    with pytest.raises(VerifyException, match=message):
        ir.kernel.verify()
