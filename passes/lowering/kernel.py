"""
The frame of a kernel: parameters, shared memory, barriers, and the roles that share them.

A ring of `num_stages` slots is filled by one producer warp and read by the math warpgroups; a store warp sends
finished tiles off. Barriers:

- `full[s]`: one arrival, the producer's, with the bytes to come.
- `empty[s]`: one arrival per math warp of each CTA that this slot's contents also went to.
- `staged[g]`: one arrival per warp of math warpgroup g, a slice of its tile lies in the staging area.
- `drained[g]`: one arrival, the store warp's, which has sent that slice. With an operand C, the arrival says how many
  bytes of C are on their way to where the slice was: the phase ends when they have arrived.
- `room`, where two CTAs sum a part of K each: one arrival, the peer's producer's; its slots for an exchange are free.
- `scaled[t]` and `unscaled[t]`, where the scales of a tile come apart from its operands: as `full` and `empty`.
- `summed[p]` and `unsummed[p]`, where one CTA gathers the sums of the other parts of K: as `full` and `empty`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from xdsl.dialects.builtin import (
    ArrayAttr,
    BFloat16Type,
    Float8E4M3FNType,
    Float8E5M2Type,
    Float16Type,
    Float32Type,
    StringAttr,
    TensorType,
    UnitAttr,
    i32,
    i64,
)
from xdsl.ir import Attribute, Block, BlockArgument, Region, SSAValue
from xdsl.utils.hints import isa

from gemmir.dialects import hopper
from gemmir.dialects.gemm import ProductOp, argument_names
from gemmir.dialects.hopper.types import BindName, Element, GroupingName, OrderName
from gemmir.layouts import PANEL, StoreChunk, Swizzle
from gemmir.passes.lowering.emitter import Emitter
from gemmir.problem import GemmProblem, Grouping, Recipe
from gemmir.schedule import Schedule
from gemmir.target import WARPS_PER_GROUP, setmaxnreg_split
from gemmir.tile import Exchange, SharedLayout, TileGeometry, exchange, scale_rows, shared_layout, tile_geometry

ELEMENTS: dict[str, Element] = {
    "f8E4M3FN": Float8E4M3FNType(),
    "f8E5M2": Float8E5M2Type(),
    "bf16": BFloat16Type(),
    "f16": Float16Type(),
    "f32": Float32Type(),
}


@dataclass(frozen=True)
class Plan:
    """The decisions, and what follows from them."""

    problem: GemmProblem
    schedule: Schedule
    tile: TileGeometry
    layout: SharedLayout

    @staticmethod
    def of(problem: GemmProblem, schedule: Schedule) -> Plan:
        return Plan(problem, schedule, tile_geometry(schedule), shared_layout(problem, schedule))

    @property
    def groups(self) -> int:
        return _chosen(self.schedule.math_warpgroups)

    @property
    def grouped(self) -> bool:
        """Whether it computes the products of several groups."""
        return self.problem.grouping is not Grouping.NONE

    @property
    def stages(self) -> int:
        return _chosen(self.schedule.num_stages)

    @property
    def block_m(self) -> int:
        return _chosen(self.schedule.block_m)

    @property
    def block_n(self) -> int:
        return _chosen(self.schedule.block_n)

    @property
    def cluster_m(self) -> int:
        return _chosen(self.schedule.cluster_m)

    @property
    def cluster_n(self) -> int:
        return _chosen(self.schedule.cluster_n)

    @property
    def chunk(self) -> int:
        return _chosen(self.schedule.promote_chunk)

    @property
    def peers(self) -> int:
        """CTAs that write into a slot of this CTA, itself included: those of its cluster row and column."""
        return self.cluster_m + self.cluster_n - 1

    @property
    def parts(self) -> int:
        """Parts of K, each summed by a CTA of its own."""
        return self.problem.numerics.split_k

    @property
    def k_blocks(self) -> int:
        """k-blocks that a CTA sums for a tile: all parts have the same number."""
        return self.problem.part_k_blocks

    @property
    def exchange(self) -> Exchange:
        """How CTAs that sum a part of K each swap halves of a tile."""
        return exchange(self.schedule)

    @property
    def column_steps(self) -> int:
        return self.block_n // self.tile.column_step

    @property
    def fence_where_read(self) -> bool:
        """
        Whether the warps that read scales fence them against TMA, or the producer warp does so before it loads.

        One warp's fence is cheaper than that of all math warps. It orders for the loads of its own warp only: in a
        cluster, where peers load into this CTA's shared memory, every reader fences, whoever loads.
        """
        return self.cluster_m * self.cluster_n > 1

    @property
    def scale_batch(self) -> int:
        """k-blocks whose weight scales the producer fetches at a time."""
        return _chosen(self.schedule.scale_batch)

    @property
    def slices(self) -> int:
        """Parts in which what a CTA finishes of a warpgroup's tile is staged and leaves, by rows."""
        return _chosen(self.schedule.store_slices)

    @property
    def slice_rows(self) -> int:
        return self.tile.out_rows // (self.slices * self.halves)

    @property
    def halves(self) -> int:
        """CTAs that finish a part of each wave group's rows: two where they swap sums."""
        return 1 if self.swapped else self.parts

    @property
    def slice_chunks(self) -> tuple[StoreChunk, ...]:
        """The boxes of one slice."""
        return self.tile.store_chunks(self.slices * self.halves, self.problem.d.bytes)

    @property
    def stage_load_bytes(self) -> int:
        """Bytes that TMA brings into one stage."""
        operands = self.layout.a_bytes + self.layout.b_bytes
        if self.scales_of_tiles:
            return operands
        scales = self.layout.scale_b_bytes if self.problem.column_scales else 0
        return operands + self.layout.scale_a_bytes + scales

    @property
    def swapped(self) -> bool:
        """Whether columns of D are the 64-row side of WGMMA."""
        return self.tile.swapped

    @property
    def group_rows(self) -> int:
        """Rows of D between the parts of neighbouring warpgroups."""
        return 0 if self.tile.out_rows == self.block_m else self.tile.out_rows

    @property
    def group_columns(self) -> int:
        return 0 if self.tile.out_columns == self.block_n else self.tile.out_columns

    @property
    def wgmma_group_rows(self) -> int:
        """Rows of WGMMA between the parts of neighbouring warpgroups."""
        return self.group_columns if self.swapped else self.group_rows

    @property
    def wgmma_group_columns(self) -> int:
        return self.group_rows if self.swapped else self.group_columns

    @property
    def scales_of_tiles(self) -> bool:
        """Whether the scales of all k-blocks of a tile lie in one slot, apart from the operands' ring."""
        return self.layout.scale_tiles > 0

    @property
    def scale_rows(self) -> int:
        """k-blocks whose scales a slot holds."""
        return scale_rows(self.problem) if self.scales_of_tiles else 1

    @property
    def raster(self) -> dict[str, Attribute | int]:
        axis, group = self.schedule.raster_axis, self.schedule.raster_group
        assert axis is not None and group is not None
        return {"raster": hopper.RasterAttr(hopper.types.RasterName(axis.value)), "group": group}


