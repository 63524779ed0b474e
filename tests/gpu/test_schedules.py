"""Any legal schedule gives the same, exact result on a Hopper GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import gemmir
from gemmir.backends.reference.data import random_inputs
from gemmir.dialects.gemm import problem_of, set_schedule, the_matmul
from gemmir.ir_text import parse_module
from gemmir.schedule import Schedule
from tests.gpu.problems import Case
from tests.gpu.test_matmul import check_exact, launch, pool
from tests.schedules import legal_schedules

pytestmark = pytest.mark.gpu

CASES = tuple(Case(dtype, m, 1000, 1168) for dtype in ("f8E4M3FN", "bf16") for m in (1, 300))
DRAWN = 60


def drawn_schedules(case: Case) -> list[Schedule]:
    """The same schedules every time."""
    found: list[Schedule] = []

    @seed(7)
    @settings(
        max_examples=DRAWN,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        found.append(data.draw(legal_schedules(problem_of(the_matmul(parse_module(case.text))))))

    collect()
    return list(dict.fromkeys(found))


def compile_with(case: Case, schedule: Schedule) -> gemmir.CompiledKernel:
    module = parse_module(case.text)
    set_schedule(the_matmul(module), schedule)
    return gemmir.compile(module, m=case.m, cache=False)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_schedule_gives_the_same_bits(case: Case) -> None:
    schedules = drawn_schedules(case)
    kernels = list(pool().map(lambda s: compile_with(case, s), schedules))
    inputs = random_inputs(parse_module(case.text), case.m, 6, "cuda")
    expected = launch(kernels[0], inputs, case.m)
    for schedule, kernel in zip(schedules, kernels, strict=True):
        check_exact(kernel, case, seed=7)
        fields = {k: v for k, v in dataclasses.asdict(schedule).items() if v is not None}
        assert torch.equal(launch(kernel, inputs, case.m), expected), fields
