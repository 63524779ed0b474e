"""
How a kernel overlaps with the one before it on the stream (programmatic dependent launch).

It may be started while that one ends. Until it has waited for it, it reads and writes no memory; what it may do is
fetch tensor maps, set up shared memory, and ask L2 for lines that it will need, which is safe whoever writes them.
"""

from __future__ import annotations

from xdsl.dialects.builtin import IndexType, i32
from xdsl.ir import BlockArgument, Operation
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, region_def, traits_def
from xdsl.traits import NoTerminator
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects.hopper.base import NATURAL, POSITIVE, HopperOperation
from gemmir.dialects.hopper.control import KBlocksOp, KernelOp, RolesOp, enclosing
from gemmir.dialects.hopper.split_k import PartBlockOp
from gemmir.dialects.hopper.types import BindName, RasterAttr, TensorMapType


@irdl_op_definition
class LaunchDependentsOp(HopperOperation):
    """The kernel behind this one may be started, once all CTAs of this one were here. It waits for this one to end."""

    name = "hopper.launch_dependents"
    assembly_format = "attr-dict"

    def verify_(self) -> None:
        _check_at_top(self)


@irdl_op_definition
class WaitForGridOp(HopperOperation):
    """All threads wait until the kernels before this one have ended, and see what they wrote."""

    name = "hopper.wait_for_grid"
    assembly_format = "attr-dict"

    def verify_(self) -> None:
        _check_at_top(self)
        kernel = self.parent_op()
        assert isinstance(kernel, KernelOp)
        for op in kernel.body.block.ops:
            if op is self:
                return
            if op.name not in EARLY:
                raise VerifyException(f"{op.name[:60]} before {self.name}: until then no memory may be touched")


EARLY = (
    "hopper.barriers",
    "hopper.cluster_sync",
    "hopper.cta_sync",
    "hopper.first_tile",
    "hopper.init_barriers",
    "hopper.launch_dependents",
    "hopper.prefetch_maps",
    "hopper.ring",
    "hopper.staging",
)
"""What may be done before the kernels before have ended."""


@irdl_op_definition
class FirstTileOp(HopperOperation):
    """
    What one thread does for the first tile of its CTA, if there is any and it begins with row 0: only prefetches.

    Where the launch `overlaps` with that of the kernel before, and where no more than `ctas` CTAs run. CTAs of further
    rows of tiles load the same weights. Block arguments are the tile's first row and column; `raster` and `group` as of
    `hopper.tiles`.
    """

    name = "hopper.first_tile"
    overlaps = operand_def(i32)
    body = region_def("single_block")
    raster = prop_def(RasterAttr)
    group = prop_def(POSITIVE)
    ctas = prop_def(NATURAL)
    traits = traits_def(NoTerminator())
    assembly_format = "$raster `group` $group `if` $overlaps `or` $ctas $body attr-dict"

    def verify_(self) -> None:
        _check_at_top(self)
        if [a.type for a in self.body.block.args] != [IndexType()] * 2:
            raise VerifyException("hopper.first_tile takes a row and a column")
        kernel = self.parent_op()
        assert isinstance(kernel, KernelOp)
        if kernel.grouping is not None:
            raise VerifyException("where a group's first tile lies is for memory to say")
        flag = self.overlaps
        if not isinstance(flag, BlockArgument) or kernel.binds.data[flag.index].kind.data != BindName.OVERLAPS:
            raise VerifyException(f"{self.name} takes the parameter that is bound to {BindName.OVERLAPS}")
        allowed = (KBlocksOp, PartBlockOp, TmaPrefetchOp)
        if any(op is not self and not isinstance(op, allowed) for op in self.walk()):
            raise VerifyException("hopper.first_tile holds only prefetches")


@irdl_op_definition
class TmaPrefetchOp(HopperOperation):
    """Ask L2 for the lines of a box, which starts at (`row` * `row_step`, `column` * `column_step`) elements."""

    name = "hopper.tma_prefetch"
    map = operand_def(TensorMapType)
    row = operand_def(IndexType)
    column = operand_def(IndexType)
    row_step = prop_def(POSITIVE)
    column_step = prop_def(POSITIVE)
    assembly_format = "$map `[` $row `*` $row_step `,` $column `*` $column_step `]` attr-dict `:` type($map)"

    def verify_(self) -> None:
        if enclosing(self, FirstTileOp) is None:
            raise VerifyException(f"{self.name} outside hopper.first_tile")


def _check_at_top(op: Operation) -> None:
    kernel = op.parent_op()
    if not isinstance(kernel, KernelOp):
        raise VerifyException(f"{op.name} stands at the top of a kernel")
    if any(isinstance(before, RolesOp) for before in kernel.body.block.ops if before.is_before_in_block(op)):
        raise VerifyException(f"{op.name} after the roles")
