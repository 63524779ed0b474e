"""Two CTAs that sum a part of K each, on a Hopper GPU: the model's bits, whatever M, schedule and delays."""

from __future__ import annotations

import pytest
import torch

import gemmir
from gemmir.backends.reference.data import random_inputs
from gemmir.bench.cases import program_text
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.ir_text import parse_module
from gemmir.testing.torch_model import gemm_model
from tests.gpu.problems import Case
from tests.gpu.test_matmul import launch

pytestmark = pytest.mark.gpu

FP8 = {
    Case("f8E4M3FN", 512, 4096, 7168, 2): ("", "block = 128x256x128", "block = 256x128x128"),
    Case("f8E4M3FN", 256, 7168, 2048, 2): ("", "block = 256x112x128", "block = 128x256x128, scale_batch = 16"),
    Case("f8E4M3FN", 4097, 2112, 1008, 2): ("", "block = 128x64x128, warpgroups = 1, stages = 7"),
    Case("f8E5M2", 131, 200, 256, 2): ("", "block = 128x128x128, warpgroups = 2 along n, stages = 3"),
}
HALF = {
    Case("bf16", 512, 4096, 7168, 2): ("", "block = 256x64x64, warpgroups = 2 along m"),
    Case("f16", 131, 200, 504, 2): ("", "block = 128x64x64, warpgroups = 1, stages = 5"),
}
KERNELS = [(case, schedule) for case, schedules in (FP8 | HALF).items() for schedule in schedules]


def compiled(case: Case, schedule: str, chaos: bool = False) -> gemmir.CompiledKernel:
    text = program_text(case.n, case.k, case.dtype, schedule, case.split_k)
    return gemmir.compile(text, m=case.m, cache=False, chaos=chaos)


@pytest.mark.parametrize(("case", "schedule"), KERNELS, ids=str)
def test_results_have_the_bits_of_the_model(case: Case, schedule: str) -> None:
    module = parse_module(case.text)
    inputs = random_inputs(module, case.m, 3, "cuda")
    names = ("x", "w", "xs", "ws")
    expected = gemm_model(problem_of(the_matmul(module)), *(inputs.get(name) for name in names))  # type: ignore[arg-type]
    result = launch(compiled(case, schedule), inputs, case.m)
    assert torch.equal(result.view(torch.int16), expected.view(torch.int16))


def test_a_row_does_not_depend_on_the_others() -> None:
    case = Case("f8E4M3FN", 1000, 4096, 1024, 2)
    kernel = compiled(case, "block = 128x256x128")
    x, xs, w, ws = random_inputs(parse_module(case.text), case.m, 4, "cuda").values()
    whole = kernel(x, xs, w, ws)
    for m in (1, 63, 128, 129, 500):
        part = kernel(x[:m], gemmir.align_scales(xs[:m]), w, ws)
        assert torch.equal(part.view(torch.int16), whole[:m].view(torch.int16)), m


@pytest.mark.parametrize(
    ("case", "schedule"),
    [
        (Case("f8E4M3FN", 512, 1024, 1024, 2), "block = 128x256x128"),
        (Case("f8E4M3FN", 4096, 2048, 512, 2), "block = 128x64x128, warpgroups = 1, stages = 6"),
        (Case("bf16", 700, 2048, 512, 2), "block = 128x128x64, warpgroups = 2 along n, stages = 5"),
    ],
    ids=str,
)
def test_delays_change_no_bit(case: Case, schedule: str) -> None:
    inputs = random_inputs(parse_module(case.text), case.m, 8, "cuda")
    expected = launch(compiled(case, schedule), inputs, case.m)
    kernel, out = compiled(case, schedule, chaos=True), torch.empty_like(expected)
    for seed in range(100):
        kernel.reseed(seed)
        kernel(*inputs.values(), out=out.fill_(float("nan")))
        assert torch.equal(out.view(torch.int16), expected.view(torch.int16)), seed
