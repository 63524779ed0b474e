"""The rule of narrower tiles for the last columns."""

from __future__ import annotations

from gemmir.problem import GemmProblem, Grouping
from gemmir.rule import Violation, missing
from gemmir.schedule import Family, Schedule
from gemmir.target import Target
from gemmir.tile import tail_schedule, tile_geometry

NO_TAIL = "use tail = none"


def tail(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Narrower tiles follow whole columns of others in one product, each computed by a CTA of its own."""
    if not s.tail_n and not s.tail_after:
        return None
    tail_n, after = ("?" if choice is None else choice for choice in (s.tail_n, s.tail_after))
    given = f"tail = {tail_n} after {after}"
    if 0 in (s.tail_n, s.tail_after):
        return Violation("GMR-S003", given, "both a width and the columns of tiles before, or neither", NO_TAIL)
    if (form := form_without_tail(problem, s)) is not None:
        rule = "tiles of one product of a k-major B, in the family tiles, a CTA each, are followed by narrower ones"
        return Violation("GMR-S003", f"{given} with {form}", rule, NO_TAIL)
    if s.block_n is None:
        return None
    if s.tail_n is not None and s.tail_n >= s.block_n:
        rule = f"tiles behind those of {s.block_n} columns are narrower"
        return Violation("GMR-S003", given, rule, NO_TAIL)
    if s.tail_after is not None and s.tail_after * s.block_n >= problem.n:
        what = f"{given}, which is behind {s.tail_after} x {s.block_n} of {problem.n} columns"
        most = -(-problem.n // s.block_n) - 1
        fix = f"use tail = {tail_n} after {most}" if most > 0 else NO_TAIL
        return Violation("GMR-S003", what, "columns are left for narrower tiles", fix)
    return _scale_steps(problem, s)


def _scale_steps(problem: GemmProblem, s: Schedule) -> Violation | None:
    """Where weights have scales, the first narrower tile begins at one of its own steps of them."""
    if not problem.promoted or missing(s, "block_m", "block_n", "math_warpgroups", "split", "tail_n", "tail_after"):
        return None
    assert s.block_n is not None and s.tail_after is not None
    first, step = s.tail_after * s.block_n, tile_geometry(tail_schedule(problem, s)).column_step
    if first % step == 0:
        return None
    what = f"tail = {s.tail_n} after {s.tail_after} begins at column {first}"
    return Violation(
        "GMR-S003", what, f"its weight scales are one for each {step} columns, from a multiple on", NO_TAIL
    )


def form_without_tail(problem: GemmProblem, s: Schedule) -> str | None:
    """What of a product or its tiles does not go with narrower ones."""
    cluster = (s.cluster_m or 1, s.cluster_n or 1)
    found = {
        "family = stream": s.family is Family.STREAM,
        f"groups by {problem.grouping.value}": problem.grouping is not Grouping.NONE,
        f"split_k = {problem.numerics.split_k}": problem.numerics.split_k > 1,
        f"cluster = {cluster[0]}x{cluster[1]}": cluster != (1, 1),
        f"layout <b = {problem.b_major}>": problem.b_major != "k",
        "scales 1x128 x 1x128": problem.column_scales,
    }
    return next((name for name, holds in found.items() if holds), None)
