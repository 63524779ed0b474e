"""Simulated kernels have the bits of the model, whatever the schedule, the seed and the grid; exact data are exact."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmir.backends.reference import random_inputs
from gemmir.backends.simulator import simulate
from gemmir.compiler import module_of
from gemmir.dialects import hopper
from gemmir.errors import InputError
from gemmir.problem import Recipe
from gemmir.testing import check_bits, check_bound, check_exact, simulated
from gemmir.testing.strategies import fp8_problem, program_text, programs
from tests.backends.simulator.kernels import Example, kernel_of, program
from tests.gpu.problems import fp8_text

FP8_SCHEDULES = (
    "block = 64x64x128, warpgroups = 1, chunk = 1, stages = 2",
    "block = 128x48x128, warpgroups = 1, chunk = 1, stages = 3, raster = along_n, group = 2",
    "block = 128x64x128, warpgroups = 2 along m, cluster = 2x1, chunk = 1, stages = 2",
    "block = 128x64x128, warpgroups = 2 along m, cluster = 1x2, chunk = 1, stages = 3",
    "block = 64x256x128, warpgroups = 2 along n, turns = true, cluster = 2x1, chunk = 1, stages = 2",
    "block = 64x128x128, warpgroups = 2 along n, turns = true, chunk = 1, stages = 4",
    "block = 192x64x128, warpgroups = 3 along m, chunk = 1, stages = 2",
    "block = 128x112x128, warpgroups = 2 along m, chunk = 2, cluster = 2x1, scale_slots = 0, stages = 2",
    "block = 64x64x128, warpgroups = 1, chunk = 4, scale_slots = 0, stages = 3",
    "block = 64x96x128, warpgroups = 3 along n, chunk = 1, stages = 2",
    "block = 192x32x128, warpgroups = 1, slices = 3, cluster = 2x1, stages = 2",
    "block = 128x96x128, warpgroups = 2 along n, slices = 1, cluster = 1x2, stages = 3",
)
HALF_SCHEDULES = (
    "block = 64x64x64, warpgroups = 1, stages = 2",
    "block = 128x96x64, warpgroups = 2 along m, cluster = 2x1, stages = 3",
    "block = 128x96x64, warpgroups = 2 along n, cluster = 1x2, stages = 2",
    "block = 192x32x64, warpgroups = 3 along m, stages = 2",
)


@pytest.mark.parametrize("schedule", FP8_SCHEDULES)
@pytest.mark.parametrize("k", [16, 128, 256, 384, 400])
def test_fp8_kernels_have_the_bits_of_the_model(schedule, k):
    """k-blocks from one to more than there are stages, whole and with a tail; tails of M and N."""
    text = program("f8E4M3FN", 200, k, schedule)
    check_bits(simulated(text, seed=k), text, 150)


@pytest.mark.parametrize("stages", [2, 3, 4, 5])
@pytest.mark.parametrize("k_blocks", range(1, 10))
def test_chunks_change_no_bit(stages, k_blocks):
    """Fewer k-blocks than a chunk, whole chunks, and every rest, in rings of fewer and more slots."""
    k = 128 * k_blocks - 48 * (k_blocks % 2)
    text = "block = 64x16x128, warpgroups = 1, chunk = {}, cluster = 1x1, scale_slots = 0, stages = {}"
    one, two, four = (Example.of(program("f8E4M3FN", 32, k, text.format(chunk, stages)), 65) for chunk in (1, 2, 4))
    result = one.run(seed=stages)
    np.testing.assert_array_equal(result, one.expected)
    for chunked in (two, four):
        np.testing.assert_array_equal(chunked.run(seed=k_blocks), result)


BATCHED = {
    "block = 64x16x128, warpgroups = 1": (40, 32),
    "block = 64x192x128, warpgroups = 2 along n": (200, 4),
    "block = 64x96x128, warpgroups = 1": (200, 8),
    "block = 64x112x128, warpgroups = 1": (232, 4),
    "block = 64x128x128, warpgroups = 2 along n, cluster = 2x1": (136, 16),
}
"""Tiles, N that ends inside a tile, and k-blocks of a batch. From the second on tiles straddle blocks of scales."""

AROUND_BATCHES = [
    (schedule, k_blocks)
    for schedule, (_, batch) in BATCHED.items()
    for k_blocks in sorted({1, batch - 1, batch, batch + 1, 2 * batch, 2 * batch + 1, 70})
]


@pytest.mark.parametrize(("schedule", "k_blocks"), AROUND_BATCHES)
def test_batches_of_scales_change_no_bit(schedule: str, k_blocks: int) -> None:
    """
    Less than a batch, whole batches and every kind of rest; tiles that follow one another in one CTA.

    Every scale is another one, so that none can stand for its neighbour.
    """
    columns, batch = BATCHED[schedule]
    k = 128 * k_blocks - 48 * (k_blocks % 2)
    one, many = (program("f8E4M3FN", columns, k, f"{schedule}, scale_batch = {n}") for n in (1, batch))
    tensors = list(random_inputs(module_of(one), 70, k_blocks).values())
    tensors[3] = torch.linspace(0.5, 2, tensors[3].numel()).reshape(tensors[3].shape)
    expected, result = (simulated(text, seed=k_blocks, clusters=1)(*tensors) for text in (one, many))
    assert torch.equal(result.view(torch.int16), expected.view(torch.int16))
    if k_blocks == batch + 1:
        check_bits(lambda *_: result, many, inputs=tensors)


def test_no_seed_changes_a_bit_of_batches() -> None:
    example = Example.of(program("f8E4M3FN", 232, 128 * 9, "block = 64x112x128, warpgroups = 1, scale_batch = 4"), 70)
    for seed in range(8):
        np.testing.assert_array_equal(example.run(seed=seed), example.expected, err_msg=f"seed {seed}")


OWN_WARP = (
    "block = 64x64x128, warpgroups = 1, chunk = 1, scale_batch = 1, stages = 2",
    "block = 128x64x128, warpgroups = 2 along m, turns = true, chunk = 1, scale_batch = 32, stages = 3",
    "block = 64x96x128, warpgroups = 1, chunk = 1, cluster = 2x1, scale_batch = 8, stages = 2",
    "block = 64x64x128, warpgroups = 1, chunk = 1, cluster = 1x2, scale_batch = 1, stages = 3",
    "block = 128x64x128, warpgroups = 2 along n, chunk = 1, scale_batch = 16, slices = 2, stages = 3",
    "block = 64x64x128, warpgroups = 1, chunk = 2, cluster = 1x2, scale_batch = 32, stages = 3",
    "block = 64x64x128, warpgroups = 1, chunk = 1, tail = 48 after 1, scale_batch = 1, stages = 3",
)


@pytest.mark.parametrize("schedule", OWN_WARP)
@pytest.mark.parametrize("k", [16, 400])
def test_a_warp_for_scales_changes_no_bit(schedule: str, k: int) -> None:
    """On random and on exact data: fewer k-blocks than slots and more, K tails; N and M that end inside a tile."""
    text = program("f8E4M3FN", 104, k, f"{schedule}, scale_slots = 1")
    check_exact(simulated(text, seed=k, clusters=1), text, 70, seed=k)
    check_bits(simulated(text, seed=k + 1, clusters=1), text, 70)


SEVERAL_SLOTS = (
    "block = 64x64x128, warpgroups = 1, chunk = 2, scale_batch = 32, cluster = 1x1",
    "block = 64x64x128, warpgroups = 1, chunk = 4, scale_batch = 32, cluster = 2x1",
    "block = 64x96x128, warpgroups = 1, chunk = 1, scale_batch = 8, cluster = 1x2",
    "block = 128x48x128, warpgroups = 2 along m, chunk = 2, scale_batch = 8, cluster = 1x1",
)


@pytest.mark.parametrize("schedule", SEVERAL_SLOTS)
@pytest.mark.parametrize(("slots", "stages"), [(2, 6), (4, 7)])
@pytest.mark.parametrize("k", [512, 1008])
def test_several_slots_of_scales_at_a_time_change_no_bit(schedule: str, slots: int, stages: int, k: int) -> None:
    """In rings that whole steps fill and do not fill; one step a tile or more, with a tail of K."""
    text = program("f8E4M3FN", 104, k, f"{schedule}, scale_slots = {slots}, stages = {stages}")
    check_exact(simulated(text, seed=stages, clusters=1), text, 70, seed=k)
    check_bits(simulated(text, seed=k + slots, clusters=1), text, 70)


SCALES_AT_ONCE = (
    "block = 64x64x128, warpgroups = 1, chunk = 2, cluster = 1x1, stages = 2",
    "block = 64x96x128, warpgroups = 2 along n, chunk = 4, cluster = 1x1, stages = 5",
    "block = 128x48x128, warpgroups = 2 along m, chunk = 4, cluster = 1x1, stages = 4",
    "block = 64x64x128, warpgroups = 1, chunk = 4, cluster = 2x1, stages = 3",
    "block = 64x64x128, warpgroups = 1, chunk = 2, cluster = 1x2, stages = 3",
)


@pytest.mark.parametrize("schedule", SCALES_AT_ONCE)
@pytest.mark.parametrize("k", [0, 16, 512, 1008])
def test_scales_of_a_tile_at_once_change_no_bit(schedule: str, k: int) -> None:
    """No K, one k-block, whole chunks and a rest; tiles that follow one another in one CTA."""
    text = program("f8E4M3FN", 104, k, f"{schedule}, scale_slots = tile")
    check_exact(simulated(text, seed=k, clusters=1), text, 70, seed=k)
    check_bits(simulated(text, seed=k + 1, clusters=1), text, 70)


def test_scales_of_large_tiles_have_one_slot() -> None:
    """So many k-blocks that those of two tiles have no room: the second tile waits for the first one's to be read."""
    text = program("f8E4M3FN", 32, 128 * 66, "block = 64x32x128, warpgroups = 1, chunk = 4, scale_slots = tile")
    (scaled,) = (v.type for op in kernel_of(text).walk() for v in op.results if v.name_hint == "scaled")
    assert scaled == hopper.BarriersType(1, 1)
    check_bits(simulated(text, seed=3, clusters=1), text, 130)


