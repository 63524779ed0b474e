"""
The arithmetic of the kernels, bit for bit: WGMMA, promotion on the CUDA cores, rounding to the result type.

One WGMMA adds k products and the accumulator c in one step (FP8: k = 32, F = p = 13; BF16, FP16: k = 16, F = 25,
p = 23):

    e      the largest exponent among the terms that are not zero; at least -133. A product's exponent is the sum of
           its factors', which are clamped at their type's smallest; the product itself is not normalised
    t_i    each term truncated toward zero to a multiple of 2^(e - F)
    s      the sum of all t_i, exact
    c'     s truncated toward zero to p fraction bits, with the exponents of float32; zero is +0

NaN, or +Inf together with -Inf, gives NaN (0x7fffffff); one kind of infinity gives that; overflow gives infinity.
Sources: arXiv 2511.10909, arXiv 2512.07004. docs/numerics.md says what is guaranteed.

Everything is computed in floating point that holds each intermediate exactly. FP8: products have 8 significant bits,
t_i are integers below 2^15 and s is below 2^21, so float32 does. BF16, FP16: t_i are below 2^27 and s below 2^32, so
float64 does. Where no term is truncated, s is c plus a product of matrices, and computed as that.

Operands are raw bits (uint8 or uint16, see `raw_bits`), accumulators float32 arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemmir.dtypes import BF16, F8E4M3FN, F8E5M2, F16, F32, DType
from gemmir.errors import InputError, UnsupportedError
from gemmir.problem import SCALE_BLOCK, GemmProblem, Recipe

if TYPE_CHECKING:
    import torch

Bits: TypeAlias = NDArray[np.uint8 | np.uint16 | np.uint32]
Singles: TypeAlias = NDArray[np.float32]
Floats: TypeAlias = NDArray[np.float32 | np.float64]
Exponents: TypeAlias = NDArray[np.int16]
Mask: TypeAlias = NDArray[np.bool_]

NAN = 0x7FFFFFFF
"""The only NaN that Hopper's float32 arithmetic makes."""
FLOOR = -133
"""Terms are never aligned to an exponent below this."""
NO_EXPONENT = -5000
"""The exponent of a zero: below every real one, also when it is added to another."""
SMALLEST_NORMAL = -126
"""The exponent of subnormal accumulators too."""
SAFE_EXPONENT = 60
"""Accumulators of FP8 sums from 2^-60 to 2^60 leave room for exact products in float32."""
SMALL_EXPONENT = 120
"""Sums below 2^120 are far from overflow."""
PANEL = (64, 256)
"""Rows and columns of a result that are computed together: what stays in a core's cache."""


@dataclass(frozen=True, slots=True)
class Core:
    """One WGMMA: `k` products a sum, F `aligned_bits` kept of each term, p `result_bits` of the accumulator."""

    k: int
    aligned_bits: int
    result_bits: int


FP8_CORE = Core(32, 13, 13)
HALF_CORE = Core(16, 25, 23)


@dataclass(frozen=True, slots=True)
class Format:
    """A small float: widths of its fields in bits; whether it has infinities (e4m3 has one NaN per sign instead)."""

    exponent_bits: int
    fraction_bits: int
    infinities: bool = True

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def smallest_exponent(self) -> int:
        """Of a normal number; subnormals share it."""
        return 1 - self.bias


FORMATS: dict[DType, Format] = {
    F8E4M3FN: Format(4, 3, infinities=False),
    F8E5M2: Format(5, 2),
    F16: Format(5, 10),
    BF16: Format(8, 7),
}


def core_of(a: DType, b: DType) -> Core:
    """The arithmetic of a WGMMA of these operand types; `UnsupportedError` (GMR-U001) if there is none."""
    if a in FORMATS and b in FORMATS and (a == b or (a.is_fp8 and b.is_fp8)):
        return FP8_CORE if a.is_fp8 else HALF_CORE
    raise UnsupportedError("GMR-U001", f"WGMMA of {a} x {b}", rule="both FP8, both BF16 or both FP16")


@dataclass(frozen=True, slots=True)
class Table:
    """
    What each bit pattern of a type means. NaN and infinities count as zero in `finite`, and so in what follows it.

    `lowest`: the exponent of the last bit that is set.
    """

    values: NDArray[np.float64]
    finite: Floats
    exponents: Exponents
    lowest: Exponents
    special: Mask