def _chosen(value: int | None) -> int:
    assert value is not None, "lowering needs a complete schedule"
    return value


@dataclass(frozen=True)
class Parameters:
    """The kernel's parameters. Scales are None where the operands have none."""

    map_a: SSAValue
    map_b: SSAValue
    maps_d: dict[int, SSAValue]
    """By box width in columns."""
    map_scale_a: SSAValue | None
    map_scale_b: SSAValue | None
    scale_b: SSAValue | None
    scale_b_stride_k: SSAValue | None
    scale_b_stride_n: SSAValue | None
    scale_b_stride_group: SSAValue | None
    index: SSAValue | None
    """What says which rows belong to which group."""
    d: SSAValue | None
    d_stride_m: SSAValue | None
    d_stride_group: SSAValue | None
    maps_c: dict[int, SSAValue]
    """By box width in columns; empty where there is no C."""

    @property
    def weight_scales(self) -> tuple[SSAValue, SSAValue, SSAValue] | None:
        """Address and strides along K and N of B's scales."""
        if self.scale_b is None or self.scale_b_stride_k is None or self.scale_b_stride_n is None:
            return None
        return self.scale_b, self.scale_b_stride_k, self.scale_b_stride_n

    def without_scales(self) -> Parameters:
        return replace(self, map_scale_a=None, map_scale_b=None, scale_b=None)

    @property
    def loads(self) -> list[SSAValue]:
        return [
            m
            for m in (self.map_a, self.map_b, self.map_scale_a, self.map_scale_b, *self.maps_c.values())
            if m is not None
        ]