@pytest.mark.parametrize("slots", [1, 2, 4, "tile"])
def test_no_seed_changes_a_bit_of_a_warp_for_scales(slots: int | str) -> None:
    batch = 1 if slots == "tile" else 32
    tile = f"block = 64x64x128, warpgroups = 1, chunk = 2, scale_batch = {batch}"
    schedule = f"{tile}, scale_slots = {slots}, stages = 7"
    example = Example.of(program("f8E4M3FN", 104, 1008, schedule), 70)
    for seed in range(6):
        np.testing.assert_array_equal(example.run(seed=seed), example.expected, err_msg=f"seed {seed}")


@pytest.mark.parametrize(("slots", "stages"), [(1, 2), (2, 6), (4, 7)])
def test_a_warp_for_scales_of_columns_changes_no_bit(slots: int, stages: int) -> None:
    """Both kinds of scales come by TMA, and none in batches."""
    schedule = f"block = 64x64x128, warpgroups = 1, chunk = 1, scale_slots = {slots}, stages = {stages}"
    problem = replace(fp8_problem(70, 104, 1008), scale_b=Recipe.BLOCK_WISE_1X128)
    text = program_text(problem).replace(" : (", f" schedule <{schedule}> : (", 1)
    check_exact(simulated(text, seed=slots, clusters=1), text)
    check_bits(simulated(text, seed=stages, clusters=1), text)


