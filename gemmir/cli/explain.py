"""
`gemmir explain`: the schedule that the passes choose for a program, from which numbers, and what came second.

Below the decisions, the terms of the cost model for the schedule and for the best one with another tile.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import TYPE_CHECKING

from gemmir.cli.compile import add_compiler_arguments
from gemmir.cli.sources import FILE_HELP, read_module

if TYPE_CHECKING:
    from gemmir.passes.cost_model import Cost
    from gemmir.problem import GemmProblem
    from gemmir.schedule import Schedule

HELP = "say which schedule is chosen for a program, and why"
WIDTH = 100


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=FILE_HELP + " (default: stdin)")
    add_compiler_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    from gemmir.compiler import lower
    from gemmir.dialects.gemm import problem_of, schedule_of, the_matmul

    module = read_module(args.file)
    problem = problem_of(the_matmul(module))
    lowered = lower(module, target=args.target, pipeline=args.pipeline, m=args.m, until="schedule", on_pass=None)
    chosen = the_matmul(lowered.module)
    costs = terms(problem_of(chosen), schedule_of(chosen))
    sys.stdout.write(f"{problem}, {args.target}\n\n{table(lowered.decisions)}\n{costs}")
    return 0


def table(decisions: tuple[str, ...]) -> str:
    """
    One paragraph per decision: what was chosen, by which pass, why, and what came second.

    A decision reads `pass: subject = choice: because; next best: second`.
    """
    paragraphs: list[str] = []
    for decision in decisions:
        by, _, rest = decision.partition(": ")
        choice, _, because = rest.partition(": ")
        because, _, second = because.partition("; next best: ")
        paragraphs.append(f"{choice}  ({by})")
        paragraphs += [indented(text) for text in (because, f"next best: {second}" if second else "") if text]
    return "\n".join(paragraphs) + "\n"


def terms(problem: GemmProblem, schedule: Schedule) -> str:
    """What the cost model makes of a complete schedule, next to the best one that has another tile."""
    from gemmir.passes.block_search import search
    from gemmir.passes.cost_model import predict
    from gemmir.schedule import Schedule

    block = schedule.block_m, schedule.block_n
    other = next((c for c in search(problem, Schedule()).candidates if c.block != block), None)
    columns = [(schedule, predict(problem, schedule))]
    columns += [(other.schedule, other.cost)] if other is not None else []
    heads = ["predicted", *(f"{s.block_m}x{s.block_n}x{s.block_k}" for s, _ in columns)]
    rows = zip(*(cost_lines(cost) for _, cost in columns), strict=True)
    lines = [(cells[0][0], *(value for _, value in cells)) for cells in rows]
    return "".join(f"{name:<32}" + "".join(f"{v:>24}" for v in values) + "\n" for name, *values in [heads, *lines])


def cost_lines(cost: Cost) -> list[tuple[str, str]]:
    """The terms of a prediction, each with its name and unit, in the order in which they are put together."""
    return [
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
    ]


def indented(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
