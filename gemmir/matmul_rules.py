"""
The rules that a scaled matrix product must obey, on plain data: shared by the IR verifier and by the builder.

One product, or those of several groups: `DIMS` says which dimensions each operand has.

`find_fault` returns the first rule that a `MatmulInfo` breaks, with the operand, its value and the cheapest fix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gemmir.dtypes import BF16, F8E4M3FN, F8E5M2, F16, F32, I32, DType
from gemmir.numerics import NumericsSpec
from gemmir.problem import SCALE_BLOCK, GemmProblem, Grouping, Recipe, blocks

Dim = int | None
"""A dimension, None where it is known only at run time."""

OPERAND_DTYPES = (F8E4M3FN, F8E5M2, BF16, F16)
RESULT_DTYPES = (BF16, F16, F32)
RECIPE_PAIRS: tuple[tuple[Recipe, Recipe], ...] = (
    (Recipe.TENSOR_WISE, Recipe.TENSOR_WISE),
    (Recipe.ROW_WISE, Recipe.ROW_WISE),
    (Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_128X128),
    (Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_1X128),
)
"""How A and B may be scaled together."""

EPILOGUE_KINDS = ("column", "row", "element", "scalar")
MAX_PARTS = 64
"""Parts of K: far more than pay."""

MAX_DIM = 2**31 - 1
"""Coordinates of the TMA engine are 32-bit signed integers."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of A, B, the result and the index operand, as messages write them."""

    a: str
    b: str
    d: str
    index: str = ""


