"""
A hypothesis strategy for all that a product can say: every grouping, recipe, layout, operand C, epilogue, numerics.

Kernels compute a part of it; the reference computes all. Needs hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from gemmir.dtypes import BF16, F16, F32, I32, DType
from gemmir.matmul_rules import DIMS, RECIPE_PAIRS, epilogue_dims, is_block_wise, operand_scale_shape
from gemmir.problem import Grouping, Recipe
from gemmir.testing.strategies import FP8_PAIRS, sizes

CONSTANTS = ("0.000000e+00", "-0.000000e+00", "1.000000e+00", "-5.000000e-01", "1.000000e-01", "3.300000e+01")
BINARY = ("addf", "subf", "mulf", "maximumf")


@dataclass(frozen=True)
class Epilogue:
    """Clause, and the operands that it names as (name, type)."""

    clause: str
    operands: tuple[tuple[str, str], ...]


OPS = {Grouping.NONE: "gemm.matmul", Grouping.BATCH: "gemm.batched_matmul"}
"""The op of a grouping; else `gemm.grouped_matmul`."""


@dataclass(frozen=True)
class Sizes:
    """How many groups, rows, columns and elements of K."""

    g: int
    m: int
    n: int
    k: int

    def shape(self, dims: str) -> tuple[int, ...]:
        """The shape that e.g. "G x M x N" stands for."""
        return tuple(getattr(self, dim.lower()) for dim in dims.split(" x ")) if dims else ()


@st.composite
def _epilogues(draw: st.DrawFn, sizes: Sizes, grouping: Grouping, d: DType) -> Epilogue:
    """Up to five ops on the accumulator, operands and constants; some of what there is may be dead."""
    shapes = epilogue_dims(grouping)
    kinds = draw(st.lists(st.sampled_from(sorted(shapes)), max_size=2))
    operands = tuple((f"%e{i}", _tensor(sizes.shape(shapes[k]), F32)) for i, k in enumerate(kinds))
    values, lines = ["%acc", *(f"%v{i}" for i in range(len(kinds)))], list[str]()
    for i, constant in enumerate(draw(st.lists(st.sampled_from(CONSTANTS), max_size=2))):
        lines.append(f"%c{i} = arith.constant {constant} : f32")
        values.append(f"%c{i}")
    for i, op in enumerate(draw(st.lists(st.sampled_from((*BINARY, "negf")), max_size=5))):
        inputs = [draw(st.sampled_from(values)) for _ in range(1 if op == "negf" else 2)]
        lines.append(f"%s{i} = arith.{op} {', '.join(inputs)} : f32")
        values.append(f"%s{i}")
    result = draw(st.sampled_from((values[-1], "%acc")))
    if d != F32:
        lines.append(f"%out = arith.truncf {result} : f32 to {d}")
        result = "%out"
    named = ", ".join(f"%e{i} by {kind}" for i, kind in enumerate(kinds))
    arguments = ", ".join(f"{v}: f32" for v in ("%acc", *(f"%v{i}" for i in range(len(kinds)))))
    body = "\n    ".join((*lines, f"gemm.yield {result} : {d}"))
    head = f"epilogue ({named}) {{" if kinds else "epilogue {"
    return Epilogue(f"{head}\n  ^bb0({arguments}):\n    {body}\n  }}", operands)


def _tensor(shape: tuple[int | None, ...], dtype: DType) -> str:
    return f"tensor<{''.join(f'{size}x' for size in shape)}{dtype}>"


@st.composite
def gemm_programs(
    draw: st.DrawFn, most_m: int = 20, most_n: int = 140, most_k: int = 300, grouping: Grouping = Grouping.NONE
) -> str:
    """IR text of one small product, or of a few groups, with a fixed M; no schedule."""
    m, n, k = draw(st.integers(1, most_m)), draw(sizes(1, 128, most_n)), draw(sizes(1, 128, most_k))
    size = Sizes(1 if grouping is Grouping.NONE else draw(st.integers(1, 4)), m, n, k)
    dims = DIMS[grouping]
    d = draw(st.sampled_from((BF16, F16, F32)))
    fp8 = draw(st.booleans())
    a, b = draw(st.sampled_from(FP8_PAIRS)) if fp8 else (draw(st.sampled_from((BF16, F16))),) * 2
    pair = draw(st.sampled_from(RECIPE_PAIRS)) if fp8 else (Recipe.NONE, Recipe.NONE)
    arguments = [("%a", _tensor(size.shape(dims.a), a)), ("%b", _tensor(size.shape(dims.b), b))]
    clauses: list[str] = []
    if dims.index:
        arguments.append(("%index", _tensor(size.shape(dims.index), I32)))
        clauses.append(f"groups (%index by {grouping.value})")
    if pair[0] is not Recipe.NONE:
        arguments.append(("%sa", _tensor(operand_scale_shape(pair[0], size.shape(dims.a), k_axis=1), F32)))
        arguments.append(("%sb", _tensor(operand_scale_shape(pair[1], size.shape(dims.b), k_axis=0), F32)))
        clauses.append(f"scaled (%sa by {pair[0].value}, %sb by {pair[1].value})")
    if draw(st.booleans()):
        arguments.append(("%c", _tensor(size.shape(dims.d), draw(st.sampled_from((BF16, F16, F32))))))
        clauses.append("accumulate %c")
    if draw(st.booleans()):
        major = ("k", "k") if fp8 else (draw(st.sampled_from("km")), draw(st.sampled_from("kn")))
        clauses.append(f"layout <a = {major[0]}, b = {major[1]}>")
    if not is_block_wise(pair[0]) and draw(st.booleans()):
        clauses.append(f"numerics <promote_every = {draw(st.sampled_from(('none', 32, 64, 128)))}>")
    if draw(st.booleans()):
        epilogue = draw(_epilogues(size, grouping, d))
        arguments += epilogue.operands
        clauses.append(epilogue.clause)
    types, result = ", ".join(type_ for _, type_ in arguments), _tensor(size.shape(dims.d), d)
    names = ", ".join(f"{name}: {type_}" for name, type_ in arguments)
    op = OPS.get(grouping, "gemm.grouped_matmul")
    return f"""
func.func @product({names}) -> {result} {{
  %y = {op} %a, %b {" ".join(clauses)} : ({types}) -> {result}
  func.return %y : {result}
}}"""
