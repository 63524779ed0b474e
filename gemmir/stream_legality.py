"""
The rules of the `stream` family, where weights are the 64-row side of WGMMA and rows of A its N side.

Those that it shares with `tiles` are in `gemmir.legality`.
"""

from __future__ import annotations

from gemmir.problem import GemmProblem, Grouping
from gemmir.rule import Rule, Violation, missing
from gemmir.schedule import Schedule, Split
from gemmir.target import Target, launch_registers
from gemmir.tile import STAGE_ROW_BYTES, tile_geometry

MAX_BLOCK_M = 128
"""Rows of A: two partial sums and the total of more do not fit the registers of a thread."""

MAX_WARPGROUPS = 2
"""With three, tiles of 192 weights were never the fastest (measured)."""
MAX_PARTS = 3
"""Parts of K, a CTA each. Of clusters of four, an H200 runs 30 at a time: 120 of its 132 SMs (asked of the driver)."""

REGISTER_OVERHEAD = 44
"""Registers of a math thread beside its sums: loop state, addresses, scales on their way (with 36, 88 rows spill)."""

GROUPINGS = (Grouping.NONE, Grouping.OFFS, Grouping.COUNTS, Grouping.BATCH)


def _multiple(value: int, step: int, most: int) -> int:
    """The multiple of `step` up to `most` that is nearest to `value`."""
    return min(max(step, round(value / step) * step), most // step * step)


def form(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """16-bit results of k-major operands, without C."""
    found = {
        f"a result of {problem.d}": problem.d.bytes != 2,
        "an operand C": problem.has_c,
        f"layout <a = {problem.a_major}, b = {problem.b_major}>": (problem.a_major, problem.b_major) != ("k", "k"),
        "scales 1x128 x 1x128": problem.column_scales,
        f"groups by {problem.grouping.value}": problem.grouping not in GROUPINGS,
    }
    what = next((name for name, holds in found.items() if holds), None)
    if what is None:
        return None
    rule = "the stream family gives 16-bit results of k-major operands, with 128x128 scales or none, and without C"
    return Violation("GMR-S003", f"{what} with family = stream", rule, "use family = tiles")


def block_shape(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """block_m is a narrow N side of WGMMA, block_n whole waves, block_k one swizzle row."""
    step = target.wgmma_n_step
    if s.block_m is not None and (s.block_m % step or not step <= s.block_m <= MAX_BLOCK_M):
        rule = f"family = stream: a multiple of {step} from {step} to {MAX_BLOCK_M}"
        fix = f"use block_m = {_multiple(s.block_m, step, MAX_BLOCK_M)}"
        return Violation("GMR-S003", f"block_m = {s.block_m}", rule, fix)
    wave, most = target.wgmma_m, target.max_tma_box
    if s.block_n is not None and (s.block_n % wave or not wave <= s.block_n <= most):
        rule = f"family = stream: a multiple of {wave} from {wave} to {most}, the rows of a TMA box"
        return Violation(
            "GMR-S003", f"block_n = {s.block_n}", rule, f"use block_n = {_multiple(s.block_n, wave, most)}"
        )
    if s.block_k is not None and s.block_k != problem.block_k:
        what = f"block_k = {s.block_k} elements of {problem.a} is {s.block_k * problem.a.bytes} bytes"
        rule = f"a stage holds one swizzle row of {STAGE_ROW_BYTES} bytes of K"
        return Violation("GMR-S003", what, rule, f"use block_k = {problem.block_k}")
    return None


def warpgroups(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Math warpgroups share the weights of a tile, in whole waves; where sums are promoted, one wave each."""
    if s.math_warpgroups is not None and not 1 <= s.math_warpgroups <= MAX_WARPGROUPS:
        return Violation(
            "GMR-S003", f"math_warpgroups = {s.math_warpgroups}", f"1 to {MAX_WARPGROUPS}", "use math_warpgroups = 2"
        )
    if s.split is Split.ALONG_M:
        rule = "family = stream: the weights of a tile are divided, which are its columns"
        return Violation("GMR-S003", "split = m", rule, "use split = n")
    if missing(s, "block_n", "math_warpgroups"):
        return None
    assert s.block_n is not None and s.math_warpgroups is not None
    waves, rest = divmod(s.block_n, s.math_warpgroups * target.wgmma_m)
    what = f"{s.block_n} weights over {s.math_warpgroups} math warpgroups"
    if rest:
        fix = "change math_warpgroups or block_n"
        return Violation("GMR-S003", what, f"whole waves of {target.wgmma_m} a warpgroup", fix)
    if problem.promoted and waves != 1:
        rule = f"one wave of {target.wgmma_m} a warpgroup, whose sums are promoted"
        return Violation("GMR-S003", what, rule, f"use block_n = {s.math_warpgroups * target.wgmma_m}")
    return None


def no_sharing(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """CTAs load what they multiply by themselves, warpgroups run freely, and a tile leaves whole."""
    if (s.cluster_m or 1) * (s.cluster_n or 1) > 1:
        what = f"cluster of {s.cluster_m} x {s.cluster_n} tiles"
        rule = "family = stream: the CTAs of a cluster sum a part of K of one tile each"
        return Violation("GMR-S004", what, rule, "use cluster = 1x1")
    if s.turns:
        return Violation("GMR-S003", "turns", "family = stream: warpgroups run freely", "use turns = false")
    if s.store_slices not in (None, 1):
        what = f"slices = {s.store_slices}"
        return Violation("GMR-S003", what, "family = stream: a tile leaves whole", "use slices = 1")
    return None


def chunk(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """k-blocks go in chunks where sums are promoted."""
    legal = (1, 2, 4) if problem.promoted else (1,)
    if s.promote_chunk in (None, *legal):
        return None
    return Violation(
        "GMR-S003", f"promote_chunk = {s.promote_chunk} for {problem.a}", f"one of {legal}", f"use {legal[-1]}"
    )


def split_k(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Each CTA of a cluster sums a part of K, one wave of weights a warpgroup."""
    parts = problem.numerics.split_k
    if parts > MAX_PARTS:
        what = f"split_k = {parts}: {parts} CTAs a tile"
        return Violation("GMR-S004", what, f"at most {MAX_PARTS}", f"use split_k = {MAX_PARTS}")
    if parts == 1 or missing(s, "block_n", "math_warpgroups") or not s.block_n or not s.math_warpgroups:
        return None
    if (waves := s.block_n // (s.math_warpgroups * target.wgmma_m)) == 1:
        return None
    fix = f"use block_n = {s.math_warpgroups * target.wgmma_m}"
    return Violation("GMR-S003", f"{waves} waves a warpgroup with split_k = {parts}", "one wave a warpgroup", fix)


def math_registers(problem: GemmProblem, s: Schedule) -> int:
    """Registers of a math thread: totals, partial sums if promoted, and the overhead."""
    tile = tile_geometry(s)
    partials = (1 if s.promote_chunk == 1 else 2) if problem.promoted else 0
    return (tile.waves + partials) * tile.fragment_registers + REGISTER_OVERHEAD


def registers(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Sums fit the registers that a thread has at launch: none are moved from one warpgroup to another."""
    if missing(s, "block_m", "block_n", "math_warpgroups") or s.math_warpgroups is None:
        return None
    needed = math_registers(problem, s)
    budget = launch_registers((s.math_warpgroups + 1) * target.warpgroup_threads)
    if needed <= budget:
        return None
    what = f"sums of {s.block_m} rows + {REGISTER_OVERHEAD} = {needed} registers a thread"
    rule = f"a math thread has {budget} with {s.math_warpgroups} math warpgroups"
    return Violation("GMR-S002", what, rule, "use a smaller block_m, or fewer math_warpgroups")


RULES: tuple[Rule, ...] = (form, block_shape, warpgroups, no_sharing, chunk, split_k, registers)
