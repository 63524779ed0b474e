"""The terms of a prediction, for people: those of a schedule next to those of the best one with another tile."""

from __future__ import annotations

from contextlib import suppress

from gemmir.decisions import Terms
from gemmir.errors import ScheduleError
from gemmir.passes.block_search import Candidate
from gemmir.passes.cost_model import Cost, predict
from gemmir.passes.stream_search import search_family
from gemmir.problem import GemmProblem
from gemmir.schedule import Family, Schedule
from gemmir.target import SM_90A


def compared(problem: GemmProblem, schedule: Schedule) -> tuple[Terms, ...]:
    """
    The terms of a complete schedule, then of the best of all that have another tile, if there is one.

    Of its own family, or of another one where it has no other tile.
    """
    families = (schedule.family, *(family for family in Family if family is not schedule.family))
    others = (c for family in families if family is not None for c in _candidates(problem, family))
    other = next((c for c in others if c.block != (schedule.block_m, schedule.block_n)), None)
    mine = _terms(schedule, predict(problem, schedule))
    return (mine,) if other is None else (mine, _terms(other.schedule, other.cost))


def _candidates(problem: GemmProblem, family: Family) -> list[Candidate]:
    """What a search of a family finds, the best first; nothing where it has no tile for the problem."""
    with suppress(ScheduleError):
        return list(search_family(problem, Schedule(family=family)).candidates)
    return []


def _terms(schedule: Schedule, cost: Cost) -> Terms:
    lines = (
        ("k-block: tensor cores, clocks", f"{cost.tensor:.0f}"),
        ("k-block: warpgroups, clocks", f"{cost.math:.0f}"),
        ("k-block: loads from L2, clocks", f"{cost.loads:.0f}"),
        ("k-block, clocks", f"{cost.k_block:.0f}"),
        ("tile beside k-blocks, clocks", f"{cost.tile:.0f}"),
        ("tiles", f"{cost.tiles}"),
        ("rounds", f"{cost.rounds}"),
        ("tiles of busiest SM over mean", f"{cost.rounds * SM_90A.sms / cost.tiles:.2f}"),
        ("all rounds, clocks", f"{cost.cycles:.0f}"),
        ("tensor cores busy", f"{cost.utilisation:.0%}"),
        ("clock, GHz", f"{cost.clock_hz / 1e9:.2f}"),
        ("all rounds, us", f"{cost.cycles / cost.clock_hz * 1e6:.1f}"),
        ("DRAM, us", f"{cost.dram_seconds * 1e6:.1f}"),
        ("launch and first reads, us", f"{cost.fixed_seconds * 1e6:.1f}"),
        ("in all, us", f"{cost.microseconds:.1f}"),
        ("limited by", cost.limiter),
    )
    return Terms(f"{schedule.block_m}x{schedule.block_n}x{schedule.block_k}", lines)
