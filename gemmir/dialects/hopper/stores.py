"""How a result leaves the CTA."""

from __future__ import annotations

from xdsl.dialects.builtin import IndexType, UnitAttr, i64
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, opt_prop_def, prop_def

from gemmir.dialects.hopper.base import NATURAL, POSITIVE, HopperOperation
from gemmir.dialects.hopper.types import (
    BarriersType,
    CursorType,
    FragmentType,
    PointerType,
    StagingType,
    TensorMapType,
)


@irdl_op_definition
class StageFragmentOp(HopperOperation):
    """
    Round a fragment to the output type and put it into the staging area of `group`, from row `row` on: its columns
    from `column` on, as many as the area has.

    `accumulate`: each element is first added, in f32, to the one that lies in its place, box by box. The fragment is
    not to be used after that. `transposed`: rows of the fragment are columns of the staging area, from column `row` on.
    """

    name = "hopper.stage_fragment"
    fragment = operand_def(FragmentType)
    staging = operand_def(StagingType)
    group = operand_def(IndexType)
    row = prop_def(NATURAL)
    column = prop_def(NATURAL)
    accumulate = opt_prop_def(UnitAttr)
    transposed = opt_prop_def(UnitAttr)
    assembly_format = (
        "$fragment `from` $column `->` $staging `for` $group `row` $row "
        "(`accumulate` $accumulate^)? (`transposed` $transposed^)? "
        "attr-dict `:` type($fragment) `,` type($staging)"
    )


@irdl_op_definition
class TmaFillOp(HopperOperation):
    """
    Load one box of operand C into the staging area, where `tma_store` sends that of D from, and count its bytes on the
    barrier of `group`. Elements outside C read as zero, and count. Of a C of rank 3 it is that of
    `tile_group`.

    D may lie where C does: no tile of D leaves before its part of C has arrived.
    """

    name = "hopper.tma_fill"
    map = operand_def(TensorMapType)
    row = operand_def(IndexType)
    column = operand_def(IndexType)
    staging = operand_def(StagingType)
    cursor = operand_def(CursorType)
    full = operand_def(BarriersType)
    group = operand_def(IndexType)
    tile_group = opt_operand_def(IndexType)
    offset = prop_def(NATURAL)
    row_offset = prop_def(NATURAL)
    column_offset = prop_def(NATURAL)
    assembly_format = (
        "$map `[` $row `+` $row_offset `,` $column `+` $column_offset `]` `->` $staging `at` $offset `signal` $full "
        "`[` $cursor `,` $group `]` (`of` $tile_group^)? attr-dict "
        "`:` type($map) `,` type($staging) `,` type($full) `,` type($cursor)"
    )


@irdl_op_definition
class TmaStoreOp(HopperOperation):
    """
    Store one box from `offset` bytes into the staging area to D at (`row` + `row_offset`, `column` + `column_offset`).

    A matrix of rank 3 is stored to at `group` of its first dimension. With `part_rows` the CTA that sums the first part
    of K stores so many rows further down: it finishes those.

    Nothing is written outside the matrix.
    """

    name = "hopper.tma_store"
    staging = operand_def(StagingType)
    map = operand_def(TensorMapType)
    row = operand_def(IndexType)
    column = operand_def(IndexType)
    group = opt_operand_def(IndexType)
    offset = prop_def(NATURAL)
    row_offset = prop_def(NATURAL)
    column_offset = prop_def(NATURAL)
    part_rows = opt_prop_def(POSITIVE)
    assembly_format = (
        "$staging `at` $offset `->` $map `[` $row `+` $row_offset `,` $column `+` $column_offset `]` "
        "(`of` $group^)? (`part_rows` $part_rows^)? attr-dict "
        "`:` type($staging) `,` type($map)"
    )


@irdl_op_definition
class StoreRowsOp(HopperOperation):
    """
    As `hopper.tma_store`, but of the rows from `row` on only `begin` to `end` may be written: others are other groups'.

    A box that is not whole is stored by the lanes of the warp, with ordinary accesses, to `pointer` (the matrix, its
    rows `stride` elements apart); a whole one by TMA. A matrix of rank 3 is stored to at `group` of its first
    dimension, and `pointer` is that group's.
    """

    name = "hopper.store_rows"
    staging = operand_def(StagingType)
    map = operand_def(TensorMapType)
    row = operand_def(IndexType)
    column = operand_def(IndexType)
    begin = operand_def(IndexType)
    end = operand_def(IndexType)
    pointer = operand_def(PointerType)
    stride = operand_def(i64)
    group = opt_operand_def(IndexType)
    offset = prop_def(NATURAL)
    row_offset = prop_def(NATURAL)
    column_offset = prop_def(NATURAL)
    assembly_format = (
        "$staging `at` $offset `->` $map `[` $row `+` $row_offset `,` $column `+` $column_offset `]` `rows` $begin "
        "`until` $end `to` $pointer `stride` $stride (`of` $group^)? attr-dict "
        "`:` type($staging) `,` type($map) `,` type($pointer)"
    )


@irdl_op_definition
class StoreCommitOp(HopperOperation):
    """Close a group of TMA stores of this thread."""

    name = "hopper.store_commit"
    assembly_format = "attr-dict"


@irdl_op_definition
class StoreWaitReadOp(HopperOperation):
    """Wait until at most `pending` store groups of this thread have yet to read their shared memory."""

    name = "hopper.store_wait_read"
    pending = prop_def(NATURAL)
    assembly_format = "$pending attr-dict"
