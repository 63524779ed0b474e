"""The options of `gemmir compile` that show a program's way down, and who carries them out."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.cli.destinations import check_destination
from gemmir.cli.diagnostics import UsageError, say

if TYPE_CHECKING:
    from gemmir.cli.watchers import IRFolder, Times
    from gemmir.pipeline import Observer


def add_watching_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--print-ir-after-all", action="store_true", help="print the IR after each pass on stderr")
    add(
        "--print-ir-dir",
        type=Path,
        metavar="DIR",
        help="write the IR before the first pass and after each to DIR/00-input.mlir, DIR/01-..., and then, as far as "
        "it is made, the kernel: .cu, .ptx, .cubin, .sass (with nvdisasm), .log",
    )
    add(
        "--crash-reproducer",
        type=Path,
        metavar="FILE",
        help="if a pass fails, write the IR before it and the passes that are left, for `gemmir opt` to run again",
    )
    add("--time-passes", action="store_true", help="print a table of where the time went on stderr")
    add("--diff", action="store_true", help="print what each pass changes on stderr, as a unified diff of the IR")


@dataclass(frozen=True, slots=True)
class Watch:
    """Whoever is told of the passes, the clock for what else is done, what guards the passes, and where all is kept."""

    observer: Observer
    times: Times
    guard: AbstractContextManager[None]
    folder: IRFolder | None


@contextmanager
def watching(args: argparse.Namespace) -> Generator[Watch]:
    """
    What the options ask for. The table of times is printed on leaving, also after a failure.

    Raises UsageError, before any work is done, for what cannot be written.
    """
    from gemmir.cli.reproducer import Reproducer
    from gemmir.cli.watchers import Several, Times

    times, folder = Times(), folder_of(args)
    told: list[Observer] = [times, *shown(args), *([] if folder is None else [folder])]
    guard: AbstractContextManager[None] = nullcontext()
    if args.crash_reproducer is not None:
        check_destination(args.crash_reproducer, "--crash-reproducer")
        told.append(reproducer := Reproducer(args.crash_reproducer))
        guard = reproducer.guarding()
    try:
        yield Watch(Several(told), times, guard, folder)
    finally:
        if args.time_passes:
            say(times.table())


def shown(args: argparse.Namespace) -> list[Observer]:
    """Those that show IR on stderr, as asked for."""
    from gemmir.cli import watchers

    found: list[Observer] = []
    if args.print_ir_after_all:
        found.append(watchers.IRPrinter())
    if args.diff:
        found.append(watchers.Diffs())
    return found


def folder_of(args: argparse.Namespace) -> IRFolder | None:
    """Where each stage is kept, if that is asked for."""
    from gemmir.cli.watchers import IRFolder

    folder: Path | None = args.print_ir_dir
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"--print-ir-dir {folder}: it is a file; pass a folder")
    return None if folder is None else IRFolder(folder)