DIMS: dict[Grouping, Dims] = {
    Grouping.NONE: Dims("M x K", "K x N", "M x N"),
    Grouping.OFFS: Dims("M x K", "G x K x N", "M x N", "G"),
    Grouping.GROUP_IDS: Dims("M x K", "G x K x N", "M x N", "M"),
    Grouping.COUNTS: Dims("G x M x K", "G x K x N", "G x M x N", "G"),
    Grouping.BATCH: Dims("G x M x K", "G x K x N", "G x M x N"),
    Grouping.K_OFFS: Dims("M x K", "K x N", "G x M x N", "G"),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as an error message names it."""

    name: str
    shape: tuple[Dim, ...]
    dtype: DType

    def __str__(self) -> str:
        return f"{self.name}: {shape_text(self.shape)} of {self.dtype}"


@dataclass(frozen=True, slots=True)
class MatmulInfo:
    """One scaled product, or one for each group, as the IR or the builder states it. `epilogue`: (kind, operand)."""

    a: TensorInfo
    b: TensorInfo
    d: TensorInfo
    numerics: NumericsSpec
    scale_a: TensorInfo | None = None
    scale_b: TensorInfo | None = None
    recipe_a: Recipe = Recipe.NONE
    recipe_b: Recipe = Recipe.NONE
    c: TensorInfo | None = None
    a_major: str = "k"
    b_major: str = "k"
    expected_m: int | None = None
    epilogue: tuple[tuple[str, TensorInfo], ...] = ()
    grouping: Grouping = Grouping.NONE
    index: TensorInfo | None = None

    @property
    def m(self) -> Dim:
        """Rows of A: of one group where A has a matrix for each, else of all."""
        return self.a.shape[-2]

    @property
    def n(self) -> Dim:
        return self.b.shape[-1]

    @property
    def k(self) -> Dim:
        return self.a.shape[-1]

    @property
    def groups(self) -> Dim:
        if self.grouping is Grouping.NONE:
            return 1
        if self.grouping is Grouping.K_OFFS:
            return None if self.index is None else self.index.shape[0]
        return self.b.shape[0]

    @property
    def dims(self) -> Dims:
        return DIMS[self.grouping]

    def shape(self, dims: str) -> tuple[Dim, ...]:
        """The shape that e.g. "G x M x N" stands for; () for ""."""
        sizes = {"G": self.groups, "M": self.m, "N": self.n, "K": self.k}
        return tuple(sizes[dim] for dim in dims.split(" x ")) if dims else ()


@dataclass(frozen=True, slots=True)
class Fault:
    code: str
    what: str
    rule: str
    fix: str


Rule = Callable[[MatmulInfo], Fault | None]


def shape_text(shape: tuple[Dim, ...]) -> str:
    """`?x4096`; `scalar` for rank 0."""
    return "x".join("?" if d is None else str(d) for d in shape) if shape else "scalar"


def names(dtypes: tuple[DType, ...]) -> str:
    return ", ".join(t.name for t in dtypes)


def is_block_wise(recipe: Recipe) -> bool:
    return recipe in (Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_128X128)


def default_numerics(a: DType, recipe_a: Recipe) -> NumericsSpec:
    """Block-wise scales change every 128 elements of K, so sums are promoted there; otherwise never."""
    return numerics_with(a, SCALE_BLOCK if is_block_wise(recipe_a) else None)


def numerics_with(a: DType, promote_every: int | None, split_k: int = 1) -> NumericsSpec:
    """The numerics of operands of type `a` with the given interval of promotion, and K in so many parts."""
    return NumericsSpec(32 if a.is_fp8 else 16, promote_every, split_k)


def scale_shape(recipe: Recipe, rows: Dim, columns: Dim, *, k_axis: int) -> tuple[Dim, ...]:
    """Shape of the scales of a `rows` x `columns` operand whose dimension `k_axis` is K."""
    if recipe is Recipe.TENSOR_WISE:
        return ()
    if recipe is Recipe.BLOCK_WISE_128X128:
        return (blocks(rows), blocks(columns))
    k = 1 if recipe is Recipe.ROW_WISE else blocks((rows, columns)[k_axis])
    return (rows, k) if k_axis == 1 else (k, columns)


def operand_scale_shape(recipe: Recipe, shape: tuple[Dim, ...], *, k_axis: int) -> tuple[Dim, ...]:
    """
    Shape of the scales of an operand of `shape`: where it has a matrix for each group, so have its scales.

    A tensor-wise scale is one for all groups. `k_axis`: 1 for A, 0 for B, counted within a matrix.
    """
    if recipe is Recipe.TENSOR_WISE:
        return ()
    return shape[:-2] + scale_shape(recipe, *shape[-2:], k_axis=k_axis)


def problem_from(info: MatmulInfo, *, has_epilogue: bool) -> GemmProblem:
    """The problem of a faultless product; N and K that are unknown count as 0, G as 1."""
    expected = {} if info.expected_m is None else {"expected_m": info.expected_m}
    return GemmProblem(
        m=info.m,
        n=info.n or 0,
        k=info.k or 0,
        a=info.a.dtype,
        b=info.b.dtype,
        d=info.d.dtype,
        scale_a=info.recipe_a,
        scale_b=info.recipe_b,
        numerics=info.numerics,
        a_major=info.a_major,
        b_major=info.b_major,
        has_c=info.c is not None,
        has_epilogue=has_epilogue,
        grouping=info.grouping,
        groups=1 if info.groups is None else info.groups,
        **expected,
    )


def _operand_types(info: MatmulInfo) -> Fault | None:
    for operand in (info.a, info.b):
        if operand.dtype not in OPERAND_DTYPES:
            return Fault("GMR-I001", str(operand), f"operands are one of {names(OPERAND_DTYPES)}", "cast the operand")
    if info.a.dtype == info.b.dtype or (info.a.dtype.is_fp8 and info.b.dtype.is_fp8):
        return None
    rule = "both operands have one type, or both are FP8"
    return Fault("GMR-I001", f"{info.a}; {info.b}", rule, f"cast {info.b.name} to {info.a.dtype}")


def _operand_shapes(info: MatmulInfo) -> Fault | None:
    for operand, dims in ((info.a, info.dims.a), (info.b, info.dims.b)):
        rank = len(dims.split(" x "))
        if len(operand.shape) != rank:
            what = f"{operand}: rank {len(operand.shape)}"
            kind = "a matrix" if rank == 2 else "a matrix for each group,"
            return Fault("GMR-I002", what, f"the operand is {kind} {dims}", f"reshape it to rank {rank}")
        if any(d is not None and not 0 <= d <= MAX_DIM for d in operand.shape):
            rule = f"dimensions are from 0 to {MAX_DIM}: TMA coordinates are 32-bit"
            return Fault("GMR-I007", str(operand), rule, "split the product")
    if info.a.shape[-1] == info.b.shape[-2]:
        return None
    k_a, k_b = shape_text(info.a.shape[-1:]), shape_text(info.b.shape[-2:-1])
    return Fault(
        "GMR-I002",
        f"K is {k_a} in {info.a} but {k_b} in {info.b}",
        f"A is {info.dims.a} and B is {info.dims.b}",
        "a weight of shape N x K enters as its transpose, w.t()"
        if len(info.b.shape) == 2
        else "a weight of shape G x N x K enters as its transpose, w.transpose(1, 2)",
    )


def _groups(info: MatmulInfo) -> Fault | None:
    if not info.dims.index:
        return None if info.index is None else _stray_index(info.index)
    word = info.grouping.value
    if info.index is None:
        return Fault("GMR-I005", f"groups by {word} without an index operand", f"groups by {word} need it", "pass it")
    if info.index.dtype != I32:
        return Fault("GMR-I001", str(info.index), "what says which rows are whose is i32", f"cast {info.index.name}")
    if len(info.index.shape) != 1:
        return Fault("GMR-I002", str(info.index), f"{word} is {info.dims.index}", "reshape it to rank 1")
    if info.groups is not None and not 1 <= info.groups <= MAX_DIM:
        return Fault("GMR-I007", f"{info.groups} groups", f"1 <= G <= {MAX_DIM}", "skip the product")
    return _expect_shape(info.index, info.shape(info.dims.index), f"{word} is {info.dims.index}")


def _stray_index(index: TensorInfo) -> Fault:
    return Fault("GMR-I005", f"{index} where nothing is grouped by it", "only grouped products take one", "drop it")


def _batches(info: MatmulInfo) -> Fault | None:
    """Where A has a matrix for each group, it has as many as B."""
    if len(info.a.shape) != 3:
        return None
    if info.groups == 0:
        return Fault("GMR-I007", "0 groups", f"1 <= G <= {MAX_DIM}", "skip the product")
    if info.a.shape[0] == info.groups:
        return None
    what = f"G is {shape_text(info.a.shape[:1])} in {info.a} but {shape_text(info.b.shape[:1])} in {info.b}"
    return Fault("GMR-I002", what, f"A is {info.dims.a} and B is {info.dims.b}", "pass one matrix of B for each of A")


def _result(info: MatmulInfo) -> Fault | None:
    if info.d.dtype not in RESULT_DTYPES:
        return Fault("GMR-I001", str(info.d), f"the result is one of {names(RESULT_DTYPES)}", "use bf16")
    return _expect_shape(info.d, info.shape(info.dims.d), f"the result is {info.dims.d}")


def _expect_shape(tensor: TensorInfo, shape: tuple[Dim, ...], rule: str) -> Fault | None:
    if tensor.shape == shape:
        return None
    what = f"{tensor}, expected {shape_text(shape)}"
    return Fault("GMR-I002", what, rule, f"use shape {shape_text(shape)}")


def _majors(info: MatmulInfo) -> Fault | None:
    for operand, major, other in ((info.a, info.a_major, "m"), (info.b, info.b_major, "n")):
        if major not in ("k", other):
            return Fault("GMR-I006", f"{operand.name} is {major[:20]}-major", f"k or {other}", "use k")
        if operand.dtype.is_fp8 and major != "k":
            what = f"{operand} is {major}-major"
            return Fault("GMR-I006", what, "WGMMA reads FP8 operands k-major only", f"store {operand.name} k-major")
    return None


def _recipes(info: MatmulInfo) -> Fault | None:
    pair = (info.recipe_a, info.recipe_b)
    text = f"scales {pair[0].value} x {pair[1].value}"
    if pair == (Recipe.NONE, Recipe.NONE):
        return _no_scales(info)
    if not info.a.dtype.is_fp8:
        return Fault("GMR-I001", f"{text} with {info.a}", "only FP8 operands are scaled", "drop the scales")
    if pair not in RECIPE_PAIRS:
        legal = ", ".join(f"{a.value} x {b.value}" for a, b in RECIPE_PAIRS)
        return Fault("GMR-I009", text, f"A and B are scaled as one of {legal}", "use 1x128 x 128x128")
    return _scale(info.scale_a, "scale_a", info.recipe_a, info.a, 1) or _scale(
        info.scale_b, "scale_b", info.recipe_b, info.b, 0
    )


def _no_scales(info: MatmulInfo) -> Fault | None:
    for scale in (info.scale_a, info.scale_b):
        if scale is not None:
            return Fault("GMR-I009", f"{scale} without a recipe", "a scale has a recipe", "name the recipe")
    return None


def _scale(scale: TensorInfo | None, name: str, recipe: Recipe, operand: TensorInfo, k_axis: int) -> Fault | None:
    if scale is None:
        what = f"recipe {recipe.value} for {operand.name} without {name}"
        return Fault("GMR-I005", what, "A and B are both scaled or neither is", f"pass {name}")
    if scale.dtype != F32:
        return Fault("GMR-I001", str(scale), "scales are f32", f"cast {scale.name} to f32")
    shape = operand_scale_shape(recipe, operand.shape, k_axis=k_axis)
    rule = f"{recipe.torch_name} scales of {operand}: one per {_covers(recipe)}"
    return _expect_shape(scale, shape, rule)


def _covers(recipe: Recipe) -> str:
    return {
        Recipe.TENSOR_WISE: "tensor",
        Recipe.ROW_WISE: "row of A or column of B",
        Recipe.BLOCK_WISE_1X128: "128 elements of K",
    }.get(recipe, "block of 128 x 128")


def _accumulator(info: MatmulInfo) -> Fault | None:
    if info.c is None:
        return None
    return _value(info.c) or _expect_shape(info.c, info.shape(info.dims.d), f"C is {info.dims.d}, like the result")


def _value(tensor: TensorInfo) -> Fault | None:
    if tensor.dtype != I32:
        return None
    return Fault("GMR-I001", str(tensor), "what is computed with is of a float type", f"cast {tensor.name} to f32")


def _numerics(info: MatmulInfo) -> Fault | None:
    every, step = info.numerics.promote_every, info.numerics.instruction_k
    what = f"promote_every = {'none' if every is None else every}"
    if is_block_wise(info.recipe_a):
        rule = f"block-wise scales change every {SCALE_BLOCK} elements of K, where the sum must be promoted"
        return None if every == SCALE_BLOCK else Fault("GMR-I009", what, rule, f"use {SCALE_BLOCK}")
    if every is None or (0 < every <= MAX_DIM and every % step == 0):
        return None
    rule = f"a positive multiple of {step}: one instruction sums {step} elements of {info.a.dtype}"
    return Fault("GMR-I009", what, rule, f"use {max(1, min(every, MAX_DIM) // step) * step}")


def _split_k(info: MatmulInfo) -> Fault | None:
    parts = info.numerics.split_k
    if parts == 1:
        return None
    what = f"split_k = {parts}"
    if info.grouping is not Grouping.NONE:
        rule = "the products of several groups sum K as a whole"
        return Fault("GMR-I009", f"{what} with {info.grouping.value}", rule, "leave split_k out")
    if not 1 <= parts <= MAX_PARTS:
        return Fault("GMR-I009", what, f"1 <= split_k <= {MAX_PARTS}", "use split_k = 2")
    problem = problem_from(info, has_epilogue=False)
    blocks_of_k, most = problem.k_blocks, -(-problem.k_blocks // problem.part_k_blocks)
    if info.k is None or parts <= most:
        return None
    rule = f"each part has {problem.part_k_blocks} k-blocks of 128 bytes of K, but the last one, which has at least one"
    return Fault("GMR-I009", f"{what} with {blocks_of_k} k-blocks (K = {info.k})", rule, f"use split_k = {most}")


def _expected_m(info: MatmulInfo) -> Fault | None:
    if info.expected_m is None:
        return None
    if info.m is not None and info.grouping is not Grouping.COUNTS:
        what = f"expect m = {info.expected_m} where M is {info.m}"
        return Fault("GMR-I009", what, "only an M that is unknown is expected", "drop the hint")
    if 1 <= info.expected_m <= MAX_DIM:
        return None
    return Fault("GMR-I009", f"expect m = {info.expected_m}", f"1 <= m <= {MAX_DIM}", "use m = 4096")


def _epilogue_operands(info: MatmulInfo) -> Fault | None:
    shapes = epilogue_dims(info.grouping)
    for kind, operand in info.epilogue:
        if kind not in shapes:
            what = f"{operand.name} by {kind[:20]!r}"
            return Fault("GMR-I009", what, f"one of {', '.join(EPILOGUE_KINDS)}", "use by column for a bias")
        rule = f"an epilogue operand by {kind} is {shapes[kind] or 'of rank 0'}"
        fault = _value(operand) or _expect_shape(operand, info.shape(shapes[kind]), rule)
        if fault is not None:
            return fault
    return None


def epilogue_dims(grouping: Grouping) -> dict[str, str]:
    """Dimensions of an epilogue operand of each kind. What spreads along rows of a group is one for each group."""
    d = DIMS[grouping].d
    column = "N" if grouping is Grouping.NONE else "G x N"
    return {"column": column, "row": d.removesuffix(" x N"), "element": d, "scalar": ""}


RULES: tuple[Rule, ...] = (
    _operand_types,
    _operand_shapes,
    _groups,
    _batches,
    _result,
    _majors,
    _recipes,
    _accumulator,
    _numerics,
    _split_k,
    _expected_m,
    _epilogue_operands,
)


def find_fault(info: MatmulInfo) -> Fault | None:
    """The first rule that the product breaks, or None."""
    for rule in RULES:
        if (fault := rule(info)) is not None:
            return fault
    return None
