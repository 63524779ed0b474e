"""
The bit model of `gemmir.tensor_core` in torch: the same arithmetic, on whatever device the tensors are.

For comparing whole results on a GPU. Each step is an elementwise torch operation whose result is exact in its type, so
CPU and GPU give the same bits; nothing is contracted, and no library sums anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from gemmir.backends.reference.groups import Operands, products_of, result_shape
from gemmir.dtypes import F32, DType
from gemmir.problem import SCALE_BLOCK, GemmProblem, Recipe
from gemmir.tensor_core import FLOOR, FP8_CORE, NAN, NO_EXPONENT, SAFE_EXPONENT, Core, check_modelled, core_of, table

PANEL = (1024, 2048)
"""Rows and columns of a result that are computed together."""


@dataclass(frozen=True, slots=True)
class Operand:
    """Decoded values of one operand, K first, (K, outer). `special`: a NaN or Inf at this K (on the host)."""

    values: torch.Tensor
    finite: torch.Tensor
    exponents: torch.Tensor
    special: tuple[bool, ...]


@cache
def _tables(dtype: DType, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    known = table(dtype)
    return (
        torch.from_numpy(known.values).to(device),
        torch.from_numpy(known.finite).to(device),
        torch.from_numpy(known.exponents).to(device),
    )


def decode(operand: torch.Tensor, dtype: DType) -> Operand:
    """`operand`: (outer, K) of the operand type, A as it is or B transposed."""
    width = {1: torch.uint8, 2: torch.int16}[dtype.bytes]
    index = operand.t().contiguous().view(width).to(torch.int64) & ((1 << dtype.bits) - 1)
    values, finite, exponents = (known[index] for known in _tables(dtype, operand.device))
    special = (~torch.isfinite(values)).any(dim=1).tolist()
    return Operand(values, finite, exponents, tuple(special))


@dataclass(slots=True)
class _Specials:
    """Where a NaN, +Inf or -Inf has entered a sum. They stay."""

    nan: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor

    @staticmethod
    def none(like: torch.Tensor) -> _Specials:
        return _Specials(*(torch.zeros_like(like, dtype=torch.bool) for _ in range(3)))

    def add(self, terms: torch.Tensor) -> None:
        self.nan |= torch.isnan(terms)
        self.positive |= terms == torch.inf
        self.negative |= terms == -torch.inf

    def put(self, result: torch.Tensor) -> torch.Tensor:
        result = result.masked_fill(self.positive, torch.inf).masked_fill(self.negative, -torch.inf)
        nan = self.nan | (self.positive & self.negative)
        return result.view(torch.int32).masked_fill(nan, NAN).view(torch.float32)


def chain(a: Operand, b: Operand, span: slice, core: Core) -> torch.Tensor:
    """Successive WGMMAs over the elements `span` of K, from zero: (rows, columns) float32."""
    total = torch.zeros(a.finite.shape[1], b.finite.shape[1], device=a.finite.device)
    specials: _Specials | None = None
    for first in range(span.start, span.stop, core.k):
        part = range(first, min(first + core.k, span.stop))
        # FP8 sums cannot overflow; float32 ones can, and then the accumulator is infinite.
        if core is not FP8_CORE and not bool(torch.isfinite(total).all()):
            specials = specials or _Specials.none(total)
            specials.add(total)
            total = total.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        for k in part:
            if a.special[k] or b.special[k]:
                specials = specials or _Specials.none(total)
                specials.add(a.values[k][:, None] * b.values[k][None, :])
        total = _instruction(a, b, part, total, core)
    if specials is None:
        return total
    specials.add(total)
    return specials.put(total)


def _instruction(a: Operand, b: Operand, part: range, c: torch.Tensor, core: Core) -> torch.Tensor:
    """One WGMMA: largest exponent, terms without what lies below it, exact sum, truncation."""
    single = core is FP8_CORE
    stored = (c.view(torch.int32) >> 23 & 0xFF).clamp_(min=1) - 127
    largest = stored.masked_fill_(c == 0, NO_EXPONENT).to(torch.int16)
    for k in part:
        torch.maximum(largest, a.exponents[k][:, None] + b.exponents[k][None, :], out=largest)
    largest.clamp_(min=-SAFE_EXPONENT if single else FLOOR)
    scale, back = _power(core.aligned_bits - largest, single), _power(largest - core.aligned_bits, single)
    total = torch.trunc(c.to(scale.dtype) * scale)
    for k in part:
        total += (a.finite[k][:, None] * b.finite[k][None, :]).mul_(scale).trunc_()
    total *= back
    total += 0.0  # -0 becomes +0
    return _truncate(total, core)


def _power(exponent: torch.Tensor, single: bool) -> torch.Tensor:
    """2^exponent as a float32 or float64."""
    if single:
        return (exponent.to(torch.int32) + 127 << 23).view(torch.float32)
    return (exponent.to(torch.int64) + 1023 << 52).view(torch.float64)


def _truncate(total: torch.Tensor, core: Core) -> torch.Tensor:
    """Toward zero, to the bits of an accumulator."""
    dropped = 23 - core.result_bits
    result = total.to(torch.float32)
    bits = result.view(torch.int32)
    if total.dtype == torch.float64:
        size = total.abs()
        bits = bits - ((result.double().abs() > size) & (size < 2.0**128)).to(torch.int32)
    return (bits >> dropped << dropped).view(torch.float32)


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """`__fmaf_rn` on float32 tensors."""
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    bits = total.view(torch.int64)
    inexact = torch.isfinite(total) & (lost != 0) & (bits & 1 == 0)
    step = torch.where((lost > 0) == (total > 0), 1, -1)
    return canonical(torch.where(inexact, bits + step, bits).view(torch.float64).to(torch.float32))


def canonical(x: torch.Tensor) -> torch.Tensor:
    """Float32 `x`, every NaN in it replaced by the one that the hardware makes."""
    return x.view(torch.int32).masked_fill(torch.isnan(x), NAN).view(torch.float32)


def round_to(x: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Float32 `x` in a result type, to nearest even."""
    if dtype == F32:
        return canonical(x)
    target = getattr(torch, dtype.torch_name)
    return x.to(target).view(torch.int16).masked_fill(torch.isnan(x), 0x7FFF).view(target)


