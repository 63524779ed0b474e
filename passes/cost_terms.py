"""The terms of a prediction, for people: those of a schedule next to those of the best one with another tile."""

from __future__ import annotations

from gemmir.decisions import Terms
from gemmir.passes.block_search import search
from gemmir.passes.cost_model import Cost, predict
from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule


def compared(problem: GemmProblem, schedule: Schedule) -> tuple[Terms, ...]:
    """The terms of a complete schedule, then of the best of all that have another tile, if there is one."""
    block = schedule.block_m, schedule.block_n
    other = next((c for c in search(problem, Schedule()).candidates if c.block != block), None)
    mine = _terms(schedule, predict(problem, schedule))
    return (mine,) if other is None else (mine, _terms(other.schedule, other.cost))


def _terms(schedule: Schedule, cost: Cost) -> Terms:
    lines = (
        ("k-block: tensor cores, clocks", f"{cost.tensor:.0f}"),
        ("k-block: warpgroups, clocks", f"{cost.math:.0f}"),
        ("k-block: loads from L2, clocks", f"{cost.loads:.0f}"),
        ("k-block, clocks", f"{cost.k_block:.0f}"),
        ("tile beside k-blocks, clocks", f"{cost.tile:.0f}"),
        ("tiles", f"{cost.tiles}"),
        ("rounds", f"{cost.rounds}"),
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
