"""
How the CTAs of a cluster compute one tile together, each a part of K.

Each of the two finishes half of a tile and sends its sums of the other half to its peer, through distributed shared
memory, into a slot that the peer has granted. What it sends it computes first: ops `by_part` swap the two waves of a
warpgroup in the second CTA, so that the first wave is always the peer's.
"""

from __future__ import annotations

from xdsl.dialects.builtin import IndexType
from xdsl.ir import Attribute
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def
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
class GrantOp(OnBarrier):
    """
    One arrival per warp, by its first lane, on this barrier of the peer.

    A release to the cluster: whoever waits `of_peer` sees what this CTA has done before.
    """

    name = "hopper.grant"
    assembly_format = OnBarrier.BARRIER + OnBarrier.TYPES


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
    Asynchronous; the bytes count on the peer's barrier `full` when they have arrived.
    """

    name = "hopper.send_sums"
    sums = operand_def(FragmentType)
    ring = operand_def(RingType)
    cursor = operand_def(CursorType)
    group = operand_def(IndexType)
    full = operand_def(BarriersType)
    first = prop_def(NATURAL)
    registers = prop_def(POSITIVE)
    assembly_format = (
        "$sums `registers` $first `,` $registers `->` $ring `[` $cursor `]` `for` $group `signal` $full "
        "attr-dict `:` type($sums) `,` type($ring) `,` type($cursor) `,` type($full)"
    )

    def verify_(self) -> None:
        _check_registers(self.sums.type, number(self.first), number(self.registers))
        if isinstance(self.full.type, BarriersType) and self.full.type.dims[1] != 1:
            raise VerifyException("the slots of a ring have one barrier each")


@irdl_op_definition
class AddSumsOp(HopperOperation):
    """
    Add to registers of a fragment what the peer has sent; in f32, round to nearest even.

    Read from the slot at the cursor, where `send_sums` put them, by ordinary loads. Of two parts of K the order of the
    addends changes no bit.
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
