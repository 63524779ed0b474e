"""What FILE may be on the command line: IR text, `-` for stdin, or a Python module that makes a program."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.cli.diagnostics import UsageError

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

FILE_HELP = "IR text (.mlir), a Python file (.py) with a function `program()` that returns a gemmir.Program, or -"


def read_module(file: str) -> ModuleOp:
    """The verified module in `file`. Raises IRError, UsageError or OSError."""
    from gemmir.ir_text import parse_module

    if file == "-":
        return parse_module(sys.stdin.buffer.read().decode(errors="replace"), "<stdin>")
    path = Path(file)
    if path.suffix == ".py":
        return module_of_python(path)
    return parse_module(path.read_bytes().decode(errors="replace"), file)


def module_of_python(path: Path) -> ModuleOp:
    """Run the Python file and take what its `program()` returns."""
    from gemmir.program import Program

    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: cannot be imported")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, "program", None)
    if not callable(make):
        raise UsageError(f"{path}: has no function program(); it must return a gemmir.Program")
    made = make()
    if not isinstance(made, Program):
        raise UsageError(f"{path}: program() returned {type(made).__name__}, not a gemmir.Program")
    return made.module
