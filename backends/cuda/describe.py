"""Reads a kernel's manifest off its IR: what the launcher must know."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number
from gemmir.dialects.hopper.types import BindName, OrderName
from gemmir.manifest import (
    Manifest,
    OverlapsParam,
    Param,
    PointerParam,
    RowsParam,
    SeedParam,
    StrideParam,
    TensorMapParam,
    TensorSpec,
)


def describe(
    kernel: hopper.KernelOp,
    entry: str,
    target: str,
    schedule: str,
    decisions: Sequence[str] = (),
    chaos: bool = False,
) -> Manifest:
    """The manifest of a kernel that was printed with this entry point, under `chaos` or not."""
    return Manifest(
        name=kernel.sym_name.data,
        entry=entry,
        target=target,
        inputs=tuple(_tensor(t) for t in kernel.inputs),
        output=_tensor(kernel.output),
        params=_params(kernel) + (SeedParam(),) * chaos,
        n=kernel.columns.value.data,
        k=kernel.depth.value.data,
        block_m=kernel.tile.m.data,
        block_n=kernel.tile.n.data,
        cluster_m=kernel.cluster.m.data,
        cluster_n=kernel.cluster.n.data,
        threads=kernel.threads.value.data,
        shared_bytes=kernel.shared.value.data,
        balanced=kernel.balanced is not None,
        schedule=schedule,
        decisions=tuple(decisions),
        grouping="none" if kernel.grouping is None else kernel.grouping.data.value,
        groups=1 if kernel.groups is None else kernel.groups.value.data,
        split_k=kernel.parts,
        tail_n=0 if kernel.tail is None else number(kernel.tail),
        tail_after=0 if kernel.after is None else number(kernel.after),
        waits=any(isinstance(op, hopper.WaitForGridOp) for op in kernel.body.block.ops),
    )


def _tensor(tensor: hopper.TensorAttr) -> TensorSpec:
    shape = tuple(None if d < 0 else d for d in tensor.type.get_shape())
    order = OrderName(tensor.order.data)
    dimensions = tuple(range(len(shape)))
    return TensorSpec(
        name=tensor.label.data,
        dtype=str(tensor.type.element_type),
        shape=shape,
        order=(*dimensions[:-2], *dimensions[:-3:-1]) if order is OrderName.COLUMN_MAJOR else dimensions,
        free_strides=order is OrderName.STRIDED,
    )


def _params(kernel: hopper.KernelOp) -> tuple[Param, ...]:
    return tuple(_param(b, a) for b, a in zip(kernel.binds, kernel.body.block.args, strict=True))


def _param(bind: hopper.BindAttr, parameter: SSAValue) -> Param:
    tensor = bind.tensor.data
    match BindName(bind.kind.data):
        case BindName.MAP | BindName.ADDEND as kind:
            box = parameter.type
            assert isinstance(box, hopper.TensorMapType)
            rows, columns = box.dims
            return TensorMapParam(tensor, (columns, rows), box.swizzle_mode.span, addend=kind is BindName.ADDEND)
        case BindName.POINTER:
            return PointerParam(tensor)
        case BindName.STRIDE:
            return StrideParam(tensor, bind.dimension.data)
        case BindName.ROWS:
            return RowsParam()
        case BindName.OVERLAPS:
            return OverlapsParam()
