"""
`gemmir explain`: the schedule that the passes choose for a program, from which numbers, and what came second.

Below the decisions, the terms of the cost model for the schedule and for the best one with another tile.
"""

from __future__ import annotations

import argparse
import sys
import textwrap

from gemmir.cli.compile import add_compiler_arguments
from gemmir.cli.sources import FILE_HELP, read_module
from gemmir.decisions import Terms

HELP = "say which schedule is chosen for a program, and why"
WIDTH = 100


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=FILE_HELP + " (default: stdin)")
    add_compiler_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    from gemmir.compiler import cost_terms, lower
    from gemmir.dialects.gemm import problem_of, the_matmul

    module = read_module(args.file)
    problem = problem_of(the_matmul(module))
    lowered = lower(module, target=args.target, pipeline=args.pipeline, m=args.m, until="schedule")
    sys.stdout.write(f"{problem}, {args.target}\n\n{table(lowered.decisions)}\n{columns(cost_terms(lowered))}")
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


def columns(terms: tuple[Terms, ...]) -> str:
    """The terms of the cost model, a line each, a schedule a column."""
    lines = [("predicted", *(t.block for t in terms))]
    for cells in zip(*(t.lines for t in terms), strict=True):
        lines.append((cells[0][0], *(value for _, value in cells)))
    return "".join(f"{name:<32}" + "".join(f"{value:>24}" for value in values) + "\n" for name, *values in lines)


def indented(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
