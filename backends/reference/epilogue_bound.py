"""
Carries the exact accumulator and its bound through an epilogue, by interval arithmetic op by op.

Every op's real result is limited given the limits of its operands; then the limits are widened by how inexact the op
itself is on the GPU:

- basic ops (+ - * / sqrt fma, conversions) are rounded to nearest: a relative 2^-24 for float32 (2^-11 FP16, 2^-8 BF16)
  and half the smallest subnormal; 0.1% is added for the float64 arithmetic of the limits themselves;
- functions (exp, tanh, erf, ...) are taken as accurate to a relative 2^-22, or 2^-146 for tiny results, which is what
  CUDA documents for its float32 functions (2 units in the last place) with a factor to spare; pow to 2^-20;
- max, min, negation, absolute value, comparison and selection are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from xdsl.dialects import arith, math
from xdsl.dialects.builtin import IntegerType
from xdsl.ir import Attribute, Block, Operation, SSAValue

from gemmir.backends.reference import interval
from gemmir.backends.reference.bound import exact_and_bound
from gemmir.backends.reference.groups import Group, groups_of
from gemmir.backends.reference.interpreter import epilogue_operands, operands_of
from gemmir.backends.reference.interval import Accuracy, Interval, rounded
from gemmir.backends.reference.scalars import PREDICATES, evaluate
from gemmir.dialects.gemm import ProductOp, YieldOp, dtype_of, problem_of
from gemmir.dtypes import BF16, F8E4M3FN, F8E5M2, F16, F32, DType
from gemmir.errors import InputError, UnsupportedError
from gemmir.groups import Span
from gemmir.problem import Grouping

Rule = Callable[..., Interval]

SLACK = 1 + 2.0**-10
ROUNDED: dict[DType, Accuracy] = {
    F32: Accuracy(2.0**-24 * SLACK, 2.0**-150 * SLACK, (2 - 2.0**-23) * 2.0**127),
    BF16: Accuracy(2.0**-8 * SLACK, 2.0**-134 * SLACK, (2 - 2.0**-7) * 2.0**127),
    F16: Accuracy(2.0**-11 * SLACK, 2.0**-25 * SLACK, 65504.0),
    F8E4M3FN: Accuracy(2.0**-4 * SLACK, 2.0**-10 * SLACK, 448.0),
    F8E5M2: Accuracy(2.0**-3 * SLACK, 2.0**-17 * SLACK, 57344.0),
}
FUNCTION = Accuracy(2.0**-22, 2.0**-146, ROUNDED[F32].largest)
POWER = Accuracy(2.0**-20, 2.0**-146, ROUNDED[F32].largest)


def _same(x: Interval) -> Interval:
    return x


def _increasing(function: Callable[..., torch.Tensor]) -> Rule:
    def image(x: Interval) -> Interval:
        return x.map(function)

    return image


BASIC: dict[type[Operation], Rule] = {
    arith.AddfOp: interval.add,
    arith.SubfOp: interval.subtract,
    arith.MulfOp: interval.multiply,
    arith.DivfOp: interval.divide,
    arith.TruncFOp: _same,
    math.FmaOp: interval.fused,
    math.SqrtOp: partial(interval.on_positives, torch.sqrt),
}
"""Rounded once to nearest."""

EXACT: dict[type[Operation], Rule] = {
    arith.ExtFOp: _same,
    arith.NegfOp: interval.negative,
    arith.MaximumfOp: interval.maximum,
    arith.MinimumfOp: interval.minimum,
    arith.MaxnumfOp: interval.maximum,
    arith.MinnumfOp: interval.minimum,
    arith.SelectOp: interval.select,
    arith.AndIOp: partial(interval.logical, torch.logical_and),
    arith.OrIOp: partial(interval.logical, torch.logical_or),
    arith.XOrIOp: interval.exclusive_or,
    math.AbsFOp: interval.absolute,
    math.CopySignOp: interval.copy_sign,
    math.FloorOp: _increasing(torch.floor),
    math.CeilOp: _increasing(torch.ceil),
    math.TruncOp: _increasing(torch.trunc),
    math.RoundEvenOp: _increasing(torch.round),
}

FUNCTIONS: dict[type[Operation], Rule] = {
    math.ExpOp: _increasing(torch.exp),
    math.Exp2Op: _increasing(torch.exp2),
    math.ExpM1Op: _increasing(torch.expm1),
    math.TanhOp: _increasing(torch.tanh),
    math.ErfOp: _increasing(torch.erf),
    math.RsqrtOp: partial(interval.on_positives, torch.rsqrt),
    math.LogOp: partial(interval.on_positives, torch.log),
    math.Log2Op: partial(interval.on_positives, torch.log2),
    math.Log10Op: partial(interval.on_positives, torch.log10),
    math.SinOp: partial(interval.wave, torch.sin),
    math.CosOp: partial(interval.wave, torch.cos),
}
"""Approximated in float32."""


def epilogue_bound(
    op: ProductOp,
    operands: Sequence[torch.Tensor],
    exact: torch.Tensor,
    bound: torch.Tensor,
    groups: Sequence[Group] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The exact result of an epilogue and a bound on |kernel's result - exact|, both float64 (M, N).

    `operands`: the tensors of `op.epilogue_operands`; `exact` and `bound`: of the accumulator, as `exact_and_bound`
    returns them for this op. `groups`: those of a grouped product, from `groups_of`; what none of them writes stays as
    it is. The bound is infinite where the kernel's value cannot be limited, for instance because it divides by
    something that may be zero. Raises `UnsupportedError` GMR-U001 for an op without a rule.
    """
    if op.epilogue is None:
        return exact, bound
    exact, bound = exact.clone(), bound.clone()
    values = dict(zip(op.epilogue_operands, operands, strict=True))
    if groups is None:
        if op.grouping is not Grouping.NONE:
            raise InputError("GMR-I005", f"no groups for {op.name}", rule="they say which operands belong where")
        groups = (Group(Grouping.NONE, Span(0, 0, exact.shape[0], 0, 0)),)
    for group in groups:
        spread_out = epilogue_operands(op, group, values)
        at = group.in_result
        exact[at], bound[at] = _through(op.epilogue.block, spread_out, exact[at], bound[at])
    return exact, bound