@cache
def table(dtype: DType) -> Table:
    """The meaning of every bit pattern of an operand type; exponents of zeros are `NO_EXPONENT`."""
    form = FORMATS[dtype]
    bits = np.arange(1 << dtype.bits, dtype=np.int64)
    top = (1 << form.exponent_bits) - 1
    fraction = bits & ((1 << form.fraction_bits) - 1)
    stored = bits >> form.fraction_bits & top
    exponent = np.maximum(stored, 1) - form.bias
    significand = fraction + (stored > 0) * (1 << form.fraction_bits)
    sign = np.where(bits >> (dtype.bits - 1) == 1, -1.0, 1.0)
    values = sign * np.ldexp(significand.astype(np.float64), (exponent - form.fraction_bits).astype(np.int32))
    last = (1 << form.fraction_bits) - 1
    special = (stored == top) if form.infinities else (stored == top) & (fraction == last)
    infinite = special & (fraction == 0) & form.infinities
    values = np.where(infinite, sign * np.inf, np.where(special, np.nan, values))
    zero = special | (significand == 0)
    last_bit = np.frexp((significand & -significand).astype(np.float64))[1] - 1
    return Table(
        values=values,
        finite=np.where(special, 0.0, values).astype(np.float32 if dtype.is_fp8 else np.float64),
        exponents=np.where(zero, NO_EXPONENT, exponent).astype(np.int16),
        lowest=np.where(zero, -NO_EXPONENT, exponent - form.fraction_bits + last_bit).astype(np.int16),
        special=special,
    )


def values_of(bits: Bits, dtype: DType) -> NDArray[np.float64]:
    """The numbers that raw bits of an operand type stand for."""
    return table(dtype).values[bits]


@dataclass(frozen=True, slots=True)
class Operand:
    """
    Decoded bits of one operand, K first: `finite`, `exponents` (K, outer). `special`: a NaN or Inf at this K.

    `highest`, `lowest`: of all exponents, and of those of the last bits that are set.
    """

    bits: Bits
    dtype: DType
    finite: Floats
    exponents: Exponents
    special: Mask
    highest: int
    lowest: int


def decode(bits: Bits, dtype: DType) -> Operand:
    """`bits`: (outer, K), A as it is or B transposed."""
    known = table(dtype)
    along_k = np.ascontiguousarray(bits.T)
    index = along_k.astype(np.intp)  # once for all tables
    special = np.asarray(known.special.take(index).any(axis=1))
    exponents = known.exponents.take(index)
    highest = int(exponents.max(initial=NO_EXPONENT))
    lowest = int(known.lowest.take(index).min(initial=-NO_EXPONENT))
    return Operand(along_k, dtype, known.finite.take(index), exponents, special, highest, lowest)


def fused_sum(a: Bits, b: Bits, c: Singles, a_type: DType, b_type: DType) -> Singles:
    """
    One WGMMA: `a` (rows, k), `b` (columns, k) raw bits, accumulator `c` (rows, columns) -> the new accumulator.

    k is 32 for FP8, 16 for BF16 and FP16; `InputError` (GMR-I002) otherwise.
    """
    k = core_of(a_type, b_type).k
    if a.shape[1] != k or b.shape[1] != k:
        raise InputError("GMR-I002", f"a sum of {a.shape[1]} and {b.shape[1]} products", rule=f"one WGMMA sums {k}")
    return wgmma_chain(a, b, a_type, b_type, c)


def wgmma_chain(a: Bits, b: Bits, a_type: DType, b_type: DType, c: Singles | None = None) -> Singles:
    """
    Successive WGMMAs along K into one accumulator.

    `a` (rows, K), `b` (columns, K) raw bits; `c` (rows, columns): what the accumulator starts from (None: zero). A last
    stretch shorter than an instruction counts as filled up with zeros. Returns (rows, columns).
    """
    return chain(decode(a, a_type), decode(b, b_type), slice(0, a.shape[1]), c)


@dataclass(slots=True)
class _Specials:
    """Where a NaN, +Inf or -Inf has entered a sum. They stay."""

    nan: Mask
    positive: Mask
    negative: Mask

    def add(self, terms: Floats, axis: int | None) -> None:
        found = (np.isnan(terms), terms == np.inf, terms == -np.inf)
        if axis is not None:
            found = tuple(mask.any(axis=axis) for mask in found)
        self.nan |= found[0]
        self.positive |= found[1]
        self.negative |= found[2]

    def put(self, result: Singles) -> None:
        result[self.positive] = np.inf
        result[self.negative] = -np.inf
        result.view(np.uint32)[self.nan | (self.positive & self.negative)] = NAN


