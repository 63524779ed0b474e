"""What a hopper kernel works on: shared memory, barriers, ring positions and registers."""

from __future__ import annotations

from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects.hopper.base import NATURAL, POSITIVE, HopperOperation
from gemmir.dialects.hopper.types import BarriersType, CursorType, FragmentType, RingType, ScalesType, StagingType


@irdl_op_definition
class RingOp(HopperOperation):
    """A ring of shared-memory slots that starts `offset` bytes into shared memory."""

    name = "hopper.ring"
    offset = prop_def(NATURAL)
    result = result_def(RingType)
    assembly_format = "`at` $offset attr-dict `:` type($result)"

    def verify_(self) -> None:
        alignment = self.result.type.swizzle_mode.alignment
        if self.offset.value.data % alignment or self.result.type.slot_bytes % alignment:
            raise VerifyException(f"slots of {self.result.type} start at multiples of {alignment} bytes")


@irdl_op_definition
class StagingOp(HopperOperation):
    """
    Shared memory in which the outgoing tile is put together.

    Each warpgroup has `pitch` bytes from `offset`; inside, columns lie in the boxes of `gemmir.layouts.store_chunks`.
    """

    name = "hopper.staging"
    offset = prop_def(NATURAL)
    pitch = prop_def(POSITIVE)
    result = result_def(StagingType)
    assembly_format = "`at` $offset `pitch` $pitch attr-dict `:` type($result)"


@irdl_op_definition
class BarriersOp(HopperOperation):
    """mbarriers at `offset`; each phase completes after `arrivals` arrivals and all expected bytes."""

    name = "hopper.barriers"
    offset = prop_def(NATURAL)
    arrivals = prop_def(POSITIVE)
    result = result_def(BarriersType)
    assembly_format = "`at` $offset `arrivals` $arrivals attr-dict `:` type($result)"

    def verify_(self) -> None:
        if self.offset.value.data % 8:
            raise VerifyException("mbarriers are 8-byte aligned")


@irdl_op_definition
class CursorOp(HopperOperation):
    """A position in a ring of so many stages, at its beginning. Each thread that runs this has its own."""

    name = "hopper.cursor"
    result = result_def(CursorType)
    assembly_format = "attr-dict `:` type($result)"


@irdl_op_definition
class NextOp(HopperOperation):
    """The position after `cursor`, which stays where it is."""

    name = "hopper.next"
    cursor = operand_def(CursorType)
    result = result_def(CursorType)
    assembly_format = "$cursor attr-dict `:` type($cursor) `,` type($result)"

    def verify_(self) -> None:
        if self.cursor.type != self.result.type:
            raise VerifyException("the next position is in the same ring")


@irdl_op_definition
class AdvanceOp(HopperOperation):
    """Move a cursor to the next position."""

    name = "hopper.advance"
    cursor = operand_def(CursorType)
    assembly_format = "$cursor attr-dict `:` type($cursor)"


@irdl_op_definition
class FragmentOp(HopperOperation):
    """Accumulator registers of a warpgroup."""

    name = "hopper.fragment"
    result = result_def(FragmentType)
    assembly_format = "attr-dict `:` type($result)"


@irdl_op_definition
class ScalesOp(HopperOperation):
    """Registers that hold the scales of one stage: two rows a wave and each column step."""

    name = "hopper.scales"
    result = result_def(ScalesType)
    assembly_format = "attr-dict `:` type($result)"
