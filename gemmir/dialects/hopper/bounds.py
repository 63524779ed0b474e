"""
What a kernel may touch: every access stays inside its slot, every parameter is bound to a tensor that fits it.

IR may come from anywhere. What the single ops cannot see, since it takes the kernel around them, is checked here,
before a kernel is proven or printed. Whether it computes what it should is for runs on exact data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IntegerAttr, i32, i64
from xdsl.ir import Attribute, BlockArgument, Operation, SSAValue
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects.hopper.arithmetic import LoadScalesOp, PromoteBlockOp, PromoteColumnsOp, PromoteOp, WgmmaOp
from gemmir.dialects.hopper.base import number
from gemmir.dialects.hopper.control import (
    ROWS_OF_GROUP,
    CountTilesOp,
    KBlocksOp,
    KernelOp,
    RolesOp,
    TilesOp,
    WarpgroupsOp,
    WarpOp,
    enclosing,
    tile_arguments,
)
from gemmir.dialects.hopper.grid import TmaPrefetchOp
from gemmir.dialects.hopper.loads import (
    BlockAheadOp,
    CopyScalesOp,
    FetchScalesOp,
    GroupPointerOp,
    NextScalesOp,
    PutScalesOp,
    StartScalesOp,
    TmaLoadOp,
)
from gemmir.dialects.hopper.split_k import AddSumsOp, FirstBlockOp, GrantOp, InPartOp, PartBlockOp, SendSumsOp
from gemmir.dialects.hopper.storage import RingOp, StagingOp
from gemmir.dialects.hopper.stores import StageFragmentOp, StoreRowsOp, TmaFillOp, TmaStoreOp
from gemmir.dialects.hopper.types import (
    BindAttr,
    BindName,
    FragmentType,
    PointerType,
    RingType,
    ScalesType,
    StagingType,
    TensorAttr,
    TensorMapType,
)
from gemmir.layouts import PANEL, STAGED_COLUMNS, STMATRIX_BYTES, Swizzle
from gemmir.legality import MAX_CLUSTER, MAX_SPLIT_K
from gemmir.problem import SCALE_BLOCK, Grouping
from gemmir.stream_legality import MAX_PARTS
from gemmir.target import MOST_EXTENT, SM_90A, TMA_SHARED_ALIGNMENT, WARP_LANES

MAX_OPS = 4096
"""Of a kernel, each a line of its source or a few: no loop is unrolled further. The passes make up to a few hundred."""


def _fits(what: str, needed: int, available: int) -> None:
    if needed > available:
        raise VerifyException(f"{what}: {needed} of {available}")


def check_kernel_bounds(kernel: KernelOp) -> None:
    """Raise `VerifyException` for the first access or binding that does not fit."""
    _fits("operations", sum(1 for _ in kernel.walk()), MAX_OPS)
    _fits("columns, of which the last tile's lie behind,", number(kernel.columns), MOST_EXTENT)
    _fits("elements of K, whose blocks are counted,", number(kernel.depth), MOST_EXTENT)
    _fits("bytes of shared memory", number(kernel.shared), SM_90A.shared_bytes)
    _fits("CTAs in a cluster", kernel.cluster_ctas, MAX_PARTS if kernel.parts > 1 else MAX_CLUSTER)
    _check_threads(kernel)
    if kernel.output.type.get_shape()[-1:] != (number(kernel.columns),):
        raise VerifyException(f"the kernel gives {kernel.output.type}, and has {number(kernel.columns)} columns")
    for parameter, bind in zip(kernel.body.block.args, kernel.binds, strict=True):
        _check_bind(kernel, parameter, bind)
    for op in kernel.body.walk():
        if isinstance(
            op, CopyScalesOp | CountTilesOp | KBlocksOp | StoreRowsOp | TmaLoadOp | TmaPrefetchOp | TmaStoreOp
        ):
            _KERNEL_CHECKS[type(op)](kernel, op)
        elif isinstance(op, FetchScalesOp):
            _fits("lanes that read a scale", number(op.steps), WARP_LANES)
            _check_scales(kernel, op, _last_block(op, kernel.parts))
        elif isinstance(op, StartScalesOp):
            _check_scales(kernel, op, number(op.blocks) * (1 if op.in_part is None else kernel.parts))
        elif isinstance(op, AddSumsOp | GrantOp | InPartOp | PartBlockOp | SendSumsOp):
            _check_split(kernel, op)
        elif isinstance(op, TmaFillOp):
            _check_fill(kernel, op)
        elif (check := _CHECKS.get(type(op))) is not None:
            check(op)


def _check_threads(kernel: KernelOp) -> None:
    groups = [g for op in kernel.body.block.ops if isinstance(op, RolesOp) for g in op.body.block.ops]
    threads = sum(number(g.number) * SM_90A.warpgroup_threads for g in groups if isinstance(g, WarpgroupsOp))
    if threads != number(kernel.threads):
        raise VerifyException(f"the roles have {threads} threads, the kernel {number(kernel.threads)}")


# Parameters


def _check_bind(kernel: KernelOp, parameter: BlockArgument, bind: BindAttr) -> None:
    kind, index = BindName(bind.kind.data), bind.tensor.data
    if not (0 if kind is BindName.ADDEND else -1) <= index < len(kernel.inputs):
        raise VerifyException(f"{kind} {index} is bound to no tensor: the kernel takes {len(kernel.inputs)}")
    tensor = kernel.output if index < 0 else kernel.inputs.data[index]
    if not _binds(kind, parameter.type, tensor) or (kind is BindName.ADDEND and not _is_like(tensor, kernel.output)):
        raise VerifyException(f"a parameter of type {parameter.type} cannot be bound to {kind} of {tensor}")
    if isinstance(parameter.type, TensorMapType):
        _check_box(parameter.type)
    if kind is BindName.STRIDE and not 0 <= bind.dimension.data < len(tensor.type.get_shape()):
        raise VerifyException(f"{tensor} has no dimension {bind.dimension.data}")


def _binds(kind: BindName, parameter: Attribute, tensor: TensorAttr) -> bool:
    match kind:
        case BindName.MAP | BindName.ADDEND:
            same = isinstance(parameter, TensorMapType) and parameter.element == tensor.type.element_type
            return same and len(tensor.type.get_shape()) in (2, 3)
        case BindName.POINTER:
            return isinstance(parameter, PointerType) and parameter.element == tensor.type.element_type
        case BindName.STRIDE:
            return parameter == i64
        case BindName.ROWS | BindName.OVERLAPS:
            return parameter == i32


def _is_like(tensor: TensorAttr, output: TensorAttr) -> bool:
    """Whether a tensor has the type of the output, and lies row by row as it does."""
    return tensor.type == output.type and tensor.order == output.order


def _check_box(box: TensorMapType) -> None:
    for extent in box.dims:
        _fits(f"elements along a side of {box}", extent, SM_90A.max_tma_box)
    row_bytes, swizzle = box.dims[1] * box.element_bytes, box.swizzle_mode
    if row_bytes % SM_90A.tma_alignment or (swizzle is not Swizzle.NONE and row_bytes != swizzle.span):
        raise VerifyException(f"rows of {row_bytes} bytes in {box}: TMA moves multiples of 16, a swizzle whole spans")


# Accesses


def _last_group(op: Operation) -> int:
    """The highest number that the warpgroup around `op` can have among its like."""
    warpgroups = enclosing(op, WarpgroupsOp)
    if warpgroups is None:
        raise VerifyException(f"{op.name} outside hopper.warpgroups")
    return number(warpgroups.number) - 1


def _wgmma(op: WgmmaOp) -> None:
    a, b, fragment = op.a.type, op.b.type, op.fragment.type
    assert isinstance(a, RingType) and isinstance(b, RingType) and isinstance(fragment, FragmentType)
    last, a_row = _last_group(op), number(op.a_row) if op.by_part is None else 64
    _fits("rows of A that a WGMMA reads", last * number(op.a_group_rows) + a_row + 64, a.dims[1])
    _fits("rows of B that a WGMMA reads", last * number(op.b_group_rows) + fragment.dims[1], b.dims[1])


def _load_scales(op: LoadScalesOp) -> None:
    rows, steps, scales = op.rows.type, op.steps.type, op.scales.type
    assert isinstance(rows, RingType) and isinstance(steps, RingType) and isinstance(scales, ScalesType)
    last, (waves, count) = _last_group(op), scales.dims
    if op.by_part is not None and waves != MAX_SPLIT_K:
        raise VerifyException(f"{waves} waves in {op.name} by_part, which swaps two")
    if (op.k is None) != (op.ahead is None):
        raise VerifyException(f"{op.name} takes the number of a k-block and how far ahead of it, or neither")
    if op.k is not None and op.ahead is not None:
        of_blocks = _highest(op.k, op) + number(op.ahead) + 1
        _fits("rows of scales that are read", of_blocks, min(rows.dims[1], steps.dims[1]))
    elif rows.dims[1] != 1 or steps.dims[1] != 1:
        raise VerifyException(f"{op.name} from {rows} and {steps} without the number of a k-block")
    _fits("row scales that are read", last * number(op.group_rows) + waves * 64, rows.dims[2])
    _fits("column scales that are read", last * number(op.group_steps) + count, steps.dims[2])


def _promote(op: PromoteOp) -> None:
    partial, total, scales = op.partial.type, op.total.type, op.scales.type
    assert isinstance(partial, FragmentType) and isinstance(scales, ScalesType)
    waves, steps = scales.dims
    _fits("scales of waves", number(op.wave) + 1, waves)
    if partial != total or steps * number(op.step) != partial.dims[1]:
        raise VerifyException(f"{steps} scales of {number(op.step)} columns for {partial} and {total}")


def _promote_columns(op: PromoteColumnsOp) -> None:
    partial, rows, columns = op.partial.type, op.rows.type, op.columns.type
    assert isinstance(partial, FragmentType) and isinstance(rows, RingType) and isinstance(columns, RingType)
    if partial != op.total.type or {str(rows.element), str(columns.element)} != {"f32"}:
        raise VerifyException(f"scales of {rows} and {columns} for {partial} and {op.total.type}")
    last = _last_group(op)
    last_row = last * number(op.group_rows) + (number(op.wave) + 1) * partial.dims[0]
    _fits("row scales that are read", last_row, rows.dims[1] * rows.dims[2])
    last_column = last * number(op.group_columns) + partial.dims[1]
    _fits("column scales that are read", last_column, columns.dims[1] * columns.dims[2])


def _promote_block(op: PromoteBlockOp) -> None:
    partial, shared, columns = op.partial.type, op.shared.type, op.columns.type
    assert isinstance(partial, FragmentType) and isinstance(shared, RingType) and isinstance(columns, RingType)
    if partial != op.total.type or {str(shared.element), str(columns.element)} != {"f32"}:
        raise VerifyException(f"scales of {shared} and {columns} for {partial} and {op.total.type}")
    rows = _highest(op.k, op) + number(op.ahead) + 1
    _fits("rows of scales that are read", rows, min(shared.dims[1], columns.dims[1]))
    _fits("scales of warpgroups that are read", _last_group(op) + 1, shared.dims[2])
    _fits("column scales that are read", partial.dims[1], columns.dims[2])
    if columns.dims[2] % 2:
        raise VerifyException(f"{op.name} reads pairs of column scales, of which {columns} has an odd number")


def _highest(k: SSAValue, op: Operation) -> int:
    """The highest number of a k-block that `k` can be: a constant's, or that of a loop whose end is known."""
    if isinstance(k.owner, ConstantOp) and isinstance(k.owner.value, IntegerAttr):
        return k.owner.value.value.data
    loop = _loop_of(k)
    if loop is None or loop.last is None:
        raise VerifyException(f"{op.name} takes the number of a k-block")
    return number(loop.last) - loop.blocks


