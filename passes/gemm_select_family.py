"""
`gemm-select-family`: choose the kernel family, or say what none of them computes yet.

    gemm.matmul %x, %w ...                                      // before
    gemm.matmul %x, %w ... schedule <family = tiles>            // after

`tiles` computes all that a kernel computes. `stream` is for few rows, and is taken where the cost model says that its
best tile is faster than the best of `tiles`, or hardly slower (see `OPTIMISM`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gemmir.decisions import Decision, record
from gemmir.dialects.gemm import ProductOp, tensor_info
from gemmir.dtypes import F32
from gemmir.errors import ScheduleError, UnsupportedError
from gemmir.passes.block_search import Candidate
from gemmir.passes.schedule_pass import named_option, read_schedule, write_schedule
from gemmir.passes.stream_search import search_family
from gemmir.problem import SCALE_BLOCK, GemmProblem, Grouping, Recipe
from gemmir.schedule import Family, Schedule
from gemmir.stream_legality import MAX_BLOCK_M, MAX_PARTS
from gemmir.target import MOST_EXTENT, SM_90A

ELSEWHERE = "runs on: --backend reference"


@dataclass(frozen=True, slots=True)
class Unlowered:
    """A feature that no family computes, the rule, and the nearest thing that one does."""

    what: str
    rule: str
    fix: str


def _scaling(p: GemmProblem) -> Unlowered | None:
    blocks = Recipe.BLOCK_WISE_128X128, Recipe.BLOCK_WISE_1X128
    wanted = [(Recipe.BLOCK_WISE_1X128, b) for b in blocks] if p.a.is_fp8 else [(Recipe.NONE, Recipe.NONE)]
    if (p.scale_a, p.scale_b) in wanted:
        return None
    kind = (
        "FP8 operands are scaled by 1x128 and by 128x128 or 1x128" if p.a.is_fp8 else "16-bit operands are not scaled"
    )
    fix = "scale by 1x128, 128x128" if p.a.is_fp8 else "leave the scales out"
    return Unlowered(f"{p.a} operands with scales {p.scale_a.value} x {p.scale_b.value}", kind, fix)


def _promotion(p: GemmProblem) -> Unlowered | None:
    wanted = SCALE_BLOCK if p.a.is_fp8 else None
    if p.numerics.promote_every == wanted:
        return None
    every = p.numerics.promote_every
    what = f"{p.a} operands with promote_every = {'none' if every is None else every}"
    if p.a.is_fp8:
        return Unlowered(what, "block-wise scaled sums are promoted every 128 elements of K", "leave numerics out")
    return Unlowered(what, "16-bit operands are summed in the tensor core only", "leave numerics out")


def _split_k(p: GemmProblem) -> Unlowered | None:
    if (parts := p.numerics.split_k) <= MAX_PARTS:
        return None
    rule = f"a cluster of at most {MAX_PARTS} CTAs sums the parts of K of a tile, one each"
    return Unlowered(f"split_k = {parts}", rule, f"use split_k = {MAX_PARTS}")


def _whole_k_only(p: GemmProblem) -> Unlowered | None:
    """Forms that products whose K is split do not have."""
    if p.numerics.split_k == 1:
        return None
    forms = {
        f"result {p.d}": p.d == F32,
        "an operand C": p.has_c,
        "scales 1x128 x 1x128": p.column_scales,
        f"layout <a = {p.a_major}, b = {p.b_major}>": (p.a_major, p.b_major) != ("k", "k"),
    }
    rule = "such kernels give 16-bit results of k-major operands, with 128x128 scales or none, and without C"
    named = (Unlowered(f"{form} with split_k", rule, "leave split_k out") for form, found in forms.items() if found)
    return next(named, None)


def _epilogue(p: GemmProblem) -> Unlowered | None:
    if not p.has_epilogue:
        return None
    return Unlowered("an epilogue region", "the result is the rounded accumulator", "apply it to the result")


def _extents(p: GemmProblem) -> Unlowered | None:
    sizes = {"M": p.m or 0, "N": p.n, "K": p.k}
    rule = f"coordinates are 32-bit integers, and tiles reach past the end: M, N and K are at most {MOST_EXTENT}"
    large = (Unlowered(f"{name} = {size}", rule, f"split {name}") for name, size in sizes.items() if size > MOST_EXTENT)
    return next(large, None)


def _multiple(name: str, size: int, element_bytes: int, of: str) -> Unlowered | None:
    align = SM_90A.tma_alignment
    step = align // element_bytes
    if size % step == 0:
        return None
    below, above = size // step * step, -(-size // step) * step
    nearest = f"{name} = {above}" if below == 0 else f"{name} = {below} or {above}"
    return Unlowered(
        f"{name} = {size}: {of} of {size * element_bytes} bytes",
        f"TMA needs strides that are multiples of {align} bytes: {name} a multiple of {step}",
        f"pad {name} to {above} with zeros (nearest: {nearest})",
    )


def _columns(p: GemmProblem) -> Unlowered | None:
    if p.n == 0:
        return Unlowered("N = 0", "kernels have columns to compute", "take an empty result")
    return _multiple("N", p.n, p.d.bytes, "rows of the result")


def _depth(p: GemmProblem) -> Unlowered | None:
    if p.k == 0 and p.grouping is not Grouping.NONE:
        rule = "kernels without K are not launched, and only the index says which rows are zero"
        return Unlowered("K = 0 of several groups", rule, "clear the result")
    return _multiple("K", p.k, p.a.bytes, "rows of the operands") if "k" in (p.a_major, p.b_major) else None


def _outer(p: GemmProblem) -> Unlowered | None:
    """The rows of operands that are not k-major. M is checked at run time if it is not known before."""
    rows = None if p.a_major == "k" or p.m is None else _multiple("M", p.m, p.a.bytes, "rows of A, which is m-major,")
    if rows is not None or p.b_major == "k":
        return rows
    return _multiple("N", p.n, p.b.bytes, "rows of B, which is n-major,")


REQUIREMENTS: tuple[Callable[[GemmProblem], Unlowered | None], ...] = (
    _scaling,
    _promotion,
    _split_k,
    _whole_k_only,
    _epilogue,
    _extents,
    _columns,
    _depth,
    _outer,
)
"""
What kernels ask of a problem, one predicate each. That both operands are FP8 or have one 16-bit type is a
rule of `gemm.matmul` itself.
"""


def _operands(op: ProductOp, problem: GemmProblem) -> Unlowered | None:
    """What a problem does not tell: the type of C, and whether one argument serves as two operands."""
    operands = [value for value in (op.a, op.b, op.scale_a, op.scale_b, op.c) if value is not None]
    if len(set(operands)) < len(operands):
        return Unlowered(
            "an argument that is two operands", "each operand lies in memory in its own way", "pass a copy"
        )
    if op.c is None or (c := tensor_info("C", op.c).dtype) == problem.d:
        return None
    return Unlowered(f"C of {c}", f"C has the result's type, {problem.d}", f"cast C to {problem.d}")


def unlowered(problem: GemmProblem) -> Unlowered | None:
    """The first feature of `problem` that no family computes yet, or None."""
    return next((found for check in REQUIREMENTS if (found := check(problem)) is not None), None)


@dataclass(frozen=True)
class GemmSelectFamilyPass(ModulePass):
    """
    Choose the kernel family.

    `UnsupportedError` (GMR-U001) names the first feature that no family computes yet, and where it runs today.
    """

    name = "gemm-select-family"

    family: str | None = None

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        matmul, problem, schedule = read_schedule(op)
        asked = None if self.family is None else named_option(self.name, "family", self.family, Family)
        if (missing := unlowered(problem) or _operands(matmul, problem)) is not None:
            raise UnsupportedError(
                "GMR-U001",
                f"{missing.what}, which no kernel family computes yet ({problem})",
                rule=missing.rule,
                fix=f"{missing.fix}; {ELSEWHERE}",
            )
        if schedule.family is not None:
            return
        choice = _choose(problem, schedule) if asked is None else Choice(asked, "as asked for")
        write_schedule(matmul, problem, schedule.filled(family=choice.family))
        loop = "promoted every 128 of K" if problem.promoted else "summed in the tensor core"
        loop += f", in {problem.numerics.split_k} parts of K" if problem.numerics.split_k > 1 else ""
        because = f"{problem}, {loop}; {choice.because}"
        record(Decision(self.name, "family", choice.family.value, because, choice.other))


FEW_ROWS = 2 * MAX_BLOCK_M
"""Rows, of a group, from which on `stream` is not considered: it reads the weights again for each of its tiles."""


OPTIMISM = 1.15
"""
By how much kernels of `tiles` may take longer than predicted up to `MAX_BLOCK_M` rows, which their model is not fitted
to. Of 34 products of 1 to 128 rows on an H100 all were faster with `stream`, 0.1% to 48%; 15 of them not by the model,
which has tiles take 0.88 of the time at least.
"""

OPTIMISM_SECONDS = 2e-6
"""
The same of groups whose tiles take several rounds, whatever their length: with 1 to 2.4 us, each of the four that were
measured in both families on an H200 gets the faster one (`tests/passes/test_gemm_select_family.py`).
"""


@dataclass(frozen=True, slots=True)
class Choice:
    """A family, why, and what the other one would have cost."""

    family: Family
    because: str
    other: str = ""


def _choose(problem: GemmProblem, fixed: Schedule) -> Choice:
    """The family whose best tile is predicted to be faster; the one that there is, if only one has any."""
    if problem.group_rows > FEW_ROWS and problem.numerics.split_k == 1:
        return Choice(Family.TILES, f"more than {FEW_ROWS} rows")
    found = {family: best for family in Family if (best := _best(problem, fixed.filled(family=family))) is not None}
    if not found:
        return Choice(Family.TILES, "no family has such a tile")
    family = min(found, key=lambda family: _doubted(problem, family, found[family]))
    times = {family: f"{best.cost.microseconds:.1f} us" for family, best in found.items()}
    others = [f"{other.value} at {time}" for other, time in times.items() if other is not family]
    because = f"{times[family]} predicted for its best tile"
    return Choice(family, because, others[0] if others else "")


def _doubted(problem: GemmProblem, family: Family, best: Candidate) -> float:
    """
    Seconds by which a family is compared with the other one.

    `tiles` of 16-bit operands whose last rows are zeros take up to 1.6 times as long as predicted (that many rows count
    little in the fit): as if each row that they compute had its share of the time. All of 36 such products of 136, 160
    and 224 rows, on an H100 and an H200, were faster with `stream`.
    """
    cost, rows = best.cost, problem.group_rows
    if family is not Family.TILES or rows > FEW_ROWS:
        return cost.seconds
    if rows > MAX_BLOCK_M:
        computed = rows + -rows % (best.schedule.block_m or 1)
        return cost.seconds if problem.promoted or problem.groups > 1 else cost.seconds * computed / rows
    return cost.seconds * OPTIMISM if problem.groups == 1 or cost.rounds == 1 else cost.seconds + OPTIMISM_SECONDS


def _best(problem: GemmProblem, fixed: Schedule) -> Candidate | None:
    """The best tile of a family and what it costs, None where there is none."""
    try:
        return search_family(problem, fixed).best
    except ScheduleError:
        return None
