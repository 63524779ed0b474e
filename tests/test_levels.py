"""
Programs drawn at random mean the same after every pass, as text and when read again; and what no kernel may depend on.

Bits depend on numerics only: not on the schedule, not on M, not on where a row stands, not on the order of events.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gemmir.backends.reference import exact_inputs, random_inputs, run
from gemmir.backends.simulator import simulate
from gemmir.compiler import module_of
from gemmir.dialects.gemm import schedule_of, the_matmul
from gemmir.dialects.hopper import KernelOp
from gemmir.ir_text import parse_module
from gemmir.pipeline import parse_pipeline, run_passes
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Family, Schedule
from gemmir.testing import check_bits, simulated
from gemmir.testing.gemm_programs import gemm_programs
from gemmir.testing.strategies import (
    any_schedules,
    fp8_problem,
    half_problem,
    partial_schedules,
    program_text,
    small_problems,
    stream_problems,
)
from gemmir.universe import PASSES

SMALLEST_NORMAL = {torch.bfloat16: 2.0**-126, torch.float16: 2.0**-14, torch.float32: 2.0**-126}
DATA_SEED = 11


WHOLE_PROBLEMS = small_problems(most_k_blocks=4) | stream_problems(most_parts=1)
"""Of every form; half of them of the one that kernels of each family compute. K is not split."""


@st.composite
def open_programs(draw: st.DrawFn) -> tuple[GemmProblem, Schedule]:
    """Small products, half of them for any M, with any part of a legal schedule."""
    problem = draw(WHOLE_PROBLEMS)
    partial = draw(partial_schedules(problem))
    return any_m(problem) if draw(st.booleans()) else problem, partial


@st.composite
def pairs(draw: st.DrawFn) -> tuple[GemmProblem, Schedule, Schedule]:
    """A product for any M, `expected_m` rows of it, and two schedules."""
    problem = draw(WHOLE_PROBLEMS)
    return any_m(problem), draw(any_schedules(problem)), draw(any_schedules(problem))


def any_m(problem: GemmProblem) -> GemmProblem:
    assert problem.m is not None
    return replace(problem, m=None, expected_m=problem.m)


def bits(result: torch.Tensor) -> torch.Tensor:
    return result.contiguous().view({2: torch.int16, 4: torch.int32}[result.element_size()])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit; a NaN is a NaN."""
    return bool(((bits(one) == bits(other)) | (one.isnan() & other.isnan())).all())


def inputs(problem: GemmProblem, exact: bool = False) -> list[torch.Tensor]:
    """A, B and scales if any, with `expected_m` rows."""
    make = exact_inputs if exact else random_inputs
    return list(make(module_of(program_text(problem)), problem.expected_m, DATA_SEED).values())


def meaning(module: ModuleOp, tensors: list[torch.Tensor], seed: int) -> torch.Tensor:
    """What a module computes, at whatever level it is: the reference for gemm IR, the simulator for a kernel."""
    kernel = next((op for op in module.body.block.ops if isinstance(op, KernelOp)), None)
    if kernel is not None:
        return simulate(kernel, tensors, tensors[0].shape[0], seed=seed)
    result = run(module, tensors)
    assert isinstance(result, torch.Tensor)
    return result


# Pass by pass


@settings(max_examples=20)
@example(program=(half_problem(1, 8, 8), Schedule(family=Family.STREAM, math_warpgroups=2)), seed=0)
@given(program=open_programs(), seed=st.integers(0, 1 << 16))
def test_every_pass_keeps_the_meaning(program: tuple[GemmProblem, Schedule], seed: int):
    """After each pass the module is verified, its text is a fixpoint, and the text alone means what the program did."""
    problem, partial = program
    module = module_of(program_text(problem, partial))
    tensors = list(exact_inputs(module, problem.expected_m, seed).values())
    expected = meaning(module, tensors, seed)
    reached: list[str] = []
    previous = ""

    def after(pass_: ModulePass, module: ModuleOp) -> None:
        nonlocal previous
        reached.append(pass_.name)
        text = str(module)
        again = parse_module(text)
        assert str(again) == text, pass_.name
        if text != previous:
            result = meaning(again, tensors, seed)
            assert same_bits(result + 0.0, expected + 0.0), pass_.name  # sums that cancel: 0 or -0
        previous = text
        if (found := schedule_in(again)) is not None:
            kept_by(partial, found, pass_.name)

    run_passes(module, parse_pipeline(None), after, verify_each=True)
    assert tuple(reached) == PASSES
    assert any(isinstance(op, KernelOp) for op in module.body.block.ops)


def schedule_in(module: ModuleOp) -> Schedule | None:
    if any(isinstance(op, KernelOp) for op in module.body.block.ops):
        return None
    return schedule_of(the_matmul(module))


def kept_by(partial: Schedule, found: Schedule, name: str) -> None:
    """What the program fixes, a pass keeps."""
    fixed = {f.name: getattr(partial, f.name) for f in fields(partial) if f.name not in partial.open_fields}
    assert {field: getattr(found, field) for field in fixed} == fixed, name


