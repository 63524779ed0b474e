"""
How products are written: their clauses, parsed in any order and printed in one.

    %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128)
        accumulate %c
        layout <a = m, b = n>
        numerics <promote_every = 128, split_k = 2>
        expect <m = 4096>
        schedule <block = 128x256x128>
        epilogue (%bias by column) { ... }
        : (operand types) -> result type

`gemm.grouped_matmul` has a clause `groups (%ends by offs)` before the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import IntegerAttr, i64
from xdsl.ir import Attribute, Region, SSAValue
from xdsl.parser import Parser, UnresolvedOperand
from xdsl.printer import Printer

from gemmir.dialects.gemm_attributes import (
    EpilogueKindsAttr,
    GroupingAttr,
    LayoutAttr,
    NumericsAttr,
    RecipeAttr,
    ScheduleAttr,
    parse_epilogue_kind,
    parse_grouping,
    parse_recipe,
)
from gemmir.problem import Recipe

if TYPE_CHECKING:
    from gemmir.dialects.gemm import ProductOp


@dataclass(frozen=True, slots=True)
class ParsedProduct:
    """What the text of one product says; `operands` by segment, in the order of the op's definition."""

    operands: Sequence[Sequence[SSAValue]]
    result_type: Attribute
    properties: Mapping[str, Attribute]
    attributes: Mapping[str, Attribute]
    regions: Sequence[Region]


