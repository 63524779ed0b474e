"""How every parser of the command looks: help that fits 80 columns, with an example, and a way to all its parts."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator

COLUMNS = 78
"""What argparse fills of 80."""

EXAMPLES = {
    "gemmir": "gemmir compile layer.mlir",
    "gemmir compile": "gemmir compile layer.mlir --emit cuda,sass,manifest -o out/",
    "gemmir run": "gemmir run layer.mlir --shape M=64 --backend simulator --check",
    "gemmir bench": "gemmir bench --shape 4096x7168x2048 --dtype bf16 --peers cublas",
    "gemmir opt": "gemmir opt layer.mlir -p 'gemm-canonicalize,gemm-select-family'",
    "gemmir explain": "gemmir explain layer.mlir --m 64",
    "gemmir errors": "gemmir errors I003",
    "gemmir doctor": "gemmir doctor --json",
    "gemmir cache": "gemmir cache ls",
    "gemmir cache path": 'ls "$(gemmir cache path)"',
    "gemmir cache ls": "gemmir cache ls --json",
    "gemmir cache show": "gemmir cache show 3f9a",
    "gemmir cache clear": "gemmir cache clear --older-than 30d --keep 100",
    "gemmir completion": 'eval "$(gemmir completion bash)"',
}
"""Of each command, by what is typed to get there."""

EXIT_CODES = """exit codes:
  0 ok, 1 error, 2 usage, 3 a tool, driver or GPU is missing, 130 interrupted"""


class Help(argparse.RawDescriptionHelpFormatter):
    """Leaves descriptions as they are, and breaks lines of help at spaces only: `local-memory` is one word."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def dress(parser: argparse.ArgumentParser) -> None:
    """Give `parser` and its subcommands their examples and their layout."""
    for found in parsers_of(parser):
        found.formatter_class = Help
        first, _, rest = (found.description or "").partition("\n")
        found.description = "\n".join(filter(None, (textwrap.fill(first, COLUMNS, break_on_hyphens=False), rest)))
        found.epilog = f"example:\n  {EXAMPLES[found.prog]}\n\n{EXIT_CODES}"


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of its subcommands."""
    yield parser
    for action in actions_of(parser):
        # NOTE: argparse has no public way to subcommands, nor to actions.
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            for name in action.choices:
                yield from parsers_of(action.choices[name])


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments and options of this parser alone."""
    return parser._actions  # pyright: ignore[reportPrivateUsage]
