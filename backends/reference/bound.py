"""
How far a kernel's result may lie from the exact product: a rigorous bound for every single element.

The kernels' arithmetic is known (see `gemmir.numerics`), so no tolerance has to be guessed. The bound is derived term
by term. Hats mark what the kernel computes; letters without a hat are exact. u = 2^-24 is the rounding unit of float32.

TENSOR CORE. The sum c of one stretch of K and its error E: see `gemmir.backends.reference.tensor_core`.

PROMOTION, after every `promote_every` elements of K. The kernel computes s^ = fl(sa * sb) and t^' = fl(s^ * c^ + t^):

    T  = E_t + (1 + 2u) |s| E + u |s| |c|      |s^ c^ - s c| <= |s^| |c^ - c| + |s^ - s| |c|, |s^| <= (1 + u) |s|
    E' = T + u (|t'| + T)                      the one rounding of the fma

Below 2^-126 a rounding is off by at most 2^-150 instead. For s^, |s| is therefore taken as no less than 2^-126; for
the others 2^-150 is added for each. Scales that do not change along K (tensor, row) may be applied at each promotion or
once at the end: the errors of both ways are added up. Without scales the promotion is an addition and s = 1; without
promotion there is one stretch, and no rounding unless there is a scale.

SPLIT K. The sums of the parts of K are added one by one in float32: E' = T + u (|t + p| + T), T = E_t + E_p.

OPERAND C is added in float32: E' = E + u (|t + c| + E) + 2^-150.

RESULT. Rounding to BF16 adds 2^-8 (|t| + E) + 2^-134, to FP16 2^-11 (|t| + E) + 2^-25 (half the smallest subnormal),
to float32 nothing.

FLOAT64. The exact side is computed in float64: off by at most (K + 8) 2^-53 sum |s p_i|. In every chunk |p_i| < 4P
while T grows by at least 2^-F P, so the sum of the k |p_i| is at most 4 k 2^F <= 2^31 times that growth, and float64 is
off by at most (K + 8) 2^-22 of the bound. The bound's own arithmetic errs by less than K 2^-48 of itself. A factor
1 + (K + 64) 2^-22 covers both.

OVERFLOW. Where chunk * sum over chunks of max |a| * max |b| (stored or scaled) reaches 2^127 a partial sum could leave
the range of float32. There, and where the result could leave the range of its type, the bound is infinite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gemmir.backends.reference.checks import check_operands
from gemmir.backends.reference.groups import Operands, products_of, result_shape
from gemmir.backends.reference.scaling import scale_per_row
from gemmir.backends.reference.tensor_core import Approximation, tensor_core_sum, zeros
from gemmir.backends.reference.tensor_core import Operands as PanelOperands
from gemmir.dtypes import BF16, F16, F32, DType
from gemmir.errors import UnsupportedError
from gemmir.matmul_rules import is_block_wise
from gemmir.problem import SCALE_BLOCK, GemmProblem, Recipe

U = 2.0**-24
"""Half a unit in the last place of float32, relative."""
TINY = 2.0**-150
"""Half the smallest subnormal of float32."""
SMALLEST_NORMAL = 2.0**-126
OVERFLOW = 2.0**127
PANEL_ELEMENTS = 1 << 24
"""Elements of one panel of the result: some ten float64 buffers of 128 MiB."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """Rounding float32 to a result type: relative unit, half the smallest subnormal, the largest finite number."""

    unit: float
    tiny: float
    largest: float


ROUNDINGS: dict[DType, Rounding] = {
    BF16: Rounding(2.0**-8, 2.0**-134, (2 - 2.0**-7) * 2.0**127),
    F16: Rounding(2.0**-11, 2.0**-25, 65504.0),
    F32: Rounding(0.0, 0.0, (2 - 2.0**-23) * 2.0**127),
}


@dataclass(frozen=True, slots=True)
class Panel:
    """Some rows of a problem, with a row of scales for each row of A and each column of B: see `scale_per_row`."""

    problem: GemmProblem
    operands: PanelOperands
    scale_a: torch.Tensor | None
    scale_b: torch.Tensor | None

    @property
    def stretch(self) -> int:
        """Elements of K between promotions; all of them if there are none."""
        return self.problem.numerics.promote_every or max(1, self.problem.k)

    @property
    def stretches(self) -> int:
        """How many there are in all parts of K."""
        return sum(-(-len(part) // self.stretch) for part in self.problem.parts)

    @property
    def block_wise(self) -> bool:
        return is_block_wise(self.problem.scale_a) or is_block_wise(self.problem.scale_b)

    @property
    def scaled(self) -> bool:
        return self.scale_a is not None or self.scale_b is not None

    def scales(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The float64 scales that hold at element `k` of K: (rows, 1) or scalar, and (1, N) or scalar."""
        left = self._scale_at(self.scale_a, self.problem.scale_a, k)
        return left, self._scale_at(self.scale_b, self.problem.scale_b, k).t()

    def _scale_at(self, scale: torch.Tensor | None, recipe: Recipe, k: int) -> torch.Tensor:
        if scale is None:
            return torch.ones((), dtype=torch.float64, device=self.operands.a.device)
        if is_block_wise(recipe):
            scale = scale[:, k // SCALE_BLOCK, None]
        return scale.double()


def exact_and_bound(
    problem: GemmProblem,
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    *,
    index: torch.Tensor | None = None,
    rows_per_panel: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The exact product, and an element-wise bound on |kernel's result - exact|.

    `a`: (M, K); `b`: (K, N); scales: float32 in the shapes of `gemmir.problem.Recipe`; `c`: (M, N) or None; any
    strides, all on one device, where the work is done too. Returns two float64 tensors (M, N): dequantised A @ B + C,
    and the bound, which includes the rounding to `problem.d`. If the problem has an epilogue both are those of the
    float32 accumulator that enters it: `epilogue_bound` carries them through.

    Of several groups all have the shapes of `gemmir.matmul_rules.DIMS`, and `index` says which elements are whose.
    Elements that no group writes may hold anything: 0 is expected there, with an infinite bound.

    The work goes by panels of `rows_per_panel` rows (default: what keeps the buffers under 2 GiB). Raises
    `InputError` for tensors that do not fit the problem and `UnsupportedError` for numerics without a derivation.
    """
    whole = Operands(a, b, scale_a, scale_b, c, index)
    check_operands(problem, whole)
    _check_numerics(problem)
    exact = torch.zeros(result_shape(problem.grouping, whole), dtype=torch.float64, device=a.device)
    bound = torch.full_like(exact, torch.inf)
    for group, product, part in products_of(problem, whole):
        exact[group.in_result], bound[group.in_result] = _of_one(product, part, rows_per_panel)
    return exact, bound


def _of_one(problem: GemmProblem, whole: Operands, rows_per_panel: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact result and bound of one product."""
    m, n = whole.a.shape[0], whole.b.shape[1]
    left = None if whole.scale_a is None else scale_per_row(whole.scale_a, problem.scale_a, m)
    right = None if whole.scale_b is None else scale_per_row(whole.scale_b.t(), problem.scale_b, n)
    exact = torch.empty((m, n), dtype=torch.float64, device=whole.a.device)
    bound = torch.empty_like(exact)
    rows = rows_per_panel or max(SCALE_BLOCK, PANEL_ELEMENTS // max(1, n) // SCALE_BLOCK * SCALE_BLOCK)
    for first in range(0, m, rows):
        span = slice(first, min(first + rows, m))
        panel = PanelOperands(whole.a[span], whole.b, problem.a, problem.b)
        rows_left = left if left is None or left.dim() == 0 else left[span]
        total = _accumulate(Panel(problem, panel, rows_left, right))
        if whole.c is not None:
            _add(total, whole.c[span])
        _finish(problem, total)
        exact[span], bound[span] = total.value, total.error
    return exact, bound


def _check_numerics(problem: GemmProblem) -> None:
    every, chunk = problem.numerics.promote_every, problem.numerics.instruction_k
    if problem.d not in ROUNDINGS:
        raise UnsupportedError("GMR-U001", f"no error bound for results of type {problem.d}")
    if is_block_wise(problem.scale_a) or is_block_wise(problem.scale_b):
        fits = every is not None and SCALE_BLOCK % every == 0 and every % chunk == 0
    else:
        fits = every is None or every % chunk == 0
    if not fits:
        raise UnsupportedError(
            "GMR-U001",
            f"no error bound for {problem.numerics} with scales {problem.scale_a.value} x {problem.scale_b.value}",
            rule="a promotion ends a whole number of instructions, and at every change of a scale along K",
            fix="use promote_every = 128",
        )


def _accumulate(panel: Panel) -> Approximation:
    """A @ B with its scales: the parts of K, one after the other."""
    problem = panel.problem
    total, *others = (_accumulate_part(panel, part) for part in problem.parts)
    for part in others:
        total.value.add_(part.value)
        total.error.add_(part.error).mul_(1 + U).add_(total.value.abs(), alpha=U)
    if panel.scaled and not panel.block_wise and problem.k > 0:
        _scale(total, panel.scales(0))
    total.error.add_((panel.stretches + 4) * TINY if panel.scaled or problem.promoted else 0.0)
    if problem.k > 0:
        total.error.masked_fill_(_reach(panel) >= OVERFLOW, torch.inf)
    return total


def _accumulate_part(panel: Panel, part: range) -> Approximation:
    """The sum over the elements `part` of K: its stretches, promoted one after the other."""
    problem, stretch = panel.problem, panel.stretch
    total = zeros(panel.operands, -(-len(part) // stretch) * TINY)
    for first in range(part.start, part.stop, stretch):
        partial = tensor_core_sum(panel.operands, first, min(first + stretch, part.stop))
        if not problem.promoted:
            total = partial
        elif panel.block_wise:
            _promote(total, partial, panel.scales(first), scaled=True)
        else:
            _promote(total, partial, None, scaled=panel.scaled)
    return total


def _promote(
    total: Approximation, partial: Approximation, scales: tuple[torch.Tensor, torch.Tensor] | None, *, scaled: bool
) -> None:
    """`total` += `partial` * scales, as one fma. Uses up `partial`. `scaled`: a product is rounded somewhere."""
    if scaled:
        partial.error.mul_(1 + 2 * U).add_(partial.value.abs(), alpha=U)
    if scales is not None:
        left, right = scales
        partial.value.mul_(left).mul_(right)
        partial.error.mul_(_at_least_normal(left, right)).mul_(right.abs())
    total.value.add_(partial.value)
    total.error.add_(partial.error).mul_(1 + U).add_(total.value.abs(), alpha=U)


def _scale(total: Approximation, scales: tuple[torch.Tensor, torch.Tensor]) -> None:
    """`total` *= scales: the product of the scales is rounded, and so is the product with it."""
    left, right = scales
    total.error.mul_(1 + 2 * U).add_(total.value.abs(), alpha=U)
    total.value.mul_(left).mul_(right)
    total.error.mul_(_at_least_normal(left, right)).mul_(right.abs())
    total.error.mul_(1 + U).add_(total.value.abs(), alpha=U)


def _at_least_normal(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """|left|, raised so that no product with a non-zero entry of `right` is below 2^-126. Zeros stay zero."""
    size = right.abs()
    smallest = torch.where(size == 0, torch.inf, size).amin() if size.numel() else size.new_ones(())
    raised = torch.maximum(left.abs(), SMALLEST_NORMAL / smallest)
    return torch.where(left == 0, 0.0, raised)


def _add(total: Approximation, c: torch.Tensor) -> None:
    """`total` += `c` in float32."""
    total.value.add_(c.double())
    total.error.mul_(1 + U).add_(total.value.abs(), alpha=U).add_(TINY)


def _finish(problem: GemmProblem, total: Approximation) -> None:
    """Round to the result type, unless an epilogue comes first, and pay for float64."""
    rounding = ROUNDINGS[F32 if problem.has_epilogue else problem.d]
    if rounding.unit:
        total.error.mul_(1 + rounding.unit).add_(total.value.abs(), alpha=rounding.unit).add_(rounding.tiny)
    total.error.mul_(1 + (problem.k + 64) * 2.0**-22)
    total.error.masked_fill_(total.value.abs().add_(total.error) > rounding.largest, torch.inf)


def _reach(panel: Panel) -> torch.Tensor:
    """An upper limit of the size of everything that the kernel computes on the way to each element; (rows, N)."""
    chunk = panel.operands.core.k
    rows, columns, scaled_rows, scaled_columns = [], [], [], []
    for k in range(0, panel.problem.k, chunk):
        row = panel.operands.a[:, k : k + chunk].float().abs().amax(1, keepdim=True).double()
        column = panel.operands.b[k : k + chunk].float().abs().amax(0, keepdim=True).double()
        left, right = panel.scales(k)
        rows.append(row)
        columns.append(column)
        scaled_rows.append(row.clamp(min=1.0) * left.abs())  # the product of the scales alone must not overflow either
        scaled_columns.append(column.clamp(min=1.0) * right.abs())
    reach = torch.cat(rows, 1) @ torch.cat(columns)
    if panel.scaled:
        reach = torch.maximum(reach, torch.cat(scaled_rows, 1) @ torch.cat(scaled_columns))
    return reach.mul_(chunk)