class _Clauses:
    """What the clauses of one product said, while it is parsed."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.properties: dict[str, Attribute] = {}
        self.index: list[UnresolvedOperand] = []
        self.scales: list[UnresolvedOperand] = []
        self.c: list[UnresolvedOperand] = []
        self.epilogue_operands: list[UnresolvedOperand] = []
        self.regions: list[Region] = []


def _parse_groups(parser: Parser, clauses: _Clauses) -> None:
    with parser.in_parens():
        clauses.index.append(parser.parse_unresolved_operand("expected an index operand"))
        parser.parse_keyword("by")
        clauses.properties["grouped_by"] = GroupingAttr(parse_grouping(parser))


def _parse_scaled(parser: Parser, clauses: _Clauses) -> None:
    recipes: list[Recipe] = []
    with parser.in_parens():
        for separator in (",", ""):
            clauses.scales.append(parser.parse_unresolved_operand("expected a scale"))
            parser.parse_keyword("by")
            recipes.append(parse_recipe(parser))
            if separator:
                parser.parse_punctuation(",", ": A and B are both scaled")
    clauses.properties["recipe"] = RecipeAttr((recipes[0], recipes[1]))


def _parse_accumulate(parser: Parser, clauses: _Clauses) -> None:
    clauses.c.append(parser.parse_unresolved_operand())


def _parse_layout(parser: Parser, clauses: _Clauses) -> None:
    clauses.properties["layout"] = LayoutAttr(LayoutAttr.parse_parameter(parser))


def _parse_numerics(parser: Parser, clauses: _Clauses) -> None:
    clauses.properties["numerics"] = NumericsAttr(NumericsAttr.parse_parameter(parser))


def _parse_expect(parser: Parser, clauses: _Clauses) -> None:
    with parser.in_angle_brackets():
        parser.parse_keyword("m")
        parser.parse_punctuation("=")
        start = parser.pos
        m = parser.parse_integer(allow_boolean=False, allow_negative=False)
        if m >= 1 << 63:
            parser.raise_error("m does not fit 64 bits", start, parser.pos)
    clauses.properties["expect"] = IntegerAttr(m, i64)


def _parse_schedule(parser: Parser, clauses: _Clauses) -> None:
    clauses.properties["schedule"] = ScheduleAttr(ScheduleAttr.parse_parameter(parser))


def _parse_epilogue(parser: Parser, clauses: _Clauses) -> None:
    kinds: list[str] = []

    def operand() -> None:
        clauses.epilogue_operands.append(parser.parse_unresolved_operand())
        parser.parse_keyword("by")
        kinds.append(parse_epilogue_kind(parser))

    parser.parse_optional_comma_separated_list(parser.Delimiter.PAREN, operand)
    if kinds:
        clauses.properties["by"] = EpilogueKindsAttr(tuple(kinds))
    clauses.regions.append(parser.parse_region())


_CLAUSES: dict[str, Callable[[Parser, _Clauses], None]] = {
    "groups": _parse_groups,
    "scaled": _parse_scaled,
    "accumulate": _parse_accumulate,
    "layout": _parse_layout,
    "numerics": _parse_numerics,
    "expect": _parse_expect,
    "schedule": _parse_schedule,
    "epilogue": _parse_epilogue,
}


GROUPED = "gemm.grouped_matmul"
"""The op that has a clause for its groups."""


def parse_product(parser: Parser, name: str) -> ParsedProduct:
    """Parse everything after `name`, that of the op."""
    words = tuple(word for word in _CLAUSES if word != "groups" or name == GROUPED)
    operands = [parser.parse_unresolved_operand()]
    parser.parse_punctuation(",")
    operands.append(parser.parse_unresolved_operand())
    clauses = _Clauses()
    start = parser.pos
    while (word := parser.parse_optional_keyword_in(words)) is not None:
        if word in clauses.seen:
            parser.raise_error(f"clause '{word}' is given twice", start, start + len(word))
        clauses.seen.add(word)
        _CLAUSES[word](parser, clauses)
        start = parser.pos
    attributes = parser.parse_optional_attr_dict_with_keyword()
    parser.parse_punctuation(":", f" or a clause: {', '.join(w for w in words if w not in clauses.seen)}")
    start = parser.pos
    signature = parser.parse_function_type()
    operands += [*clauses.index, *clauses.scales, *clauses.c, *clauses.epilogue_operands]
    values = list(parser.resolve_operands(operands, signature.inputs.data, start))
    if len(signature.outputs) != 1:
        parser.raise_error(f"{name} has one result", start, parser.pos)
    scale = len(clauses.scales) // 2
    segments: list[list[SSAValue]] = []
    for count in (1, 1, len(clauses.index), scale, scale, len(clauses.c), len(clauses.epilogue_operands)):
        segments.append(values[:count])
        del values[:count]
    return ParsedProduct(
        operands=segments,
        result_type=signature.outputs.data[0],
        properties=clauses.properties,
        attributes={} if attributes is None else attributes.data,
        regions=clauses.regions,
    )


def print_product(op: ProductOp, printer: Printer) -> None:
    """Print everything after the op's name: one line for a bare product, else a line a clause."""
    printer.print_string(" ")
    printer.print_list((op.a, op.b), printer.print_ssa_value)
    if op.index is not None:
        printer.print_string(" groups (")
        printer.print_ssa_value(op.index)
        printer.print_string(f" by {op.grouping.value})")
    if op.scale_a is not None and op.scale_b is not None:
        printer.print_string(" scaled (")
        printer.print_ssa_value(op.scale_a)
        printer.print_string(f" by {op.scale_a_recipe.value}, ")
        printer.print_ssa_value(op.scale_b)
        printer.print_string(f" by {op.scale_b_recipe.value})")
    with printer.indented(2):
        _print_clauses(op, printer)
        printer.print_op_attributes(op.attributes, print_keyword=True)
        one_line = len(op.operands) == 2 and not op.properties.keys() - {"operandSegmentSizes"} and op.epilogue is None
        printer.print_string(" : " if one_line else "\n: ")
        printer.print_function_type(op.operand_types, op.result_types)


def _print_clauses(op: ProductOp, printer: Printer) -> None:
    if op.c is not None:
        printer.print_string("\naccumulate ")
        printer.print_ssa_value(op.c)
    for word, attribute in (("layout", op.layout), ("numerics", op.numerics)):
        if attribute is not None:
            printer.print_string(f"\n{word} ")
            attribute.print_parameter(printer)
    if op.expect is not None:
        printer.print_string(f"\nexpect <m = {op.expect.value.data}>")
    if op.schedule is not None:
        printer.print_string("\nschedule ")
        op.schedule.print_parameter(printer)
    if op.epilogue is not None:
        _print_epilogue(op, op.epilogue, printer)


def _print_epilogue(op: ProductOp, region: Region, printer: Printer) -> None:
    def operand(pair: tuple[SSAValue, str]) -> None:
        printer.print_ssa_value(pair[0])
        printer.print_string(f" by {pair[1]}")

    printer.print_string("\nepilogue ")
    if op.epilogue_operands:
        with printer.in_parens():
            printer.print_list(zip(op.epilogue_operands, op.epilogue_kinds, strict=False), operand)
        printer.print_string(" ")
    printer.print_region(region)
