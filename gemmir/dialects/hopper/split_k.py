"""
How the CTAs of a cluster compute one tile together, each a part of K.

Sums travel through distributed shared memory, into a slot that their receiver has granted. Either two CTAs finish half
of a tile each and send their sums of the other half to the peer. What one sends it computes first: ops `by_part` swap
the two waves of a warpgroup in the second CTA, so that the first wave is always the peer's. Or the CTA that sums the
first part of K finishes all of the tile: it receives the sums of all others, and adds them in the order of K.
"""

from __future__ import annotations

from xdsl.dialects.builtin import IndexType, UnitAttr
from xdsl.ir import Attribute
from xdsl.irdl import (
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
)
from xdsl.traits import NoTerminator
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects.hopper.barriers import OnBarrier
from gemmir.dialects.hopper.base import NATURAL, POSITIVE, HopperOperation, number
from gemmir.dialects.hopper.types import BarriersType, CursorType, FragmentType, RingType

QUAD = 4
"""Registers that a thread sends, or reads, at a time: 16 bytes."""


@irdl_op_definition
class PartBlockOp(HopperOperation):
    """The number among all k-blocks of block `k` of this CTA's part of K, where each part has `blocks` of them."""

    name = "hopper.part_block"
    k = operand_def(IndexType)
    blocks = prop_def(POSITIVE)
    result = result_def(IndexType)
    assembly_format = "$k `of` $blocks attr-dict"


@irdl_op_definition
class FirstBlockOp(HopperOperation):
    """The number among all k-blocks of the first one of this CTA's part of K, where each part has `blocks` of them."""

    name = "hopper.first_block"
    blocks = prop_def(POSITIVE)
    result = result_def(IndexType)
    assembly_format = "`of` $blocks attr-dict"


@irdl_op_definition
class InPartOp(HopperOperation):
    """What the CTA that sums the first part of K does; with `others`, what all others do."""

    name = "hopper.in_part"
    body = region_def("single_block")
    others = opt_prop_def(UnitAttr)
    traits = traits_def(NoTerminator())
    assembly_format = "(`others` $others^)? $body attr-dict"

    def holds(self, part: int) -> bool:
        """Whether the CTA of that part does it."""
        return (part > 0) == (self.others is not None)


@irdl_op_definition
class GrantOp(OnBarrier):
    """
    One arrival per warp, by its first lane, on this barrier of the peer, or of the CTA that sums part number `part`.

    A release to the cluster: whoever waits `of_peer` sees what this CTA has done before.
    """

    name = "hopper.grant"
    part = opt_prop_def(POSITIVE)
    assembly_format = "(`part` $part^)? " + OnBarrier.BARRIER + OnBarrier.TYPES


def _check_registers(fragment: Attribute, first: int, registers: int) -> None:
    """Whole quads of the registers of a fragment."""
    if not isinstance(fragment, FragmentType):
        return
    if first % QUAD or registers % QUAD or first + registers > fragment.dims[1] // 2:
        raise VerifyException(f"registers {first} to {first + registers} of {fragment} are not quads that it has")


@irdl_op_definition
class SendSumsOp(HopperOperation):
    """
    Send registers `first` .. `first` + `registers` - 1 of a fragment to the peer's slot at the cursor.

    In the slot, warpgroup `group` has 128 threads x `registers` x 4 bytes, quad by quad of registers, threads in order.
    Asynchronous; the bytes count on the peer's barrier `full` when they have arrived. `to_first`: they go to the CTA
    that sums the first part of K, where each other part has a slot of its own, the second part the first one.
    """

    name = "hopper.send_sums"
    sums = operand_def(FragmentType)
    ring = operand_def(RingType)
    cursor = operand_def(CursorType)
    group = operand_def(IndexType)
    full = operand_def(BarriersType)
    first = prop_def(NATURAL)
    registers = prop_def(POSITIVE)
    to_first = opt_prop_def(UnitAttr)
    assembly_format = (
        "$sums `registers` $first `,` $registers `->` $ring `[` $cursor `]` `for` $group `signal` $full "
        "(`to_first` $to_first^)? attr-dict `:` type($sums) `,` type($ring) `,` type($cursor) `,` type($full)"
    )

    def verify_(self) -> None:
        _check_registers(self.sums.type, number(self.first), number(self.registers))
        if isinstance(self.full.type, BarriersType) and self.full.type.dims[1] != 1:
            raise VerifyException("the slots of a ring have one barrier each")


@irdl_op_definition
class AddSumsOp(HopperOperation):
    """
    Add to registers of a fragment what the peer has sent; in f32, round to nearest even.

    Read from the slot at the cursor, where `send_sums` put them, by ordinary loads.
    """

    name = "hopper.add_sums"
    sums = operand_def(FragmentType)
    ring = operand_def(RingType)
    cursor = operand_def(CursorType)
    group = operand_def(IndexType)
    first = prop_def(NATURAL)
    registers = prop_def(POSITIVE)
    assembly_format = (
        "$ring `[` $cursor `]` `for` $group `->` $sums `registers` $first `,` $registers attr-dict "
        "`:` type($ring) `,` type($cursor) `,` type($sums)"
    )

    def verify_(self) -> None:
        _check_registers(self.sums.type, number(self.first), number(self.registers))
