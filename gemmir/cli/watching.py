"""The options of `gemmir compile` that show a program's way down, and who carries them out."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.cli.diagnostics import UsageError, say

if TYPE_CHECKING:
    from gemmir.cli.watchers import Times
    from gemmir.pipeline import Observer


def add_watching_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--print-ir-after-all", action="store_true", help="print the IR after each pass on stderr")
    add(
        "--print-ir-dir",
        type=Path,
        metavar="DIR",
        help="write the IR before the first pass and after each to DIR/00-input.mlir, DIR/01-..., and the CUDA source, "
        "if it gets that far, to DIR/source.cu",
    )
    add("--time-passes", action="store_true", help="print a table of where the time went on stderr")
    add("--diff", action="store_true", help="print what each pass changes on stderr, as a unified diff of the IR")


@contextmanager
def watching(args: argparse.Namespace) -> Generator[tuple[Observer, Times]]:
    """
    Whoever is to be told of the passes, and the clock for what comes before and after them.

    Raises UsageError, before any work is done, for what cannot be written. The table of times is printed on leaving.
    """
    from gemmir.cli.watchers import Several, Times

    times = Times()
    observer = Several((times, *shown(args)))
    try:
        yield observer, times
    finally:
        if args.time_passes:
            say(times.table())


def shown(args: argparse.Namespace) -> list[Observer]:
    """Those that show IR, as asked for."""
    from gemmir.cli import watchers

    found: list[Observer] = []
    if args.print_ir_after_all:
        found.append(watchers.IRPrinter())
    if (folder := args.print_ir_dir) is not None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--print-ir-dir {folder}: it is a file; pass a folder")
        found.append(watchers.IRFolder(folder))
    if args.diff:
        found.append(watchers.Diffs())
    return found