@pytest.mark.parametrize("schedule", HALF_SCHEDULES)
@pytest.mark.parametrize(("dtype", "k"), [("bf16", 8), ("bf16", 64), ("f16", 128), ("bf16", 192), ("bf16", 200)])
def test_half_kernels_have_the_bits_of_the_model(schedule, dtype, k):
    text = program(dtype, 200, k, schedule)
    check_bits(simulated(text, seed=k), text, 150)


WAVES = {
    "block = 128x64x128, warpgroups = 2 along n, cluster = 1x1, stages = 3": 2,
    "block = 256x32x128, warpgroups = 2 along m, cluster = 2x1, stages = 2": 2,
    "block = 192x48x128, warpgroups = 1, cluster = 1x2, stages = 3": 3,
    "block = 256x32x128, warpgroups = 1, cluster = 2x1, stages = 2": 4,
}
"""Tiles, and how many waves a warpgroup has of each."""


@pytest.mark.parametrize("schedule", WAVES)
@pytest.mark.parametrize("k", [16, 128, 256, 400])
def test_slices_change_no_bit(schedule: str, k: int) -> None:
    """
    Whole or wave by wave, on random data (T1) and on exact data (T0): no k-block in the loop, one, more than stages; K
    tails; N that ends inside a block; M that ends inside the first slice, at its end, inside the last, inside a tile.
    """
    texts = [program("f8E4M3FN", 104, k, f"{schedule}, slices = {slices}") for slices in (1, WAVES[schedule])]
    for m in (1, 64, 131, 259):
        for number, text in enumerate(texts):
            check_exact(simulated(text, seed=m + number, clusters=1), text, m, seed=k)
    tensors = list(random_inputs(module_of(texts[0]), 259, k).values())
    whole, sliced = (simulated(text, seed=number, clusters=1)(*tensors) for number, text in enumerate(texts))
    assert torch.equal(whole.view(torch.int16), sliced.view(torch.int16))
    check_bits(lambda *_: sliced, texts[1], inputs=tensors)


