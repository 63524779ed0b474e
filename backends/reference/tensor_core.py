"""
What a Hopper tensor core computes, as an exact sum and a bound on how far the accumulator is from it.

Hats mark what the hardware computes; letters without a hat are exact.

One instruction adds k products p_i = a_i * b_i (k = 32 for FP8, 16 for BF16 and FP16) to the accumulator:

    every term is truncated toward zero to a multiple of 2^(e - F), e the largest exponent among the terms;
    the truncated terms are summed exactly; the sum is truncated toward zero to p fraction bits.

    FP8: F = p = 13.  BF16, FP16: F = 25, p = 23.

The exponent of a product is the sum of its factors' exponents, which are clamped at the type's smallest (subnormals).
So the exponent of every product is at most that of P = A * B, with A and B the largest powers of two not above the
largest |a_i| of the row and |b_i| of the column in this chunk, but not below the type's smallest normal number. The
accumulator's exponent is that of c^, and |c^| <= |c| + E where c is the exact partial sum before and E bounds |c^ - c|.

    T  = E + (n + 1) 2^-F max(P, |c| + E)      n products and c^ each lose less than 2^(e - F) <= 2^-F max(P, |c^|)
    E' = T + 2^-p (|c'| + T)                   the sum is off c' by at most T; truncating it loses less than 2^-p |sum|

A product of factors with f_a and f_b fraction bits is a multiple of 2^(e_i - f_a - f_b), so it loses bits only if
e - e_i > t = F - f_a - f_b (FP8: 7 to 9). With a' and b' for how far the exponents of a_i and b_i lie below those of A
and B, e - e_i <= a' + b' + x where e exceeds the exponent of P by at most x. So n is the number of products other than
zero with a' + b' > t if |c| + E < 2P, with a' + b' > t - 2 if |c| + E < 8P, and k otherwise.

The largest exponent has a floor of -126 and results below 2^-126 are multiples of 2^-(126 + p): both together add at
most (k + 1) 2^-(126 + F) + 2^-(126 + p) per instruction, which is paid in advance: E starts at that times their number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gemmir.dtypes import DType
from gemmir.tensor_core import FORMATS, Core, core_of


def tiny(core: Core) -> float:
    """What one instruction may lose below the normal range."""
    return (core.k + 1) * 2.0 ** -(126 + core.aligned_bits) + 2.0 ** -(126 + core.result_bits)


@dataclass(slots=True)
class Approximation:
    """Exact values and a bound on how far the kernel's are from them: two float64 matrices of one shape."""

    value: torch.Tensor
    error: torch.Tensor


@dataclass(frozen=True, slots=True)
class Operands:
    """Some rows of A (rows, K) and all of B (K, N), as stored, with their types."""

    a: torch.Tensor
    b: torch.Tensor
    a_type: DType
    b_type: DType

    @property
    def core(self) -> Core:
        """The arithmetic of the WGMMA for these types."""
        return core_of(self.a_type, self.b_type)


def zeros(operands: Operands, error: float) -> Approximation:
    """A result (rows, N) of zeros that is off by at most `error`."""
    shape = (operands.a.shape[0], operands.b.shape[1])
    value = torch.zeros(shape, dtype=torch.float64, device=operands.a.device)
    return Approximation(value, torch.full_like(value, error))


def tensor_core_sum(operands: Operands, first: int, last: int) -> Approximation:
    """The sum over K in [first, last) as one accumulator sees it, (rows, N)."""
    core = operands.core
    sum_ = zeros(operands, -(-(last - first) // core.k) * tiny(core))
    size = torch.empty_like(sum_.value)
    for start in range(first, last, core.k):
        stop = min(start + core.k, last)
        left, right = operands.a[:, start:stop].double(), operands.b[start:stop].double()
        torch.abs(sum_.value, out=size)
        size.add_(sum_.error)
        sum_.error.add_(_alignment_loss(operands, left, right, size))
        sum_.value.addmm_(left, right)
        torch.abs(sum_.value, out=size)
        size.add_(sum_.error)
        sum_.error.add_(size, alpha=2.0**-core.result_bits)
    return sum_


def _alignment_loss(operands: Operands, left: torch.Tensor, right: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """(n + 1) 2^-F max(P, size) for one chunk, where `size` is |c| + E and is used up."""
    row, row_gap = _leading_powers(left, operands.a_type, 1)
    column, column_gap = _leading_powers(right, operands.b_type, 0)
    product = row * column
    core = operands.core
    kept = core.aligned_bits - FORMATS[operands.a_type].fraction_bits - FORMATS[operands.b_type].fraction_bits
    terms = _count_lossy(row_gap, column_gap, kept - 2)
    terms = torch.where(size < 2 * product, _count_lossy(row_gap, column_gap, kept), terms)
    terms.masked_fill_(size >= 8 * product, left.shape[1])
    torch.maximum(size, product, out=size)
    return size.mul_(terms.add_(1)).mul_(2.0**-core.aligned_bits)


def _leading_powers(values: torch.Tensor, dtype: DType, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The largest power of two not above the largest |value| along `axis`, 0 if all are 0; and how many binary orders each
    value lies below it, -1 for zeros. Subnormals have the exponent of the smallest normal number, as the hardware does.
    """
    smallest = FORMATS[dtype].smallest_exponent
    exponent = (torch.frexp(values).exponent - 1).clamp_(min=smallest)
    exponent = torch.where(values == 0, smallest, exponent)
    gap = torch.where(values == 0, -1, exponent.amax(axis, keepdim=True) - exponent)
    largest = values.abs().amax(axis, keepdim=True)
    power = largest / (2 * torch.frexp(largest).mantissa)  # exact, which ldexp and exp2 need not be on a GPU
    return torch.where(largest == 0, 0.0, power.clamp_(min=2.0**smallest)), gap


def _count_lossy(row_gap: torch.Tensor, column_gap: torch.Tensor, kept: int) -> torch.Tensor:
    """For each row and column, how many products other than zero lie more than `kept` binary orders below P."""
    levels = range(max(kept, -1) + 1)
    rows = [row_gap == x for x in levels] + [row_gap >= len(levels)]
    columns = [column_gap > kept - x for x in levels] + [column_gap >= 0]
    exact = torch.float16 if row_gap.is_cuda else torch.float32  # of counts up to 32; fast on each
    return torch.cat(rows, 1).to(exact) @ torch.cat(columns).to(exact)
