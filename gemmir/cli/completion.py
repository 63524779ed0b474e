"""`gemmir completion`: what makes a shell complete gemmir's commands, options and their values, written by shtab."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Collection
from itertools import chain
from typing import Any

from gemmir.cli import bench
from gemmir.cli import compile as compile_command
from gemmir.cli.parsers import actions_of, parsers_of
from gemmir.errors import ToolMissingError

HELP = "print a script that makes bash, zsh or fish complete this command"

SHELLS = ("bash", "zsh", "fish")
LISTS: dict[Callable[[str], object], Collection[str]] = {
    compile_command.kinds_of: compile_command.SUFFIXES,
    compile_command.conditions_of: compile_command.CONDITIONS,
    bench.peers_of: (*bench.PEERS, "none"),
}
"""What reads a list of words -> the words: argparse does not know them as choices."""
FILES, FOLDERS = ("FILE", "FILE.npz", "PATH", "OUT"), ("DIR",)
"""What arguments that are paths are called."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def execute(args: argparse.Namespace) -> int:
    """Raises ToolMissingError (GMR-C004) without shtab, an optional dependency."""
    from gemmir.cli.main import make_parser

    sys.stdout.write(script(args.shell, make_parser()))
    return 0


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for `shell`. `parser` is for nothing else afterwards: its actions are marked with their words."""
    shtab = _shtab()
    for action in chain.from_iterable(map(actions_of, parsers_of(parser))):
        if words := next((words for reader, words in LISTS.items() if action.type is reader), None):
            action.choices = tuple(words)
        elif action.metavar in (*FILES, *FOLDERS):
            vars(action)["complete"] = shtab.DIRECTORY if action.metavar in FOLDERS else shtab.FILE
    text: str = shtab.complete(parser, shell)
    return text.rstrip("\n") + "\n"


def _shtab() -> Any:
    try:
        return importlib.import_module("shtab")
    except ImportError:
        raise ToolMissingError(
            "GMR-C004", "the package shtab is not installed", fix='pip install "gemmir[completion]"'
        ) from None