def chain(a: Operand, b: Operand, span: slice, c: Singles | None = None) -> Singles:
    """`wgmma_chain` over the elements `span` of K of decoded operands."""
    core = core_of(a.dtype, b.dtype)
    shape = (a.finite.shape[1], b.finite.shape[1])
    total = np.zeros(shape, np.float32) if c is None else c.astype(np.float32, copy=True)
    single = core is FP8_CORE and _is_safe(total)
    if _keeps_everything(a, b, span, total, core):
        kind = np.float32 if single else np.float64
        return (_exact_sum(a, b, span, total, kind) + kind(0)).astype(np.float32, copy=False)
    specials: _Specials | None = None
    for first in range(span.start, span.stop, core.k):
        part = slice(first, min(first + core.k, span.stop))
        operands_special = bool(a.special[part].any() or b.special[part].any())
        finite = np.isfinite(total)
        if operands_special or not finite.all():
            specials = specials or _Specials(*(np.zeros(shape, np.bool_) for _ in range(3)))
            specials.add(total, None)
            total = np.where(finite, total, np.float32(0))
            if operands_special:
                specials.add(_products(a, b, part), 0)
        total = _instruction_single(a, b, part, total) if single else _instruction_double(a, b, part, total, core)
    if specials is not None:
        specials.add(total, None)
        specials.put(total)
    elif c is not None and span.start >= span.stop:
        total.view(np.uint32)[np.isnan(total)] = NAN
    return total


def _is_safe(c: Singles) -> bool:
    """Whether every accumulator is zero or within 2^-60 .. 2^60."""
    size = np.abs(c)
    return bool(((size == 0) | ((size >= 2.0**-SAFE_EXPONENT) & (size <= 2.0**SAFE_EXPONENT))).all())


def _products(a: Operand, b: Operand, part: slice) -> NDArray[np.float64]:
    """Every product with its NaN or infinity, (k, rows, columns)."""
    left, right = values_of(a.bits[part], a.dtype), values_of(b.bits[part], b.dtype)
    with np.errstate(invalid="ignore"):
        return left[:, :, None] * right[:, None, :]


def _largest_exponent(a: Operand, b: Operand, part: slice, c: Singles, floor: int) -> NDArray[np.int32]:
    """e of the sum, (rows, columns)."""
    stored = (c.view(np.int32) >> 23 & 0xFF).astype(np.int16)
    largest = np.where(c == 0, np.int16(NO_EXPONENT), np.maximum(stored, 1) - np.int16(127))
    exponents = a.exponents[part][:, :, None] + b.exponents[part][:, None, :]
    largest = np.maximum(largest, exponents.max(axis=0))
    return np.maximum(largest, floor).astype(np.int32)


def _sum_terms(a: Operand, b: Operand, part: slice, c: Floats, scale: Floats) -> Floats:
    """s of the sum as an integer: each term times `scale`, which is 2^(F - e), without its fraction."""
    terms = np.multiply(a.finite[part][:, :, None], b.finite[part][:, None, :], dtype=scale.dtype)
    terms *= scale
    np.trunc(terms, out=terms)
    return np.trunc(c * scale) + terms.sum(axis=0)


def _keeps_everything(a: Operand, b: Operand, span: slice, c: Singles, core: Core) -> bool:
    """Whether no instruction over `span` truncates a term or its sum, which never has more bits than are kept."""
    most = float(np.abs(c).max(initial=0)) + (span.stop - span.start) * 2.0 ** (a.highest + b.highest + 2)
    if span.start >= span.stop or not most < 2.0**SMALL_EXPONENT or a.special[span].any() or b.special[span].any():
        return False
    return _all_multiples(a, b, c, most, core.result_bits)


def _loses_nothing(a: Operand, b: Operand, c: Singles, core: Core) -> bool:
    """Whether every term is a multiple of 2^(E - F), E being at least e everywhere, so that none is truncated."""
    return _all_multiples(a, b, c, float(np.abs(c).max(initial=0)), core.aligned_bits)


def _all_multiples(a: Operand, b: Operand, c: Singles, most: float, bits: int) -> bool:
    """Whether every term is a multiple of 2^(E - bits), E being the largest exponent of a product and of `most`."""
    highest = max(a.highest + b.highest, int(np.frexp(most)[1]) - 1, SMALLEST_NORMAL)
    step = highest - bits
    if a.lowest + b.lowest < step:
        return False
    scaled = c.astype(np.float64) * 2.0**-step
    return bool((np.trunc(scaled) == scaled).all())


