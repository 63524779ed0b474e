"""Kernels of the stream family have the bits of the model, whatever the schedule, and those of the tiles family."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmir.backends.cuda.target import the_kernel
from gemmir.backends.reference import random_inputs
from gemmir.compiler import lower, module_of
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.ir_text import parse_module
from gemmir.passes.sync.check import check_kernel
from gemmir.problem import Grouping
from gemmir.schedule import Family, Schedule
from gemmir.testing import check_bits, check_exact, simulated
from gemmir.testing.strategies import fp8_problem, half_problem, program_text, stream_programs
from tests.backends.simulator.kernels import Example, program

FIXED = "family = stream, turns = false, cluster = 1x1, raster = along_m, group = 1, balanced = false"
FP8_SCHEDULES = (
    "block = 8x64x128, warpgroups = 1 along n, chunk = 2, stages = 4",
    "block = 16x128x128, warpgroups = 2 along n, chunk = 4, stages = 3",
    "block = 24x128x128, warpgroups = 2 along n, chunk = 1, stages = 2",
    "block = 64x64x128, warpgroups = 1 along n, chunk = 1, stages = 5",
    "block = 128x64x128, warpgroups = 1 along n, chunk = 2, stages = 3",
    "block = 40x128x128, warpgroups = 2 along n, chunk = 2, stages = 2",
)
HALF_SCHEDULES = (
    "block = 8x64x64, warpgroups = 1 along n, chunk = 1, stages = 4",
    "block = 32x128x64, warpgroups = 1 along n, chunk = 1, stages = 2",
    "block = 56x256x64, warpgroups = 2 along n, chunk = 1, stages = 3",
    "block = 128x128x64, warpgroups = 2 along n, chunk = 1, stages = 2",
)


@pytest.mark.parametrize("schedule", FP8_SCHEDULES)
@pytest.mark.parametrize("k", [16, 128, 384, 656])
def test_fp8_kernels_have_the_bits_of_the_model(schedule: str, k: int) -> None:
    """From one k-block to more than there are stages, whole and with a tail; tails of M and N, two tiles of M."""
    text = program("f8E4M3FN", 200, k, f"{FIXED}, {schedule}")
    check_bits(simulated(text, seed=k), text, 70)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("schedule", HALF_SCHEDULES)
@pytest.mark.parametrize("k", [16, 64, 200])
def test_half_kernels_have_the_bits_of_the_model(dtype: str, schedule: str, k: int) -> None:
    text = program(dtype, 200, k, f"{FIXED}, {schedule}")
    check_bits(simulated(text, seed=k), text, 70)


def split(text: str, parts: int) -> str:
    return text.replace(" schedule <", f" numerics <split_k = {parts}> schedule <", 1)


@pytest.mark.parametrize("schedule", FP8_SCHEDULES)
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("k", [384, 656, 912])
def test_parts_of_k_are_added_in_order(schedule: str, parts: int, k: int) -> None:
    """As many k-blocks in each part, and a last part that has fewer, or a tail; the next tile follows at once."""
    text = split(program("f8E4M3FN", 200, k, f"{FIXED}, {schedule}"), parts)
    check_bits(simulated(text, seed=k), text, 70)
    check_exact(simulated(text, seed=k + 1, clusters=1), text, 131, seed=k)


@pytest.mark.parametrize(
    "schedule", [HALF_SCHEDULES[0], "block = 56x128x64, warpgroups = 2 along n, chunk = 1, stages = 3"]
)
@pytest.mark.parametrize(
    ("dtype", "parts", "k"), [("bf16", 2, 128), ("f16", 2, 200), ("bf16", 3, 320), ("f16", 3, 576)]
)
def test_parts_of_k_of_16_bit_types_are_added_in_order(schedule: str, dtype: str, parts: int, k: int) -> None:
    text = split(program(dtype, 200, k, f"{FIXED}, {schedule}"), parts)
    check_bits(simulated(text, seed=k), text, 70)
    check_exact(simulated(text, seed=k + 1, clusters=1), text, 131, seed=k)


@pytest.mark.parametrize("m", [1, 7, 8, 9, 63, 64, 65])
def test_exact_data_at_every_edge_of_m(m: int) -> None:
    text = program("f8E4M3FN", 72, 272, f"{FIXED}, {FP8_SCHEDULES[0]}")
    check_exact(simulated(text, seed=m), text, m)


def test_bits_are_those_of_the_tiles_family() -> None:
    """Which operand is on which side of WGMMA changes no bit."""
    streamed = Example.of(program("f8E4M3FN", 136, 400, f"{FIXED}, {FP8_SCHEDULES[2]}"), 21)
    tiled = Example.of(program("f8E4M3FN", 136, 400, "block = 64x64x128, warpgroups = 1, stages = 2"), 21)
    np.testing.assert_array_equal(streamed.run(), tiled.run())


@given(text=stream_programs(), seed=st.integers(0, 1 << 16))
@settings(max_examples=40, deadline=None)
def test_drawn_kernels_have_the_bits_of_the_model(text: str, seed: int) -> None:
    """Any rows, tails and parts of K; rings longer and shorter than a tile; one cluster for all tiles, too."""
    m = problem_of(the_matmul(module_of(text))).m
    assert m is not None
    check_bits(simulated(text, seed=seed, clusters=1 if seed % 2 else None), text, m)
    check_kernel(the_kernel(lower(text, until="hopper").module), split_warps=True)


INDICES = {
    Grouping.OFFS: ([17, 18, 41], [0, 33, 33], [-5, 40, 20], [1 << 30, 16, 41], [7, -(2**31), 2**31 - 1]),
    Grouping.COUNTS: ([41, 0, 1], [16, 17, 15], [-1, 42, 7], [2**31 - 1, 41, -(2**31)]),
    Grouping.BATCH: ([],),
}
"""Of three groups and 41 rows, of a few tiles, one row or none; and numbers that make no sense."""


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("grouping", INDICES)
def test_kernels_of_groups_have_the_bits_of_the_model(grouping: Grouping, fp8: bool) -> None:
    """Tiles of 16 rows, tails of N and K."""
    problem = replace((fp8_problem if fp8 else half_problem)(41, 72, 208), grouping=grouping, groups=3)
    text = program_text(problem, Schedule(family=Family.STREAM, block_m=16))
    for seed, index in enumerate(INDICES[grouping]):
        inputs = random_inputs(parse_module(text), None, seed)
        if index:
            inputs["index"] = torch.tensor(index, dtype=torch.int32)
        check_bits(simulated(text, seed=seed), text, inputs=list(inputs.values()))
