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
    One paragraph per decision, wrapped and indented.

    A decision reads `subject = choice: because; next best: ...`.
    """
    blocks: list[str] = []
    for decision in decisions:
        head, _, because = decision.partition(": ")
        because, _, second = because.partition("; next best: ")
        blocks.append(head)
        reasons = [because, f"next best: {second}" if second else ""]
        for reason in filter(None, reasons):
            blocks.append(textwrap.fill(reason, WIDTH, initial_indent="    ", subsequent_indent="    "))
    return "\n".join(blocks) + "\n"