def _through(
    block: Block, operands: Sequence[torch.Tensor], exact: torch.Tensor, bound: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact result and bound of one group; `operands` broadcast to its M x N."""
    values: dict[SSAValue, Interval] = {block.args[0]: Interval(exact, exact - bound, exact + bound)}
    for argument, operand in zip(block.args[1:], operands, strict=True):
        values[argument] = Interval.point(operand.double())
    for inner in block.ops:
        if isinstance(inner, YieldOp):
            return _limits(values[inner.value], exact)
        values[inner.results[0]] = _evaluate(inner, [values[operand] for operand in inner.operands], exact.device)
    raise UnsupportedError("GMR-U001", "an epilogue without gemm.yield")


def exact_and_bound_of(op: ProductOp, values: Mapping[SSAValue, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The exact result of `op`, epilogue included, and the bound on how far a kernel may be from it: see
    `exact_and_bound`. `values`: the tensors of its operands, all on one device.
    """
    operands = operands_of(op, values)
    given = (operands.a, operands.b, operands.scale_a, operands.scale_b, operands.c)
    exact, bound = exact_and_bound(problem_of(op), *given, index=operands.index)
    if op.epilogue is None:
        return exact, bound
    groups = groups_of(op.grouping, operands)
    return epilogue_bound(op, [values[v] for v in op.epilogue_operands], exact, bound, groups)


def _limits(result: Interval, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    error = torch.maximum(result.high - result.mid, result.mid - result.low)
    error = torch.where(error.isnan(), torch.inf, error)
    return result.mid.expand_as(like).contiguous(), error.expand_as(like).contiguous()


def _evaluate(op: Operation, operands: Sequence[Interval], device: torch.device) -> Interval:
    if isinstance(op, arith.ConstantOp):
        value = evaluate(op, (), device)
        return Interval.point(value if value.dtype is torch.bool else value.double())
    if isinstance(op, arith.CmpfOp):
        return interval.compare(PREDICATES[op.predicate.value.data], *operands)
    if isinstance(op, math.PowFOp):
        return _approximated(interval.power(*operands), POWER, op.results[0].type)
    if (rule := EXACT.get(type(op))) is not None:
        return rule(*operands)
    if (rule := BASIC.get(type(op))) is not None:
        return rounded(rule(*operands), _rounding(op.results[0].type))
    if (rule := FUNCTIONS.get(type(op))) is not None:
        return _approximated(rule(*operands), FUNCTION, op.results[0].type)
    raise UnsupportedError("GMR-U001", f"no error bound for {op.name} in an epilogue")


def _approximated(x: Interval, accuracy: Accuracy, type: Attribute) -> Interval:
    """Approximated in float32, then rounded if the op's type is narrower."""
    rounding = _rounding(type)
    x = rounded(x, accuracy)
    return x if rounding is ROUNDED[F32] else rounded(x, rounding)


def _rounding(type: Attribute) -> Accuracy:
    if isinstance(type, IntegerType):
        raise UnsupportedError("GMR-U001", f"no error bound for arithmetic on {type}")
    return ROUNDED[dtype_of(type)]
