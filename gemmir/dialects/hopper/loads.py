"""How operands and scales reach shared memory."""

from __future__ import annotations

from xdsl.dialects.builtin import IndexType, UnitAttr, f32, i64
from xdsl.irdl import (
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    var_operand_def,
)
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects.hopper.base import NATURAL, POSITIVE, HopperOperation, number
from gemmir.dialects.hopper.control import TilesOp, enclosing
from gemmir.dialects.hopper.types import (
    AxisAttr,
    AxisName,
    BarriersType,
    CursorType,
    EvictAttr,
    PointerType,
    RingType,
    ScaleBatchType,
    TensorMapType,
)


@irdl_op_definition
class PrefetchMapsOp(HopperOperation):
    """One thread fetches these tensor maps into the constant cache."""

    name = "hopper.prefetch_maps"
    maps = var_operand_def(TensorMapType)
    assembly_format = "$maps attr-dict `:` type($maps)"


@irdl_op_definition
class TmaLoadOp(HopperOperation):
    """
    Load a box into a slot and count its bytes on a barrier. Elements outside the tensor read as zero, and count.

    The box starts at (`row` * `row_step`, `column` * `column_step`) elements. With `multicast`, the CTAs along that
    axis of the cluster share the slot's contents: each loads its part of the rows and sends it to all of them, and each
    one's own barrier counts. A tensor of rank 3 is loaded from at `group` of its first dimension.

    `panel`: the operand is not K-major. The box is number `panel` of this CTA's part of the slot, and starts as many
    box widths further along the columns, which are rows of A or columns of B.

    `evict`: what L2 does with these lines when others need the room.
    """

    name = "hopper.tma_load"
    map = operand_def(TensorMapType)
    row = operand_def(IndexType)
    column = operand_def(IndexType)
    ring = operand_def(RingType)
    cursor = operand_def(CursorType)
    full = operand_def(BarriersType)
    group = opt_operand_def(IndexType)
    row_step = prop_def(POSITIVE)
    column_step = prop_def(POSITIVE)
    multicast = opt_prop_def(AxisAttr)
    panel = opt_prop_def(NATURAL)
    evict = opt_prop_def(EvictAttr)
    assembly_format = (
        "$map `[` $row `*` $row_step `,` $column `*` $column_step `]` `->` $ring `[` $cursor `]` `signal` $full "
        "(`of` $group^)? (`multicast` $multicast^)? (`panel` $panel^)? (`evict` $evict^)? attr-dict "
        "`:` type($map) `,` type($ring) `,` type($cursor) `,` type($full)"
    )

    def verify_(self) -> None:
        box, ring = self.map.type, self.ring.type
        if not isinstance(box, TensorMapType) or not isinstance(ring, RingType):
            return
        if box.element != ring.element or box.swizzle != ring.swizzle or box.dims[1] != ring.dims[2]:
            raise VerifyException(f"a box of {box} does not land in {ring}")
        if self.multicast is not None and self.evict is not None:
            raise VerifyException("a multicast has no cache hint")
        whole = self.multicast is None and self.panel is None
        tiles = enclosing(self, TilesOp)
        if whole and tiles is not None and tiles.tail is not None and box.dims[0] < ring.dims[1]:
            return  # the columns of a narrower tile
        if ring.dims[1] % box.dims[0] or (whole and ring.dims[1] != box.dims[0]):
            raise VerifyException(f"boxes of {box.dims[0]} rows do not fill {ring.dims[1]} rows of a slot")

    def sharing(self, cluster_m: int, cluster_n: int) -> int:
        """CTAs of such a cluster that share the slot's contents."""
        if self.multicast is None:
            return 1
        return cluster_m if self.multicast.data is AxisName.M else cluster_n

    def boxes(self, ctas: int) -> int:
        """Boxes of a slot that each CTA loads, if `ctas` of them share it."""
        box, ring = self.map.type, self.ring.type
        assert isinstance(box, TensorMapType) and isinstance(ring, RingType)
        return ring.dims[1] // box.dims[0] // (ctas if self.multicast is not None else 1)

    def first_box(self, part: int, ctas: int) -> int:
        """Which of the boxes of a slot this is for the CTA that loads part number `part`."""
        return part if self.panel is None else part * self.boxes(ctas) + number(self.panel)


@irdl_op_definition
class GroupPointerOp(HopperOperation):
    """The address of what a tensor of rank 3 holds for `group`: `pointer` and `group` times `stride` elements."""

    name = "hopper.group_pointer"
    pointer = operand_def(PointerType)
    group = operand_def(IndexType)
    stride = operand_def(i64)
    result = result_def(PointerType)
    assembly_format = "$pointer `of` $group `stride` $stride attr-dict `:` type($pointer) `->` type($result)"

    def verify_(self) -> None:
        if self.pointer.type != self.result.type:
            raise VerifyException(f"an address of type {self.result.type} made from {self.pointer.type}")


