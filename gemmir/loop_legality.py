"""The rules of how math warpgroups go through the k-blocks of a tile."""

from __future__ import annotations

from gemmir.problem import GemmProblem, Grouping
from gemmir.rule import Violation, missing
from gemmir.schedule import SCALES_OF_TILE, Family, Schedule
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
    if slots == SCALES_OF_TILE:
        return _scales_of_tile(problem, s, target)
    if slots not in SCALE_SLOTS:
        return _refused_slots(slots, "", f"one of {tuple(SCALE_SLOTS)}, or tile", 1)
    if slots > 1 and (why := _no_several_slots(problem, s, slots)) is not None:
        return _refused_slots(slots, *why, 1)
    if s.math_warpgroups == 3 and not missing(s, "block_m", "block_n", "split") and tile_geometry(s).waves > 2:
        waves = tile_geometry(s).waves
        rule = "a thread has 128 registers beside three math warpgroups: with more than two waves each some are spilled"
        return _refused_slots(slots, f" with 3 x {waves} waves", rule, 0)
    return None


def _no_several_slots(problem: GemmProblem, s: Schedule, slots: int) -> tuple[str, str] | None:
    """Where so many slots are not filled at a time: what, and the rule."""
    batch, blocks = s.scale_batch, problem.part_k_blocks
    if batch == 1 and not problem.column_scales:
        return ", scale_batch = 1", "weight scales of several slots at a time come in batches"
    if batch is not None and batch < slots and not problem.column_scales:
        return f", scale_batch = {batch}", "those of slots that are filled at a time come in one batch: else some spill"
    if s.math_warpgroups == 3:
        rule = "a thread has 128 registers beside three math warpgroups: several slots at a time are spilled"
        return " with 3 math warpgroups", rule
    if blocks % slots:
        return f", {blocks} k-blocks", "the k-blocks of a tile are whole steps of so many slots"
    if problem.grouping is Grouping.K_OFFS:
        return " for groups along K", "each group has its own number of k-blocks, so that they go one at a time"
    if s.num_stages is not None and s.num_stages < SCALE_SLOTS[slots]:
        rule = f"at least {SCALE_SLOTS[slots]} stages: those that are filled wait for each other"
        return f" of {s.num_stages} stages", rule
    return None


def _scales_of_tile(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """One box has the scales of a tile's rows; chunks number the k-blocks whose scales they read."""
    blocks, most = problem.k_blocks, target.max_tma_box
    if blocks > most:
        return _refused_slots(SCALES_OF_TILE, f", {blocks} k-blocks", f"one TMA box has at most {most} rows", 1)
    if problem.column_scales or problem.grouping is Grouping.K_OFFS:
        what = " for groups along K" if problem.grouping is Grouping.K_OFFS else " for 1x128 scales of B"
        return _refused_slots(SCALES_OF_TILE, what, "B has 128x128 scales, and each tile as many k-blocks", 1)
    if s.has_tail:
        return _refused_slots(SCALES_OF_TILE, " with a tail", "all tiles have scales for the same columns", 1)
    if s.math_warpgroups == 3:
        rule = "a thread has 128 registers beside three math warpgroups: what copies many scales is spilled"
        return _refused_slots(SCALES_OF_TILE, " with 3 math warpgroups", rule, 1)
    if s.promote_chunk in (None, *PROMOTE_CHUNKS[1:]):
        return None
    return _refused_slots(SCALES_OF_TILE, f", promote_chunk = {s.promote_chunk}", "k-blocks go in chunks", 1)


def _refused_slots(slots: int, what: str, rule: str, instead: int) -> Violation:
    asked = "tile" if slots == SCALES_OF_TILE else slots
    return Violation("GMR-S003", f"scale_slots = {asked}{what}", rule, f"use scale_slots = {instead}")


def _no_scales_of_their_own(problem: GemmProblem, s: Schedule) -> tuple[str, str] | None:
    """Where no slot has scales, or what it has is the producer's: what, and the rule."""
    if not problem.promoted:
        return f" for {problem.a}, summed in the tensor core", "slots hold scales where sums are promoted"
    if s.family is Family.STREAM:
        return "", "family = stream: a warp loads the scales of whole tiles"
    if problem.numerics.split_k > 1:
        return f" with split_k = {problem.numerics.split_k}", "slots also hold sums that CTAs exchange"
    return None
