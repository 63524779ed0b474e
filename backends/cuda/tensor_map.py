"""
Tensor maps: how the TMA engine is told where a tensor lies.

`tensor_map_fields` is arithmetic on shapes and strides; `encode` has the driver pack it into 128 bytes. What lies
outside a tensor reads as zero and is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemmir.backends.cuda.driver import bindings, checked
from gemmir.dtypes import DTYPES
from gemmir.layouts import Swizzle
from gemmir.manifest import TensorMapParam, TensorSpec
from gemmir.records import dataclass
from gemmir.target import SM_90A

MAP_BYTES = 128
MAP_ALIGNMENT = 64
"""Of a packed tensor map, as the driver wants it."""


@dataclass(frozen=True, slots=True)
class TensorMapFields:
    """
    A tensor map: `columns` elements along the fastest dimension, `rows` along the next, `pitch` bytes apart.

    With a third dimension there are `groups` such matrices, `group_pitch` bytes apart; a box is of one of them. `dtype`
    and `swizzle` are the suffixes of the driver's names; `box` is (columns, rows) in elements.
    """

    address: int
    dtype: str
    columns: int
    rows: int
    pitch: int
    box: tuple[int, int]
    swizzle: str
    groups: int | None = None
    group_pitch: int = 0


def row_pitch(spec: TensorSpec, shape: Sequence[int], strides: Sequence[int]) -> int:
    """
    Bytes from one row (index of the second fastest dimension) to the next of a tensor of rank 1 to 3.

    Where there is only one row its stride means nothing: any legal pitch will do.
    """
    size = DTYPES[spec.dtype].bytes
    fast = spec.order[-1]
    if len(spec.order) >= 2 and shape[slow := spec.order[-2]] > 1:
        return strides[slow] * size
    return -(-shape[fast] * size // SM_90A.tma_alignment) * SM_90A.tma_alignment


def group_pitch(spec: TensorSpec, shape: Sequence[int], strides: Sequence[int]) -> int:
    """Bytes from one group's matrix to the next of a tensor of rank 3; any legal pitch where there is only one."""
    slow = spec.order[0]
    if shape[slow] > 1:
        return strides[slow] * DTYPES[spec.dtype].bytes
    return row_pitch(spec, shape, strides) * max(1, shape[spec.order[1]])


def tensor_map_fields(
    address: int, spec: TensorSpec, param: TensorMapParam, shape: Sequence[int], strides: Sequence[int]
) -> TensorMapFields:
    """The map `param` over the tensor `spec` that lies at `address`; `shape` and `strides` in elements."""
    rank = len(spec.order)
    return TensorMapFields(
        address=address,
        dtype=DTYPES[spec.dtype].tma,
        columns=shape[spec.order[-1]],
        rows=shape[spec.order[-2]] if rank >= 2 else 1,
        pitch=row_pitch(spec, shape, strides),
        box=param.box,
        swizzle=Swizzle(param.swizzle).tma,
        groups=shape[spec.order[0]] if rank == 3 else None,
        group_pitch=group_pitch(spec, shape, strides) if rank == 3 else 0,
    )


def encode(fields: TensorMapFields) -> Any:
    """The packed tensor map, an object whose `getPtr()` is its address; needs a current context."""
    cuda = bindings()
    extents, pitches, box = [fields.columns, fields.rows], [fields.pitch], [*fields.box]
    if fields.groups is not None:
        extents, pitches, box = [*extents, fields.groups], [*pitches, fields.group_pitch], [*box, 1]
    map_of = cuda.cuTensorMapEncodeTiled(
        getattr(cuda.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{fields.dtype}"),
        len(extents),
        fields.address,
        [cuda.cuuint64_t(extent) for extent in extents],
        [cuda.cuuint64_t(pitch) for pitch in pitches],
        [cuda.cuuint32_t(extent) for extent in box],
        [cuda.cuuint32_t(1)] * len(extents),
        cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(cuda.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{fields.swizzle}"),
        cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    return checked(map_of, "cuTensorMapEncodeTiled")


def replace_address(packed: int, address: int) -> None:
    """Have the packed tensor map at address `packed` describe the same tensor at `address`."""
    cuda = bindings()
    checked(cuda.cuTensorMapReplaceAddress(cuda.CUtensorMap(_ptr=packed), address), "cuTensorMapReplaceAddress")