@pytest.mark.parametrize("schedule", WAVES)
def test_no_seed_changes_a_bit_of_a_sliced_tile(schedule: str) -> None:
    example = Example.of(program("f8E4M3FN", 72, 400, f"{schedule}, slices = {WAVES[schedule]}"), 131)
    for seed in range(8):
        np.testing.assert_array_equal(example.run(seed=seed), example.expected, err_msg=f"seed {seed}")


IN_PLACE = {
    "block = 64x128x64, warpgroups = 1, cluster = 2x1, stages = 2": (2, 4),
    "block = 128x96x64, warpgroups = 2 along m, cluster = 1x1, stages = 3": (2, 3),
    "block = 128x64x64, warpgroups = 2 along n, cluster = 1x2, stages = 3": (2,),
    "block = 64x96x64, warpgroups = 1, tail = 64 after 1, cluster = 1x1, stages = 3": (2,),
}
"""Tiles that are summed in place, and in how many slices they may leave: of columns, if a warpgroup has one wave."""


@pytest.mark.parametrize("schedule", IN_PLACE)
@pytest.mark.parametrize("k", [8, 64, 200])
def test_slices_of_sums_in_place_change_no_bit(schedule: str, k: int) -> None:
    """As above: N ends inside the first slice of a tile, M inside a tile."""
    for slices in IN_PLACE[schedule]:
        text = program("bf16", 136, k, f"{schedule}, slices = {slices}")
        for m in (1, 131):
            check_exact(simulated(text, seed=m, clusters=1), text, m, seed=k)
            check_bits(simulated(text, seed=slices, clusters=2), text, m)


@pytest.mark.parametrize("m", [1, 63, 64, 65, 129])
@pytest.mark.parametrize("clusters", [1, 3])
def test_any_m_and_any_grid(m, clusters):
    for schedule in (FP8_SCHEDULES[2], FP8_SCHEDULES[3]):
        text = program("f8E5M2", 136, 272, schedule)
        check_bits(simulated(text, seed=m, clusters=clusters), text, m)


