"""
Products in one call on a Hopper GPU: every bit against the model, rows that no group writes, invalid indices, graphs.

The result holds a value of its own before each call, so that a row that is written and should not be is seen.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import gemmir
from gemmir.backends.reference.data import exact_inputs, random_inputs
from gemmir.backends.reference.groups import result_shape, written
from gemmir.backends.reference.interpreter import run
from gemmir.errors import InputError
from gemmir.ir_text import parse_module
from gemmir.problem import GemmProblem, Grouping
from gemmir.testing.groups import GROUPINGS
from gemmir.testing.strategies import columns_problem, fp8_problem, half_problem, program_text
from gemmir.testing.torch_model import gemm_model
from tests.gpu.eager import called, operands_of

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
HELD = -77.0
FORMS = (Grouping.NONE, *GROUPINGS)
SHAPES = ((300, 256, 512, 5), (1, 8, 128, 1), (129, 136, 208, 3), (1000, 512, 256, 333))
"""M (of one matrix where there is one for each group), N, K, groups."""
INVALID = {
    Grouping.OFFS: [-5, 40, 20, 1 << 30, 300, -(2**31), 2**31 - 1],
    Grouping.GROUP_IDS: [7, -2, 2**31 - 1, -(2**31), 0],
    Grouping.COUNTS: [-1, 301, 7, 2**31 - 1, 300],
    Grouping.K_OFFS: [-128, 256, 130, 128, 640, 512, -(2**31), 2**31 - 128],
}


def problem_of(grouping: Grouping, fp8: bool, shape: tuple[int, int, int, int]) -> GemmProblem:
    m, n, k, groups = shape
    kind = (columns_problem if grouping is Grouping.K_OFFS else fp8_problem) if fp8 else half_problem
    problem = kind(m, n, k)
    return problem if grouping is Grouping.NONE else replace(problem, grouping=grouping, groups=groups)


def check(problem: GemmProblem, inputs: dict[str, torch.Tensor], expected: torch.Tensor) -> None:
    """Every written element has the bits of `expected`, every other one those that it had."""
    operands = operands_of(inputs)
    shape, dtype = result_shape(problem.grouping, operands), getattr(torch, problem.d.torch_name)
    out = torch.full(shape, HELD, dtype=dtype, device=DEVICE)
    called(problem.grouping, operands, out)
    wanted = torch.where(written(problem.grouping, operands), expected, torch.full_like(out, HELD))
    wrong = (out.view(torch.int16) != wanted.view(torch.int16)).nonzero()
    assert len(wrong) == 0, f"{len(wrong)} elements differ, first at {wrong[0].tolist()}"


def check_bits(problem: GemmProblem, inputs: dict[str, torch.Tensor]) -> None:
    o = operands_of(inputs)
    check(problem, inputs, gemm_model(problem, o.a, o.b, o.scale_a, o.scale_b, index=o.index))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("grouping", FORMS)
def test_bits(grouping: Grouping, fp8: bool, shape: tuple[int, int, int, int]) -> None:
    problem = problem_of(grouping, fp8, shape)
    module = parse_module(program_text(problem))
    for seed in range(3):
        check_bits(problem, random_inputs(module, None, seed, DEVICE))
    inputs = exact_inputs(module, None, 0, DEVICE)
    expected = run(module, list(inputs.values()))
    assert isinstance(expected, torch.Tensor)
    check(problem, inputs, expected + 0.0)  # sums of kernels are never -0


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("grouping", INVALID)
def test_invalid_indices(grouping: Grouping, fp8: bool) -> None:
    problem = problem_of(grouping, fp8, (300, 256, 512, 5))
    inputs = random_inputs(parse_module(program_text(problem)), None, 0, DEVICE)
    bad = INVALID[grouping]
    for first in range(len(bad)):
        numbers = [bad[(first + i) % len(bad)] for i in range(len(inputs["index"]))]
        inputs["index"] = torch.tensor(numbers, dtype=torch.int32, device=DEVICE)
        check_bits(problem, inputs)
    word = {"offs" if grouping is Grouping.K_OFFS else grouping.value: inputs["index"]}
    scales = {"scale_a": inputs.get("xs"), "scale_b": inputs.get("ws")}
    with pytest.raises(InputError, match=r"\[\d+\] = "):
        gemmir.grouped_matmul(inputs["x"], inputs["w"], validate=True, **word, **scales)  # type: ignore[arg-type]


@pytest.mark.parametrize("grouping", FORMS)
def test_validation_waits_once(grouping: Grouping) -> None:
    """And names what is bad; without it nothing waits."""
    problem = problem_of(grouping, True, (128, 256, 512, 3))
    inputs = random_inputs(parse_module(program_text(problem)), None, 0, DEVICE)
    dtype = getattr(torch, problem.d.torch_name)
    out = torch.zeros(result_shape(grouping, operands_of(inputs)), dtype=dtype, device=DEVICE)
    for options, waits in (({}, 0), ({"validate": True}, 1)):
        called(grouping, operands_of(inputs), out, **options)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                called(grouping, operands_of(inputs), out, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len([w for w in seen if "synchroniz" in str(w.message)]) == waits
    inputs["ws"][(0,) * inputs["ws"].dim()] = -1.0
    held = out.clone()
    with pytest.raises(InputError, match=r"GMR-I010: scale_b\[.*\] = -1"):
        called(grouping, operands_of(inputs), out, validate=True)
    assert torch.equal(out, held)


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("grouping", [Grouping.COUNTS, Grouping.BATCH])
def test_matrices_that_lie_side_by_side(grouping: Grouping, fp8: bool) -> None:
    """`transpose(0, 1)` of A and of the result: row by row, a part for each group."""
    for shape in SHAPES[:3]:
        problem = problem_of(grouping, fp8, shape)
        inputs = random_inputs(parse_module(program_text(problem)), None, 4, DEVICE)
        out = torch.full((problem.groups, shape[0], problem.n), HELD, dtype=torch.bfloat16, device=DEVICE)
        called(grouping, operands_of(inputs), out)
        beside = torch.full_like(out.transpose(0, 1).contiguous(), HELD).transpose(0, 1)
        inputs["x"] = inputs["x"].transpose(0, 1).contiguous().transpose(0, 1)
        called(grouping, operands_of(inputs), beside)
        assert torch.equal(beside.view(torch.int16), out.view(torch.int16))


def test_one_kernel_serves_every_m_and_index() -> None:
    for m in (1, 64, 65, 700):
        problem = problem_of(Grouping.OFFS, True, (m, 256, 512, 5))
        module = parse_module(program_text(problem))
        for seed in range(2):
            check_bits(problem, random_inputs(module, None, seed, DEVICE))


def test_a_captured_step_reads_new_counts() -> None:
    problem = problem_of(Grouping.COUNTS, False, (16, 256, 128, 8))
    inputs = random_inputs(parse_module(program_text(problem)), None, 0, DEVICE)
    operands = operands_of(inputs)
    out = torch.full((8, 16, 256), HELD, dtype=torch.bfloat16, device=DEVICE)
    called(problem.grouping, operands, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        called(problem.grouping, operands, out)
    for step in range(5):
        inputs["index"].copy_(torch.tensor([(step * 5 + 3 * g) % 17 for g in range(8)], device=DEVICE))
        inputs["x"].normal_()
        out.fill_(HELD)
        graph.replay()
        model = gemm_model(problem, operands.a, operands.b, index=operands.index)
        wanted = torch.where(written(problem.grouping, operands), model, torch.full_like(out, HELD))
        assert torch.equal(out.view(torch.int16), wanted.view(torch.int16))


def test_a_product_without_columns_is_empty() -> None:
    weight, groups = (torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE).mT for shape in ((0, 64), (3, 0, 64)))
    ends = torch.tensor([0, 2, 5], dtype=torch.int32, device=DEVICE)
    for m in (0, 5, 300):
        a = torch.ones(m, 64, dtype=torch.bfloat16, device=DEVICE)
        for result in (gemmir.matmul(a, weight), gemmir.grouped_matmul(a, groups, offs=ends)):
            assert (tuple(result.shape), result.device.type) == ((m, 0), "cuda")
