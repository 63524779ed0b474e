"""What the ops of the hopper dialect have in common."""

from __future__ import annotations

from typing import Any

from xdsl.dialects.builtin import I64, IntegerAttr, i64
from xdsl.irdl import AtLeast, IRDLOperation

Count = IntegerAttr[I64]
POSITIVE = IntegerAttr.constr(I64, value=AtLeast(1))
NATURAL = IntegerAttr.constr(I64, value=AtLeast(0))


def count(value: int) -> Count:
    """A non-negative integer property."""
    return IntegerAttr(value, i64)


def number(attribute: IntegerAttr[Any]) -> int:
    """The value of an integer property."""
    return attribute.value.data


class HopperOperation(IRDLOperation):
    """Base of the ops: those that act have no results and are never removed."""
