"""Whether scales have a warp of their own, and how many it loads at a time: of slots of the ring, or of a tile."""

from __future__ import annotations

from dataclasses import replace

from gemmir.loop_legality import SCALE_SLOTS, scale_slots
from gemmir.passes.l2_model import cluster_tiles, resident_clusters
from gemmir.problem import GemmProblem
from gemmir.schedule import SCALES_OF_TILE, Schedule
from gemmir.target import SM_90A, Target
from gemmir.tile import fitting_stages, shared_layout, tile_geometry

SCALE_WARP_K_BLOCKS = 16
"""From so many k-blocks on, scales have a warp of their own (measured: 2% slower with 4 and 12, faster from 16 on)."""

SCALE_WARP_WAVES = 2
"""With more waves a warpgroup, kernels are 2% slower with that warp (measured: 192x192)."""


AT_ONCE_STAGES = 6
"""
Stages that must be left where the scales of whole tiles take shared memory too, if they cost any: where 5 are left of
6, kernels that wait for DRAM are up to 9% slower (measured).
"""


AHEAD_ROWS = 128
"""Rows of tiles that follow one another with scales at once (measured: 3 to 6% faster; flatter ones slower)."""


def with_scales_at_once(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> Schedule:
    """
    The schedule, with the scales of whole tiles loaded at once if they should be.

    That is where chunks of k-blocks ask for many scales in a short time, stages enough are left, and no tile waits
    until the scales of the one before are read: a CTA has one tile, or room for the scales of two, and no flat tiles.
    """
    if schedule.scale_slots is not None or schedule.promote_chunk in (None, 1):
        return schedule
    at_once = replace(schedule, scale_slots=SCALES_OF_TILE)
    if schedule.scale_batch not in (None, 1) or scale_slots(problem, at_once, target) is not None:
        return schedule
    wanted = schedule.num_stages or min(AT_ONCE_STAGES, fitting_stages(problem, schedule, target))
    if fitting_stages(problem, at_once, target) < wanted:
        return schedule
    rows, columns = cluster_tiles(problem, schedule)
    assert schedule.block_m is not None
    alone = rows * columns <= resident_clusters(schedule, target)
    ahead = schedule.block_m >= AHEAD_ROWS and shared_layout(problem, at_once, 1).scale_tiles > 1
    return at_once if alone or ahead else schedule


def scale_slots_of(problem: GemmProblem, schedule: Schedule, stages: int) -> tuple[int, str]:
    """How many slots a warp of its own fills with scales at a time, and why; no reason where there is no choice."""

    def legal(slots: int) -> bool:
        return scale_slots(problem, replace(schedule, scale_slots=slots, num_stages=stages), SM_90A) is None

    if not legal(1):
        return 0, ""
    blocks, waves = problem.part_k_blocks, tile_geometry(schedule).waves
    if blocks < SCALE_WARP_K_BLOCKS:
        return 0, f"{blocks} k-blocks: with fewer than {SCALE_WARP_K_BLOCKS}, loads that are ahead delay stores"
    if waves > SCALE_WARP_WAVES:
        return 0, f"{waves} waves a warpgroup: k-blocks so long that the producer is never late"
    if schedule.promote_chunk in (None, 1):
        return 1, f"{blocks} k-blocks, whose operands then wait for no fence"
    chosen = max(filter(legal, SCALE_SLOTS))
    return chosen, f"short k-blocks: {chosen} of {stages} slots at a time have one fence"
