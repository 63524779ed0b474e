"""Delays at random change no bit: every default kernel, many seeds."""

from __future__ import annotations

import os

import pytest
import torch

import gemmir
from gemmir.backends.reference.data import random_inputs
from gemmir.bench.grouped import GroupedCase
from gemmir.bench.inputs import inputs_of
from gemmir.ir_text import parse_module
from tests.gpu.problems import Case
from tests.gpu.test_matmul import launch

pytestmark = pytest.mark.gpu

CASES = [
    Case(dtype, m, n, k)
    for dtype in ("f8E4M3FN", "bf16")
    for m, n, k in ((64, 7168, 2048), (300, 2112, 1168), (1000, 4096, 640), (2048, 4096, 512), (4096, 7168, 2048))
]
GROUPS = [
    GroupedCase(dtype, grouping, groups, rows, 1536, 640)
    for dtype in ("f8E4M3FN", "bf16")
    for grouping, groups, rows in (("offs", 9, 333), ("group_ids", 5, 300), ("counts", 40, 20), ("k_offs", 7, 520))
]
SEEDS = int(os.environ.get("GEMMIR_CHAOS_SEEDS", "200"))
"""Per kernel: 200 are 2,000 of single products, and 1,600 of groups."""

HELD = 77.0
"""What stands in a result before it is written; no sum of random data is that."""
RESULTS = {"bf16": "bfloat16", "f32": "float32"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_delays_change_no_bit(case: Case) -> None:
    inputs = random_inputs(parse_module(case.text), case.m, 8, "cuda")
    expected = launch(gemmir.compile(case.text, m=case.m, cache=False), inputs, case.m)
    assert different(case.text, case.m, inputs, expected, float("nan")) == 0


@pytest.mark.parametrize("case", GROUPS, ids=str)
def test_delays_change_no_bit_of_groups(case: GroupedCase) -> None:
    """Nor do they let a row be written that belongs to no group: the last group is left out."""
    inputs = inputs_of(case, 8, "cuda")
    if case.grouping != "group_ids":
        inputs["index"][-1] = 0
    expected = torch.full(case.result_shape, HELD, dtype=getattr(torch, RESULTS[case.result_dtype]), device="cuda")
    gemmir.compile(case.program(), cache=False)(*inputs.values(), out=expected)
    assert bool((expected == HELD).any()) or case.grouping == "group_ids"
    assert different(case.program(), None, inputs, expected, HELD) == 0


def different(
    program: str | gemmir.Program,
    m: int | None,
    inputs: dict[str, torch.Tensor],
    expected: torch.Tensor,
    held: float,
) -> int:
    """Elements that differ from `expected` in all runs together; before each, the result holds `held`."""
    kernel = gemmir.compile(program, m=m, cache=False, chaos=True)
    out = torch.empty_like(expected)
    found = torch.zeros((), dtype=torch.int64, device="cuda")
    for seed in range(SEEDS):
        kernel.reseed(seed)
        kernel(*inputs.values(), out=out.fill_(held))
        found += (out != expected).sum()
    return int(found)
