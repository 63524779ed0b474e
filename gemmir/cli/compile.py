"""`gemmir compile`: a program in, any stage of its way to machine code out."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.backends.cuda.code_conditions import CONDITIONS
from gemmir.cli.destinations import write_whole
from gemmir.cli.diagnostics import UsageError, say
from gemmir.cli.sources import FILE_HELP, read_module
from gemmir.cli.watching import add_watching_arguments, watching

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from gemmir.compiler import Lowered
    from gemmir.pipeline import Observer

HELP = "compile a program and show any stage of its way: IR, CUDA, PTX, machine code"

SUFFIXES = {
    "gemm": ".gemm.mlir",
    "schedule": ".schedule.mlir",
    "hopper": ".hopper.mlir",
    "cuda": ".cu",
    "ptx": ".ptx",
    "cubin": ".cubin",
    "sass": ".sass",
    "manifest": ".json",
    "bundle": "",
}
"""Kind -> how its file ends, from the program to the machine."""
STDOUT = "-"
FILE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=FILE_HELP + " (default: stdin)")
    parser.add_argument(
        "--emit",
        type=kinds_of,
        default=("cuda",),
        metavar="KIND[,KIND]",
        help=f"what to write: {', '.join(SUFFIXES)} (default: cuda)",
    )
    parser.add_argument("-o", "--output", metavar="PATH", default=STDOUT, help="a file, or DIR/ for several kinds")
    add_compiler_arguments(parser)
    add_watchdog_argument(parser)
    parser.add_argument(
        "--fail-on",
        type=conditions_of,
        default=(),
        metavar="WHAT[,WHAT]",
        help="write nothing and exit with 1 if one holds for the machine code: "
        + ", ".join(f"{name} ({what})" for name, what in CONDITIONS.items())
        + "; spills and stacks are refused in any case",
    )
    add_watching_arguments(parser)


def add_compiler_arguments(parser: argparse.ArgumentParser) -> None:
    """What every subcommand that lowers a program takes."""
    parser.add_argument("-p", "--pipeline", metavar="PASSES", help="passes instead of the usual ones: a,b{option=1}")
    parser.add_argument("--target", default="sm_90a", help="the architecture (default and only one: sm_90a)")
    parser.add_argument("--m", type=positive, metavar="M", help="choose the schedule for this M where it is open")


def add_watchdog_argument(parser: argparse.ArgumentParser) -> None:
    """What every subcommand that makes a kernel to be run takes."""
    parser.add_argument(
        "--watchdog-ms",
        type=whole,
        metavar="MS",
        help="end the kernel when a wait in it lasts longer, and say who waited where; 0 for no watchdog (default: "
        "GEMMIR_WATCHDOG_MS, or 0)",
    )


def positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a positive integer")
    return int(text)


def whole(text: str) -> int:
    """An argument that counts something, and may be 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number")
    return int(text)


def kinds_of(text: str) -> tuple[str, ...]:
    """The kinds in a comma-separated list, each once."""
    return words_of(text, SUFFIXES)


def conditions_of(text: str) -> tuple[str, ...]:
    """What not to accept, in a comma-separated list, each once."""
    return words_of(text, CONDITIONS)


def words_of(text: str, known: Collection[str]) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(text.split(",")))
    if unknown := [word for word in words if word not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0][:40]!r} is not one of {', '.join(known)}")
    return words


@dataclass(frozen=True, slots=True)
class Destination:
    """Where results go: stdout, one file, or one file per kind in a folder."""

    output: str
    kinds: tuple[str, ...]

    def check(self) -> None:
        """Raises UsageError before any work is done for nothing."""
        if "bundle" in self.kinds and (self.kinds != ("bundle",) or self.output == STDOUT):
            raise UsageError("--emit bundle writes a folder of its own: --emit bundle -o DIR/")
        if len(self.kinds) > 1 and not self.is_folder:
            raise UsageError(f"--emit {','.join(self.kinds)} needs a folder: -o DIR/")
        if self.output == STDOUT and self.kinds == ("cubin",) and sys.stdout.isatty():
            raise UsageError("a cubin is binary: write it to a file with -o, or into a pipe")

    @property
    def is_folder(self) -> bool:
        return self.output != STDOUT and (self.output.endswith("/") or Path(self.output).is_dir())

    def write(self, kind: str, name: str, data: bytes) -> None:
        """Put `data` where it belongs; files are named after the kernel."""
        if self.output == STDOUT:
            sys.stdout.buffer.write(data)
            return
        path = Path(self.output)
        if self.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            path = path / f"{name}{SUFFIXES[kind]}"
        write_whole(path, data)
        say(f"wrote {path}")


def execute(args: argparse.Namespace) -> int:
    from gemmir.cli.artefacts import Artefacts

    destination = Destination(args.output, args.emit)
    destination.check()
    with watching(args) as watch:
        with watch.times.stage("reading"):
            module = read_module(args.file)
        with watch.guard:
            lowered = lower_for(module, args, watch.observer)
        made = Artefacts(lowered, args.target, watch.times, watch.folder)
        made.check(args.fail_on)
        if args.emit == ("bundle",):
            say(f"wrote {made.bundle(args.output)}/")
            return 0
        deepest_first = sorted(args.emit, key=list(SUFFIXES).index, reverse=True)  # which leaves PTX on its way
        results = {kind: made.of(kind) for kind in deepest_first}  # all, before the first is written
        for kind in args.emit:
            destination.write(kind, file_name(lowered.module), results[kind])
    return 0


def lower_for(module: ModuleOp, args: argparse.Namespace, observer: Observer) -> Lowered:
    """Lower as far as the deepest kind that is asked for."""
    from gemmir.compiler import LEVELS, lower

    deepest = "cubin" if args.fail_on else max(args.emit, key=list(SUFFIXES).index)
    until = dict(zip(map(str, LEVELS), LEVELS, strict=True)).get(deepest, "cuda")
    return lower(
        module,
        target=args.target,
        pipeline=args.pipeline,
        m=args.m,
        until=until,
        observer=observer,
        watchdog_ms=args.watchdog_ms,
    )


def file_name(module: ModuleOp) -> str:
    """The function's or kernel's name if it is fit for a file name: IR is untrusted."""
    from xdsl.dialects.builtin import StringAttr

    names = [name.data for op in module.ops if isinstance(name := op.properties.get("sym_name"), StringAttr)]
    return names[0] if len(names) == 1 and FILE_NAME.fullmatch(names[0]) else "kernel"
