"""The types of IR values, for code that wants tensors of gemmir's element types and nothing else."""

from __future__ import annotations

from xdsl.dialects.builtin import TensorType
from xdsl.ir import SSAValue
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects.gemm import dtype_of
from gemmir.dtypes import DType
from gemmir.errors import UnsupportedError


def tensor_type(value: SSAValue) -> TensorType:
    """The type of a tensor value; `UnsupportedError` GMR-U001 for any other."""
    if not isinstance(value.type, TensorType):
        raise UnsupportedError("GMR-U001", f"a value of type {value.type}", rule="arguments and results are tensors")
    return value.type


def element_dtype(value: SSAValue) -> DType:
    """The element type of a tensor value; `UnsupportedError` GMR-U001 if gemmir has none such."""
    try:
        return dtype_of(tensor_type(value).get_element_type())
    except VerifyException as error:
        raise UnsupportedError("GMR-U001", str(error)) from error
