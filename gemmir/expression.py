"""
Epilogues as Python expressions: scalar arithmetic in f32 on the accumulator of a product.

    y = p.matmul(x, w)
    y = (y + bias.by("column")).silu()
    p.output(y.cast("bf16"))

An `Expression` is immutable plain data. Nothing here knows the IR: `flatten` gives the steps in order, and
`gemmir.program_ir` writes them down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gemmir.dtypes import BY_TORCH_NAME, DTYPES, DType
from gemmir.errors import InputError
from gemmir.matmul_rules import EPILOGUE_KINDS, RESULT_DTYPES, names

MAX_STEPS = 1024
"""More scalar operations than an epilogue can sensibly have."""

MAX_CONSTANT = 3.4028234663852886e38
"""The largest f32."""


@dataclass(frozen=True, slots=True)
class Input:
    """
    A tensor argument of a program: `shape` with None where a dimension is known only at run time.

    `by` makes it an operand of an epilogue.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: DType

    def by(self, kind: str) -> Expression:
        """
        One element of this tensor for each element of the result, as f32.

        `kind` says how it spreads: "column" (shape N: one value a column, a bias), "row" (shape M), "element"
        (shape M x N) or "scalar" (rank 0).
        """
        if kind not in EPILOGUE_KINDS:
            rule = f"one of {', '.join(EPILOGUE_KINDS)}"
            raise InputError("GMR-I009", f"{self.name}.by({kind!r:.40})", rule=rule, fix='use by("column") for a bias')
        return Expression("operand", operand=self, kind=kind)


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """
    A scalar f32 value: the accumulator of a product, an operand, a constant, or an operation on such.

    Supports + - * / and negation, with numbers too. NaN propagates through `maximum`, `minimum` and `relu`.
    """

    op: str
    args: tuple[Expression, ...] = ()
    value: float | None = None
    operand: Input | None = None
    kind: str | None = None
    product: object | None = None
    """The product whose accumulator this is; the builder's record of it."""

    def __add__(self, other: Expression | float) -> Expression:
        return _binary("add", self, other)

    def __radd__(self, other: float) -> Expression:
        return _binary("add", other, self)

    def __sub__(self, other: Expression | float) -> Expression:
        return _binary("sub", self, other)

    def __rsub__(self, other: float) -> Expression:
        return _binary("sub", other, self)

    def __mul__(self, other: Expression | float) -> Expression:
        return _binary("mul", self, other)

    def __rmul__(self, other: float) -> Expression:
        return _binary("mul", other, self)

    def __truediv__(self, other: Expression | float) -> Expression:
        return _binary("div", self, other)

    def __rtruediv__(self, other: float) -> Expression:
        return _binary("div", other, self)

    def __neg__(self) -> Expression:
        return Expression("neg", (self,))

    def maximum(self, other: Expression | float) -> Expression:
        return _binary("maximum", self, other)

    def minimum(self, other: Expression | float) -> Expression:
        return _binary("minimum", self, other)

    def exp(self) -> Expression:
        return Expression("exp", (self,))

    def tanh(self) -> Expression:
        return Expression("tanh", (self,))

    def relu(self) -> Expression:
        """max(x, 0)."""
        return self.maximum(0.0)

    def sigmoid(self) -> Expression:
        """1 / (1 + exp(-x))."""
        return 1.0 / ((-self).exp() + 1.0)

    def silu(self) -> Expression:
        """x / (1 + exp(-x))."""
        return self / ((-self).exp() + 1.0)

    def gelu_tanh(self) -> Expression:
        """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), torch's GELU with approximate="tanh"."""
        inner = self + self * self * self * 0.044715
        return self * 0.5 * ((inner * math.sqrt(2.0 / math.pi)).tanh() + 1.0)

    def cast(self, dtype: object) -> Result:
        """Round to the element type of the result, to nearest even. `dtype`: MLIR name, torch dtype or torch name."""
        if (found := find_dtype(dtype, "cast")) not in RESULT_DTYPES:
            rule = f"the result is one of {names(RESULT_DTYPES)}"
            raise InputError("GMR-I001", f"cast to {found}", rule=rule, fix='cast("bf16")')
        return Result(self, found)


@dataclass(frozen=True, slots=True)
class Result:
    """What a program returns: an expression, rounded to `dtype`."""

    expression: Expression
    dtype: DType


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a flattened expression; `args` are numbers of earlier steps."""

    op: str
    args: tuple[int, ...] = ()
    value: float | None = None
    operand: str | None = None
    kind: str | None = None


def _binary(op: str, left: Expression | float, right: Expression | float) -> Expression:
    return Expression(op, (_expression(left), _expression(right)))


def _expression(value: object) -> Expression:
    if isinstance(value, Expression):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Expression("constant", value=_finite(value))
    raise InputError(
        "GMR-I005",
        f"{type(value).__name__} in an epilogue",
        rule="epilogues combine a product, numbers and input.by(...)",
        fix='use input.by("column"), "row", "element" or "scalar" for a tensor',
    )


def _finite(value: float) -> float:
    if abs(value) <= MAX_CONSTANT:
        return float(value)
    raise InputError("GMR-I009", "a constant that is not a finite f32", rule="constants are finite", fix="rescale it")


def find_dtype(dtype: object, where: str) -> DType:
    """The element type called `dtype`: MLIR name, torch name or torch dtype. `InputError` (GMR-I001) if none is."""
    name = dtype.name if isinstance(dtype, DType) else str(dtype).removeprefix("torch.")
    if (found := DTYPES.get(name) or BY_TORCH_NAME.get(name)) is not None:
        return found
    rule = f"one of {', '.join(DTYPES)}, or torch's {', '.join(BY_TORCH_NAME)}"
    raise InputError("GMR-I001", f"{where}: dtype {name!r:.40}", rule=rule, fix='use "bf16" or "f8E4M3FN"')


def flatten(expression: Expression) -> tuple[Step, ...]:
    """The operations of `expression`, each once, arguments first. `InputError` (GMR-I009) if there are too many."""
    numbers: dict[int, int] = {}
    steps: list[Step] = []
    pending = [expression]
    while pending:
        node = pending[-1]
        waiting = [arg for arg in node.args if id(arg) not in numbers]
        if id(node) not in numbers and waiting:
            pending += reversed(waiting)
            continue
        pending.pop()
        if id(node) in numbers:
            continue
        numbers[id(node)] = len(steps)
        name = None if node.operand is None else node.operand.name
        steps.append(Step(node.op, tuple(numbers[id(a)] for a in node.args), node.value, name, node.kind))
        if len(steps) > MAX_STEPS:
            what = f"an epilogue of more than {MAX_STEPS} operations"
            raise InputError(
                "GMR-I009", what, rule="an epilogue is a few scalar operations", fix="use a kernel after it"
            )
    return tuple(steps)


def leaves(expression: Expression) -> tuple[Expression, ...]:
    """The accumulators and operands in `expression`, each object once, in the order of `flatten`."""
    seen: set[int] = set()
    found: list[Expression] = []
    pending = [expression]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if not node.args and node.op != "constant":
            found.append(node)
        pending += reversed(node.args)
    return tuple(found)
