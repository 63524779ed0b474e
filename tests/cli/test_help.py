"""What every `--help` says, and what it costs."""

import argparse
import re
import shlex
import subprocess
import sys

import pytest

from gemmir.cli.main import COMMANDS, main, make_parser, parse
from gemmir.cli.opt_tool import GemmirOpt
from gemmir.cli.parsers import EXAMPLES, actions_of, parsers_of

OURS = {parser.prog: parser for parser in parsers_of(make_parser())}
SUBCOMMANDS = [prog.split()[1:] for prog in OURS]


def parser_of_opt() -> argparse.ArgumentParser:
    """That of xdsl-opt, which `gemmir opt` shows."""
    parser = argparse.ArgumentParser()
    GemmirOpt(args=[]).register_all_arguments(parser)
    return parser


@pytest.mark.parametrize("command", SUBCOMMANDS, ids=" ".join)
def test_help_fits_80_columns_and_ends_in_an_example(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > 80] == []
    prog = " ".join(["gemmir", *command])
    assert text.startswith(f"usage: {prog} ")
    assert f"\nexample:\n  {EXAMPLES[prog]}\n\nexit codes:\n  0 ok, 1 error, 2 usage, 3 " in text
    assert not re.search(r"[a-z]-$", text, re.MULTILINE)  # no word is broken


@pytest.mark.parametrize("prog", OURS)
def test_every_option_has_a_help_text(prog: str):
    parser = parser_of_opt() if prog == "gemmir opt" else OURS[prog]
    actions = [action for action in actions_of(parser) if action.option_strings]
    assert "--help" in [option for action in actions for option in action.option_strings]
    assert [action.option_strings for action in actions if not action.help] == []


def test_every_argument_has_a_help_text():
    named = [a for parser in OURS.values() for a in actions_of(parser) if a.dest not in ("command", "action")]
    assert [a.dest for a in named if not a.help or a.help is argparse.SUPPRESS] == []


@pytest.mark.parametrize("prog", EXAMPLES)
def test_examples_are_command_lines_of_their_command(prog: str):
    (line,) = re.findall(r"gemmir (.+?)(?:\)\"|$)", EXAMPLES[prog])
    words = shlex.split(line)
    assert [*words, ""][: prog.count(" ")] == prog.split()[1:]
    args = parse(words)
    assert COMMANDS[args.command].execute is args.execute


@pytest.mark.parametrize("asked", ["--help", "--version", "compile --help", "bench --help", "cache ls --help"])
def test_help_loads_nothing_heavy(asked: str):
    program = (
        "import json, sys\nfrom gemmir.cli.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    print(json.dumps([end.code, sorted({'xdsl', 'torch', 'numpy', 'cuda'} & set(sys.modules))]))"
    )
    command = [sys.executable, "-c", program, *asked.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, []]"