@settings(max_examples=60)
@given(text=st.sampled_from(Grouping).flatmap(lambda g: gemm_programs(grouping=g)), seed=st.integers(0, 1 << 16))
def test_canonical_programs_have_the_bits_of_what_was_written(text: str, seed: int):
    """Groups, recipes, layouts, C, numerics and epilogues, whether or not a kernel computes them yet."""
    module = parse_module(text)
    assert str(parse_module(str(module))) == str(module)
    tensors = list(exact_inputs(module, None, seed).values())
    expected = run(module, tensors)
    run_passes(module, parse_pipeline("gemm-canonicalize"), verify_each=True)
    once = str(module)
    again = parse_module(once)
    assert str(again) == once
    result = run(again, tensors)
    assert isinstance(result, torch.Tensor)
    assert isinstance(expected, torch.Tensor)
    assert same_bits(result, expected)
    run_passes(again, parse_pipeline("gemm-canonicalize"), verify_each=True)
    assert str(again) == once


# What bits do not depend on


@settings(max_examples=10)
@given(drawn=pairs(), seed=st.integers(0, 1 << 16))
def test_any_schedule_gives_the_same_bits(drawn: tuple[GemmProblem, Schedule, Schedule], seed: int):
    """D3: on random data, where a different order of sums would show."""
    problem, one, other = drawn
    tensors = inputs(problem)
    first, second = program_text(problem, one), program_text(problem, other)
    result = simulated(first, seed=seed)(*tensors)
    assert same_bits(simulated(second, seed=seed + 1)(*tensors), result)
    check_bits(lambda *_: result, first, inputs=tensors)


@settings(max_examples=10)
@given(drawn=pairs(), data=st.data())
def test_a_row_does_not_depend_on_m(drawn: tuple[GemmProblem, Schedule, Schedule], data: st.DataObject):
    """D2: any stretch of rows, computed alone, by a kernel that was made for another M."""
    problem, one, other = drawn
    tensors = inputs(problem)
    first = data.draw(st.integers(0, problem.expected_m - 1))
    last = data.draw(st.integers(first + 1, problem.expected_m))
    result = simulated(program_text(problem, one))(*tensors)
    part = simulated(program_text(problem, other), m=last - first)(*rows(tensors, slice(first, last)))
    assert same_bits(part, result[first:last])


def rows(tensors: list[torch.Tensor], chosen: slice | torch.Tensor) -> list[torch.Tensor]:
    """The inputs with these rows of A, of its scales and of C."""
    a, b, *others = tensors
    a = a.view(torch.int8)[chosen].view(a.dtype) if a.element_size() == 1 else a[chosen]
    scales = others[: len(others) // 2 * 2]
    c = others[len(scales) :]
    return [a, b, *([scales[0][chosen], scales[1]] if scales else []), *(addend[chosen] for addend in c)]


@settings(max_examples=8)
@given(drawn=pairs(), seed=st.integers(0, 1 << 16))
def test_rows_change_places_together(drawn: tuple[GemmProblem, Schedule, Schedule], seed: int):
    problem, schedule, _ = drawn
    tensors = inputs(problem)
    order = torch.randperm(problem.expected_m, generator=torch.Generator().manual_seed(seed))
    kernel = simulated(program_text(problem, schedule), seed=seed)
    assert same_bits(kernel(*rows(tensors, order)), kernel(*tensors)[order])


@settings(max_examples=8)
@given(drawn=pairs(), power=st.integers(-6, 6))
def test_a_power_of_two_goes_through(drawn: tuple[GemmProblem, Schedule, Schedule], power: int):
    """A, or its scales where it has some, times 2^power: D times 2^power, where neither is subnormal; without C."""
    problem, schedule, _ = drawn
    problem = replace(problem, has_c=False)
    tensors = inputs(problem, exact=not problem.a.is_fp8)
    scaled = list(tensors)
    position = 2 if problem.a.is_fp8 else 0
    scaled[position] = tensors[position] * 2.0**power
    assert torch.equal(scaled[position] * 2.0**-power, tensors[position])
    kernel = simulated(program_text(problem, schedule))
    one, other = kernel(*tensors), kernel(*scaled)
    smallest = SMALLEST_NORMAL[one.dtype]
    normal = ((one.abs() >= smallest) & (other.abs() >= smallest) & other.isfinite()) | (one == 0) & (other == 0)
    assert normal.float().mean() > 0.5
    assert same_bits((one * 2.0**power)[normal], other[normal])


@pytest.mark.parametrize("power", [1, 6])
@pytest.mark.parametrize("problem", [fp8_problem(70, 72, 272), half_problem(70, 72, 200)], ids=str)
def test_a_power_of_two_goes_through_the_tensor_core(problem: GemmProblem, power: int):
    """A itself, integers up to 4, times 2^power."""
    problem = any_m(problem)
    tensors = inputs(problem, exact=True)
    scaled = [(tensors[0].float() * 2.0**power).to(tensors[0].dtype), *tensors[1:]]
    assert torch.equal(scaled[0].float(), tensors[0].float() * 2.0**power)
    kernel = simulated(program_text(problem), m=70)
    assert same_bits(kernel(*scaled), kernel(*tensors) * 2.0**power)