def _copy_scales(kernel: KernelOp, op: CopyScalesOp) -> None:
    warp = enclosing(op, WarpOp)
    if warp is None or warp.elected is not None:
        raise VerifyException(f"{op.name} takes all lanes of a warp")
    if not isinstance(op.first.owner, FirstBlockOp):
        raise VerifyException(f"{op.name} begins with the first k-block of a part of K")
    _check_scales(kernel, op, number(op.blocks))


def _put_scales(op: PutScalesOp) -> None:
    ring = op.ring.type
    assert isinstance(ring, RingType)
    _fits("scales that are stored", number(op.steps), min(WARP_LANES, ring.dims[1] * ring.dims[2]))


def _check_scales(kernel: KernelOp, op: CopyScalesOp | FetchScalesOp | StartScalesOp, blocks: int) -> None:
    """Ordinary loads from global memory: a scale for each of `blocks` k-blocks and each block of columns."""
    tensor, shape = _address(kernel, op.pointer, op)
    strides = [_bind_of(kernel, value) for value in (op.stride_k, op.stride_n)]
    if any(BindName(b.kind.data) is not BindName.STRIDE or b.tensor.data != tensor for b in strides) or tensor < 0:
        raise VerifyException(f"{op.name} takes the address and the strides of one tensor")
    rank = len(shape)
    if [b.dimension.data for b in strides] != [rank - 2, rank - 1] or min(shape) < 0:
        raise VerifyException(f"{op.name} reads a tensor of K blocks x N blocks")
    if number(kernel.depth):  # else it is not launched: there are no scales
        _fits("rows of scales that are read", blocks, shape[-2])
    _fits("columns of scales that are read", -(-number(kernel.columns) // SCALE_BLOCK), shape[-1])


def _address(kernel: KernelOp, pointer: SSAValue, op: Operation) -> tuple[int, tuple[int, ...]]:
    """The tensor that an address lies in, and its shape: of rank 2, or of rank 3 and a group's part of it."""
    group = pointer.owner if isinstance(pointer.owner, GroupPointerOp) else None
    bind = _bind_of(kernel, pointer if group is None else group.pointer)
    if BindName(bind.kind.data) is not BindName.POINTER:
        raise VerifyException(f"{op.name} takes the address of a tensor")
    tensor = bind.tensor.data
    shape = (kernel.output if tensor < 0 else kernel.inputs.data[tensor]).type.get_shape()
    if len(shape) != (2 if group is None else 3):
        raise VerifyException(
            f"{op.name}: the address of a tensor of rank {len(shape)}, {'no' if group is None else 'a'} group"
        )
    if group is not None:
        stride = _bind_of(kernel, group.stride)
        if (BindName(stride.kind.data), stride.tensor.data, stride.dimension.data) != (BindName.STRIDE, tensor, 0):
            raise VerifyException(f"{group.name} takes the first stride of the tensor whose address it takes")
        _check_group(kernel, group.group, tensor)
    return tensor, shape


def _check_group(kernel: KernelOp, group: SSAValue, tensor: int) -> None:
    """A group is that of a tile, and `tensor` has as many of them as the kernel."""
    tiles = group.owner.parent_op() if isinstance(group, BlockArgument) else None
    if not isinstance(tiles, TilesOp) or len(tiles.body.block.args) < 3 or group is not tiles.body.block.args[2]:
        raise VerifyException("a group is the one that hopper.tiles gives")
    assert kernel.groups is not None
    groups = (kernel.output if tensor < 0 else kernel.inputs.data[tensor]).type.get_shape()[0]
    _fits("groups", number(kernel.groups), groups)


def _check_map(
    kernel: KernelOp, op: TmaLoadOp | TmaFillOp | TmaPrefetchOp | TmaStoreOp | StoreRowsOp, group: SSAValue | None
) -> int:
    """Tensor maps are parameters; those over a tensor of rank 3 take a group. Returns the tensor."""
    if not isinstance(op.map, BlockArgument):
        raise VerifyException("tensor maps are parameters of the kernel")
    tensor = _bind_of(kernel, op.map).tensor.data
    rank = len((kernel.output if tensor < 0 else kernel.inputs.data[tensor]).type.get_shape())
    if (rank == 3) != (group is not None):
        raise VerifyException(f"{op.name}: a map over a tensor of rank {rank}, {'no' if group is None else 'a'} group")
    if group is not None:
        _check_group(kernel, group, tensor)
    return tensor


def _store_rows(kernel: KernelOp, op: StoreRowsOp) -> None:
    _tma_store(op)
    tensor, shape = _address(kernel, op.pointer, op)
    stride = _bind_of(kernel, op.stride)
    of_rows = (BindName(stride.kind.data), stride.tensor.data, stride.dimension.data)
    if _check_map(kernel, op, op.group) != tensor or of_rows != (BindName.STRIDE, tensor, len(shape) - 2):
        raise VerifyException(f"{op.name} takes the map, the address and the stride of one tensor")
    tiles = op.row.owner.parent_op() if isinstance(op.row, BlockArgument) else None
    given = list(tiles.body.block.args) if isinstance(tiles, TilesOp) else []
    of_k = kernel.grouping is not None and kernel.grouping.meaning is Grouping.K_OFFS
    if of_k or len(given) != len(ROWS_OF_GROUP) or [op.row, op.begin, op.end] != [given[0], *given[3:]]:
        raise VerifyException("rows that may be written are those that hopper.tiles gives")


def _count_tiles(kernel: KernelOp, op: CountTilesOp) -> None:
    assert kernel.grouping is not None and kernel.groups is not None
    if op.index is None:
        return
    bind = _bind_of(kernel, op.index)
    if BindName(bind.kind.data) is not BindName.POINTER or bind.tensor.data < 0:
        raise VerifyException(f"{op.name} takes the address of an input")
    tensor = kernel.inputs.data[bind.tensor.data].type
    of_rows = kernel.grouping.meaning is Grouping.GROUP_IDS
    extent = kernel.output.type.get_shape()[0] if of_rows else number(kernel.groups)
    if tensor.element_type != i32 or tensor.get_shape() != (extent,):
        raise VerifyException(f"{op.name} reads {tensor}, not an i32 for each {'row' if of_rows else 'group'}")


def _bind_of(kernel: KernelOp, value: SSAValue) -> BindAttr:
    if not isinstance(value, BlockArgument) or value.owner is not kernel.body.block:
        raise VerifyException("addresses and strides are parameters of the kernel")
    return kernel.binds.data[value.index]


def _last_block(op: FetchScalesOp | NextScalesOp, parts: int = 1) -> int:
    """One past the number of the last k-block for which `op` runs, in any of so many parts of K."""
    k, before = op.k, 0
    if isinstance(in_part := k.owner, PartBlockOp):
        k, before = in_part.k, (parts - 1) * number(in_part.blocks)
    if isinstance(ahead := k.owner, BlockAheadOp):
        k = ahead.k
    if (loop := _loop_of(k)) is None:
        raise VerifyException(f"{op.name} reads the scales of a k-block")
    if loop.last is None:
        raise VerifyException(f"{op.name} reads the scales of as many k-blocks as are known")
    return before + number(loop.last)


def _check_split(kernel: KernelOp, op: AddSumsOp | GrantOp | InPartOp | PartBlockOp | SendSumsOp) -> None:
    """CTAs send each other sums, through slots that hold those of all warpgroups: two to each other, or all to one."""
    if kernel.parts == 1:
        raise VerifyException(f"{op.name} in a kernel that does not split K among the CTAs of a cluster")
    to_one = isinstance(op, AddSumsOp | InPartOp | PartBlockOp)
    if isinstance(op, GrantOp) and op.part is not None:
        to_one = True
        _fits("parts of K", number(op.part) + 1, kernel.parts)
    if isinstance(op, SendSumsOp) and op.to_first is not None:
        ring, to_one = op.ring.type, True
        assert isinstance(ring, RingType)
        _fits("slots for the sums of other parts", kernel.parts - 1, ring.stages)
        if (part := enclosing(op, InPartOp)) is None or part.others is None:
            raise VerifyException(f"{op.name} to the first part, from what may be the first part")
    if not to_one and kernel.parts != MAX_SPLIT_K:
        raise VerifyException(f"{op.name} to a peer in a kernel that splits K among {kernel.parts} CTAs")
    if isinstance(op, AddSumsOp | SendSumsOp):
        ring = op.ring.type
        assert isinstance(ring, RingType)
        group_bytes = SM_90A.warpgroup_threads * number(op.registers) * 4
        _fits("bytes of sums in a slot", (_last_group(op) + 1) * group_bytes, ring.slot_bytes)


def _next_scales(op: NextScalesOp) -> None:
    if not isinstance(op.batch.owner, StartScalesOp):
        raise VerifyException("hopper.next_scales goes on with what hopper.start_scales has started")
    _fits("k-blocks whose scales are used", _last_block(op), number(op.batch.owner.blocks))
    warp = enclosing(op, WarpOp)
    if warp is None or warp.elected is not None:
        raise VerifyException("hopper.next_scales takes all lanes of a warp: each gets its scale from another one")


def _loop_of(k: SSAValue) -> KBlocksOp | None:
    """The loop whose k-blocks `k` numbers, if it is the number that a loop gives."""
    loop = k.owner.parent_op() if isinstance(k, BlockArgument) else None
    return loop if isinstance(loop, KBlocksOp) else None


def _block_ahead(op: BlockAheadOp) -> None:
    if (loop := _loop_of(op.k)) is None or number(op.ahead) >= loop.blocks:
        raise VerifyException(f"{op.name} by {number(op.ahead)}: it is for blocks that a loop does at a time")


def _k_blocks(kernel: KernelOp, op: KBlocksOp) -> None:
    """A number that is not the same for all roles, and all CTAs of a cluster, would hang them."""
    if op.count is None:
        return
    tiles = enclosing(op, TilesOp)
    names = tile_arguments(kernel.grouping, tiles is not None and tiles.count is not None)
    own = dict(zip(names, [] if tiles is None else tiles.body.block.args, strict=False))
    if op.count is not own.get("blocks"):
        raise VerifyException(f"{op.name} over a number that is not that of the tile's k-blocks")


def _tma_load(kernel: KernelOp, op: TmaLoadOp) -> None:
    _check_map(kernel, op, op.group)
    if op.multicast is not None:
        _check_shared(op)
    ring, box = op.ring.owner, op.map.type
    assert isinstance(box, TensorMapType)
    if op.panel is not None:
        ctas = op.sharing(kernel.cluster.m.data, kernel.cluster.n.data)
        _fits("boxes of a slot", number(op.panel) + 1, op.boxes(ctas))
    places = [box.dims[0] * box.dims[1] * box.element_bytes]
    if isinstance(ring, RingOp):
        places += [number(ring.offset), ring.result.type.slot_bytes]
    if any(place % TMA_SHARED_ALIGNMENT for place in places):
        raise VerifyException(f"boxes of {box} do not land at multiples of {TMA_SHARED_ALIGNMENT} bytes")


def _check_shared(op: TmaLoadOp) -> None:
    """CTAs of a cluster share an operand if their tiles are of the same group, with the same k-blocks."""
    tiles = enclosing(op, TilesOp)
    counted = None if tiles is None or tiles.count is None else tiles.count.owner
    if isinstance(counted, CountTilesOp) and counted.per_cluster is None:
        raise VerifyException(f"{op.name} multicast to CTAs whose tiles may be of different groups: count per_cluster")


def _stage_fragment(op: StageFragmentOp) -> None:
    staging, fragment = op.staging.type, op.fragment.type
    assert isinstance(staging, StagingType) and isinstance(fragment, FragmentType)
    groups, rows, columns = staging.dims
    _fits("warpgroups that stage", _last_group(op) + 1, groups)
    if op.transposed is not None:
        rows, columns = columns, rows
        if staging.element_bytes != STMATRIX_BYTES or op.accumulate is not None or number(op.row) % PANEL:
            raise VerifyException(f"{fragment} into {staging}: 16-bit elements are transposed, whole panels of {PANEL}")
    _fits("rows that are staged", number(op.row) + fragment.dims[0], rows)
    first, whole = number(op.column), columns == fragment.dims[1]
    if op.transposed is not None and not whole:
        raise VerifyException(f"{fragment} into {staging}")
    _fits("columns that are staged", first + columns, fragment.dims[1])
    if not whole and (first % STAGED_COLUMNS or columns % STAGED_COLUMNS):
        raise VerifyException(f"{columns} columns of {fragment} from {first} on: {STAGED_COLUMNS} leave together")


def _staging(op: StagingOp) -> None:
    _, rows, columns = op.result.type.dims
    _fits("bytes of a staging area", rows * columns * op.result.type.element_bytes, number(op.pitch))


def _check_fill(kernel: KernelOp, op: TmaFillOp) -> None:
    """What is loaded is a part of C at the CTA's own tile, which no other CTA's part of D overwrites."""
    _tma_store(op)
    _check_map(kernel, op, op.tile_group)
    if BindName(_bind_of(kernel, op.map).kind.data) is not BindName.ADDEND:
        raise VerifyException(f"{op.name} loads operand C")
    box, tiles = op.map.type, enclosing(op, TilesOp)
    assert isinstance(box, TensorMapType)
    if tiles is None or (op.row, op.column) != tuple(tiles.body.block.args)[:2]:
        raise VerifyException(f"{op.name} loads for the tile that it is in")
    _fits("rows of the tile", number(op.row_offset) + box.dims[0], kernel.tile.m.data)
    columns = kernel.tile.n.data if tiles.tail is None or kernel.tail is None else number(kernel.tail)
    _fits("columns of the tile", number(op.column_offset) + box.dims[1], columns)


def _tma_store(op: TmaStoreOp | StoreRowsOp | TmaFillOp) -> None:
    owner, box = op.staging.owner, op.map.type
    if not isinstance(owner, StagingOp) or not isinstance(box, TensorMapType):
        raise VerifyException(f"{op.name} is about a staging area")
    end = number(op.offset) + box.dims[0] * box.dims[1] * box.element_bytes
    _fits("bytes of the staging areas", end, owner.result.type.dims[0] * number(owner.pitch))


_CHECKS: dict[type[Operation], Callable[[Any], None]] = {
    BlockAheadOp: _block_ahead,
    LoadScalesOp: _load_scales,
    NextScalesOp: _next_scales,
    PromoteBlockOp: _promote_block,
    PromoteColumnsOp: _promote_columns,
    PromoteOp: _promote,
    PutScalesOp: _put_scales,
    StageFragmentOp: _stage_fragment,
    StagingOp: _staging,
    WgmmaOp: _wgmma,
}
_KERNEL_CHECKS: dict[type[Operation], Callable[[KernelOp, Any], None]] = {
    CopyScalesOp: _copy_scales,
    CountTilesOp: _count_tiles,
    KBlocksOp: _k_blocks,
    StoreRowsOp: _store_rows,
    TmaLoadOp: _tma_load,
    TmaPrefetchOp: lambda kernel, op: (_check_map(kernel, op, None), None)[1],
    TmaStoreOp: lambda kernel, op: (_tma_store(op), _check_map(kernel, op, op.group))[0],
}
