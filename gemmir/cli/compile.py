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

IR_LEVELS = ("gemm", "schedule", "hopper")
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
        path.write_bytes(data)
        say(f"wrote {path}")


def execute(args: argparse.Namespace) -> int:
    destination = Destination(args.output, args.emit)
    destination.check()
    lowered = lower_for(read_module(args.file), args)
    if args.emit == ("bundle",):
        return write_bundle(lowered, args.target, args.output)
    produced: dict[str, bytes] = {}
    for kind in args.emit:
        destination.write(kind, file_name(lowered.module), artefact(kind, lowered, args.target, produced))
    return 0


def lower_for(module: ModuleOp, args: argparse.Namespace) -> Lowered:
    """Lower as far as the deepest kind that is asked for."""
    from gemmir.compiler import LEVELS, lower

    deepest = max(args.emit, key=list(SUFFIXES).index)
    until = dict(zip(map(str, LEVELS), LEVELS, strict=True)).get(deepest, "cuda")
    on_pass = print_ir if args.print_ir_after_all else None
    return lower(module, target=args.target, pipeline=args.pipeline, m=args.m, until=until, on_pass=on_pass)


def print_ir(name: str, text: str) -> None:
    say(f"// ----- after {name}\n{text.rstrip()}\n")


def file_name(module: ModuleOp) -> str:
    """The function's or kernel's name if it is fit for a file name: IR is untrusted."""
    from xdsl.dialects.builtin import StringAttr

    names = [name.data for op in module.ops if isinstance(name := op.properties.get("sym_name"), StringAttr)]
    return names[0] if len(names) == 1 and FILE_NAME.fullmatch(names[0]) else "kernel"


def artefact(kind: str, lowered: Lowered, target: str, produced: dict[str, bytes]) -> bytes:
    """One kind of result as bytes; `produced` keeps the cubin, which two kinds need."""
    if kind in IR_LEVELS:
        if (text := lowered.ir.get(kind)) is None:
            raise UsageError(f"--emit {kind}: the input is below that level already ({', '.join(lowered.ir)})")
        return (text.rstrip("\n") + "\n").encode()
    if kind == "cuda":
        return lowered.source.encode()
    if kind == "manifest":
        return manifest(lowered)
    if kind == "ptx":
        from gemmir.backends.cuda.nvrtc import compile_ptx

        return compile_ptx(lowered.source, target).encode()
    if "cubin" not in produced:
        produced["cubin"] = cubin(lowered, target)
    return produced["cubin"] if kind == "cubin" else sass(produced["cubin"])


def manifest(lowered: Lowered) -> bytes:
    text = "{}" if lowered.manifest is None else lowered.manifest.to_json()
    return (json.dumps(json.loads(text), indent=2) + "\n").encode()


def cubin(lowered: Lowered, target: str) -> bytes:
    """The machine code; a kernel that spills or whose WGMMAs were serialised is refused."""
    from gemmir.backends.cuda.compiler_log import check_log
    from gemmir.backends.cuda.nvrtc import compile_cubin

    compiled = compile_cubin(lowered.source, target)
    check_log(compiled.log)
    return compiled.cubin


def write_bundle(lowered: Lowered, target: str, output: str) -> int:
    """The kernel as a folder that runs without gemmir's compiler."""
    from gemmir import bundle
    from gemmir.backends.cuda.nvrtc import library_path
    from gemmir.kernel import CompiledKernel

    assert lowered.manifest is not None
    kernel = CompiledKernel(lowered.manifest, lowered.source, cubin(lowered, target), "", lowered.ir, None)
    say(f"wrote {bundle.write_bundle(kernel, output, nvrtc=library_path().name)}/")
    return 0


def sass(code: bytes) -> bytes:
    """The machine code as text, each instruction followed by how it is scheduled."""
    from gemmir.backends.cuda.sass import disassemble
    from gemmir.backends.cuda.sass_words import annotate

    return annotate(disassemble(code, encodings=True)).encode()