@pytest.mark.parametrize("schedule", [FP8_SCHEDULES[2], FP8_SCHEDULES[5]])
def test_no_seed_changes_a_bit(schedule):
    example = Example.of(program("f8E4M3FN", 128, 400, schedule), 130)
    for seed in range(12):
        np.testing.assert_array_equal(example.run(seed=seed), example.expected, err_msg=f"seed {seed}")


@settings(max_examples=12)
@given(text=programs(), seed=st.integers(0, 1 << 16))
def test_lowering_keeps_the_meaning_of_any_legal_schedule(text, seed):
    """T0, T1 and T2: the reference on gemm IR against the simulator on hopper IR."""
    kernel = simulated(text, seed=seed)
    check_exact(kernel, text, seed=seed)
    check_bits(kernel, text, seed=seed)
    check_bound(kernel, text, seed=seed)


def test_special_values_come_out_as_the_model_says():
    text = program("bf16", 64, 96, HALF_SCHEDULES[0])
    tensors = list(random_inputs(module_of(text), 70, 3).values())
    tensors[0][3, 5] = torch.inf
    tensors[0][4, 95] = torch.nan
    tensors[1][5, 7] = 0.0
    tensors[1][70, 9] = -torch.inf
    check_bits(simulated(text), text, 70, inputs=tensors)
    result = simulated(text)(*tensors)
    assert result[3, 7].isnan()
    assert result[3, 8].abs() == torch.inf
    assert result[4].isnan().all()
    assert int(result.isfinite().sum()) == 68 * 63


def test_fp8_scales_may_be_anything():
    text = program("f8E4M3FN", 128, 256, FP8_SCHEDULES[0])
    tensors = list(random_inputs(module_of(text), 70, 3).values())
    tensors[1][2, 1], tensors[1][3, 0], tensors[1][4, 0], tensors[3][0, 0] = torch.inf, torch.nan, 0.0, 2.0**-140
    check_bits(simulated(text), text, 70, inputs=tensors)


def test_tensors_may_be_torch_or_raw_bits_in_any_strides():
    text = program("f8E4M3FN", 64, 128, FP8_SCHEDULES[0])
    example = Example.of(text, 65)
    a, scale_a, b, scale_b = example.tensors
    strided = (a.t().contiguous().t(), scale_a.contiguous(), b.contiguous(), scale_b)
    result = simulate(kernel_of(text), strided, 65)
    assert result.dtype is torch.bfloat16
    np.testing.assert_array_equal(result.view(torch.int16).numpy().view(np.uint16), example.expected)
    with pytest.raises(InputError, match="GMR-I002: x: shape is"):
        simulate(kernel_of(text), example.tensors, 66)
    with pytest.raises(InputError, match="GMR-I001: x: dtype is float8_e5m2"):
        simulate(kernel_of(text), (a.view(torch.float8_e5m2), *example.tensors[1:]), 65)
    with pytest.raises(InputError, match="GMR-I005: 1 tensors"):
        simulate(kernel_of(text), (a,), 65)
    with pytest.raises(InputError, match="clusters = 0"):
        simulate(kernel_of(text), example.tensors, 65, clusters=0)


def test_no_rows_give_no_rows():
    text = program("bf16", 64, 64, HALF_SCHEDULES[0])
    assert simulated(text)(torch.zeros(0, 64).bfloat16(), torch.zeros(64, 64).bfloat16()).shape == (0, 64)


def test_speed():
    """A 256 x 256 x 1024 product within 5 s and four tiles of the FP8 kernel in a cluster of two within 20 s."""
    start = time.process_time()
    text = fp8_text(256, 1024)
    check_bits(simulated(text), text, 256)
    assert time.process_time() - start < 10  # twice: kernel and model
    start = time.process_time()
    text = program("f8E4M3FN", 256, 512, "block = 128x128x128, cluster = 2x1")
    check_bits(simulated(text, clusters=1), text, 256)
    assert time.process_time() - start < 20