def _exact_sum(a: Operand, b: Operand, part: slice, c: Singles, kind: type[Any]) -> Floats:
    """c plus a product of matrices."""
    return c + a.finite[part].astype(kind, copy=False).T @ b.finite[part].astype(kind, copy=False)


def _sum(a: Operand, b: Operand, part: slice, c: Singles, core: Core, floor: int, kind: type[Any]) -> Floats:
    """s * 2^(e - F), exact in floating point of this kind."""
    if _loses_nothing(a, b, c, core):
        return _exact_sum(a, b, part, c, kind)
    largest = _largest_exponent(a, b, part, c, floor)
    up, down = (np.ldexp(kind(1), sign * (core.aligned_bits - largest)) for sign in (1, -1))
    return _sum_terms(a, b, part, c.astype(kind, copy=False), up) * down


def _instruction_single(a: Operand, b: Operand, part: slice, c: Singles) -> Singles:
    """One FP8 instruction in float32."""
    result = _sum(a, b, part, c, FP8_CORE, -SAFE_EXPONENT, np.float32)
    result += np.float32(0)  # -0 becomes +0
    result.view(np.uint32)[...] &= np.uint32(_kept(FP8_CORE))
    return result.view(np.float32)


def _instruction_double(a: Operand, b: Operand, part: slice, c: Singles, core: Core) -> Singles:
    """One instruction of any kind in float64."""
    total = _sum(a, b, part, c, core, FLOOR, np.float64)
    total += 0.0
    with np.errstate(over="ignore"):
        result = total.astype(np.float32)
    rounded_up = (np.abs(result.astype(np.float64)) > np.abs(total)) & (np.abs(total) < 2.0**128)
    bits = result.view(np.uint32)
    bits -= rounded_up
    bits &= np.uint32(_kept(core))
    return result


def _kept(core: Core) -> int:
    """The bits of a float32 that an accumulator has."""
    return 0xFFFFFFFF << (23 - core.result_bits) & 0xFFFFFFFF


def fma(a: Singles, b: Singles, c: Singles) -> Singles:
    """`__fmaf_rn`: a * b + c of broadcast arrays, rounded once to nearest even; every NaN is 0x7fffffff."""
    with np.errstate(invalid="ignore", over="ignore"):
        product = a.astype(np.float64) * b.astype(np.float64)  # exact: 48 bits
        addend = c.astype(np.float64)
        total = np.asarray(product + addend)
        back = total - product
        lost = (product - (total - back)) + (addend - back)
        bits = total.view(np.int64)
        # Rounding to odd keeps a trace of what was lost, so that rounding once more goes the right way.
        inexact = np.isfinite(total) & (lost != 0) & (bits & 1 == 0)
        bits = np.where(inexact, bits + np.where((lost > 0) == (total > 0), 1, -1), bits)
        return canonical(bits.view(np.float64).astype(np.float32))


