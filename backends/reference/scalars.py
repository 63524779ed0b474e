"""
What the scalar ops of an epilogue mean: one function on torch tensors for each `arith` and `math` op.

Every op is rounded once to the type of its result, to nearest even. Basic operations (+ - * / sqrt) on float32 are done
in float32, where torch rounds them correctly. Functions such as exp are evaluated in float64 and then rounded. Types
narrower than float32 are computed in float32 and rounded: for basic operations that is the same as rounding once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from xdsl.dialects import arith, math
from xdsl.dialects.builtin import FloatAttr, IntegerAttr, IntegerType
from xdsl.ir import Attribute, Operation

from gemmir.backends.reference.checks import torch_dtype
from gemmir.dialects.gemm import dtype_of
from gemmir.errors import UnsupportedError

Values = Sequence[torch.Tensor]
Evaluate = Callable[[Operation, Values], torch.Tensor]
Function = Callable[..., torch.Tensor]


def scalar_dtype(type: Attribute) -> torch.dtype:
    """The torch type that holds scalars of an IR type; `UnsupportedError` unless it is a float or i1."""
    if not isinstance(type, IntegerType):
        return torch_dtype(dtype_of(type))
    if type.width.data != 1:
        raise UnsupportedError("GMR-U001", f"epilogues do not compute with {type}", rule="values are floats or i1")
    return torch.bool


def evaluate(op: Operation, operands: Values, device: torch.device) -> torch.Tensor:
    """
    The result of one scalar op, element by element: `operands` broadcast against each other.

    Constants become scalars on `device`. Raises `UnsupportedError` GMR-U001 for an op that is not in `SCALAR_OPS`.
    """
    if isinstance(op, arith.ConstantOp):
        return _constant(op, device)
    if (function := SCALAR_OPS.get(type(op))) is None:
        raise UnsupportedError("GMR-U001", f"{op.name} in an epilogue", rule="the reference does not know this op")
    return function(op, operands)


def _constant(op: arith.ConstantOp, device: torch.device) -> torch.Tensor:
    dtype = scalar_dtype(op.result.type)
    if isinstance(op.value, FloatAttr):
        return torch.tensor(op.value.value.data, dtype=torch.float64, device=device).to(dtype)
    if isinstance(op.value, IntegerAttr):
        return torch.tensor(op.value.value.data != 0, device=device)
    raise UnsupportedError(
        "GMR-U001", f"{op.name} of type {op.result.type} in an epilogue", rule="constants are scalars"
    )


def _through(wide: torch.dtype, function: Function) -> Evaluate:
    """Compute `function` in the type `wide` and round to the result type."""

    def run(op: Operation, operands: Values) -> torch.Tensor:
        return function(*(x.to(wide) for x in operands)).to(scalar_dtype(op.results[0].type))

    return run


def _basic(function: Function) -> Evaluate:
    return _through(torch.float32, function)


def _smooth(function: Function) -> Evaluate:
    return _through(torch.float64, function)


def _maximum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """NaN if either is NaN; +0 is larger than -0."""
    return torch.where((x == 0) & (y == 0), x + y, torch.maximum(x, y))


def _minimum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -_maximum(-x, -y)


def fma(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """x * y + z of float32 tensors, rounded once to nearest even."""
    product = x.double() * y.double()  # exact: 48 bits
    addend = z.double()
    total = product + addend
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    bits = total.view(torch.int64)
    outward = torch.where((lost > 0) == (total > 0), 1, -1)
    odd = torch.where((lost != 0) & lost.isfinite() & (bits & 1 == 0), bits + outward, bits)
    return odd.view(torch.float64).float()  # rounding to odd first makes the second rounding the only one


PREDICATES: tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], ...] = (
    lambda x, y: torch.zeros_like(x == y),
    lambda x, y: x == y,
    lambda x, y: x > y,
    lambda x, y: x >= y,
    lambda x, y: x < y,
    lambda x, y: x <= y,
    lambda x, y: (x < y) | (x > y),
    lambda x, y: (x == x) & (y == y),
    lambda x, y: ~((x < y) | (x > y)),
    lambda x, y: ~(x <= y),
    lambda x, y: ~(x < y),
    lambda x, y: ~(x >= y),
    lambda x, y: ~(x > y),
    lambda x, y: x != y,
    lambda x, y: (x != x) | (y != y),
    lambda x, y: torch.ones_like(x == y),
)
"""By number, as in `arith.cmpf`: false oeq ogt oge olt ole one ord ueq ugt uge ult ule une uno true."""


def _compare(op: Operation, operands: Values) -> torch.Tensor:
    assert isinstance(op, arith.CmpfOp)
    x, y = (value.float() for value in operands)
    return PREDICATES[op.predicate.value.data](x, y)


def _select(_: Operation, operands: Values) -> torch.Tensor:
    condition, x, y = operands
    return torch.where(condition, x, y)


def _convert(op: Operation, operands: Values) -> torch.Tensor:
    return operands[0].to(scalar_dtype(op.results[0].type))


SCALAR_OPS: dict[type[Operation], Evaluate] = {
    arith.AddfOp: _basic(torch.add),
    arith.SubfOp: _basic(torch.sub),
    arith.MulfOp: _basic(torch.mul),
    arith.DivfOp: _basic(torch.div),
    arith.NegfOp: _basic(torch.neg),
    arith.MaximumfOp: _basic(_maximum),
    arith.MinimumfOp: _basic(_minimum),
    arith.MaxnumfOp: _basic(torch.fmax),
    arith.MinnumfOp: _basic(torch.fmin),
    arith.CmpfOp: _compare,
    arith.SelectOp: _select,
    arith.TruncFOp: _convert,
    arith.ExtFOp: _convert,
    arith.AndIOp: lambda _, xy: torch.logical_and(*xy),
    arith.OrIOp: lambda _, xy: torch.logical_or(*xy),
    arith.XOrIOp: lambda _, xy: torch.logical_xor(*xy),
    math.FmaOp: _basic(fma),
    math.AbsFOp: _basic(torch.abs),
    math.SqrtOp: _basic(torch.sqrt),
    math.FloorOp: _basic(torch.floor),
    math.CeilOp: _basic(torch.ceil),
    math.TruncOp: _basic(torch.trunc),
    math.RoundEvenOp: _basic(torch.round),
    math.CopySignOp: _basic(torch.copysign),
    math.RsqrtOp: _smooth(torch.rsqrt),
    math.ExpOp: _smooth(torch.exp),
    math.Exp2Op: _smooth(torch.exp2),
    math.ExpM1Op: _smooth(torch.expm1),
    math.LogOp: _smooth(torch.log),
    math.Log2Op: _smooth(torch.log2),
    math.Log10Op: _smooth(torch.log10),
    math.Log1pOp: _smooth(torch.log1p),
    math.SinOp: _smooth(torch.sin),
    math.CosOp: _smooth(torch.cos),
    math.TanhOp: _smooth(torch.tanh),
    math.ErfOp: _smooth(torch.erf),
    math.PowFOp: _smooth(torch.pow),
}
"""The meaning of each op, given the op and its operands' values."""
