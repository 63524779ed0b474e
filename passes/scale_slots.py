"""Whether scales have a warp of their own, and how many slots of the ring it fills at a time."""

from __future__ import annotations

from dataclasses import replace

from gemmir.loop_legality import SCALE_SLOTS, scale_slots
from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule
from gemmir.target import SM_90A
from gemmir.tile import tile_geometry

SCALE_WARP_K_BLOCKS = 16
"""From so many k-blocks on, scales have a warp of their own (measured: 2% slower with 4 and 12, faster from 16 on)."""

SCALE_WARP_WAVES = 2
"""With more waves a warpgroup, kernels are 2% slower with that warp (measured: 192x192)."""


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
