"""`gemmir errors`: what the error codes mean, all of them in a line each, or one in full."""

from __future__ import annotations

import argparse
import sys

from gemmir.cli.diagnostics import UsageError
from gemmir.error_codes import ERROR_CODES

HELP = "list the error codes, or say what one means"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", nargs="?", help="such as GMR-I003, or I003")


def execute(args: argparse.Namespace) -> int:
    """Raises UsageError for a code that does not exist."""
    if args.code is None:
        sys.stdout.writelines(f"{code}  {entry.title}\n" for code, entry in ERROR_CODES.items())
        return 0
    asked: str = args.code.upper()
    code = asked if asked.startswith("GMR-") else f"GMR-{asked}"
    if (entry := ERROR_CODES.get(code)) is None:
        raise UsageError(f"no error code {args.code[:40]!r}; `gemmir errors` lists them")
    sys.stdout.write(f"{code}: {entry.title}\n  {entry.cause}\n  raised as: {entry.raised_as}\n  fix: {entry.fix}\n")
    return 0
