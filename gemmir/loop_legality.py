"""The rules of how math warpgroups go through the k-blocks of a tile."""

from __future__ import annotations

from gemmir.problem import GemmProblem
from gemmir.rule import Violation, missing
from gemmir.schedule import Schedule
from gemmir.target import Target
from gemmir.tile import tile_geometry

PROMOTE_CHUNKS = (1, 2, 4)
"""k-blocks that a math warpgroup takes at a time."""


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
