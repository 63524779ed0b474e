"""Clusters of four CTAs: the bits of the model where rows, columns, or both share what they load."""

from __future__ import annotations

import numpy as np
import pytest

from gemmir.testing import check_bits, simulated
from tests.backends.simulator.kernels import Example, program

FP8 = {
    "2x2": "block = 64x64x128, warpgroups = 1, chunk = 1, cluster = 2x2, stages = 3",
    "2x2 in turn": "block = 128x64x128, warpgroups = 2 along m, turns = true, chunk = 1, cluster = 2x2, stages = 2",
    "4x1": "block = 64x64x128, warpgroups = 1, chunk = 2, cluster = 4x1, stages = 2",
    "1x4": "block = 128x64x128, warpgroups = 2 along m, chunk = 1, cluster = 1x4, stages = 3",
}
BF16 = {
    "2x2": "block = 128x64x64, warpgroups = 2 along m, cluster = 2x2, stages = 3",
    "4x1": "block = 64x64x64, warpgroups = 1, cluster = 4x1, stages = 2",
    "1x4": "block = 64x64x64, warpgroups = 1, cluster = 1x4, stages = 4",
}


@pytest.mark.parametrize("k", [128, 400])
@pytest.mark.parametrize("name", FP8)
def test_fp8(name: str, k: int) -> None:
    """One k-block, and one more than there are stages; odd numbers of tiles along M and N, rows that are not there."""
    for m, clusters in ((1, 1), (150, 2), (330, 1)):
        example = Example.of(program("f8E4M3FN", 304, k, FP8[name]), m)
        np.testing.assert_array_equal(example.run(seed=k, clusters=clusters), example.expected)


@pytest.mark.parametrize("name", BF16)
def test_bf16(name: str) -> None:
    for k in (64, 200):
        text = program("bf16", 304, k, BF16[name])
        check_bits(simulated(text, seed=k), text, 150)


def test_operands_that_are_not_k_major_come_in_panels_of_their_own() -> None:
    """Each CTA of a row, or of a column, loads the panels of its part."""
    text = program("bf16", 304, 200, "block = 128x128x64, warpgroups = 2 along n, cluster = 2x2, stages = 2")
    text = text.replace("gemm.matmul %x, %w", "gemm.matmul %x, %w layout <a = m, b = n>")
    check_bits(simulated(text, seed=5), text, 152)
