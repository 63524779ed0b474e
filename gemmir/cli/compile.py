"""`gemmir compile`: a program in, any stage of its way to machine code out."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.cli.diagnostics import UsageError, say
from gemmir.cli.sources import FILE_HELP, read_module

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from gemmir.compiler import Lowered

HELP = "compile a program and show any stage of its way: IR, CUDA, PTX, machine code"

LEVELS = ("gemm", "schedule", "hopper")
SUFFIXES = {
    "gemm": ".gemm.mlir",
    "schedule": ".schedule.mlir",
    "hopper": ".hopper.mlir",
    "cuda": ".cu",
    "ptx": ".ptx",
    "cubin": ".cubin",
    "sass": ".sass",
    "manifest": ".json",
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
    parser.add_argument("--print-ir-after-all", action="store_true", help="the IR after each pass, on stderr")


def add_compiler_arguments(parser: argparse.ArgumentParser) -> None:
    """What every subcommand that lowers a program takes."""
    parser.add_argument("-p", "--pipeline", metavar="PASSES", help="passes instead of the usual ones: a,b{option=1}")
    parser.add_argument("--target", default="sm_90a", help="the architecture (default and only one: sm_90a)")
    parser.add_argument("--m", type=positive, metavar="M", help="choose the schedule for this M where it is open")


def positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a positive integer")
    return int(text)


def kinds_of(text: str) -> tuple[str, ...]:
    """The kinds in a comma-separated list, each once."""
    kinds = tuple(dict.fromkeys(text.split(",")))
    if unknown := [kind for kind in kinds if kind not in SUFFIXES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(SUFFIXES)}")
    return kinds


@dataclass(frozen=True, slots=True)
class Destination:
    """Where results go: stdout, one file, or one file per kind in a folder."""

    output: str
    kinds: tuple[str, ...]

    def check(self) -> None:
        """Raises UsageError before any work is done for nothing."""
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
        path.write_bytes(data)
        say(f"wrote {path}")


def execute(args: argparse.Namespace) -> int:
    destination = Destination(args.output, args.emit)
    destination.check()
    module = read_module(args.file)
    lowered = lower_for(module, args)
    code: dict[str, bytes] = {}
    for kind in args.emit:
        data = artefact(kind, lowered, args.target, code)
        destination.write(kind, lowered_name(lowered), data)
    return 0


def lower_for(module: ModuleOp, args: argparse.Namespace) -> Lowered:
    """Lower as far as the deepest kind that is asked for."""
    from gemmir.compiler import lower

    deepest = max(list(SUFFIXES).index(kind) for kind in args.emit)
    until = list(SUFFIXES)[min(deepest, list(SUFFIXES).index("cuda"))]
    on_pass = print_ir if args.print_ir_after_all else None
    return lower(module, target=args.target, pipeline=args.pipeline, m=args.m, until=until, on_pass=on_pass)


def print_ir(name: str, text: str) -> None:
    say(f"// ----- after {name}\n{text.rstrip()}\n")


def lowered_name(lowered: Lowered) -> str:
    """The function's name if it is fit for a file name: IR is untrusted."""
    from gemmir.dialects.gemm import the_function

    name = the_function(lowered.module).sym_name.data
    return name if FILE_NAME.fullmatch(name) else "kernel"


def artefact(kind: str, lowered: Lowered, target: str, code: dict[str, bytes]) -> bytes:
    """One kind of result as bytes; `code` remembers the cubin between kinds."""
    if kind in LEVELS:
        return (lowered.ir[kind].rstrip("\n") + "\n").encode()
    if kind == "cuda":
        return lowered.source.encode()
    if kind == "manifest":
        return (json.dumps(json.loads(lowered.manifest.to_json()), indent=2) + "\n").encode()
    if kind == "ptx":
        from gemmir.backends.cuda.nvrtc import compile_ptx

        return compile_ptx(lowered.source, target).encode()
    return machine_code(kind, lowered, target, code)


def machine_code(kind: str, lowered: Lowered, target: str, code: dict[str, bytes]) -> bytes:
    """The cubin, or its disassembly."""
    from gemmir.backends.cuda.compiler_log import check_log
    from gemmir.backends.cuda.nvrtc import compile_cubin
    from gemmir.backends.cuda.sass import disassemble

    if "cubin" not in code:
        compiled = compile_cubin(lowered.source, target)
        check_log(compiled.log)
        code["cubin"] = compiled.cubin
    return code["cubin"] if kind == "cubin" else disassemble(code["cubin"]).encode()
