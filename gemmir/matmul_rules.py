"""
The rules that a scaled matrix product must obey, on plain data: shared by the IR verifier and by the builder.

`find_fault` returns the first rule that a `MatmulInfo` breaks, with the operand, its value and the cheapest fix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gemmir.dtypes import BF16, F8E4M3FN, F8E5M2, F16, F32, DType
from gemmir.numerics import NumericsSpec
from gemmir.problem import SCALE_BLOCK, GemmProblem, Recipe

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
MAX_DIM = 2**31 - 1
"""Coordinates of the TMA engine are 32-bit signed integers."""


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
    """One scaled product, as the IR or the builder states it. `epilogue` pairs a kind with an operand."""

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

    @property
    def m(self) -> Dim:
        return self.a.shape[0]

    @property
    def n(self) -> Dim:
        return self.b.shape[1]

    @property
    def k(self) -> Dim:
        return self.a.shape[1]


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


def numerics_with(a: DType, promote_every: int | None) -> NumericsSpec:
    """The numerics of operands of type `a` with the given interval of promotion."""
    return NumericsSpec(instruction_k=32 if a.is_fp8 else 16, promote_every=promote_every)


def blocks(dim: Dim) -> Dim:
    """Number of scale blocks along a dimension."""
    return None if dim is None else -(-dim // SCALE_BLOCK)


def scale_shape(recipe: Recipe, rows: Dim, columns: Dim, *, k_axis: int) -> tuple[Dim, ...]:
    """Shape of the scales of a `rows` x `columns` operand whose dimension `k_axis` is K."""
    if recipe is Recipe.TENSOR_WISE:
        return ()
    if recipe is Recipe.BLOCK_WISE_128X128:
        return (blocks(rows), blocks(columns))
    k = 1 if recipe is Recipe.ROW_WISE else blocks((rows, columns)[k_axis])
    return (rows, k) if k_axis == 1 else (k, columns)


def problem_from(info: MatmulInfo, *, has_epilogue: bool) -> GemmProblem:
    """The problem of a faultless product; N and K that are unknown count as 0."""
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
    for operand, dims in ((info.a, "M x K"), (info.b, "K x N")):
        if len(operand.shape) != 2:
            what = f"{operand}: rank {len(operand.shape)}"
            return Fault("GMR-I002", what, f"the operand is a matrix {dims}", "reshape it to rank 2")
        if any(d is not None and not 0 <= d <= MAX_DIM for d in operand.shape):
            rule = f"dimensions are from 0 to {MAX_DIM}: TMA coordinates are 32-bit"
            return Fault("GMR-I007", str(operand), rule, "split the product")
    if info.a.shape[1] == info.b.shape[0]:
        return None
    k_a, k_b = shape_text(info.a.shape[1:]), shape_text(info.b.shape[:1])
    return Fault(
        "GMR-I002",
        f"K is {k_a} in {info.a} but {k_b} in {info.b}",
        "A is M x K and B is K x N",
        "a weight of shape N x K enters as its transpose, w.t()",
    )


def _result(info: MatmulInfo) -> Fault | None:
    if info.d.dtype not in RESULT_DTYPES:
        return Fault("GMR-I001", str(info.d), f"the result is one of {names(RESULT_DTYPES)}", "use bf16")
    return _expect_shape(info.d, (info.m, info.n), "the result is M x N")


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
    shape = scale_shape(recipe, operand.shape[0], operand.shape[1], k_axis=k_axis)
    rule = f"{recipe.torch_name} scales of {operand}: one per {_covers(recipe)}"
    return _expect_shape(scale, shape, rule)


def _covers(recipe: Recipe) -> str:
    return {
        Recipe.TENSOR_WISE: "tensor",
        Recipe.ROW_WISE: "row of A or column of B",
        Recipe.BLOCK_WISE_1X128: "128 elements of K",
    }.get(recipe, "block of 128 x 128")


def _accumulator(info: MatmulInfo) -> Fault | None:
    return None if info.c is None else _expect_shape(info.c, (info.m, info.n), "C is M x N, like the result")


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


def _expected_m(info: MatmulInfo) -> Fault | None:
    if info.expected_m is None:
        return None
    if info.m is not None:
        what = f"expect m = {info.expected_m} where M is {info.m}"
        return Fault("GMR-I009", what, "only an M that is unknown is expected", "drop the hint")
    if 1 <= info.expected_m <= MAX_DIM:
        return None
    return Fault("GMR-I009", f"expect m = {info.expected_m}", f"1 <= m <= {MAX_DIM}", "use m = 4096")


def _epilogue_operands(info: MatmulInfo) -> Fault | None:
    shapes = {"column": (info.n,), "row": (info.m,), "element": (info.m, info.n), "scalar": ()}
    for kind, operand in info.epilogue:
        if kind not in shapes:
            what = f"{operand.name} by {kind[:20]!r}"
            return Fault("GMR-I009", what, f"one of {', '.join(EPILOGUE_KINDS)}", "use by column for a bias")
        rule = f"an epilogue operand by {kind} is {_KIND_SHAPES[kind]}"
        if (fault := _expect_shape(operand, shapes[kind], rule)) is not None:
            return fault
    return None


_KIND_SHAPES = {"column": "N", "row": "M", "element": "M x N", "scalar": "of rank 0"}

RULES: tuple[Rule, ...] = (
    _operand_types,
    _operand_shapes,
    _result,
    _majors,
    _recipes,
    _accumulator,
    _numerics,
    _expected_m,
    _epilogue_operands,
)


def find_fault(info: MatmulInfo) -> Fault | None:
    """The first rule that the product breaks, or None."""
    for rule in RULES:
        if (fault := rule(info)) is not None:
            return fault
    return None
