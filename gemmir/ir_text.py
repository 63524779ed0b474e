"""
IR text in, verified module out: the only way that text enters gemmir.

Text is untrusted. It passes the gate of `gemmir.ir_gate`, is parsed, bounded, verified, and checked for values that are
used before they are defined (which xDSL's own verifier lets pass). Whatever is wrong comes out as an `IRError` with
line and column, or as a `ScheduleError` with the arithmetic where a schedule does not fit.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NoReturn

from xdsl.context import Context
from xdsl.dialects.arith import Arith
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    ArrayAttr,
    Builtin,
    DictionaryAttr,
    FileLineColLoc,
    IntAttr,
    ModuleOp,
    ShapedType,
    StringAttr,
    UnknownLoc,
)
from xdsl.dialects.func import Func
from xdsl.dialects.math import Math
from xdsl.ir import Attribute, Block, Operation, ParametrizedAttribute, Region, SSAValue
from xdsl.parser import Parser
from xdsl.utils.exceptions import ArgSpecParseError, ParseError, VerifyException

from gemmir.dialects.gemm import EpilogueFault, Gemm, GemmFault, ScheduleFault
from gemmir.errors import GemmirError, IRError, ScheduleError, SourceLocation
from gemmir.ir_gate import MAX_RANK, check_text, location_at, printable

MAX_OPS = 50_000
MAX_REGIONS = 2_000
"""The parser copies its table of values for each region."""

MAX_DIM = 2**31 - 1
MAX_MESSAGE = 600
"""Longer messages of the parser are cut."""

_NUMBERED = re.compile(r"(?:_[0-9]+)*(_[0-9]+)$")
_UNDEFINED = re.compile(r"values used but not defined: \[%([^,\]]+)")


def make_context() -> Context:
    """A context with the dialects that gemmir's text may use, and no others."""
    from gemmir.dialects.hopper import Hopper

    ctx = Context()
    for dialect in (Builtin, Func, Arith, Math, Gemm, Hopper):
        ctx.load_dialect(dialect)
    return ctx


def parse_module(text: str, name: str = "<text>") -> ModuleOp:
    """
    Parse and verify `text`; `name` is what messages call it.

    Raises `IRError`: GMR-R001 if it does not parse, GMR-R002 if it does not verify, GMR-R003 if it is over a size
    limit. Raises `ScheduleError` if a schedule breaks a limit of the hardware. Every operation keeps its place in the
    text as its location.
    """
    check_text(text, name)
    module = _parse(text, name)
    _settle_names(module)
    verify_module(module, text, name)
    return module


def verify_module(module: ModuleOp, text: str | None = None, name: str = "<module>") -> None:
    """
    Verify a module that may come from anywhere; errors as for `parse_module`.

    `text` is what it was parsed from, so that messages can show the line.
    """
    source = _Source(text, name)
    try:
        _check_sizes(module, source)
        _check_dominance(module, source)
        module.verify()
    except GemmirError:
        raise
    except RecursionError:
        raise IRError("GMR-R003", "operations nested too deeply", fix="flatten the module") from None
    except MemoryError:
        raise IRError("GMR-R003", "a module that does not fit the memory", fix="use smaller types") from None
    except VerifyException as error:
        raise _verify_error(error, module, source) from error
    except Exception as error:  # whatever a verifier of xDSL trips over is a fault of the IR, not of the caller
        raise IRError("GMR-R002", _message(error), location=source.of(_failing_op(module))) from error


class _Source:
    """Finds the places of operations."""

    def __init__(self, text: str | None, name: str):
        self.text = text
        self.name = name

    def of(self, op: Operation | None) -> SourceLocation | None:
        """Where `op` was parsed, with the line where its text is at hand."""
        if op is None or not isinstance(place := op.location, FileLineColLoc):
            return None
        line, column = place.line.data, place.column.data
        if self.text is None or place.filename.data != self.name:
            return SourceLocation(printable(place.filename.data), line, column)
        start = 0
        for _ in range(line - 1):
            start = self.text.find("\n", start) + 1
        return location_at(self.text, start + column - 1, self.name)


