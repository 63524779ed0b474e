"""The parameters of a kernel, and the tensors that they are bound to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from xdsl.dialects.builtin import Float32Type, TensorType, i32, i64
from xdsl.ir import Attribute, Block, BlockArgument, SSAValue
from xdsl.utils.hints import isa

from gemmir.dialects import hopper
from gemmir.dialects.gemm import ProductOp, argument_names
from gemmir.dialects.hopper.types import BindName, Element, OrderName
from gemmir.layouts import PANEL, Swizzle
from gemmir.passes.lowering.plan import ELEMENTS, Plan
from gemmir.problem import Grouping, Recipe


@dataclass(frozen=True)
class Parameters:
    """The kernel's parameters. Scales are None where the operands have none."""

    map_a: SSAValue
    map_b: SSAValue
    map_b_tail: SSAValue | None
    """Of narrower tiles, where the last columns have such."""
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
    overlaps: SSAValue | None
    """Whether the launch overlaps with that of the kernel before; None where it makes no difference."""

    @property
    def weight_scales(self) -> tuple[SSAValue, SSAValue, SSAValue] | None:
        """Address and strides along K and N of B's scales."""
        if self.scale_b is None or self.scale_b_stride_k is None or self.scale_b_stride_n is None:
            return None
        return self.scale_b, self.scale_b_stride_k, self.scale_b_stride_n

    def of(self, plan: Plan) -> Parameters:
        """Those that a loop over tiles uses."""
        return replace(self, map_b=self.map_b_tail) if plan.in_tail and self.map_b_tail is not None else self

    def without_scales(self) -> Parameters:
        return replace(self, map_scale_a=None, map_scale_b=None, scale_b=None)

    @property
    def loads(self) -> list[SSAValue]:
        return [
            m
            for m in (
                *(self.map_a, self.map_b, self.map_b_tail),
                *(self.map_scale_a, self.map_scale_b, *self.maps_c.values()),
            )
            if m is not None
        ]


def kernel_parameters(plan: Plan, op: ProductOp) -> Iterator[tuple[str, Attribute, hopper.BindAttr]]:
    """Name, type and binding of each parameter, in order."""
    problem, layout = plan.problem, plan.layout
    a, b, d = ELEMENTS[problem.a.name], ELEMENTS[problem.b.name], ELEMENTS[problem.d.name]
    panel = (problem.block_k, PANEL)
    box_a = (plan.block_m // plan.cluster_n, problem.block_k) if problem.a_major == "k" else panel
    box_b = (plan.block_n // plan.cluster_m, problem.block_k) if problem.b_major == "k" else panel
    yield "map_a", hopper.TensorMapType(box_a, a, Swizzle.B128), _bind_map(_argument(op.a))
    yield "map_b", hopper.TensorMapType(box_b, b, Swizzle.B128), _bind_map(_argument(op.b))
    if plan.tail is not None:
        box = hopper.TensorMapType((plan.tail.block_n, problem.block_k), b, Swizzle.B128)
        yield "map_b_tail", box, _bind_map(_argument(op.b))
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
    chunks = {(chunk.columns, chunk.swizzle) for region in plan.regions for chunk in region.slice_chunks}
    for width, swizzle in sorted(chunks, key=lambda c: -c[0]):
        box = hopper.TensorMapType((plan.slice_rows, width), d, swizzle)
        if op.c is not None:
            yield f"map_c{width}", box, hopper.BindAttr(BindName.ADDEND, _argument(op.c))
        yield f"map_d{width}", box, _bind_map(-1)
    if plan.grouped:
        yield from _group_parameters(plan, op, d)
    yield "m", i32, hopper.BindAttr(BindName.ROWS)
    if plan.prefetches:
        yield "overlaps", i32, hopper.BindAttr(BindName.OVERLAPS)


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


def read_parameters(block: Block) -> Parameters:
    by_name = {argument.name_hint or "": argument for argument in block.args}
    return Parameters(
        map_a=by_name["map_a"],
        map_b=by_name["map_b"],
        map_b_tail=by_name.get("map_b_tail"),
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
        overlaps=by_name.get("overlaps"),
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
