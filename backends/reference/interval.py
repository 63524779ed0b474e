"""
Interval arithmetic on float64 tensors: between which limits a value lies that a kernel computed in a narrow type.

An `Interval` holds, element by element, the exact value `mid` (real arithmetic, no rounding on the way) and the limits
`low` and `high` of what the kernel may hold instead; they may be infinite. Both are NaN where nothing can be said, not
even that the kernel's value is a number, for instance of a quotient by something that may be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Real = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True)
class Interval:
    """`mid`: exact; the kernel's value is between `low` and `high`. For truth values: certainly true, possibly true."""

    mid: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @staticmethod
    def point(value: torch.Tensor) -> Interval:
        """A value that the kernel has exactly."""
        return Interval(value, value, value)

    def map(self, function: Real) -> Interval:
        """The image under a function that never decreases."""
        return Interval(function(self.mid), function(self.low), function(self.high))

    def unlimited(self, where: torch.Tensor) -> Interval:
        """Without limits at the places `where`; a `mid` of NaN becomes 0 there."""
        mid = torch.where(where & self.mid.isnan(), 0.0, self.mid)
        return Interval(mid, torch.where(where, torch.nan, self.low), torch.where(where, torch.nan, self.high))


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far a computed value is from the real one: relative, and absolute for tiny ones. `largest` finite value."""

    relative: float
    absolute: float
    largest: float


def rounded(x: Interval, accuracy: Accuracy) -> Interval:
    """Widen by an inexact result; where the value may exceed the largest finite one it may be infinite."""
    low = x.low - x.low.abs() * accuracy.relative - accuracy.absolute
    high = x.high + x.high.abs() * accuracy.relative + accuracy.absolute
    low = torch.where(low < -accuracy.largest, -torch.inf, low.clamp(max=accuracy.largest))
    high = torch.where(high > accuracy.largest, torch.inf, high.clamp(min=-accuracy.largest))
    return Interval(x.mid, low, high)


def hull(mid: torch.Tensor, candidates: Sequence[torch.Tensor]) -> Interval:
    """The limits of several candidates; none where one of them is NaN."""
    low, high = candidates[0], candidates[0]
    for candidate in candidates[1:]:
        low, high = torch.minimum(low, candidate), torch.maximum(high, candidate)
    return Interval(mid, low, high).unlimited(low.isnan())


def corners(function: Real, x: Interval, y: Interval) -> list[torch.Tensor]:
    """`function` at the four combinations of limits."""
    return [function(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]


def may_be_zero(x: Interval) -> torch.Tensor:
    return (x.low <= 0) & (x.high >= 0)


def add(x: Interval, y: Interval) -> Interval:
    """x + y; where infinities of both signs may meet there are no limits."""
    low, high = x.low + y.low, x.high + y.high
    opposite = _meet(x.low, y.high, -torch.inf) | _meet(x.high, y.low, torch.inf)
    return Interval(x.mid + y.mid, low, high).unlimited(opposite | low.isnan() | high.isnan())


def _meet(x: torch.Tensor, y: torch.Tensor, infinity: float) -> torch.Tensor:
    return (x == infinity) & (y == -infinity)


def negative(x: Interval) -> Interval:
    return Interval(-x.mid, -x.high, -x.low)


def subtract(x: Interval, y: Interval) -> Interval:
    return add(x, negative(y))


def multiply(x: Interval, y: Interval) -> Interval:
    """x * y; zero times infinity has no limits."""
    unknown = (may_be_zero(x) & (y.low.isinf() | y.high.isinf())) | (may_be_zero(y) & (x.low.isinf() | x.high.isinf()))
    return hull(x.mid * y.mid, corners(torch.mul, x, y)).unlimited(unknown)


def divide(x: Interval, y: Interval) -> Interval:
    """x / y; no limits where y may be zero."""
    return hull(x.mid / y.mid, corners(torch.div, x, y)).unlimited(may_be_zero(y))


def fused(x: Interval, y: Interval, z: Interval) -> Interval:
    return add(multiply(x, y), z)


def absolute(x: Interval) -> Interval:
    far = torch.maximum(x.low.abs(), x.high.abs())
    near = torch.where(may_be_zero(x), 0.0, torch.minimum(x.low.abs(), x.high.abs()))
    return Interval(x.mid.abs(), near, far)


def maximum(x: Interval, y: Interval) -> Interval:
    return Interval(*(torch.maximum(a, b) for a, b in ((x.mid, y.mid), (x.low, y.low), (x.high, y.high))))


def minimum(x: Interval, y: Interval) -> Interval:
    return negative(maximum(negative(x), negative(y)))


def copy_sign(x: Interval, y: Interval) -> Interval:
    size = absolute(x)
    positive = [size.low, size.high]
    both = hull(torch.copysign(x.mid, y.mid), [*positive, -size.low, -size.high])
    low = torch.where(y.low > 0, size.low, both.low)
    high = torch.where(y.high < 0, -size.low, both.high)
    return Interval(both.mid, low, high)


def on_positives(function: Real, x: Interval) -> Interval:
    """The image under a monotone function that is undefined below zero; certainly NaN only where all of x is there."""
    image = hull(function(x.mid), [function(x.low), function(x.high)])
    return image.unlimited((x.low < 0) & (x.high >= 0))


def wave(function: Real, x: Interval) -> Interval:
    """The image under sin or cos: they change no faster than their argument and stay within 1."""
    mid = function(x.mid)
    reach = torch.maximum(x.high - x.mid, x.mid - x.low)
    image = Interval(mid, (mid - reach).clamp(min=-1.0), (mid + reach).clamp(max=1.0))
    return image.unlimited(~reach.isfinite())


def power(x: Interval, y: Interval) -> Interval:
    """x to the y. A base that may be negative needs an exponent that is a natural number."""
    values = corners(torch.pow, x, y)
    values.append(torch.where(may_be_zero(x), 0.0, values[0]))
    natural = (y.low == y.high) & (y.low >= 0) & (y.low == y.low.floor())
    zero_to_zero = may_be_zero(x) & (y.low <= 0)
    return hull(torch.pow(x.mid, y.mid), values).unlimited(((x.low < 0) & ~natural) | (zero_to_zero & ~natural))


def compare(predicate: Real, x: Interval, y: Interval) -> Interval:
    """The truth of a comparison: certain only if it is the same wherever in their limits x and y are."""
    separate = (x.high < y.low) | (y.high < x.low)
    points = (x.low == x.high) & (y.low == y.high) & x.low.isfinite() & y.low.isfinite()
    truth, certain = predicate(x.mid, y.mid), separate | points
    return Interval(truth, truth & certain, truth | ~certain)


def select(condition: Interval, x: Interval, y: Interval) -> Interval:
    """x where `condition` is true, y where it is false, either where it is not certain."""
    mid = torch.where(condition.mid, x.mid, y.mid)
    either_low, either_high = torch.minimum(x.low, y.low), torch.maximum(x.high, y.high)
    low = torch.where(condition.low, x.low, torch.where(condition.high, either_low, y.low))
    high = torch.where(condition.low, x.high, torch.where(condition.high, either_high, y.high))
    return Interval(mid, low, high)


def logical(function: Real, x: Interval, y: Interval) -> Interval:
    """And, or: functions of truth values that never decrease."""
    return Interval(function(x.mid, y.mid), function(x.low, y.low), function(x.high, y.high))


def exclusive_or(x: Interval, y: Interval) -> Interval:
    certain = (x.low == x.high) & (y.low == y.high)
    truth = x.mid ^ y.mid
    return Interval(truth, truth & certain, truth | ~certain)