class _Parser(Parser):
    """Counts what it builds and notes where each operation began."""

    def __init__(self, ctx: Context, text: str, name: str):
        super().__init__(ctx, text, name)
        self.name = name
        self.ops = 0
        self.regions = 0
        self.open_ops: list[int] = []
        """Where the operations that are being parsed began, outermost first."""
        self.line_starts = [0, *(m.end() for m in re.finditer("\n", text))]

    def parse_operation(self) -> Operation:
        self.ops += 1
        if self.ops > MAX_OPS:
            self._too_many(f"more than {MAX_OPS} operations")
        position = self.pos
        self.open_ops.append(position)
        op = super().parse_operation()
        self.open_ops.pop()
        if isinstance(op.location, UnknownLoc):
            line = bisect_right(self.line_starts, position)
            column = position - self.line_starts[line - 1] + 1
            op.location = FileLineColLoc(StringAttr(self.name), IntAttr(line), IntAttr(column))
        return op

    def parse_optional_region(self, arguments: Iterable[Parser.Argument] | None = None) -> Region | None:
        self.regions += 1
        if self.regions > MAX_REGIONS:
            self._too_many(f"more than {MAX_REGIONS} regions")
        return super().parse_optional_region(arguments)

    def _too_many(self, what: str) -> NoReturn:
        place = location_at(self.lexer.input.content, self.pos, self.name)
        raise IRError("GMR-R003", what, rule="modules are small", fix="split the module", location=place)


def _parse(text: str, name: str) -> ModuleOp:
    ctx = make_context()
    parser: _Parser | None = None
    try:
        parser = _Parser(ctx, text, name)  # reads the first token, which may already be none
        return parser.parse_module()
    except GemmirError:
        raise
    except ParseError as error:
        raise _parse_error(error, text, name) from error
    except VerifyException as error:  # of the innermost operation that is being parsed
        start = parser.open_ops[-1] if parser is not None and parser.open_ops else 0
        raise IRError("GMR-R002", _message(error), location=location_at(text, start, name)) from error
    except RecursionError:
        raise IRError(
            "GMR-R003", "text nested too deeply", fix="flatten the module", location=_here(parser, text, name)
        ) from None
    except MemoryError:
        raise IRError("GMR-R003", "text that does not fit the memory", location=_here(parser, text, name)) from None
    except (Exception, ArgSpecParseError) as error:  # the text is at fault: no other kind of error may come out
        raise IRError("GMR-R001", _message(error), location=_here(parser, text, name)) from error


def _settle_names(module: ModuleOp) -> None:
    """
    Strip every numeric suffix of the names of values.

    xDSL strips one: `%x_1_2` keeps `x_1`, which the printer then also gives to a second `x`.
    """
    for op in module.walk():
        arguments = (argument for region in op.regions for block in region.blocks for argument in block.args)
        for value in (*op.results, *arguments):
            hint = value.name_hint or ""
            if (found := _NUMBERED.search(hint)) is not None:
                value.name_hint = hint[: found.start()] + found[1]


def _here(parser: _Parser | None, text: str, name: str) -> SourceLocation:
    return location_at(text, 0 if parser is None else parser.pos, name)


def _message(error: BaseException) -> str:
    """The first lines of a message, fit to be shown."""
    text = str(error) or type(error).__name__
    lines = [printable(line) for line in text[:MAX_MESSAGE].splitlines()]
    return "\n".join(lines) + (" ..." if len(text) > MAX_MESSAGE else "")


def _parse_error(error: ParseError, text: str, name: str) -> IRError:
    message, start, length = printable(error.msg[:MAX_MESSAGE]).strip(), error.span.start, len(error.span)
    undefined = _UNDEFINED.match(message)
    if undefined is not None:
        value = undefined.group(1)
        use = re.search(rf"%{re.escape(value)}(?![\w$.\-])", text)
        start, length = (start, length) if use is None else (use.start(), len(value) + 1)
    return IRError("GMR-R001", message or "syntax error", location=location_at(text, start, name, length))


