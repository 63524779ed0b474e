"""A GEMM as plain data: what a schedule is chosen for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gemmir.dtypes import DType
from gemmir.numerics import NumericsSpec


class Recipe(Enum):
    """
    How an operand is scaled, named after torch's `ScalingType`. A scale is the multiplier that decodes.

    The value is the IR spelling. Shapes for A (M x K) and B (K x N):

    - tensor_wise: `tensor<f32>`
    - row_wise: A `M x 1`, B `1 x N`
    - block_wise_1x128: A `M x ceil(K/128)`, B `ceil(K/128) x N`
    - block_wise_128x128: B `ceil(K/128) x ceil(N/128)` (A: `ceil(M/128) x ceil(K/128)`)
    """

    NONE = "none"
    TENSOR_WISE = "tensor"
    ROW_WISE = "row"
    BLOCK_WISE_1X128 = "1x128"
    BLOCK_WISE_128X128 = "128x128"

    @property
    def torch_name(self) -> str:
        """As in `gemmir.Program.matmul(recipe=...)` and, in CamelCase, in torch."""
        return {"none": "none", "tensor": "tensor_wise", "row": "row_wise"}.get(self.value, f"block_wise_{self.value}")


RECIPES: dict[str, Recipe] = {r.torch_name: r for r in Recipe}
SCALE_BLOCK = 128
"""Elements of K (and, for weights, of N) that one block-wise scale covers."""


@dataclass(frozen=True, slots=True)
class GemmProblem:
    """
    D[m, n] = epilogue(sum over k of A[m, k] * B[k, n], scaled) (+ C).

    `m` is None where it is known only at run time; `expected_m` is then what a schedule is chosen for. `a_major` is
    "k" or "m", `b_major` "k" or "n": the dimension whose elements are neighbours in memory.
    """

    m: int | None
    n: int
    k: int
    a: DType
    b: DType
    d: DType
    scale_a: Recipe
    scale_b: Recipe
    numerics: NumericsSpec
    a_major: str = "k"
    b_major: str = "k"
    has_c: bool = False
    has_epilogue: bool = False
    expected_m: int = 4096

    @property
    def rows(self) -> int:
        """M, or what is expected of it."""
        return self.expected_m if self.m is None else self.m

    @property
    def block_k(self) -> int:
        """Elements of K in one pipeline stage: 128 bytes, one swizzle row."""
        return 128 // self.a.bytes

    @property
    def k_blocks(self) -> int:
        """Blocks of K, the last one possibly partial. K = 0 has one block, wholly outside the operands."""
        return max(1, -(-self.k // self.block_k))

    @property
    def promoted(self) -> bool:
        return self.numerics.promote_every is not None

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.n * self.k

    def __str__(self) -> str:
        m = "?" if self.m is None else str(self.m)
        scaling = "" if self.scale_a is Recipe.NONE else f", scales {self.scale_a.value} x {self.scale_b.value}"
        return f"{m}x{self.n}x{self.k} {self.a} x {self.b} -> {self.d}{scaling}"
