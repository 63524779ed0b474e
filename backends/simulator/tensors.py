"""Global memory: the tensors that a kernel is bound to, boxes of them, and the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import BlockArgument, SSAValue

from gemmir.backends.simulator.barriers import fault
from gemmir.dialects import hopper
from gemmir.dialects.hopper.types import BindName, OrderName
from gemmir.dtypes import DTYPES
from gemmir.errors import InputError
from gemmir.problem import Grouping
from gemmir.segments import Segment, k_segments, segments
from gemmir.tensor_core import raw_bits

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]


@dataclass(slots=True)
class Matrix:
    """
    A tensor as the TMA engine sees it: rows of neighbouring elements, raw bits; of rank 3 with a matrix for each group.

    `written` is there for the result only: which elements have been stored. `result` is there for operand C only, where
    the result may lie.
    """

    name: str
    bits: Array
    written: NDArray[np.bool_] | None = None
    result: Matrix | None = None

    def of_group(self, group: int) -> Matrix:
        """One group's matrix, in the same memory."""
        if not 0 <= group < self.bits.shape[0]:
            raise fault(f"{self.name}: group {group} of {self.bits.shape[0]}", "skip groups that are not there")
        written = None if self.written is None else self.written[group]
        result = None if self.result is None else self.result.of_group(group)
        return Matrix(f"{self.name}[{group}]", self.bits[group], written, result)

    def check_unstored(self, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        """Nothing of the result has been stored from the first row and column up to the last: it may lie there."""
        if self.result is None or self.result.written is None:
            return
        if self.result.written[max(rows[0], 0) : max(rows[1], 0), columns[0] : columns[1]].any():
            raise fault(
                f"{self.name} is read from [{rows[0]}, {columns[0]}] on after {self.result.name} was stored there",
                "the result may lie where C does: C is read before that part of the result leaves",
            )

    def load(self, row: int, column: int, rows: int, columns: int) -> Array:
        """A box; zero outside the tensor."""
        box = np.zeros((rows, columns), self.bits.dtype)
        height, width = self.bits.shape
        place = (slice(max(row, 0), min(row + rows, height)), slice(max(column, 0), min(column + columns, width)))
        inside = self.bits[place]
        if inside.size:
            top, left = max(-row, 0), max(-column, 0)
            box[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return box

    def store(self, row: int, column: int, box: Array, sound: NDArray[np.bool_]) -> None:
        """Store what of a box lies inside. `sound` (rows, columns): elements that are not garbage."""
        assert self.written is not None
        height, width = self.bits.shape
        rows, columns = min(box.shape[0], height - row), min(box.shape[1], width - column)
        if rows <= 0 or columns <= 0:
            return
        place = (slice(row, row + rows), slice(column, column + columns))
        if not sound[:rows, :columns].all():
            first_row, first_column = np.argwhere(~sound[:rows, :columns])[0]
            raise fault(
                f"a TMA store sends garbage to {self.name}[{row + first_row}, {column + first_column}]",
                "what it reads has been written, fenced (fence_proxy_async) and signalled, and is left alone until "
                "store_wait_read",
            )
        if self.written[place].any():
            first_row, first_column = np.argwhere(self.written[place])[0]
            raise fault(f"{self.name}[{row + first_row}, {column + first_column}] is stored twice")
        self.bits[place] = box[:rows, :columns]
        self.written[place] = True


@dataclass(slots=True)
class Pointer:
    """The address of a tensor: its elements in memory order, row by row."""

    name: str
    elements: NDArray[np.float32]
    first: int = 0

    def after(self, elements: int) -> Pointer:
        """The address so many elements further on."""
        return Pointer(self.name, self.elements, self.first + elements)

    def load(self, index: int) -> np.float32:
        index += self.first
        if not 0 <= index < self.elements.size:
            raise fault(f"{self.name}: element {index} of {self.elements.size} is read", "loads stay inside tensors")
        return self.elements[index]


@dataclass(slots=True)
class Bound:
    """A kernel's parameters: `values` by block argument; the rows to be computed, and the result that it fills."""

    segments: list[Segment]
    output: Matrix
    values: dict[SSAValue, object] = field(default_factory=dict[SSAValue, object])
    addend: Matrix | None = None


def bind(kernel: hopper.KernelOp, tensors: Sequence[torch.Tensor | Array], m: int) -> Bound:
    """Bind the parameters; `InputError` if the tensors do not fit what the kernel takes."""
    if len(tensors) != len(kernel.inputs):
        raise InputError("GMR-I005", f"{len(tensors)} tensors", rule=f"the kernel takes {len(kernel.inputs)}")
    arrays = [_checked(spec, tensor, m) for spec, tensor in zip(kernel.inputs, tensors, strict=True)]
    size = DTYPES[str(kernel.output.type.element_type)].bytes
    shape = tuple(m if d < 0 else d for d in kernel.output.type.get_shape())
    output = Matrix(kernel.output.label.data, np.zeros(shape, f"u{size}"), np.zeros(shape, np.bool_))
    bound = Bound(_segments(kernel, arrays, m), output)
    for argument, bind in zip(kernel.body.block.args, kernel.binds, strict=True):
        made = bound.values[argument] = _parameter(kernel, bind, arrays, output, m)
        if isinstance(made, Matrix) and made.result is not None:
            bound.addend = made
    return bound


def _segments(kernel: hopper.KernelOp, arrays: list[Array], m: int) -> list[Segment]:
    """What the device finds in the index operand."""
    if kernel.grouping is None or kernel.groups is None:
        return [Segment(0, m, 0)]
    counting = next((op for op in kernel.body.block.ops if isinstance(op, hopper.CountTilesOp)), None)
    index: list[int] = []
    if counting is not None and isinstance(counting.index, BlockArgument):
        tensor = kernel.binds.data[counting.index.index].tensor.data
        index = arrays[tensor].reshape(-1).view(np.int32).tolist()
    grouping, groups = kernel.grouping.meaning, kernel.groups.value.data
    if grouping is not Grouping.K_OFFS:
        return list(segments(grouping, index, groups, m))
    ring = next(op.result.type for op in kernel.body.block.ops if isinstance(op, hopper.RingOp))
    return list(k_segments(index, m, kernel.depth.value.data, ring.dims[2]))


def _parameter(kernel: hopper.KernelOp, bind: hopper.BindAttr, arrays: list[Array], output: Matrix, m: int) -> object:
    number, kind = bind.tensor.data, BindName(bind.kind.data)
    if kind is BindName.ROWS:
        return m
    if kind is BindName.OVERLAPS:
        return 0
    if number < 0:
        return _of_output(bind, output)
    spec, array = kernel.inputs.data[number], arrays[number]
    match kind:
        case BindName.POINTER:
            return Pointer(spec.label.data, np.ascontiguousarray(array).reshape(-1).view(np.float32))
        case BindName.ADDEND:
            return Matrix(spec.label.data, array, result=output)
        case BindName.STRIDE:
            return int(np.prod(array.shape[bind.dimension.data + 1 :]))
        case _:
            lies = array.swapaxes(-1, -2) if spec.order.data == OrderName.COLUMN_MAJOR else array
            return Matrix(spec.label.data, lies.reshape(1, -1) if lies.ndim == 1 else lies)


def _of_output(bind: hopper.BindAttr, output: Matrix) -> object:
    if BindName(bind.kind.data) is BindName.STRIDE:
        return int(np.prod(output.bits.shape[bind.dimension.data + 1 :]))
    # What stores by address also has the map: the simulator stores through that.
    return output if BindName(bind.kind.data) is BindName.MAP else Pointer(output.name, np.zeros(0, np.float32))


def _checked(spec: hopper.TensorAttr, tensor: torch.Tensor | Array, m: int) -> Array:
    bits = raw_bits(tensor)
    shape = tuple(m if d < 0 else d for d in spec.type.get_shape())
    dtype = DTYPES[str(spec.type.element_type)]
    if bits.shape != shape:
        raise InputError("GMR-I002", f"{spec.label.data}: shape is {bits.shape}", rule=f"it must be {shape}")
    given = str(tensor.dtype).removeprefix("torch.")
    if bits.itemsize != dtype.bytes or given not in (dtype.torch_name, f"uint{dtype.bits}"):
        raise InputError(
            "GMR-I001", f"{spec.label.data}: dtype is {given}", rule=f"{dtype.torch_name}, or its raw bits"
        )
    return bits
