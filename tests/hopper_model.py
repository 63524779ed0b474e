"""
The tensor core of a Hopper GPU in numpy, bit for bit, and the kernels' arithmetic around it. For tests only.

One WGMMA sums k products and the accumulator: each term truncated toward zero to F bits below the largest exponent, an
exact integer sum, the result truncated toward zero to p fraction bits. Written from the published descriptions
(arXiv 2511.10909, arXiv 2512.07004). Operands are float64 arrays that hold values of the operand type, all finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Integers = NDArray[np.int64]

NO_EXPONENT = -10_000
"""The exponent of a zero: below every real one."""
FLOOR = -133
"""Terms are never aligned to an exponent below this."""


@dataclass(frozen=True)
class Format:
    """A floating-point format: fraction bits and the exponent of its smallest normal number."""

    fraction: int
    smallest: int

    def split(self, x: Floats) -> tuple[Integers, Integers]:
        """Integer significands and exponents: x = significand * 2^(exponent - fraction)."""
        exponent = np.maximum(np.frexp(x)[1].astype(np.int64) - 1, self.smallest)
        significand = np.ldexp(x, (self.fraction - exponent).astype(np.int32))
        if not np.array_equal(significand, np.rint(significand)):
            raise ValueError("a value is not of this format")
        return significand.astype(np.int64), exponent


FORMATS = {
    "f8E4M3FN": Format(3, -6),
    "f8E5M2": Format(2, -14),
    "f16": Format(10, -14),
    "bf16": Format(7, -126),
    "f32": Format(23, -126),
}


@dataclass(frozen=True)
class Core:
    """k products per instruction, F bits kept at alignment, p fraction bits in the accumulator."""

    k: int
    aligned_bits: int
    result_bits: int


FP8 = Core(32, 13, 13)
HALF = Core(16, 25, 23)


def core_of(name: str) -> Core:
    return FP8 if name.startswith("f8") else HALF


def shift_toward_zero(significand: Integers, by: Integers) -> Integers:
    """significand * 2^by with the bits that fall off cut away, sign and magnitude."""
    magnitude = np.abs(significand) << np.clip(by, 0, 40) >> np.clip(-by, 0, 62)
    return np.where(significand < 0, -magnitude, magnitude)


def fused_sum(a: Floats, b: Floats, c: Singles, a_name: str, b_name: str) -> Singles:
    """One instruction: a (..., k), b (..., k) broadcast against each other, accumulator c (...) -> new accumulator."""
    core, a_format, b_format = core_of(a_name), FORMATS[a_name], FORMATS[b_name]
    (a_bits, a_exponent), (b_bits, b_exponent) = a_format.split(a), b_format.split(b)
    products, exponents = a_bits * b_bits, a_exponent + b_exponent
    c_bits, c_exponent = FORMATS["f32"].split(c.astype(np.float64))
    largest = np.maximum(
        np.where(products == 0, NO_EXPONENT, exponents).max(-1), np.where(c_bits == 0, NO_EXPONENT, c_exponent)
    )
    largest = np.maximum(largest, FLOOR)
    unit = largest - core.aligned_bits
    fraction = a_format.fraction + b_format.fraction
    total = shift_toward_zero(products, exponents - fraction - unit[..., None]).sum(-1)
    total += shift_toward_zero(c_bits, c_exponent - 23 - unit)
    return cut(total, unit, core.result_bits)


def cut(total: Integers, unit: Integers, bits: int) -> Singles:
    """total * 2^unit truncated toward zero to `bits` fraction bits, in the exponent range of float32."""
    magnitude = np.abs(total)
    exponent = np.maximum(np.frexp(magnitude.astype(np.float64))[1].astype(np.int64) - 1 + unit, -126)
    dropped = np.clip(exponent - bits - unit, 0, 62)
    kept = np.ldexp((magnitude >> dropped << dropped).astype(np.float64), unit.astype(np.int32))
    with np.errstate(over="ignore"):
        return np.where(total < 0, -kept, kept).astype(np.float32)


def chain(a: Floats, b: Floats, a_name: str, b_name: str) -> Singles:
    """A (M, K) times B (K, N) as successive instructions into one accumulator that starts from zero; (M, N)."""
    k = core_of(a_name).k
    accumulator = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for first in range(0, a.shape[1], k):
        left, right = a[:, None, first : first + k], b.T[None, :, first : first + k]
        accumulator = fused_sum(left, right, accumulator, a_name, b_name)
    return accumulator


def fma(a: Singles, b: Singles, c: Singles) -> Singles:
    """Float32 fused multiply-add, rounded once, to nearest even."""
    product = a.astype(np.float64) * b.astype(np.float64)  # exact: 48 bits
    addend = c.astype(np.float64)
    total = product + addend
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    sticky = np.where((lost > 0) == (total > 0), 1, -1)
    odd = np.where((lost != 0) & (bits & 1 == 0), bits + sticky, bits)  # rounding to odd cannot be undone by the next
    return odd.view(np.float64).astype(np.float32)


def gemm(
    a: Floats,
    b: Floats,
    scale_a: Singles | None,
    scale_b: Singles | None,
    names: tuple[str, str],
    promote_every: int | None,
) -> Singles:
    """
    The kernels' float32 result before operand C, the epilogue and the rounding.

    `scale_a` (M, stretches of K or 1) and `scale_b` (stretches of K or 1, N): one scale per row or column and stretch.
    """
    k = a.shape[1]
    if promote_every is None:
        total = chain(a, b, *names)
        if scale_a is None or scale_b is None:
            return total
        return total * (scale_a[:, :1] * scale_b[:1])
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for index, first in enumerate(range(0, k, promote_every)):
        partial = chain(a[:, first : first + promote_every], b[first : first + promote_every], *names)
        scale = np.ones_like(total) if scale_a is None or scale_b is None else _scale(scale_a, scale_b, index)
        total = fma(partial, scale, total)
    return total


def _scale(scale_a: Singles, scale_b: Singles, index: int) -> Singles:
    left = scale_a[:, min(index, scale_a.shape[1] - 1)]
    right = scale_b[min(index, scale_b.shape[0] - 1)]
    return left[:, None] * right[None, :]
