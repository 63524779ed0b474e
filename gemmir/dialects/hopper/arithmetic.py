"""WGMMA, scales and promotion."""

from __future__ import annotations

from xdsl.dialects.builtin import IndexType, UnitAttr
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, opt_prop_def, prop_def, var_operand_def
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects.hopper.base import NATURAL, POSITIVE, HopperOperation, number
from gemmir.dialects.hopper.types import CursorType, FragmentType, RingType, ScalesType
from gemmir.layouts import PANEL


@irdl_op_definition
class ZeroOp(HopperOperation):
    """Set fragments to zero."""

    name = "hopper.zero"
    fragments = var_operand_def(FragmentType)
    assembly_format = "$fragments attr-dict `:` type($fragments)"


@irdl_op_definition
class LoadScalesOp(HopperOperation):
    """
    Read a slot's scales into registers with ordinary loads.

    A thread reads the scales of its two rows of each wave, from row `group` * `group_rows` on, and the column scales
    from step `group` * `group_steps` on. `by_part`: in the CTA that sums the second part of K, the two waves are
    swapped. With `k` a slot holds the scales of many k-blocks, a row each, and those of `k` + `ahead` are read.
    """

    name = "hopper.load_scales"
    rows = operand_def(RingType)
    steps = operand_def(RingType)
    cursor = operand_def(CursorType)
    scales = operand_def(ScalesType)
    group = operand_def(IndexType)
    k = opt_operand_def(IndexType)
    group_rows = prop_def(NATURAL)
    group_steps = prop_def(NATURAL)
    ahead = opt_prop_def(NATURAL)
    by_part = opt_prop_def(UnitAttr)
    assembly_format = (
        "$rows `,` $steps `[` $cursor `]` (`row` $k^ `+` $ahead)? `->` $scales `for` $group `rows` $group_rows "
        "`steps` $group_steps (`by_part` $by_part^)? attr-dict "
        "`:` type($rows) `,` type($steps) `,` type($cursor) `,` type($scales)"
    )


@irdl_op_definition
class MoveScalesOp(HopperOperation):
    """Copy scales between registers."""

    name = "hopper.move_scales"
    source = operand_def(ScalesType)
    target = operand_def(ScalesType)
    assembly_format = "$source `->` $target attr-dict `:` type($source) `,` type($target)"


@irdl_op_definition
class WgmmaFenceOp(HopperOperation):
    """`wgmma.fence`: registers written before are visible to the WGMMAs after."""

    name = "hopper.wgmma_fence"
    assembly_format = "attr-dict"


@irdl_op_definition
class WgmmaOp(HopperOperation):
    """
    Multiply one slot: 64 rows of A by the fragment's columns of B over 128 bytes of K, in four instructions.

    A's rows start at `group` * `a_group_rows` + `a_row`, B's at `group` * `b_group_rows`. `fresh`: the fragment's
    contents are overwritten, not added to. `by_part`: in the CTA that sums the second part of K, rows 0 and 64 are
    swapped. `a_panels`, `b_panels`: the operand is not K-major, and lies in panels of 64 rows of A or columns of B (see
    `gemmir.layouts.PANEL`).
    """

    name = "hopper.wgmma"
    a = operand_def(RingType)
    b = operand_def(RingType)
    cursor = operand_def(CursorType)
    fragment = operand_def(FragmentType)
    group = operand_def(IndexType)
    a_row = prop_def(NATURAL)
    a_group_rows = prop_def(NATURAL)
    b_group_rows = prop_def(NATURAL)
    fresh = opt_prop_def(UnitAttr)
    by_part = opt_prop_def(UnitAttr)
    a_panels = opt_prop_def(UnitAttr)
    b_panels = opt_prop_def(UnitAttr)
    assembly_format = (
        "$a `,` $b `[` $cursor `]` `->` $fragment `for` $group `rows` $a_row `+` $a_group_rows `columns` $b_group_rows "
        "(`fresh` $fresh^)? (`by_part` $by_part^)? (`a_panels` $a_panels^)? (`b_panels` $b_panels^)? attr-dict "
        "`:` type($a) `,` type($b) `,` type($cursor) `,` type($fragment)"
    )

    def verify_(self) -> None:
        if self.by_part is not None and number(self.a_row) not in (0, 64):
            raise VerifyException(f"two waves are swapped, with rows 0 and 64, not {number(self.a_row)}")
        a, b, fragment = self.a.type, self.b.type, self.fragment.type
        if not isinstance(a, RingType) or not isinstance(b, RingType) or not isinstance(fragment, FragmentType):
            return
        if a.dims[2] * a.element_bytes != 128 or b.dims[2] * b.element_bytes != 128:
            raise VerifyException("operand rows are 128 bytes of K")
        if fragment.dims[0] != 64 or fragment.dims[1] % 8 or fragment.dims[1] > 256:
            raise VerifyException(f"no WGMMA makes a fragment of {fragment.dims}")
        if (a.element_bytes == 1) != (b.element_bytes == 1) or (a.element_bytes > 1 and a.element != b.element):
            raise VerifyException(f"no WGMMA multiplies {a.element} by {b.element}")
        numbers = [self.a_row, self.a_group_rows] * (self.a_panels is not None)
        numbers += [self.b_group_rows] * (self.b_panels is not None)
        extents = [number(n) for n in numbers] + [fragment.dims[1]] * (self.b_panels is not None)
        if numbers and (a.element_bytes != 2 or any(extent % PANEL for extent in extents)):
            raise VerifyException(f"WGMMA reads whole panels of {PANEL} 16-bit elements")


