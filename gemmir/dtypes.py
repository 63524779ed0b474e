"""One table of element types: the names that MLIR, torch, PTX, CUDA C++ and the TMA engine give them."""

from __future__ import annotations

from gemmir.records import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """
    An element type.

    `name` is MLIR's, `torch_name` the attribute of the torch module, `ptx` the type in a wgmma instruction, `cuda`
    the type of a pointer in emitted code, `tma` the suffix of `CU_TENSOR_MAP_DATA_TYPE_`. FP8 moves through TMA as
    bytes: the copy engine has no 8-bit float.
    """

    name: str
    bits: int
    torch_name: str
    ptx: str
    cuda: str
    tma: str

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_fp8(self) -> bool:
        return self.bits == 8

    def __str__(self) -> str:
        return self.name


F8E4M3FN = DType("f8E4M3FN", 8, "float8_e4m3fn", "e4m3", "u8", "UINT8")
F8E5M2 = DType("f8E5M2", 8, "float8_e5m2", "e5m2", "u8", "UINT8")
BF16 = DType("bf16", 16, "bfloat16", "bf16", "u16", "BFLOAT16")
F16 = DType("f16", 16, "float16", "f16", "u16", "FLOAT16")
F32 = DType("f32", 32, "float32", "f32", "float", "FLOAT32")
I32 = DType("i32", 32, "int32", "s32", "int", "INT32")
"""Of what says which rows belong to which group; never a value that is multiplied."""

DTYPES: dict[str, DType] = {t.name: t for t in (F8E4M3FN, F8E5M2, BF16, F16, F32, I32)}
"""By MLIR name."""

BY_TORCH_NAME: dict[str, DType] = {t.torch_name: t for t in DTYPES.values()}
"""By torch name, e.g. `float8_e4m3fn` (without `torch.`)."""
