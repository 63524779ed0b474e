"""
`gemmir`: parse the command line, run one subcommand, turn every failure into a message and an exit code.

0 it worked, 1 an error in the IR, a pass, the compile, a check or gemmir itself, 2 wrong usage, 3 a tool, driver or GPU
is missing, 130 interrupted. A traceback is shown only with `--debug` or GEMMIR_DEBUG=1.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

from gemmir.cli import bench, cache, completion, doctor, errors, explain, opt, run
from gemmir.cli import compile as compile_command
from gemmir.cli.diagnostics import UsageError, debugging, report, say, wants_colour
from gemmir.cli.parsers import dress
from gemmir.cli.versions import ShowVersions
from gemmir.errors import GemmirError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class Command(Protocol):
    """What a subcommand's module offers. `configure` and the module itself import nothing heavy."""

    @property
    def HELP(self) -> str: ...

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None: ...

    @staticmethod
    def execute(args: argparse.Namespace) -> int: ...


COMMANDS: dict[str, Command] = {
    "compile": compile_command,
    "run": run,
    "bench": bench,
    "opt": opt,
    "explain": explain,
    "doctor": doctor,
    "cache": cache,
    "completion": completion,
    "errors": errors,
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gemmir", description="A GEMM compiler for NVIDIA Hopper.")
    parser.add_argument("--version", action=ShowVersions, help="print gemmir's version and those of what it uses")
    parser.add_argument("--debug", action="store_true", help="show Python tracebacks")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        # `opt` has an argument parser of its own, with its own --help.
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP, add_help=command is not opt)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show Python tracebacks")
        command.configure(sub)
        sub.set_defaults(execute=command.execute)
    dress(parser)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; those that `opt` does not know are its `rest`, for everybody else they are an error."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if args.command == "opt":
        args.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return the exit code."""
    args = parse(sys.argv[1:] if argv is None else argv)
    execute: Callable[[argparse.Namespace], int] = args.execute
    debug = debugging(args.debug)
    try:
        code = execute(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader (`head`, `less`) has what it wanted. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        return explain_failure(error)


def run_process() -> NoReturn:
    """The process's `main`, which waits for no compiler that nobody waits for any more."""
    code = main()
    apart = sys.modules.get("gemmir.backends.cuda.apart")
    if apart is not None and apart.left_behind():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def explain_failure(error: Exception) -> int:
    """Say on stderr what went wrong; the exit code."""
    if isinstance(error, GemmirError):
        say(report(error, colour=wants_colour(sys.stderr)))
        return error.exit_code
    if isinstance(error, UsageError):
        say(f"error: {error}")
        return USAGE
    if isinstance(error, OSError):
        say(f"error: {error.filename or 'input or output'}: {error.strerror or error}")
        return FAILED
    say(f"error: internal error: {type(error).__name__}: {error}")
    say("  fix: this is a bug in gemmir; run again with --debug and report the traceback")
    return FAILED