@dataclass(frozen=True)
class Storage:
    """
    Shared memory and barriers, and how many tiles there are where only the device knows.

    Scale rings are None where the operands have none, `room` where K is not split, `scaled` and `unscaled` where
    scales come with the operands, `sums` and its barriers where no CTA gathers those of other parts of K.
    """

    a: SSAValue
    b: SSAValue
    scale_a: SSAValue | None
    scale_b: SSAValue | None
    staging: SSAValue
    full: SSAValue
    empty: SSAValue
    staged: SSAValue
    drained: SSAValue
    room: SSAValue | None
    scaled: SSAValue | None = None
    unscaled: SSAValue | None = None
    sums: SSAValue | None = None
    summed: SSAValue | None = None
    unsummed: SSAValue | None = None
    tile_count: SSAValue | None = None

    @property
    def barriers(self) -> list[SSAValue]:
        found = (self.full, self.empty, self.staged, self.drained, self.room)
        found += (self.scaled, self.unscaled, self.summed, self.unsummed)
        return [barriers for barriers in found if barriers is not None]


def kernel_parameters(plan: Plan, op: ProductOp) -> Iterator[tuple[str, Attribute, hopper.BindAttr]]:
    """Name, type and binding of each parameter, in order."""
    problem, layout = plan.problem, plan.layout
    a, b, d = ELEMENTS[problem.a.name], ELEMENTS[problem.b.name], ELEMENTS[problem.d.name]
    panel = (problem.block_k, PANEL)
    box_a = (plan.block_m // plan.cluster_n, problem.block_k) if problem.a_major == "k" else panel
    box_b = (plan.block_n // plan.cluster_m, problem.block_k) if problem.b_major == "k" else panel
    yield "map_a", hopper.TensorMapType(box_a, a, Swizzle.B128), _bind_map(_argument(op.a))
    yield "map_b", hopper.TensorMapType(box_b, b, Swizzle.B128), _bind_map(_argument(op.b))
    if layout.scale_a_bytes and op.scale_a is not None and op.scale_b is not None:
        scale_b = _argument(op.scale_b)
        row_scales = hopper.TensorMapType((plan.scale_rows, plan.block_m), Float32Type())
        yield "map_scale_a", row_scales, _bind_map(_argument(op.scale_a))
        if problem.column_scales:
            yield "map_scale_b", hopper.TensorMapType((1, plan.block_n), Float32Type()), _bind_map(scale_b)
    if layout.scale_a_bytes and op.scale_b is not None and not problem.column_scales:
        scale_b = _argument(op.scale_b)
        yield "scale_b", hopper.PointerType(Float32Type()), hopper.BindAttr(BindName.POINTER, scale_b)
        yield "scale_b_stride_k", i64, hopper.BindAttr(BindName.STRIDE, scale_b, int(plan.grouped))
        yield "scale_b_stride_n", i64, hopper.BindAttr(BindName.STRIDE, scale_b, 1 + plan.grouped)
        if plan.grouped:
            yield "scale_b_stride_group", i64, hopper.BindAttr(BindName.STRIDE, scale_b, 0)
    for width, swizzle in sorted({(c.columns, c.swizzle) for c in plan.slice_chunks}, key=lambda c: -c[0]):
        box = hopper.TensorMapType((plan.slice_rows, width), d, swizzle)
        if op.c is not None:
            yield f"map_c{width}", box, hopper.BindAttr(BindName.ADDEND, _argument(op.c))
        yield f"map_d{width}", box, _bind_map(-1)
    if plan.grouped:
        yield from _group_parameters(plan, op, d)
    yield "m", i32, hopper.BindAttr(BindName.ROWS)


def _group_parameters(plan: Plan, op: ProductOp, d: Element) -> Iterator[tuple[str, Attribute, hopper.BindAttr]]:
    """What says which rows are whose, and where D lies for what TMA cannot cut off at a group's end."""
    if op.index is not None:
        yield "index", hopper.PointerType(i32), hopper.BindAttr(BindName.POINTER, _argument(op.index))
    if plan.problem.grouping is Grouping.K_OFFS:
        return
    own = not plan.problem.grouping.contiguous
    yield "d", hopper.PointerType(d), hopper.BindAttr(BindName.POINTER, -1)
    yield "d_stride_m", i64, hopper.BindAttr(BindName.STRIDE, -1, int(own))
    if own:
        yield "d_stride_group", i64, hopper.BindAttr(BindName.STRIDE, -1, 0)


def _bind_map(tensor: int) -> hopper.BindAttr:
    return hopper.BindAttr(BindName.MAP, tensor)


def _argument(value: SSAValue) -> int:
    assert isinstance(value, BlockArgument), "operands are arguments of the function"
    return value.index


def _read_parameters(block: Block) -> Parameters:
    by_name = {argument.name_hint or "": argument for argument in block.args}
    return Parameters(
        map_a=by_name["map_a"],
        map_b=by_name["map_b"],
        maps_c={int(name[5:]): value for name, value in by_name.items() if name.startswith("map_c")},
        maps_d={int(name[5:]): value for name, value in by_name.items() if name.startswith("map_d")},
        map_scale_a=by_name.get("map_scale_a"),
        map_scale_b=by_name.get("map_scale_b"),
        scale_b=by_name.get("scale_b"),
        scale_b_stride_k=by_name.get("scale_b_stride_k"),
        scale_b_stride_n=by_name.get("scale_b_stride_n"),
        scale_b_stride_group=by_name.get("scale_b_stride_group"),
        index=by_name.get("index"),
        d=by_name.get("d"),
        d_stride_m=by_name.get("d_stride_m"),
        d_stride_group=by_name.get("d_stride_group"),
    )


def tensors(op: ProductOp) -> tuple[list[hopper.TensorAttr], hopper.TensorAttr]:
    """The function's arguments and its result, with the memory order that the kernel asks of each."""
    func = op.parent_op()
    orders = {_argument(op.b): OrderName.COLUMN_MAJOR} if op.b_major == "k" else {}
    if op.a_major != "k":
        orders[_argument(op.a)] = OrderName.COLUMN_MAJOR
    if op.scale_a is not None and op.scale_b is not None:
        by_column = op.scale_b_recipe is Recipe.BLOCK_WISE_1X128
        orders |= {
            _argument(op.scale_a): OrderName.COLUMN_MAJOR,
            _argument(op.scale_b): OrderName.ROW_MAJOR if by_column else OrderName.STRIDED,
        }
    block = op.parent_block()
    assert func is not None and block is not None
    inputs = [
        hopper.TensorAttr(name, _tensor_type(value), orders.get(index, OrderName.ROW_MAJOR))
        for index, (name, value) in enumerate(zip(argument_names(func), block.args, strict=True))
    ]
    return inputs, hopper.TensorAttr("out", _tensor_type(op.d), OrderName.ROW_MAJOR)


def _tensor_type(value: SSAValue) -> TensorType:
    assert isa(value.type, TensorType)
    return value.type


def allocate(emit: Emitter, plan: Plan) -> Storage:
    """Shared memory and barriers at the offsets of the schedule's layout."""
    problem, layout, groups, stages = plan.problem, plan.layout, plan.groups, plan.stages
    a, b, d = ELEMENTS[problem.a.name], ELEMENTS[problem.b.name], ELEMENTS[problem.d.name]

    def ring(
        name: str, rows: int, columns: int, element: Element, offset: int, swizzle: Swizzle, slots: int = stages
    ) -> SSAValue:
        type_ = hopper.RingType((slots, rows, columns), element, swizzle)
        return emit.value(hopper.RingOp, type_, name, offset=offset)

    def barriers(name: str, count: tuple[int, int], offset: int, arrivals: int) -> SSAValue:
        return emit.value(hopper.BarriersOp, hopper.BarriersType(*count), name, offset=offset, arrivals=arrivals)

    storage = hopper.StagingType((groups, plan.slice_rows, plan.tile.out_columns), d)

    def scale_ring(name: str, slot_bytes: int, offset: int) -> SSAValue | None:
        columns, slots = slot_bytes // (4 * plan.scale_rows), layout.scale_slots
        return ring(name, plan.scale_rows, columns, Float32Type(), offset, Swizzle.NONE, slots) if columns else None

    readers = WARPS_PER_GROUP * groups
    gathered: dict[str, SSAValue] = {}
    if slots := layout.sum_slots:
        sums = "sums", plan.block_n, plan.block_m, Float32Type(), layout.sums_offset, Swizzle.NONE, slots
        gathered["sums"] = ring(*sums)
        gathered["summed"] = barriers("summed", (slots, 1), layout.summed_offset, 1)
        gathered["unsummed"] = barriers("unsummed", (slots, 1), layout.unsummed_offset, readers)
    if slots := layout.scale_tiles:
        gathered["scaled"] = barriers("scaled", (slots, 1), layout.scaled_offset, 1)
        gathered["unscaled"] = barriers("unscaled", (slots, 1), layout.unscaled_offset, readers)
    return Storage(
        a=ring("ring_a", plan.block_m, problem.block_k, a, layout.a_offset, Swizzle.B128),
        b=ring("ring_b", plan.block_n, problem.block_k, b, layout.b_offset, Swizzle.B128),
        staging=emit.value(
            hopper.StagingOp, storage, "staging", offset=layout.staging_offset, pitch=layout.staging_bytes
        ),
        scale_a=scale_ring("ring_scale_a", layout.scale_a_bytes, layout.scale_a_offset),
        scale_b=scale_ring("ring_scale_b", layout.scale_b_bytes, layout.scale_b_offset),
        full=barriers("full", (stages, 1), layout.full_offset, 1),
        empty=barriers("empty", (stages, 1), layout.empty_offset, readers * plan.peers),
        staged=barriers("staged", (1, groups), layout.staged_offset, WARPS_PER_GROUP),
        drained=barriers("drained", (1, groups), layout.drained_offset, 1),
        room=barriers("room", (1, 1), layout.room_offset, 1) if layout.room_barriers else None,
        **gathered,
    )


def _grouping(plan: Plan) -> dict[str, Attribute]:
    grouping = hopper.GroupingAttr(GroupingName(plan.problem.grouping.value))
    return {"grouping": grouping, "groups": hopper.base.count(plan.problem.groups)}


def build_kernel(plan: Plan, op: ProductOp, name: str) -> hopper.KernelOp:
    """The whole kernel for one matmul."""
    from gemmir.passes.lowering.math_chunked import math_chunked
    from gemmir.passes.lowering.math_in_place import math_in_place
    from gemmir.passes.lowering.math_promoted import math_promoted
    from gemmir.passes.lowering.math_stream import math_stream
    from gemmir.passes.lowering.producer import producer
    from gemmir.passes.lowering.overlap import overlap
    from gemmir.passes.lowering.scales import scales_of_tiles
    from gemmir.passes.lowering.store import store
    from gemmir.passes.lowering.tiles import count_tiles

    names, types, binds = zip(*kernel_parameters(plan, op), strict=True)
    block = Block(arg_types=types)
    for argument, hint in zip(block.args, names, strict=True):
        argument.name_hint = hint
    parameters, emit = _read_parameters(block), Emitter(block)
    storage = allocate(emit, plan)
    if plan.swapped:
        emit.op(hopper.LaunchDependentsOp)
    emit.op(hopper.PrefetchMapsOp, parameters.loads)
    emit.op(hopper.InitBarriersOp, storage.barriers)
    if plan.swapped:
        overlap(emit, plan, parameters)
    storage = replace(storage, tile_count=count_tiles(emit, plan, parameters))
    shares_loads = plan.cluster_m * plan.cluster_n > 1
    emit.op(hopper.ClusterSyncOp if shares_loads or plan.parts > 1 else hopper.CtaSyncOp)

    service_registers, math_registers = setmaxnreg_split(plan.groups)
    with emit.inside(hopper.RolesOp) as (roles, _):
        with roles.inside(hopper.WarpgroupsOp, "group", number=plan.groups) as (math, (group,)):
            if not plan.swapped:
                math.op(hopper.SetMaxRegistersOp, registers=math_registers, grow=True)
            promoted = math_stream if plan.swapped else math_promoted if plan.chunk == 1 else math_chunked
            (promoted if plan.problem.promoted else math_in_place)(math, plan, storage, group)
        with roles.inside(hopper.WarpgroupsOp, "service", number=1) as (service, _):
            if not plan.swapped:
                service.op(hopper.SetMaxRegistersOp, registers=service_registers)
            with service.inside(hopper.WarpOp, index=0) as (warp, _):
                producer(warp, plan, parameters, storage)
            with service.inside(hopper.WarpOp, index=1, elected=not plan.grouped) as (warp, _):
                store(warp, plan, parameters, storage)
            if plan.scales_of_tiles:
                with service.inside(hopper.WarpOp, index=2) as (warp, _):
                    scales_of_tiles(warp, plan, parameters, storage)
    if shares_loads:  # what a peer sends to a CTA that sums another part of K, that CTA waits for
        emit.op(hopper.ClusterSyncOp, release=True)
    inputs, output = tensors(op)
    return hopper.KernelOp.build(
        properties={
            "sym_name": StringAttr(name),
            "cluster": hopper.PairAttr(plan.cluster_m, plan.cluster_n),
            "tile": hopper.PairAttr(plan.block_m, plan.block_n),
            "columns": hopper.base.count(plan.problem.n),
            "depth": hopper.base.count(plan.problem.k),
            "threads": hopper.base.count((plan.groups + 1) * 128),
            "shared": hopper.base.count(plan.layout.total_bytes),
            "inputs": ArrayAttr(inputs),
            "output": output,
            "binds": ArrayAttr(binds),
            **({"balanced": UnitAttr()} if plan.schedule.balanced else {}),
            **(_grouping(plan) if plan.grouped else {}),
            **({"split_k": hopper.base.count(plan.parts)} if plan.parts > 1 else {}),
        },
        regions=[Region(block)],
    )
