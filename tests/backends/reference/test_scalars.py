"""Scalar ops of epilogues against independent evaluation in Python floats, and their corner cases."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from xdsl.dialects import arith
from xdsl.dialects import math as math_dialect
from xdsl.dialects.builtin import BFloat16Type, Float32Type, f32
from xdsl.ir import Block

from gemmir.backends.reference.scalars import SCALAR_OPS, evaluate, fma
from gemmir.errors import UnsupportedError

CPU = torch.device("cpu")
NAN, INF = math.nan, math.inf
VALUES = [0.0, -0.0, 1.0, -1.0, 0.1, -2.5, 3.75, 1e-3, 17.0]

BINARY = {
    arith.AddfOp: lambda x, y: x + y,
    arith.SubfOp: lambda x, y: x - y,
    arith.MulfOp: lambda x, y: x * y,
    arith.MaximumfOp: max,
    arith.MinimumfOp: min,
    arith.MaxnumfOp: max,
    arith.MinnumfOp: min,
}
UNARY = {
    arith.NegfOp: lambda x: -x,
    math_dialect.AbsFOp: abs,
    math_dialect.ExpOp: math.exp,
    math_dialect.Exp2Op: lambda x: 2.0**x,
    math_dialect.ExpM1Op: math.expm1,
    math_dialect.TanhOp: math.tanh,
    math_dialect.ErfOp: math.erf,
    math_dialect.SinOp: math.sin,
    math_dialect.CosOp: math.cos,
    math_dialect.FloorOp: math.floor,
    math_dialect.CeilOp: math.ceil,
    math_dialect.TruncOp: math.trunc,
    math_dialect.RoundEvenOp: round,
}
POSITIVE = {
    math_dialect.SqrtOp: math.sqrt,
    math_dialect.RsqrtOp: lambda x: 1 / math.sqrt(x),
    math_dialect.LogOp: math.log,
    math_dialect.Log2Op: math.log2,
    math_dialect.Log10Op: math.log10,
    math_dialect.Log1pOp: math.log1p,
}


def values(types=(f32, f32, f32)):
    return Block(arg_types=types).args


def single(x: float) -> float:
    return float(np.float32(x))


def apply(op, *numbers, dtype=torch.float32) -> float:
    return evaluate(op, [torch.tensor(x, dtype=dtype) for x in numbers], CPU).item()


@pytest.mark.parametrize("kind", BINARY, ids=lambda kind: kind.name)
def test_binary_ops_round_once(kind):
    op = kind(*values()[:2])
    for x, y in itertools.product(map(single, VALUES), repeat=2):
        assert apply(op, x, y) == single(BINARY[kind](x, y))


@pytest.mark.parametrize("kind", UNARY, ids=lambda kind: kind.name)
def test_unary_ops_round_once(kind):
    op = kind(values()[0])
    for x in map(single, VALUES):
        assert apply(op, x) == single(UNARY[kind](x))


@pytest.mark.parametrize("kind", POSITIVE, ids=lambda kind: kind.name)
def test_ops_on_positive_numbers(kind):
    op = kind(values()[0])
    for x in map(single, (0.1, 1.0, 2.0, 3.75, 1e-30, 1e30)):
        assert apply(op, x) == single(POSITIVE[kind](x))
    assert math.isnan(apply(op, -2.0))


def test_division_and_powers():
    divide, power = arith.DivfOp(*values()[:2]), math_dialect.PowFOp(*values()[:2])
    assert apply(divide, 1.0, 3.0) == single(1 / 3)
    assert apply(divide, 1.0, 0.0) == INF
    assert math.isnan(apply(divide, 0.0, 0.0))
    assert apply(power, -2.0, 3.0) == -8.0
    assert apply(power, 2.0, 0.5) == single(math.sqrt(2))


def test_maximum_propagates_nan_and_maxnum_does_not():
    two = values()[:2]
    for x, y in ((NAN, 1.0), (1.0, NAN)):
        assert math.isnan(apply(arith.MaximumfOp(*two), x, y))
        assert math.isnan(apply(arith.MinimumfOp(*two), x, y))
        assert apply(arith.MaxnumfOp(*two), x, y) == 1.0
        assert apply(arith.MinnumfOp(*two), x, y) == 1.0


def test_maximum_orders_zeros():
    two = values()[:2]
    for x, y in ((0.0, -0.0), (-0.0, 0.0)):
        assert math.copysign(1, apply(arith.MaximumfOp(*two), x, y)) == 1
        assert math.copysign(1, apply(arith.MinimumfOp(*two), x, y)) == -1


def test_fma_is_rounded_once():
    x = single(1 + 2.0**-12)
    assert apply(math_dialect.FmaOp(*values()), x, x, -1.0) == 2.0**-11 + 2.0**-24
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(20000, generator=generator) for _ in range(3))
    c *= torch.exp2(torch.randint(-40, 10, (20000,), generator=generator).float())
    got = fma(a, b, c)
    for i in range(0, 20000, 20):
        exact = Fraction(a[i].item()) * Fraction(b[i].item()) + Fraction(c[i].item())
        error = abs(Fraction(got[i].item()) - exact)
        assert error <= abs(Fraction(float(np.spacing(np.float32(got[i].item()))))) / 2
    tie = torch.tensor([1 + 2.0**-12])  # its square lies halfway between two float32 numbers
    assert fma(tie, tie, torch.tensor([2.0**-80])).item() == 1 + 2.0**-11 + 2.0**-23
    assert fma(tie, tie, torch.tensor([-(2.0**-80)])).item() == 1 + 2.0**-11
    assert fma(torch.tensor([INF]), torch.tensor([1.0]), torch.tensor([1.0])).item() == INF


PREDICATES = {
    "false": lambda x, y: False,
    "oeq": lambda x, y: x == y,
    "ogt": lambda x, y: x > y,
    "oge": lambda x, y: x >= y,
    "olt": lambda x, y: x < y,
    "ole": lambda x, y: x <= y,
    "one": lambda x, y: x < y or x > y,
    "ord": lambda x, y: not (math.isnan(x) or math.isnan(y)),
    "ueq": lambda x, y: math.isnan(x) or math.isnan(y) or x == y,
    "ugt": lambda x, y: math.isnan(x) or math.isnan(y) or x > y,
    "uge": lambda x, y: math.isnan(x) or math.isnan(y) or x >= y,
    "ult": lambda x, y: math.isnan(x) or math.isnan(y) or x < y,
    "ule": lambda x, y: math.isnan(x) or math.isnan(y) or x <= y,
    "une": lambda x, y: x != y,
    "uno": lambda x, y: math.isnan(x) or math.isnan(y),
    "true": lambda x, y: True,
}


@pytest.mark.parametrize("predicate", PREDICATES)
def test_every_comparison(predicate):
    op = arith.CmpfOp(*values()[:2], predicate)
    for x, y in itertools.product((-1.0, 0.0, -0.0, 2.0, INF, NAN), repeat=2):
        assert apply(op, x, y) is PREDICATES[predicate](x, y), (predicate, x, y)


def test_conversions_round_to_nearest_even():
    narrow = arith.TruncFOp(values()[0], BFloat16Type())
    assert apply(narrow, 1 + 2.0**-8) == 1.0
    assert apply(narrow, 1 + 3 * 2.0**-8) == 1 + 2.0**-6
    wide = arith.ExtFOp(values((BFloat16Type(),))[0], Float32Type())
    assert apply(wide, 1.0078125, dtype=torch.bfloat16) == 1.0078125


def test_narrow_arithmetic_is_rounded_to_its_type():
    bf16 = BFloat16Type()
    op = arith.AddfOp(*values((bf16, bf16)))
    result = evaluate(op, [torch.tensor(1.0).bfloat16(), torch.tensor(2.0**-9).bfloat16()], CPU)
    assert result.dtype == torch.bfloat16
    assert result.item() == 1.0


def test_the_table_covers_what_the_documentation_promises():
    promised = (
        "arith.addf arith.subf arith.mulf arith.divf arith.negf arith.maximumf arith.minimumf arith.maxnumf "
        "arith.minnumf arith.truncf arith.extf arith.cmpf arith.select math.exp math.tanh math.sqrt math.rsqrt "
        "math.log math.absf math.erf math.powf math.fma math.sin math.cos math.exp2 math.log2"
    )
    assert set(promised.split()) <= {kind.name for kind in SCALAR_OPS}


def test_an_unknown_op_is_refused():
    with pytest.raises(UnsupportedError) as error:
        evaluate(math_dialect.CbrtOp(values()[0]), [torch.tensor(1.0)], CPU)
    assert error.value.code == "GMR-U001"
    assert "math.cbrt" in error.value.what
