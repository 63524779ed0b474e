"""How the command speaks when something is wrong: one renderer, colour only where a person reads it."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

from gemmir.errors import GemmirError

RED, GREEN, CYAN, BOLD, RESET = "\x1b[1;31m", "\x1b[32m", "\x1b[36m", "\x1b[1m", "\x1b[0m"


class UsageError(Exception):
    """The command line asks for something that makes no sense; exit code 2, like argparse's own errors."""


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour what goes to `stream`: NO_COLOR wins, then FORCE_COLOR, then whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def debugging(asked: bool) -> bool:
    """Whether tracebacks are wanted: `--debug`, or GEMMIR_DEBUG set to anything but 0."""
    return asked or os.environ.get("GEMMIR_DEBUG", "0") not in ("", "0")


def report(error: GemmirError, *, colour: bool) -> str:
    """
    The error as the terminal shows it.

        error[GMR-R001]: expected `:`
          --> layer.mlir:3:12
          |
        3 |   %y = gemm.matmul %x %w
          |                       ^^
          rule: ...
          fix: ...
    """
    head, _, rest = error.render().partition("\n")
    what = head.removeprefix(f"{error.code}: ")
    lines = [f"{RED}error[{error.code}]{RESET}: {BOLD}{what}{RESET}" if colour else f"error[{error.code}]: {what}"]
    if rest:
        lines.append(re.sub(r"(?m)^  (rule|fix|-->)", rf"  {CYAN}\1{RESET}", rest) if colour else rest)
    return "\n".join(lines)


def say(text: str) -> None:
    """One line for the person, on stderr: stdout holds results only."""
    sys.stderr.write(text + "\n")
