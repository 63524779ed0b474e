"""The rules of how math warpgroups go through the k-blocks of a tile."""

from __future__ import annotations

from gemmir.problem import GemmProblem, Grouping
from gemmir.rule import Violation, missing
from gemmir.schedule import Family, Schedule
from gemmir.target import Target
from gemmir.tile import tile_geometry

PROMOTE_CHUNKS = (1, 2, 4)
"""k-blocks that a math warpgroup takes at a time."""

SCALE_SLOTS = {0: 1, 1: 1, 2: 6, 4: 7}
"""
Slots of the ring that a warp of its own fills with scales at a time, and the fewest stages for that: with fewer, loads
are late, by up to a quarter of the kernel (measured), and tiles so large leave that warp too few registers.
"""


def turns(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Taking turns orders two promoting warpgroups of one wave each."""
    if not s.turns or missing(s, "block_m", "block_n", "math_warpgroups", "split"):
        return None
    if s.math_warpgroups == 2 and problem.promoted and tile_geometry(s).waves == 1:
        return None
    return Violation(
        "GMR-S003",
        f"turns with {s.math_warpgroups} math warpgroups of {tile_geometry(s).waves} waves",
        "warpgroups take turns where there are two of one wave each, and sums are promoted",
        "use turns = false",
    )


def promote_chunk(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Chunks of k-blocks are for promoting warpgroups of one wave that run freely."""
    chunk = s.promote_chunk
    if chunk is None or chunk == 1:
        return None
    if chunk not in PROMOTE_CHUNKS:
        return Violation("GMR-S003", f"promote_chunk = {chunk}", f"one of {PROMOTE_CHUNKS}", "use promote_chunk = 2")
    if not problem.promoted:
        return Violation(
            "GMR-S003",
            f"promote_chunk = {chunk} for {problem.a}, summed in the tensor core",
            "k-blocks go in chunks where sums are promoted",
            "use promote_chunk = 1",
        )
    if s.turns:
        return Violation(
            "GMR-S003",
            f"promote_chunk = {chunk} in turn",
            "a warpgroup with two k-blocks in flight does not wait for its turn",
            "use turns = false",
        )
    if missing(s, "block_m", "block_n", "math_warpgroups", "split") or tile_geometry(s).waves == 1:
        return None
    return Violation(
        "GMR-S003",
        f"promote_chunk = {chunk} with {tile_geometry(s).waves} waves a warpgroup",
        "k-blocks go in chunks where a warpgroup has one wave of 64 rows",
        "use promote_chunk = 1",
    )


def scale_slots(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """A warp of its own loads scales where slots hold them; several at a time where the ring has many."""
    slots = s.scale_slots
    if not slots:
        return None
    if (why := _no_scales_of_their_own(problem, s)) is not None:
        return _refused_slots(slots, *why, 0)
    if slots not in SCALE_SLOTS:
        return _refused_slots(slots, "", f"one of {tuple(SCALE_SLOTS)}", 1)
    if slots > 1 and s.scale_batch == 1 and not problem.column_scales:
        rule = "weight scales of several slots at a time come in batches"
        return _refused_slots(slots, ", scale_batch = 1", rule, 1)
    if slots > 1 and s.math_warpgroups == 3:
        rule = "a thread has 128 registers beside three math warpgroups: several slots at a time are spilled"
        return _refused_slots(slots, " with 3 math warpgroups", rule, 1)
    if s.math_warpgroups == 3 and not missing(s, "block_m", "block_n", "split") and tile_geometry(s).waves > 2:
        waves = tile_geometry(s).waves
        rule = "a thread has 128 registers beside three math warpgroups: with more than two waves each some are spilled"
        return _refused_slots(slots, f" with 3 x {waves} waves", rule, 0)
    blocks = problem.part_k_blocks
    if blocks % slots:
        rule = "the k-blocks of a tile are whole steps of so many slots"
        return _refused_slots(slots, f", {blocks} k-blocks", rule, 1)
    if slots > 1 and problem.grouping is Grouping.K_OFFS:
        rule = "each group has its own number of k-blocks, so that they go one at a time"
        return _refused_slots(slots, " for groups along K", rule, 1)
    if s.num_stages is None or s.num_stages >= SCALE_SLOTS[slots]:
        return None
    rule = f"at least {SCALE_SLOTS[slots]} stages: those that are filled wait for each other"
    return _refused_slots(slots, f" of {s.num_stages} stages", rule, 1)


def _refused_slots(slots: int, what: str, rule: str, instead: int) -> Violation:
    return Violation("GMR-S003", f"scale_slots = {slots}{what}", rule, f"use scale_slots = {instead}")


def _no_scales_of_their_own(problem: GemmProblem, s: Schedule) -> tuple[str, str] | None:
    """Where no slot has scales, or what it has is the producer's: what, and the rule."""
    if not problem.promoted:
        return f" for {problem.a}, summed in the tensor core", "slots hold scales where sums are promoted"
    if s.family is Family.STREAM:
        return "", "family = stream: a warp loads the scales of whole tiles"
    if problem.numerics.split_k > 1:
        return f" with split_k = {problem.numerics.split_k}", "slots also hold sums that CTAs exchange"
    return None