@irdl_op_definition
class GroupBlockOp(HopperOperation):
    """The number among all k-blocks of block `k` of a group whose first one is number `first`."""

    name = "hopper.group_block"
    k = operand_def(IndexType)
    first = operand_def(IndexType)
    result = result_def(IndexType)
    assembly_format = "$k `after` $first attr-dict"


@irdl_op_definition
class BlockAheadOp(HopperOperation):
    """The number of the k-block `ahead` blocks behind `k`, in a loop that does several at a time."""

    name = "hopper.block_ahead"
    k = operand_def(IndexType)
    ahead = prop_def(POSITIVE)
    result = result_def(IndexType)
    assembly_format = "$k `by` $ahead attr-dict"


@irdl_op_definition
class FetchScalesOp(HopperOperation):
    """
    Lane j of the warp reads the weight scale of columns `column` + j * `step` .. of k-block `k` from global memory.

    The scales lie at pointer[k * stride_k + (column / 128) * stride_n]. Lanes past `steps`, and columns outside the
    matrix, read 0.
    """

    name = "hopper.fetch_scales"
    pointer = operand_def(PointerType)
    k = operand_def(IndexType)
    column = operand_def(IndexType)
    stride_k = operand_def(i64)
    stride_n = operand_def(i64)
    steps = prop_def(POSITIVE)
    step = prop_def(POSITIVE)
    result = result_def(f32)
    assembly_format = (
        "$pointer `[` $k `,` $column `]` `strides` $stride_k `,` $stride_n `steps` $steps `of` $step attr-dict "
        "`:` type($pointer)"
    )


@irdl_op_definition
class StartScalesOp(HopperOperation):
    """
    Start to read the weight scales of columns `column` .. of a tile, in batches of k-blocks; see `next_scales`.

    With so many lanes for each k-block, lane l reads the scale of k-block l / lanes of a batch, and of columns
    `column` + l % lanes * `step` ..; scales lie as for `fetch_scales`. Nothing is read past `blocks` k-blocks, or
    outside the matrix. `in_part`: they are the k-blocks of this CTA's part of K.
    """

    name = "hopper.start_scales"
    pointer = operand_def(PointerType)
    column = operand_def(IndexType)
    stride_k = operand_def(i64)
    stride_n = operand_def(i64)
    step = prop_def(POSITIVE)
    blocks = prop_def(POSITIVE)
    in_part = opt_prop_def(UnitAttr)
    result = result_def(ScaleBatchType)
    assembly_format = (
        "$pointer `[` $column `]` `strides` $stride_k `,` $stride_n `of` $step `blocks` $blocks "
        "(`in_part` $in_part^)? attr-dict `:` type($pointer) `->` type($result)"
    )


@irdl_op_definition
class NextScalesOp(HopperOperation):
    """
    The weight scales of k-block `k`, for lane j those of column step j modulo the lanes of a k-block.

    k-blocks come in order, all lanes of the warp at once. At the first one of a batch, the batch that was on its way is
    taken, and the load of the one after it is started.
    """

    name = "hopper.next_scales"
    batch = operand_def(ScaleBatchType)
    k = operand_def(IndexType)
    result = result_def(f32)
    assembly_format = "$batch `[` $k `]` attr-dict `:` type($batch)"


@irdl_op_definition
class CopyScalesOp(HopperOperation):
    """
    The lanes of a warp copy the weight scales of a slot's rows, one a k-block from `first` on, by ordinary accesses.

    Column j of the slot takes those of columns `column` + j * `step` ..; scales lie as for `fetch_scales`. From
    `blocks` k-blocks on, and outside the matrix, there are zeros.
    """

    name = "hopper.copy_scales"
    pointer = operand_def(PointerType)
    first = operand_def(IndexType)
    column = operand_def(IndexType)
    stride_k = operand_def(i64)
    stride_n = operand_def(i64)
    ring = operand_def(RingType)
    cursor = operand_def(CursorType)
    step = prop_def(POSITIVE)
    blocks = prop_def(POSITIVE)
    assembly_format = (
        "$pointer `[` $first `,` $column `]` `strides` $stride_k `,` $stride_n `of` $step `blocks` $blocks `->` $ring "
        "`[` $cursor `]` attr-dict `:` type($pointer) `,` type($ring) `,` type($cursor)"
    )


@irdl_op_definition
class PutScalesOp(HopperOperation):
    """Lanes 0 .. `steps` - 1 store their scale to the slot with ordinary stores."""

    name = "hopper.put_scales"
    value = operand_def(f32)
    ring = operand_def(RingType)
    cursor = operand_def(CursorType)
    steps = prop_def(POSITIVE)
    assembly_format = "$value `->` $ring `[` $cursor `]` `steps` $steps attr-dict `:` type($ring) `,` type($cursor)"
