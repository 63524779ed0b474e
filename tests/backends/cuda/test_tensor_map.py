"""Tensor maps as numbers: what the TMA engine is told about a tensor."""

from typing import Any

import pytest

from gemmir.backends.cuda import tensor_map
from gemmir.backends.cuda.tensor_map import TensorMapFields, encode, row_pitch, tensor_map_fields
from gemmir.errors import DeviceError
from gemmir.manifest import TensorMapParam, TensorSpec

ROWS = TensorSpec("x", "bf16", (None, 7168), (0, 1))
COLUMNS = TensorSpec("w", "f8E4M3FN", (2048, 4096), (1, 0))
SCALES = TensorSpec("xs", "f32", (None, 16), (1, 0))


def test_a_row_major_operand():
    fields = tensor_map_fields(4096, ROWS, TensorMapParam(0, (64, 128), 128), (100, 7168), (7200, 1))
    assert fields == TensorMapFields(4096, "BFLOAT16", 7168, 100, 14400, (64, 128), "128B")


def test_a_transposed_operand():
    fields = tensor_map_fields(4096, COLUMNS, TensorMapParam(1, (128, 256), 128), (2048, 4096), (1, 2048))
    assert fields == TensorMapFields(4096, "UINT8", 2048, 4096, 2048, (128, 256), "128B")


def test_scales_are_not_swizzled():
    fields = tensor_map_fields(256, SCALES, TensorMapParam(2, (128, 1), 16), (100, 16), (1, 100))
    assert fields == TensorMapFields(256, "FLOAT32", 100, 16, 400, (128, 1), "NONE")


@pytest.mark.parametrize(("span", "name"), [(16, "NONE"), (32, "32B"), (64, "64B"), (128, "128B")])
def test_swizzles(span: int, name: str):
    assert tensor_map_fields(0, ROWS, TensorMapParam(-1, (8, 64), span), (1, 7168), (7168, 1)).swizzle == name


@pytest.mark.parametrize(
    ("spec", "shape", "strides", "pitch"),
    [
        (ROWS, (1, 7168), (1, 1), 14336),  # one row: its stride is whatever torch says
        (ROWS, (1, 9), (0, 1), 32),
        (ROWS, (2, 9), (16, 1), 32),
        (SCALES, (100, 1), (1, 1), 400),
        (SCALES, (5, 1), (1, 999), 32),
        (SCALES, (1, 16), (1, 4), 16),
        (TensorSpec("bias", "bf16", (100,), (0,)), (100,), (1,), 208),
    ],
)
def test_the_pitch_of_a_single_row_is_any_legal_one(
    spec: TensorSpec, shape: tuple[int, ...], strides: tuple[int, ...], pitch: int
):
    assert row_pitch(spec, shape, strides) == pitch


def test_a_vector_is_one_row():
    spec = TensorSpec("bias", "f16", (100,), (0,))
    fields = tensor_map_fields(16, spec, TensorMapParam(4, (64, 1), 16), (100,), (1,))
    assert (fields.columns, fields.rows, fields.pitch, fields.dtype) == (100, 1, 208, "FLOAT16")


def test_what_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch):
    """Each argument of cuTensorMapEncodeTiled, with the constants of the real bindings."""
    from cuda.bindings import driver as real

    asked: list[Any] = []

    class Bindings:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def cuTensorMapEncodeTiled(self, *arguments: object) -> tuple[object, ...]:
            asked.extend(arguments)
            return (real.CUresult.CUDA_SUCCESS, "the map")

    monkeypatch.setattr(tensor_map, "bindings", Bindings)
    assert encode(TensorMapFields(4096, "BFLOAT16", 7168, 100, 14400, (64, 128), "128B")) == "the map"
    dtype, rank, address, dims, strides, box, steps, interleave, swizzle, promotion, fill = asked
    assert dtype == real.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
    assert (rank, address) == (2, 4096)
    assert [[int(v) for v in values] for values in (dims, strides, box, steps)] == [
        [7168, 100],
        [14400],
        [64, 128],
        [1, 1],
    ]
    assert interleave == real.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE
    assert swizzle == real.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B
    assert promotion == real.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B
    assert fill == real.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE


def test_a_refused_map_is_an_error(monkeypatch: pytest.MonkeyPatch):
    from cuda.bindings import driver as real

    class Bindings:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def cuTensorMapEncodeTiled(self, *arguments: object) -> tuple[object, ...]:
            return (real.CUresult.CUDA_ERROR_INVALID_VALUE, None)

    monkeypatch.setattr(tensor_map, "bindings", Bindings)
    with pytest.raises(DeviceError, match=r"GMR-D003: cuTensorMapEncodeTiled failed: CUDA_ERROR_INVALID_VALUE \(1\)"):
        encode(TensorMapFields(4096, "UINT8", 8, 8, 8, (16, 1), "NONE"))
