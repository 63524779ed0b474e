"""Types of the hopper dialect are the same where all of their parameters are, and only there."""

from __future__ import annotations

from itertools import combinations

import pytest
from xdsl.dialects.builtin import BFloat16Type, Float16Type
from xdsl.ir import Attribute

from gemmir.dialects.hopper import (
    BarriersType,
    CursorType,
    FragmentType,
    RingType,
    ScaleBatchType,
    ScalesType,
    StagingType,
    TensorMapType,
)
from gemmir.layouts import Swizzle

BF16, F16 = BFloat16Type(), Float16Type()


def kinds() -> dict[str, list[Attribute]]:
    """Of each type some that differ in one parameter; made anew by each call."""
    return {
        "barriers": [BarriersType(2, 1), BarriersType(3, 1), BarriersType(2, 2)],
        "cursor": [CursorType(2), CursorType(3)],
        "fragment": [FragmentType(64, 24), FragmentType(64, 16), FragmentType(128, 24)],
        "scale batch": [ScaleBatchType(4, 8), ScaleBatchType(8, 4)],
        "scales": [ScalesType(1, 1), ScalesType(1, 2), ScalesType(2, 1)],
        "ring": [
            RingType((2, 8, 64), BF16, Swizzle.B128),
            RingType((3, 8, 64), BF16, Swizzle.B128),
            RingType((2, 16, 64), BF16, Swizzle.B128),
            RingType((2, 8, 64), F16, Swizzle.B128),
            RingType((2, 8, 64), BF16),
        ],
        "staging": [StagingType((1, 16, 64), BF16), StagingType((2, 16, 64), BF16), StagingType((1, 16, 64), F16)],
        "tensor map": [TensorMapType((8, 64), BF16), TensorMapType((16, 64), BF16), TensorMapType((8, 64), F16)],
    }


@pytest.mark.parametrize("name", kinds())
def test_types_are_told_apart_by_their_parameters(name: str) -> None:
    ones, others = kinds()[name], kinds()[name]
    assert ones == others
    assert [hash(one) for one in ones] == [hash(other) for other in others]
    for one, other in combinations(ones, 2):
        assert one != other
    assert len({*ones, *others}) == len(ones)
