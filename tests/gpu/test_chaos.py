"""Delays at random change no bit: every default kernel, many seeds."""

from __future__ import annotations

import os

import pytest
import torch

import gemmir
from gemmir.backends.reference.data import random_inputs
from gemmir.ir_text import parse_module
from tests.gpu.problems import Case
from tests.gpu.test_matmul import launch

pytestmark = pytest.mark.gpu

CASES = [
    Case(dtype, m, n, k)
    for dtype in ("f8E4M3FN", "bf16")
    for m, n, k in ((64, 7168, 2048), (300, 2112, 1168), (1000, 4096, 640), (2048, 4096, 512), (4096, 7168, 2048))
]
SEEDS = int(os.environ.get("GEMMIR_CHAOS_SEEDS", "200"))
"""Per kernel: 200 are 2,000 in all."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_delays_change_no_bit(case: Case) -> None:
    inputs = random_inputs(parse_module(case.text), case.m, 8, "cuda")
    expected = launch(gemmir.compile(case.text, m=case.m, cache=False), inputs, case.m)
    kernel = gemmir.compile(case.text, m=case.m, cache=False, chaos=True)
    out = torch.empty_like(expected)
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    for seed in range(SEEDS):
        kernel.reseed(seed)
        kernel(*inputs.values(), out=out.fill_(float("nan")))
        different += (out != expected).sum()
    assert int(different) == 0
