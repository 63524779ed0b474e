"""Kernels in which two CTAs sum a part of K each, against the model of the arithmetic, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmir.backends.reference import random_inputs
from gemmir.compiler import module_of
from gemmir.testing import check_bits, check_bound, check_exact, simulated
from gemmir.testing.strategies import split_programs
from tests.backends.simulator.kernels import Example, program

FP8_SCHEDULES = {
    "block = 128x64x128, warpgroups = 1 along m, stages = 2": "one slot of A, the shortest ring",
    "block = 128x64x128, warpgroups = 2 along n, stages = 5": "one slot of A, a ring longer than two exchanges",
    "block = 128x128x128, warpgroups = 2 along n, stages = 3": "two slots, the shortest ring for them",
    "block = 128x192x128, warpgroups = 2 along n, stages = 4": "two slots of B",
    "block = 256x48x128, warpgroups = 2 along m, stages = 4": "one slot of A, not filled",
    "block = 256x112x128, warpgroups = 2 along m, stages = 3": "two slots of A, not filled",
}
HALF_SCHEDULES = (
    "block = 128x96x64, warpgroups = 2 along n, stages = 3",
    "block = 128x64x64, warpgroups = 1, stages = 4",
    "block = 256x64x64, warpgroups = 2 along m, stages = 2",
)


def split(dtype: str, n: int, k: int, schedule: str) -> str:
    return program(dtype, n, k, schedule).replace(" schedule <", " numerics <split_k = 2> schedule <", 1)


@pytest.mark.parametrize("schedule", FP8_SCHEDULES)
@pytest.mark.parametrize("k", [144, 256, 768, 1008])
def test_fp8_kernels_have_the_bits_of_the_model(schedule: str, k: int):
    """A part of one k-block, of fewer than there are stages, as many, and more; a tail of K; M odd, N off the block."""
    text = split("f8E4M3FN", 200, k, schedule)
    check_bits(simulated(text, seed=k), text, 131)
    check_exact(simulated(text, seed=k + 1, clusters=1), text, 259, seed=k)


@pytest.mark.parametrize("schedule", HALF_SCHEDULES)
@pytest.mark.parametrize(("dtype", "k"), [("bf16", 72), ("bf16", 128), ("f16", 256), ("bf16", 384), ("f16", 504)])
def test_half_kernels_have_the_bits_of_the_model(schedule: str, dtype: str, k: int):
    text = split(dtype, 200, k, schedule)
    check_bits(simulated(text, seed=k), text, 131)
    check_exact(simulated(text, seed=k + 1, clusters=1), text, 259, seed=k)


@pytest.mark.parametrize("schedule", list(FP8_SCHEDULES)[:3])
@pytest.mark.parametrize("batch", ["widest", "one"])
def test_every_k_block_has_its_own_weight_scale(schedule: str, batch: str):
    """One at a time, and in batches of which each CTA starts with those of its part; no scale stands for another."""
    lanes = 32 if "128x64x128, warpgroups = 1" in schedule else 16
    text = split("f8E4M3FN", 136, 1536, f"{schedule}, scale_batch = {lanes if batch == 'widest' else 1}")
    tensors = list(random_inputs(module_of(text), 70, 3).values())
    tensors[3] = torch.linspace(0.5, 2, tensors[3].numel()).reshape(tensors[3].shape)
    check_bits(simulated(text, seed=3, clusters=1), text, inputs=tensors)


@pytest.mark.parametrize("schedule", [*list(FP8_SCHEDULES)[:4], HALF_SCHEDULES[0]])
def test_no_seed_changes_a_bit(schedule: str):
    """Whoever comes first, and however late sums arrive; several tiles in a CTA."""
    text = split("f8E4M3FN", 136, 768, schedule) if "x128," in schedule else split("bf16", 200, 384, schedule)
    example = Example.of(text, 140)
    for seed in range(12):
        np.testing.assert_array_equal(example.run(seed=seed), example.expected, err_msg=f"seed {seed}")


def test_a_row_does_not_depend_on_the_others():
    """The first rows of a taller product, whichever CTA finishes them."""
    schedule = list(FP8_SCHEDULES)[2]
    text = split("f8E4M3FN", 136, 512, schedule)
    x, xs, w, ws = random_inputs(module_of(text), 300, 5).values()
    whole = simulated(text, seed=1)(x, xs, w, ws)
    for m in (1, 64, 65, 129):
        part = simulated(text, seed=m)(x[:m], xs[:m].t().contiguous().t(), w, ws)
        assert torch.equal(part.view(torch.int16), whole[:m].view(torch.int16))


def test_the_sum_is_that_of_the_parts_and_not_another():
    """Data whose one sum over K has other bits: what cancels is in different parts."""
    text = split("bf16", 64, 256, HALF_SCHEDULES[1])
    x, w = random_inputs(module_of(text), 33, 1).values()
    x, w = torch.ones_like(x), torch.ones_like(w)
    x[:, 0], x[:, 128], x[:, 255] = 2.0**30, -(2.0**30), 2.0**-9
    check_bits(simulated(text), text, inputs=[x, w])
    whole = text.replace("split_k = 2", "split_k = 1")
    assert not torch.equal(simulated(text)(x, w), simulated(whole)(x, w))


def test_special_values_come_out_as_the_model_says():
    """Infinities in one part, in both with different signs; a NaN in the part of either CTA."""
    text = split("bf16", 64, 256, HALF_SCHEDULES[1])
    x, w = random_inputs(module_of(text), 140, 3).values()
    w.abs_().add_(1)
    x[3, 5], x[4, 200], x[70, 7], x[71, 130] = torch.inf, -torch.inf, torch.nan, torch.nan
    x[72, 0], x[72, 255], x[5, 0], x[5, 255] = torch.inf, -torch.inf, -torch.inf, torch.inf
    check_bits(simulated(text), text, inputs=[x, w])
    result = simulated(text)(x, w)
    assert (result[3] == torch.inf).all()
    assert (result[4] == -torch.inf).all()
    assert result[[5, 70, 71, 72]].isnan().all()
    assert int(result.isfinite().sum()) == 134 * 64


@settings(max_examples=12)
@given(text=split_programs(), seed=st.integers(0, 1 << 16))
def test_any_legal_schedule_keeps_the_meaning(text: str, seed: int):
    kernel = simulated(text, seed=seed)
    check_exact(kernel, text, seed=seed)
    check_bits(kernel, text, seed=seed)
    check_bound(kernel, text, seed=seed)