def gemm_model(
    problem: GemmProblem,
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    *,
    index: torch.Tensor | None = None,
    panel: tuple[int, int] = PANEL,
) -> torch.Tensor:
    """
    What a kernel for `problem` computes, bit for bit, whatever its schedule.

    `a` (M, K), `b` (K, N) of the operand types; scales: float32 in the shapes of `gemmir.problem.Recipe`; `c` of the
    result's shape and type; all on one device, where the work is done. Returns (M, N) of the
    result type. Of several groups all have the shapes of `gemmir.matmul_rules.DIMS`, `index` says which elements
    are whose, and what no group writes is zero. `UnsupportedError` (GMR-U001) where there is no model.
    """
    whole = Operands(a, b, scale_a, scale_b, c, index)
    dtype = getattr(torch, problem.d.torch_name)
    result = torch.zeros(result_shape(problem.grouping, whole), dtype=dtype, device=a.device)
    for group, product, part in products_of(problem, whole):
        result[group.in_result] = _model_of_one(product, part.a, part.b, part.scale_a, part.scale_b, panel, part.c)
    return result


def _model_of_one(
    problem: GemmProblem,
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor | None,
    scale_b: torch.Tensor | None,
    panel: tuple[int, int],
    c: torch.Tensor | None = None,
) -> torch.Tensor:
    check_modelled(problem)
    m, n = a.shape[0], b.shape[1]
    result = torch.zeros(m, n, dtype=getattr(torch, problem.d.torch_name), device=a.device)
    for column in range(0, n, panel[1]):
        columns = slice(column, min(column + panel[1], n))
        right = decode(b[:, columns].t(), problem.b)
        expanded = None if scale_b is None else _column_scales(problem, scale_b, columns)
        for row in range(0, m, panel[0]):
            rows = slice(row, min(row + panel[0], m))
            scales = None if expanded is None or scale_a is None else (scale_a[rows], expanded)
            total = _accumulate(problem, decode(a[rows], problem.a), right, scales)
            if c is not None:
                total = canonical(total + c[rows, columns].float())
            result[rows, columns] = round_to(total, problem.d)
    return result


def _column_scales(problem: GemmProblem, scale_b: torch.Tensor, columns: slice) -> torch.Tensor:
    if problem.scale_b is not Recipe.BLOCK_WISE_128X128:
        return scale_b[:, columns]
    return scale_b[:, torch.arange(columns.start, columns.stop, device=scale_b.device) // SCALE_BLOCK]


def _accumulate(
    problem: GemmProblem, a: Operand, b: Operand, scales: tuple[torch.Tensor, torch.Tensor] | None
) -> torch.Tensor:
    first, *others = (_accumulate_part(problem, a, b, scales, part) for part in problem.parts)
    for part in others:
        first = canonical(first + part)
    return first


def _accumulate_part(
    problem: GemmProblem, a: Operand, b: Operand, scales: tuple[torch.Tensor, torch.Tensor] | None, part: range
) -> torch.Tensor:
    """The sum over the elements `part` of K."""
    every, core = problem.numerics.promote_every, core_of(problem.a, problem.b)
    if every is None:
        return chain(a, b, slice(part.start, part.stop), core)
    total = torch.zeros(a.finite.shape[1], b.finite.shape[1], device=a.finite.device)
    for first in range(part.start, part.stop, every):
        partial = chain(a, b, slice(first, min(first + every, part.stop)), core)
        block, scale = first // SCALE_BLOCK, total.new_ones(1, 1)
        if scales is not None:
            scale = scales[0][:, block, None] * scales[1][block, None, :]
        total = fma(partial, scale, total)
    return total if problem.fills(part) else canonical(total + 0.0)  # k-blocks of zeros: -0 becomes 0
