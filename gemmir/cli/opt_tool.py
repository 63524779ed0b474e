"""xdsl-opt as a class of ours: gemmir is registered even where it is not installed, and errors are typed."""

from __future__ import annotations

import argparse
from bisect import bisect_right
from collections.abc import Sequence
from typing import IO

from xdsl.context import Context
from xdsl.dialects.builtin import FileLineColLoc, IntAttr, ModuleOp, StringAttr, UnknownLoc
from xdsl.ir import Operation
from xdsl.parser import Parser
from xdsl.utils.exceptions import ArgSpecParseError, DiagnosticException, ParseError
from xdsl.xdsl_opt_main import xDSLOptMain

from gemmir.cli.parsers import actions_of, dress
from gemmir.dialects.gemm import GemmFault, ScheduleFault
from gemmir.errors import GemmirError, IRError, ScheduleError, SourceLocation
from gemmir.universe import GEMMIR_UNIVERSE

HELPS = {"disable_verify": "Do not verify attributes.", "version": "show program's version number and exit"}
"""Of options for which xdsl-opt has none."""
HINT = "gemmir opt --help lists the passes"


class PlacedParser(Parser):
    """The stock parser, but each operation keeps its place, for passes that name operations."""

    def __init__(self, ctx: Context, text: str, name: str, skipped_lines: int):
        super().__init__(ctx, text, name)
        self.name = name
        self.skipped_lines = skipped_lines
        self.line_starts = [0, *(index + 1 for index, char in enumerate(text) if char == "\n")]

    def parse_operation(self) -> Operation:
        start = self.pos
        op = super().parse_operation()
        if isinstance(op.location, UnknownLoc):
            line = bisect_right(self.line_starts, start)
            column = start - self.line_starts[line - 1] + 1
            op.location = FileLineColLoc(StringAttr(self.name), IntAttr(self.skipped_lines + line), IntAttr(column))
        return op


class GemmirOpt(xDSLOptMain):
    """The stock driver; gemmir's universe is there whether or not the entry point is installed."""

    version_format = "gemmir opt, on xdsl {xdsl_version}"

    def get_input_stream(self) -> tuple[IO[bytes], str]:
        if self.args.input_file == "-":
            self.args.input_file = None  # stdin, for xdsl-opt
        return super().get_input_stream()

    def register_all_arguments(self, arg_parser: argparse.ArgumentParser) -> None:
        arg_parser.prog = "gemmir opt"
        super().register_all_arguments(arg_parser)
        for action in actions_of(arg_parser):
            action.help = HELPS.get(action.dest, action.help or "").replace(",", ", ").replace(",  ", ", ")
        dress(arg_parser)

    def parse_chunk(self, chunk: IO[bytes], file_extension: str, start_offset: int = 0) -> ModuleOp | None:
        if file_extension != "mlir":
            return super().parse_chunk(chunk, file_extension, start_offset)
        text = chunk.read().decode(errors="replace")
        parser = PlacedParser(self.ctx, text, self.get_input_name(), start_offset)
        return parser.parse_module(not self.args.no_implicit_module)

    def register_all_dialects(self) -> None:
        super().register_all_dialects()
        for name, factory in GEMMIR_UNIVERSE.all_dialects.items():
            if name not in self.ctx.registered_dialect_names:
                self.ctx.register_dialect(name, factory)

    def register_all_passes(self) -> None:
        super().register_all_passes()
        self.available_passes = {**GEMMIR_UNIVERSE.all_passes, **self.available_passes}

    def register_all_targets(self) -> None:
        super().register_all_targets()
        self.available_targets = {**GEMMIR_UNIVERSE.all_targets, **self.available_targets}


def run_opt(argv: Sequence[str]) -> None:
    """Run xdsl-opt on `argv`. Raises IRError (GMR-R001, R002, R004) or what a pass of gemmir raises."""
    try:
        GemmirOpt(description="xdsl-opt with gemmir's dialects, passes and targets.", args=argv).run()
    except ArgSpecParseError as error:  # NOTE: derives from BaseException in xDSL 0.74.
        raise IRError("GMR-R004", str(error), fix="write -p 'pass-a,pass-b{option=1}'") from error
    except ParseError as error:
        raise IRError("GMR-R001", error.msg, location=location_of(error)) from error
    except DiagnosticException as error:
        raise typed(error) from error
    except ValueError as error:
        raise IRError("GMR-R004", str(error), fix=HINT) from error


def typed(error: DiagnosticException) -> GemmirError:
    """A verifier's complaint as an error of ours, with the rule and the fix where it has them."""
    if isinstance(error, ScheduleFault):
        found = error.violation
        return ScheduleError(found.code, found.what, rule=found.rule, fix=found.fix)
    if isinstance(error, GemmFault):
        return IRError("GMR-R002", error.fault.what, rule=error.fault.rule, fix=error.fault.fix)
    return IRError("GMR-R002", str(error))


def location_of(error: ParseError) -> SourceLocation:
    """The span of a parse error as file, line, column and the text of the line."""
    span = error.span
    at = span.get_location()
    first, last = span.input.get_start_of_line(span.start), span.input.get_end_of_line(span.start)
    line = span.input.content[first:last]
    text = line if isinstance(line, str) else line.decode(errors="replace")
    return SourceLocation(span.input.name, at.line, at.col, text, max(1, min(span.end, last) - span.start))
