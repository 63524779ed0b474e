"""What element types and tensors of the IR are as plain data, and what the verifier of a product raises."""

from __future__ import annotations

from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    AnyFloat,
    BFloat16Type,
    Float8E4M3FNType,
    Float8E5M2Type,
    Float16Type,
    Float32Type,
    NoneAttr,
    TensorType,
    i32,
)
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.utils.exceptions import VerifyException

from gemmir.dtypes import BF16, F8E4M3FN, F8E5M2, F16, F32, I32, DType
from gemmir.legality import Violation
from gemmir.matmul_rules import Fault, TensorInfo

FLOATS: dict[type[Attribute], DType] = {
    Float8E4M3FNType: F8E4M3FN,
    Float8E5M2Type: F8E5M2,
    BFloat16Type: BF16,
    Float16Type: F16,
    Float32Type: F32,
}
_TYPES: dict[DType, AnyFloat] = {
    F8E4M3FN: Float8E4M3FNType(),
    F8E5M2: Float8E5M2Type(),
    BF16: BFloat16Type(),
    F16: Float16Type(),
    F32: Float32Type(),
}


class GemmFault(VerifyException):
    """A product that breaks a rule of `gemmir.matmul_rules`."""

    def __init__(self, fault: Fault):
        self.fault = fault
        super().__init__(f"{fault.what}\n  rule: {fault.rule}\n  fix: {fault.fix}")


class ScheduleFault(VerifyException):
    """A schedule that breaks a rule of `gemmir.legality`; `violation` has the arithmetic."""

    def __init__(self, found: Violation):
        self.violation = found
        super().__init__(f"{found.code}: {found.what}\n  rule: {found.rule}\n  fix: {found.fix}")


class EpilogueFault(VerifyException):
    """An operation `op` that an epilogue cannot hold."""

    def __init__(self, op: Operation, what: str):
        self.op = op
        super().__init__(f"{op.name} in an epilogue {what}")


def element_type(dtype: DType) -> AnyFloat:
    """The IR type of a float `dtype`."""
    return _TYPES[dtype]


def tensor_element(dtype: DType) -> Attribute:
    """The IR type of an element of a tensor of `dtype`: a float, or i32."""
    return i32 if dtype == I32 else _TYPES[dtype]


def dtype_of(type: Attribute) -> DType:
    """The element type behind an IR type; `VerifyException` if gemmir has none such."""
    if type == i32:
        return I32
    if (found := FLOATS.get(type.__class__)) is None:
        raise VerifyException(f"element type {type} is not one of {', '.join(t.name for t in (*_TYPES, I32))}")
    return found


def tensor_info(name: str, value: SSAValue) -> TensorInfo:
    """Shape (None where `?` stands) and element type of a tensor value, under the name that messages use."""
    tensor = value.type
    if not isinstance(tensor, TensorType):
        raise VerifyException(f"{name} is {tensor}, not a ranked tensor")
    if tensor.encoding != NoneAttr():
        raise VerifyException(f"{name}: tensor encodings have no meaning here; use the layout clause")
    shape = tuple(None if d == DYNAMIC_INDEX else d for d in tensor.get_shape())
    return TensorInfo(name, shape, dtype_of(tensor.get_element_type()))