@irdl_op_definition
class WgmmaCommitOp(HopperOperation):
    """Close a group of WGMMAs."""

    name = "hopper.wgmma_commit"
    assembly_format = "attr-dict"


@irdl_op_definition
class WgmmaWaitOp(HopperOperation):
    """
    Wait until at most `pending` groups of WGMMAs are in flight.

    `fragments` are what the finished groups wrote: reads of them may not move above this op.
    """

    name = "hopper.wgmma_wait"
    fragments = var_operand_def(FragmentType)
    pending = prop_def(NATURAL)
    assembly_format = "$pending (`,` $fragments^ `:` type($fragments))? attr-dict"


@irdl_op_definition
class PromoteOp(HopperOperation):
    """`total` = fma(`partial`, row scale * column scale, `total`) in f32, round to nearest even, for one wave."""

    name = "hopper.promote"
    partial = operand_def(FragmentType)
    total = operand_def(FragmentType)
    scales = operand_def(ScalesType)
    wave = prop_def(NATURAL)
    step = prop_def(POSITIVE)
    assembly_format = (
        "$partial `->` $total `by` $scales `wave` $wave `step` $step attr-dict "
        "`:` type($partial) `,` type($total) `,` type($scales)"
    )


@irdl_op_definition
class PromoteColumnsOp(HopperOperation):
    """
    `promote` with a scale for each column: row and column scales are read from a slot with ordinary loads, as needed.

    The wave's rows start at `group` * `group_rows` + `wave` * 64 of the slot, its columns at `group` * `group_columns`.
    """

    name = "hopper.promote_columns"
    partial = operand_def(FragmentType)
    total = operand_def(FragmentType)
    rows = operand_def(RingType)
    columns = operand_def(RingType)
    cursor = operand_def(CursorType)
    group = operand_def(IndexType)
    wave = prop_def(NATURAL)
    group_rows = prop_def(NATURAL)
    group_columns = prop_def(NATURAL)
    assembly_format = (
        "$partial `->` $total `by` $rows `,` $columns `[` $cursor `]` `for` $group `wave` $wave `rows` $group_rows "
        "`columns` $group_columns attr-dict `:` type($partial) `,` type($total) `,` type($rows) `,` type($columns) `,` "
        "type($cursor)"
    )


@irdl_op_definition
class PromoteBlockOp(HopperOperation):
    """
    `promote` where all rows of the wave share a scale and each column has its own, both read from a slot that holds
    those of many k-blocks, a row each, with ordinary loads.

    That is row `k` + `ahead`. The shared scale is column `group` of `shared`, those of columns are from the first of
    `columns` on.
    """

    name = "hopper.promote_block"
    partial = operand_def(FragmentType)
    total = operand_def(FragmentType)
    shared = operand_def(RingType)
    columns = operand_def(RingType)
    cursor = operand_def(CursorType)
    k = operand_def(IndexType)
    group = operand_def(IndexType)
    ahead = prop_def(NATURAL)
    assembly_format = (
        "$partial `->` $total `by` $shared `,` $columns `[` $cursor `]` `row` $k `+` $ahead `for` $group attr-dict `:` "
        "type($partial) `,` type($total) `,` type($shared) `,` type($columns) `,` type($cursor)"
    )
