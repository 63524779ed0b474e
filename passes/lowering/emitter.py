"""A builder for hopper ops: explicit insertion points, op classes with fields by name."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from xdsl.builder import Builder
from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IndexType, IntegerAttr, UnitAttr
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue
from xdsl.irdl import IRDLOperation
from xdsl.rewriter import InsertPoint

from gemmir.dialects.hopper.base import count

OpT = TypeVar("OpT", bound=IRDLOperation)
INDEX = IndexType()
UNIT = UnitAttr()

Operand = SSAValue | Sequence[SSAValue]
Property = Attribute | int | bool | None


class Emitter:
    """Appends ops to a block. `Emitter.inside` opens a region op and returns an emitter for its body."""

    def __init__(self, block: Block):
        self.block = block
        self._builder = Builder(InsertPoint.at_end(block))

    def op(self, kind: type[OpT], *operands: Operand, regions: Sequence[Region] = (), **properties: Property) -> OpT:
        """
        Append an op without results.

        Integers become i64 properties, True a unit, False and None are left out.
        """
        return self._builder.insert(_create(kind, operands, properties, (), regions))

    def value(
        self, kind: type[IRDLOperation], result: Attribute, name: str, *operands: Operand, **properties: Property
    ) -> SSAValue:
        """Append an op with one result of type `result`, named `name`."""
        made = self._builder.insert(_create(kind, operands, properties, (result,), ()))
        made.results[0].name_hint = name
        return made.results[0]

    def insert(self, op: Operation) -> None:
        self._builder.insert(op)

    @contextmanager
    def inside(
        self, kind: type[IRDLOperation], *arguments: str, operands: Sequence[Operand] = (), **properties: Property
    ) -> Generator[tuple[Emitter, tuple[SSAValue, ...]]]:
        """Append a region op whose block takes index `arguments` of these names; yields its emitter and arguments."""
        block = Block(arg_types=[INDEX] * len(arguments))
        for argument, name in zip(block.args, arguments, strict=True):
            argument.name_hint = name
        yield Emitter(block), tuple(block.args)
        self.op(kind, *operands, regions=(Region(block),), **properties)


def number(emit: Emitter, name: str, value: int) -> SSAValue:
    """An index that is known."""
    made = ConstantOp(IntegerAttr(value, INDEX))
    made.result.name_hint = name
    emit.insert(made)
    return made.result


def _create(
    kind: type[OpT],
    operands: Sequence[Operand],
    properties: dict[str, Property],
    results: Sequence[Attribute],
    regions: Sequence[Region],
) -> OpT:
    given = {name: value for name, value in properties.items() if value is not None and value is not False}
    attributes = {name: _attribute(value) for name, value in given.items()}
    return kind.build(operands=list(operands), properties=attributes, result_types=list(results), regions=list(regions))


def _attribute(value: Property) -> Attribute:
    if value is True:
        return UNIT
    if isinstance(value, int):
        return count(value)
    assert value is not None
    return value