def multiply(a: Singles, b: Singles) -> Singles:
    """`__fmul_rn`: rounded to nearest even; every NaN is 0x7fffffff."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        return canonical(np.asarray(a * b, np.float32))


def add(a: Singles, b: Singles) -> Singles:
    """`__fadd_rn`: rounded to nearest even; every NaN is 0x7fffffff."""
    with np.errstate(invalid="ignore", over="ignore"):
        return canonical(np.asarray(a + b, np.float32))


def canonical(x: Singles) -> Singles:
    """`x`, every NaN in it replaced by the one that the hardware makes, in place."""
    x.view(np.uint32)[np.isnan(x)] = NAN
    return x


def round_to(x: Singles, dtype: DType) -> Bits:
    """Raw bits of `x` in a result type: to nearest even, overflow to infinity, NaN to 0x7fff (float32: 0x7fffffff)."""
    if dtype == F32:
        return canonical(x.astype(np.float32, copy=True)).view(np.uint32)
    nan = np.isnan(x)
    if dtype == BF16:
        bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    elif dtype == F16:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            rounded = x.astype(np.float16).view(np.uint16)
    else:
        raise UnsupportedError("GMR-U001", f"results of type {dtype}", rule="bf16, f16 or f32")
    return np.where(nan, np.uint16(0x7FFF), rounded)


def raw_bits(tensor: torch.Tensor | NDArray[Any]) -> NDArray[Any]:
    """
    The bits of a tensor as unsigned integers of its element size, same shape; a copy on the CPU if need be.

    Takes torch tensors of any of gemmir's types, and NumPy arrays of floats or of raw bits.
    """
    if isinstance(tensor, np.ndarray):
        return tensor.view(f"u{tensor.itemsize}")
    import torch

    view = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.detach().cpu().view(view).numpy().view(f"u{tensor.element_size()}")


def check_modelled(problem: GemmProblem) -> None:
    """`UnsupportedError` (GMR-U001) for a problem whose bits depend on more than this module knows."""
    core = core_of(problem.a, problem.b)
    scales, every = (problem.scale_a, problem.scale_b), problem.numerics.promote_every
    plain = scales == (Recipe.NONE, Recipe.NONE) and (every is None or every % core.k == 0)
    blocks = scales[0] is Recipe.BLOCK_WISE_1X128 and every == SCALE_BLOCK
    if not (plain or blocks) or problem.has_epilogue:
        raise UnsupportedError(
            "GMR-U001",
            f"no bit model for {problem}, {problem.numerics}",
            rule="no scales, or 1x128 scales of A promoted every 128; no epilogue",
        )


def gemm_model(
    problem: GemmProblem,
    a: NDArray[Any],
    b: NDArray[Any],
    scale_a: NDArray[np.float32] | None = None,
    scale_b: NDArray[np.float32] | None = None,
    c: NDArray[Any] | None = None,
) -> Bits:
    """
    The bits that a kernel for `problem` computes, whatever its schedule.

    `a` (M, K) and `b` (K, N): raw bits (uint8, uint16) or NumPy floats of the operand types; scales: float32 in the
    shapes of `gemmir.problem.Recipe`; `c` (M, N) of the result type. Returns (M, N) raw bits of the result type.
    `UnsupportedError` (GMR-U001) where there is no model.
    """
    check_modelled(problem)
    m, n = a.shape[0], b.shape[1]
    result = np.zeros((m, n), np.uint32 if problem.d == F32 else np.uint16)
    left, right = raw_bits(a), raw_bits(b).T
    for column in range(0, n, PANEL[1]):
        columns = slice(column, min(column + PANEL[1], n))
        decoded = decode(right[columns], problem.b)
        expanded = None if scale_b is None else column_scales(problem, scale_b, columns)
        for row in range(0, m, PANEL[0]):
            rows = slice(row, min(row + PANEL[0], m))
            scales = None if expanded is None or scale_a is None else (scale_a[rows], expanded)
            total = accumulate(problem, decode(left[rows], problem.a), decoded, scales)
            if c is not None:
                total = add(total, addend_values(c[rows, columns], problem.d))
            result[rows, columns] = round_to(total, problem.d)
    return result


def addend_values(c: NDArray[Any], dtype: DType) -> Singles:
    """Elements of a result type, as float32."""
    return raw_bits(c).view(np.float32) if dtype == F32 else values_of(raw_bits(c), dtype).astype(np.float32)


def column_scales(problem: GemmProblem, scale_b: NDArray[np.float32], columns: slice) -> NDArray[np.float32]:
    """The scales of B for each of the `columns`, (blocks of K, columns)."""
    if problem.scale_b is Recipe.BLOCK_WISE_128X128:
        return scale_b[:, np.arange(columns.start, columns.stop) // SCALE_BLOCK]
    return scale_b[:, columns]


def accumulate(
    problem: GemmProblem, a: Operand, b: Operand, scales: tuple[NDArray[np.float32], NDArray[np.float32]] | None
) -> Singles:
    """The float32 result of a panel. `scales`: (rows, blocks of K) and (blocks of K, columns)."""
    first, *others = (_accumulate_part(problem, a, b, scales, part) for part in problem.parts)
    for part in others:
        first = add(first, part)
    return first


def _accumulate_part(
    problem: GemmProblem,
    a: Operand,
    b: Operand,
    scales: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    part: range,
) -> Singles:
    """The sum over the elements `part` of K."""
    every = problem.numerics.promote_every
    if every is None:
        return chain(a, b, slice(part.start, part.stop))
    total = np.zeros((a.finite.shape[1], b.finite.shape[1]), np.float32)
    one = np.ones((1, 1), np.float32)
    for first in range(part.start, part.stop, every):
        partial = chain(a, b, slice(first, min(first + every, part.stop)))
        block = first // SCALE_BLOCK
        scale = one if scales is None else multiply(scales[0][:, block, None], scales[1][block, None, :])
        total = fma(partial, scale, total)
    return total if problem.fills(part) else add(total, np.zeros_like(total))  # k-blocks of zeros: -0 becomes 0
