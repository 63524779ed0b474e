"""A GEMM as plain data: what a schedule is chosen for."""

from __future__ import annotations

from enum import Enum
from itertools import pairwise

from gemmir.dtypes import DType
from gemmir.numerics import NumericsSpec
from gemmir.records import dataclass


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


class Grouping(Enum):
    """
    How a product of several groups lays them out. The value is the IR spelling.

    With G groups, and an index operand of int32 on the device that a kernel is not made for:

    - none: one product, D (M x N) = A (M x K) @ B (K x N).
    - offs: rows of A and D belong to groups one after another; A is M x K, B G x K x N, D M x N. `offs` (G) holds where
      each group ends. Groups need no alignment, and may be empty.
    - group_ids: as before, but `group_ids` (M) holds the group of each row, -1 for padding. The rows of a group start
      at a multiple of 128, and padding follows them.
    - counts: A is G x M x K, D G x M x N; `counts` (G) holds how many rows of each group count; others are not written.
    - batch: A is G x M x K, B G x K x N, D G x M x N; no index operand.
    - k_offs: columns of A and rows of B belong to groups; A is M x K, B K x N, D G x M x N. `offs` (G) holds where each
      group ends along K, at multiples of 128 bytes.

    What an invalid entry stands for is not written: see `gemmir.groups`.
    """

    NONE = "none"
    OFFS = "offs"
    GROUP_IDS = "group_ids"
    COUNTS = "counts"
    BATCH = "batch"
    K_OFFS = "k_offs"

    @property
    def contiguous(self) -> bool:
        """Whether the rows of all groups lie in one matrix."""
        return self in (Grouping.OFFS, Grouping.GROUP_IDS)

    @property
    def stacked(self) -> bool:
        """Whether the result has a matrix for each group."""
        return self in (Grouping.COUNTS, Grouping.BATCH, Grouping.K_OFFS)


GROUP_ALIGNMENT = 128
"""Rows at whose multiples a group starts where rows carry their group's number."""

RECIPES: dict[str, Recipe] = {r.torch_name: r for r in Recipe}
SCALING_TYPES: dict[str, Recipe] = {
    "".join(word.capitalize() for word in r.torch_name.split("_")): r for r in Recipe if r is not Recipe.NONE
}
"""By the names of the members of torch's `ScalingType`."""

SCALE_BLOCK = 128
"""Elements of K (and, for weights, of N) that one block-wise scale covers."""


def blocks(dim: int | None) -> int | None:
    """Number of scale blocks along a dimension; None where it is known only at run time."""
    return None if dim is None else -(-dim // SCALE_BLOCK)


@dataclass(frozen=True, slots=True)
class GemmProblem:
    """
    D[m, n] = epilogue(sum over k of A[m, k] * B[k, n], scaled) (+ C).

    `m` is None where it is known only at run time; `expected_m` is then what a schedule is chosen for. `a_major` is
    "k" or "m", `b_major` "k" or "n": the dimension whose elements are neighbours in memory.

    With a `grouping`, `m` counts all rows where the groups' rows are contiguous, else those of one group, and `k` is
    all of K with `k_offs`. `expected_m` is, with `counts`, how many rows of a group are expected to count.
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
    grouping: Grouping = Grouping.NONE
    groups: int = 1

    @property
    def rows(self) -> int:
        """M, or what is expected of it."""
        return self.expected_m if self.m is None else self.m

    @property
    def group_rows(self) -> int:
        """Rows of one group that a schedule is chosen for: the average, or what is expected of it."""
        if self.grouping.contiguous:
            return max(1, -(-self.rows // self.groups))
        return min(self.rows, self.expected_m) if self.grouping is Grouping.COUNTS else self.rows

    @property
    def all_rows(self) -> int:
        """Rows of the results of all groups."""
        if self.grouping.contiguous:
            return self.rows
        return self.groups * self.group_rows

    @property
    def weights(self) -> int:
        """Matrices B that there are."""
        return 1 if self.grouping is Grouping.K_OFFS else self.groups

    @property
    def block_k(self) -> int:
        """Elements of K in one pipeline stage: 128 bytes, one swizzle row."""
        return 128 // self.a.bytes

    @property
    def k_blocks(self) -> int:
        """
        Blocks of K, the last one possibly partial; of one group, on average, where K is divided among them.

        K = 0 has one block, wholly outside the operands.
        """
        k = -(-self.k // self.groups) if self.grouping is Grouping.K_OFFS else self.k
        return max(1, -(-k // self.block_k))

    @property
    def part_k_blocks(self) -> int:
        """Blocks of K in each part of K but the last, which may have fewer: all of them where K is not split."""
        return -(-self.k_blocks // self.numerics.split_k)

    @property
    def parts(self) -> tuple[range, ...]:
        """
        Elements of K of each part: all have `part_k_blocks` k-blocks, or what is left of them.

        K = 0 has one part, which is empty.
        """
        step = self.part_k_blocks * self.block_k
        ends = [min(p * step, self.k) for p in range(self.numerics.split_k + 1)]
        return tuple(range(*pair) for pair in pairwise(ends))

    def fills(self, part: range) -> bool:
        """Whether a part of K has all its k-blocks, the last one possibly partial. Those that it lacks are zeros."""
        return -(-len(part) // self.block_k) == self.part_k_blocks or self.k == 0

    @property
    def promoted(self) -> bool:
        return self.numerics.promote_every is not None

    @property
    def column_scales(self) -> bool:
        """Whether each column of B has a scale of its own in each block of K."""
        return self.scale_b is Recipe.BLOCK_WISE_1X128

    @property
    def flops(self) -> int:
        rows = self.rows if self.grouping is Grouping.K_OFFS else self.all_rows
        return 2 * rows * self.n * self.k

    def __str__(self) -> str:
        m = "?" if self.m is None else str(self.m)
        scaling = "" if self.scale_a is Recipe.NONE else f", scales {self.scale_a.value} x {self.scale_b.value}"
        groups = {
            Grouping.NONE: "",
            Grouping.BATCH: f", a batch of {self.groups}",
        }.get(self.grouping, f", {self.groups} groups by {self.grouping.value}")
        return f"{m}x{self.n}x{self.k} {self.a} x {self.b} -> {self.d}{scaling}{groups}"
