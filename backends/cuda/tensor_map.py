"""
Tensor maps: how the TMA engine is told where a tensor lies.

`tensor_map_fields` is arithmetic on shapes and strides; `encode` has the driver pack it into 128 bytes. What lies
outside a tensor reads as zero and is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gemmir.backends.cuda.driver import bindings, checked
from gemmir.dtypes import DTYPES
from gemmir.layouts import Swizzle
from gemmir.manifest import TensorMapParam, TensorSpec
from gemmir.target import SM_90A


@dataclass(frozen=True, slots=True)
class TensorMapFields:
    """
    A 2-D tensor map: `columns` elements along the fastest dimension, `rows` along the other, `pitch` bytes apart.

    `dtype` and `swizzle` are the suffixes of the driver's names; `box` is (columns, rows) in elements.
    """

    address: int
    dtype: str
    columns: int
    rows: int
    pitch: int
    box: tuple[int, int]
    swizzle: str


def row_pitch(spec: TensorSpec, shape: Sequence[int], strides: Sequence[int]) -> int:
    """
    Bytes from one row (index of the slowest dimension) to the next of a tensor of rank 1 or 2.

    Where there is only one row its stride means nothing: any legal pitch will do.
    """
    size = DTYPES[spec.dtype].bytes
    fast = spec.order[-1]
    if len(spec.order) == 2 and shape[slow := spec.order[0]] > 1:
        return strides[slow] * size
    return -(-shape[fast] * size // SM_90A.tma_alignment) * SM_90A.tma_alignment


def tensor_map_fields(
    address: int, spec: TensorSpec, param: TensorMapParam, shape: Sequence[int], strides: Sequence[int]
) -> TensorMapFields:
    """The map `param` over the tensor `spec` that lies at `address`; `shape` and `strides` in elements."""
    return TensorMapFields(
        address=address,
        dtype=DTYPES[spec.dtype].tma,
        columns=shape[spec.order[-1]],
        rows=shape[spec.order[0]] if len(spec.order) == 2 else 1,
        pitch=row_pitch(spec, shape, strides),
        box=param.box,
        swizzle=Swizzle(param.swizzle).tma,
    )


def encode(fields: TensorMapFields) -> Any:
    """The packed tensor map, an object whose `getPtr()` is its address; needs a current context."""
    cuda = bindings()
    map_of = cuda.cuTensorMapEncodeTiled(
        getattr(cuda.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{fields.dtype}"),
        2,
        fields.address,
        [cuda.cuuint64_t(fields.columns), cuda.cuuint64_t(fields.rows)],
        [cuda.cuuint64_t(fields.pitch)],
        [cuda.cuuint32_t(extent) for extent in fields.box],
        [cuda.cuuint32_t(1), cuda.cuuint32_t(1)],
        cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(cuda.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{fields.swizzle}"),
        cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    return checked(map_of, "cuTensorMapEncodeTiled")
