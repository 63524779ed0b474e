"""
A program: brings the tables of options in docs/command.md up to date with the parsers.

    python -m tests.cli.command_page

A table stands below a line `<!-- options: gemmir compile -->` and an empty one, and ends with the next empty one.
"""

import argparse
import re
from pathlib import Path

from gemmir.cli.main import make_parser
from gemmir.cli.parsers import actions_of, parsers_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command.md"
TABLE = re.compile(r"(?<=^<!-- options: )(.+?)( -->\n\n)(?:\|.*\n)*", re.MULTILINE)
EVERYWHERE = ("--help", "--debug")
"""Options of every command."""


def updated(text: str) -> str:
    """The page with its tables as the parsers have them. `KeyError` for a command that there is not."""
    found = {parser.prog: parser for parser in parsers_of(make_parser())}
    return TABLE.sub(lambda match: match[1] + match[2] + table(found[match[1]]), text)


def table(parser: argparse.ArgumentParser) -> str:
    rows = [row(action) for action in actions_of(parser) if shown(action)]
    return "".join(["| argument | meaning |\n", "|---|---|\n", *rows]) if rows else ""


def shown(action: argparse.Action) -> bool:
    subcommands = action.nargs == argparse.PARSER
    return not subcommands and not set(EVERYWHERE) & set(action.option_strings)


def row(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else placeholder(action)
    name = " ".join(filter(None, (", ".join(action.option_strings), value)))
    meaning = re.sub(r"\s+", " ", action.help or "").replace("|", "\\|")
    return f"| `{name}` | {meaning} |\n"


def placeholder(action: argparse.Action) -> str:
    """What stands for its value: as usage has it."""
    if isinstance(action.metavar, str):
        name = action.metavar
    else:
        name = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    return f"{name} ..." if action.nargs == "+" else name


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
