"""`gemmir explain`: the schedule that the passes choose for a program, from which numbers, and what came second."""

from __future__ import annotations

import argparse
import sys
import textwrap

from gemmir.cli.compile import add_compiler_arguments
from gemmir.cli.sources import FILE_HELP, read_module

HELP = "say which schedule is chosen for a program, and why"
WIDTH = 100


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=FILE_HELP + " (default: stdin)")
    add_compiler_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    from gemmir.compiler import lower
    from gemmir.dialects.gemm import problem_of, the_matmul

    module = read_module(args.file)
    problem = problem_of(the_matmul(module))
    lowered = lower(module, target=args.target, pipeline=args.pipeline, m=args.m, until="schedule", on_pass=None)
    sys.stdout.write(f"{problem}, {args.target}\n\n{table(lowered.decisions)}")
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


def indented(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
