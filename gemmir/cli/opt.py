"""`gemmir opt`: xdsl-opt with gemmir's dialects, passes and targets, and with errors as carets."""

from __future__ import annotations

import argparse

HELP = "run passes over IR text: xdsl-opt with gemmir's dialects, passes and targets (see gemmir opt --help)"


def configure(parser: argparse.ArgumentParser) -> None:
    """Nothing: every argument goes on to xdsl-opt."""


def execute(args: argparse.Namespace) -> int:
    """Run xdsl-opt on the arguments that were left over."""
    from gemmir.cli.opt_tool import run_opt

    run_opt(args.rest)
    return 0
