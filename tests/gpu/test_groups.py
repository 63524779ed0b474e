"""
Drawn products of groups on a Hopper GPU, 300 of each form: every bit against the model, and every byte around.

The memory in and around the result holds one byte again and again before each call: what no group writes must hold it
after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gemmir
from gemmir.backends.reference.data import random_inputs
from gemmir.backends.reference.groups import products_of, result_shape, written
from gemmir.dtypes import F32
from gemmir.ir_text import parse_module
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Family, Schedule
from gemmir.testing.groups import GROUPINGS, extent_of, grouped_problems, indices
from gemmir.testing.strategies import columns_problem, fp8_problem, half_problem, program_text
from gemmir.testing.torch_model import gemm_model
from tests.gpu.eager import called, operands_of

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
KERNELS, CALLS = 30, 10
"""Drawn of each form, and calls of each kernel with another M and other groups."""
POISON = 0xA5
GUARD = 4096
"""Bytes before and after the result."""
HUNDREDS = 300
Run = Callable[[GemmProblem, dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
"""Computes a problem from its inputs, in a result that is given."""


@st.composite
def cases(draw: st.DrawFn, grouping: Grouping) -> tuple[GemmProblem, list[tuple[int, list[int]]], bool]:
    """A problem, M and the groups of each call, and whether the rows of the result lie apart."""
    problem = draw(grouped_problems(grouping, most_groups=HUNDREDS))
    if grouping is Grouping.K_OFFS and draw(st.booleans()):
        problem = replace(problem, d=F32, has_c=draw(st.booleans()))
    calls: list[tuple[int, list[int]]] = []
    for _ in range(CALLS):
        m = draw(st.sampled_from((1, 64, 65, 200)) | st.integers(1, 200))
        extent = extent_of(replace(problem, m=m))
        calls.append((m, [] if grouping is Grouping.BATCH else draw(indices(grouping, extent))))
    return problem, calls, draw(st.booleans())


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, apart: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory full of poison, and a result in its middle, whose rows have 16 bytes between them where they lie apart."""
    pitch = shape[-1] + (16 // dtype.itemsize if apart else 0)
    rows = torch.Size(shape[:-1]).numel()
    memory = torch.full((2 * GUARD + rows * pitch * dtype.itemsize,), POISON, dtype=torch.uint8, device=DEVICE)
    inner = memory[GUARD : memory.numel() - GUARD].view(dtype).view(*shape[:-1], pitch)
    return memory, inner[..., : shape[-1]]


def eager(problem: GemmProblem, inputs: dict[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    return called(problem.grouping, operands_of(inputs), out)


def check(problem: GemmProblem, m: int, index: list[int], seed: int, apart: bool, run: Run = eager) -> None:
    """What `run` computes has the bits of the model, and nothing around it has changed."""
    problem = replace(problem, m=m)
    inputs = random_inputs(parse_module(program_text(problem)), None, seed, DEVICE)
    if index:
        inputs["index"] = torch.tensor(index, dtype=torch.int32, device=DEVICE)
    o = operands_of(inputs)
    shape = result_shape(problem.grouping, o)
    memory, out = poisoned(shape, getattr(torch, problem.d.torch_name), apart)
    expected = memory.clone()
    inside = expected[GUARD : memory.numel() - GUARD].view(out.dtype).view(*shape[:-1], -1)[..., : shape[-1]]
    model = gemm_model(problem, o.a, o.b, o.scale_a, o.scale_b, o.c, index=o.index)
    mask = written(problem.grouping, o)
    inside[mask] = model[mask]
    run(problem, inputs, out)
    wrong = (memory != expected).nonzero()
    assert len(wrong) == 0, f"{problem}, {index}: {len(wrong)} bytes differ, first {wrong[0].item() - GUARD}"


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_drawn_products(grouping: Grouping) -> None:
    """Problems, M and groups as hypothesis draws them."""

    @settings(
        max_examples=KERNELS, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(cases(grouping))
    def all_of_them(case: tuple[GemmProblem, list[tuple[int, list[int]]], bool]) -> None:
        problem, calls, apart = case
        for seed, (m, index) in enumerate(calls):
            check(problem, m, index, seed, apart)

    all_of_them()


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_groups_are_a_loop_of_single_products(grouping: Grouping, fp8: bool) -> None:
    """Bit for bit, though each kernel has tiles of its own."""
    m, n, k, groups = 700, 520, 1408, 6
    kind = columns_problem if grouping is Grouping.K_OFFS else fp8_problem
    one = kind(m, n, k) if fp8 else half_problem(m, n, k)
    problem = replace(one, grouping=grouping, groups=groups)
    o = operands_of(random_inputs(parse_module(program_text(problem)), None, 0, DEVICE))
    out = torch.zeros(result_shape(grouping, o), dtype=torch.bfloat16, device=DEVICE)
    called(grouping, o, out)
    compared = 0
    for group, _, part in products_of(problem, o):
        scale_a = None if part.scale_a is None else gemmir.align_scales(part.scale_a)
        alone = gemmir.matmul(part.a, part.b, scale_a=scale_a, scale_b=part.scale_b, split_k=1)
        assert torch.equal(out[group.in_result].view(torch.int16), alone.view(torch.int16))
        compared += alone.numel()
    assert compared == int(written(grouping, o).sum()) > 0


@pytest.mark.parametrize("block_m", [64, 128])
def test_a_number_that_comes_back_in_its_block(block_m: int) -> None:
    """Rows 64 to 127 carry the number of row 0, but another one lies between: they belong to nobody."""
    problem = replace(half_problem(128, 64, 128), grouping=Grouping.GROUP_IDS, groups=6)
    text = program_text(problem, Schedule(family=Family.TILES, block_m=block_m))
    inputs = random_inputs(parse_module(text), None, 0, DEVICE)
    inputs["index"] = torch.tensor([3] * 10 + [5] * 54 + [3] * 64, dtype=torch.int32, device=DEVICE)
    memory, out = poisoned((128, 64), torch.bfloat16, apart=True)
    before = memory.clone()
    gemmir.compile(text)(*inputs.values(), out=out)
    changed = (memory != before).nonzero().flatten() - GUARD
    assert 0 <= changed.min()
    assert changed.max() < 10 * (64 + 8) * 2