def _verify_error(error: VerifyException, module: ModuleOp, source: _Source) -> GemmirError:
    place = source.of(error.op if isinstance(error, EpilogueFault) else _failing_op(module))
    if isinstance(error, ScheduleFault):
        found = error.violation
        return ScheduleError(found.code, found.what, rule=found.rule, fix=found.fix, location=place)
    if isinstance(error, GemmFault):
        found = error.fault
        return IRError("GMR-R002", found.what, rule=found.rule, fix=found.fix, location=place)
    return IRError("GMR-R002", _message(error), location=place)


def _failing_op(module: ModuleOp) -> Operation | None:
    """The innermost operation that does not verify by itself."""
    failing = None
    for op in module.walk():
        try:
            op.verify(verify_nested_ops=False)
        except Exception:  # looking for the one that fails, whatever it raises
            failing = op
            break
    return failing


def _check_sizes(module: ModuleOp, source: _Source) -> None:
    """Bound the number of operations and the shapes before verification believes them."""
    checked: set[int] = set()
    for count, op in enumerate(module.walk(), 1):
        if count > MAX_OPS:
            raise IRError("GMR-R003", f"more than {MAX_OPS} operations", rule="modules are small", fix="split it")
        for attribute in _attributes(op):
            if (what := _oversized(attribute, checked)) is not None:
                rule = f"shapes have rank at most {MAX_RANK} and dimensions at most {MAX_DIM}"
                raise IRError("GMR-R003", what, rule=rule, fix="use a smaller shape", location=source.of(op))


def _attributes(op: Operation) -> Iterator[Attribute]:
    yield from op.attributes.values()
    yield from op.properties.values()
    yield from op.operand_types
    yield from op.result_types
    for region in op.regions:
        for block in region.blocks:
            yield from block.arg_types


def _oversized(attribute: Attribute, checked: set[int]) -> str | None:
    """
    What is too large in an attribute or in anything inside it.

    `checked` has the identities of those that are not: to hash an attribute is to hash all that is inside.
    """
    pending = [attribute]
    while pending:
        current = pending.pop()
        if id(current) in checked:
            continue
        checked.add(id(current))
        if isinstance(current, ShapedType) and (what := _oversized_shape(current.get_shape())) is not None:
            return what
        if isinstance(current, ParametrizedAttribute):
            pending += current.parameters
        elif isinstance(current, ArrayAttr):
            pending += current.data
        elif isinstance(current, DictionaryAttr):
            pending += current.data.values()
    return None


def _oversized_shape(shape: tuple[int, ...]) -> str | None:
    if len(shape) > MAX_RANK:
        return f"a shape of rank {len(shape)}"
    large = [d for d in shape if d != DYNAMIC_INDEX and not 0 <= d <= MAX_DIM]
    return f"a dimension of {large[0]}" if large else None


def _check_dominance(module: ModuleOp, source: _Source) -> None:
    """Every value is defined before it is used, in regions of one block each."""
    visible: set[SSAValue] = set()
    _check_op(module, visible, source)


def _check_op(op: Operation, visible: set[SSAValue], source: _Source) -> None:
    for index, operand in enumerate(op.operands):
        if operand not in visible:
            name = f"%{operand.name_hint}" if operand.name_hint else f"operand {index} of {op.name}"
            rule = "a value is defined before it is used"
            raise IRError("GMR-R002", f"{name} is used before it is defined", rule=rule, location=source.of(op))
    for region in op.regions:
        if len(region.blocks) > 1:
            what = f"{op.name} with {len(region.blocks)} blocks in a region"
            rule = "regions have one block: nothing branches"
            raise IRError("GMR-R002", what, rule=rule, location=source.of(op))
        for block in region.blocks:
            _check_block(block, visible, source)


def _check_block(block: Block, visible: set[SSAValue], source: _Source) -> None:
    defined: list[SSAValue] = list(block.args)
    visible.update(defined)
    for op in block.ops:
        _check_op(op, visible, source)
        defined += op.results
        visible.update(op.results)
    visible.difference_update(defined)
