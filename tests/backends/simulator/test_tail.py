"""Narrower tiles of the last columns: the bits of the model on every grid, whatever the math warpgroups do."""

from __future__ import annotations

import numpy as np
import pytest

from gemmir.testing import check_bits, simulated
from tests.backends.simulator.kernels import Example, kernel_of, program

FP8 = {
    "turns": "block = 128x64x128, warpgroups = 2 along m, turns = true, chunk = 1, tail = 48 after 2, stages = 3",
    "slices": "block = 128x128x128, warpgroups = 2 along n, chunk = 1, slices = 2, tail = 64 after 1, stages = 3",
    "whole": "block = 128x128x128, warpgroups = 2 along n, chunk = 1, slices = 1, tail = 32 after 1, stages = 2",
    "chunks": "block = 128x64x128, warpgroups = 2 along m, chunk = 2, tail = 16 after 2, stages = 3",
    "batches": "block = 64x112x128, warpgroups = 1, chunk = 1, scale_batch = 4, tail = 80 after 1, stages = 2",
}
BF16 = {
    "two": "block = 128x64x64, warpgroups = 2 along m, tail = 48 after 2, stages = 3",
    "three": "block = 192x64x64, warpgroups = 3 along m, tail = 16 after 3, stages = 2",
}


@pytest.mark.parametrize("clusters", [1, 2, 3, 5])
@pytest.mark.parametrize("k", [128, 384, 400])
@pytest.mark.parametrize("name", FP8)
def test_fp8(name: str, k: int, clusters: int) -> None:
    """One k-block, as many as stages, one more; CTAs with narrower tiles only, with several, and with none."""
    for m in (1, 300):
        example = Example.of(program("f8E4M3FN", 200, k, FP8[name]), m)
        np.testing.assert_array_equal(example.run(seed=k + clusters, clusters=clusters), example.expected)


@pytest.mark.parametrize("clusters", [1, 4])
@pytest.mark.parametrize("name", BF16)
def test_bf16(name: str, clusters: int) -> None:
    for k in (64, 200):
        text = program("bf16", 200, k, BF16[name])
        example = Example.of(text, 150)
        np.testing.assert_array_equal(example.run(seed=k, clusters=clusters), example.expected)
    check_bits(simulated(text, seed=1), text, 65)


def test_more_ctas_than_wide_tiles() -> None:
    """Two wide tiles and two narrower ones on four CTAs: two of them begin with a narrower one."""
    text = program("f8E4M3FN", 200, 384, FP8["turns"])
    example = Example.of(text, 128)
    kernel = kernel_of(text)
    assert (kernel.tail_begins, kernel.tile.n.data) == (128, 64)
    np.testing.assert_array_equal(example.run(seed=3, clusters=4), example.expected)
