"""Products of several groups: against loops over rows, bounds against the bit model, and what is not written."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemmir.backends.reference import (
    epilogue_bound,
    exact_and_bound,
    exact_and_bound_of,
    exact_inputs,
    random_inputs,
    run,
    worst_element,
)
from gemmir.backends.reference.groups import Operands, written
from gemmir.backends.reference.interpreter import operands_of
from gemmir.backends.reference.scaling import dequantise
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.errors import InputError
from gemmir.ir_text import parse_module
from gemmir.problem import GemmProblem, Grouping, Recipe
from gemmir.scales import align_scales
from gemmir.testing.gemm_programs import gemm_programs
from gemmir.testing.groups import GROUPINGS, INDEXED, any_indices, extent_of, grouped_problems, indices
from gemmir.testing.oracles import check_bits, check_bound, check_exact, model_of
from gemmir.testing.strategies import fp8_problem, half_problem, program_text
from gemmir.testing.torch_model import gemm_model

HELD = 77.0
"""What the result held before."""


def tensors_of(problem: GemmProblem, index: list[int] | None, seed: int) -> dict[str, torch.Tensor]:
    """Random inputs of `problem`, the index replaced."""
    inputs = random_inputs(parse_module(program_text(problem)), None, seed)
    if index is not None:
        inputs["index"] = torch.tensor(index, dtype=torch.int32)
    return inputs


def executed(problem: GemmProblem, inputs: dict[str, torch.Tensor], **options: object) -> torch.Tensor:
    result = run(parse_module(program_text(problem)), list(inputs.values()), **options)  # type: ignore[arg-type]
    assert isinstance(result, torch.Tensor)
    return result


def decoded(problem: GemmProblem, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B as float64, matrix by matrix."""

    def matrix(stored: torch.Tensor, scale: torch.Tensor | None, recipe: Recipe) -> torch.Tensor:
        if stored.dim() == 2:
            return dequantise(stored, scale, recipe, torch.float64)
        return torch.stack([matrix(stored[i], None if scale is None else scale[i], recipe) for i in range(len(stored))])

    scale_b = inputs.get("ws")
    right = matrix(
        inputs["w"].transpose(-1, -2), None if scale_b is None else scale_b.transpose(-1, -2), problem.scale_b
    )
    return matrix(inputs["x"], inputs.get("xs"), problem.scale_a), right.transpose(-1, -2)


def expected_rows(problem: GemmProblem, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The result, row by row, of a valid index: a second way to say what the forms mean."""
    a, b = decoded(problem, inputs)
    index = inputs["index"].tolist() if "index" in inputs else []
    m, n, groups = problem.m or 0, problem.n, problem.groups
    result = torch.full((m, n) if problem.grouping.contiguous else (groups, m, n), HELD, dtype=torch.float64)
    for row in range(m):
        if problem.grouping is Grouping.OFFS:
            group = next((g for g in range(groups) if row < index[g]), -1)
        elif problem.grouping is Grouping.GROUP_IDS:
            group = index[row]
        else:
            group = -1
        if group >= 0:
            result[row] = a[row] @ b[group]
    for group in range(groups if not problem.grouping.contiguous else 0):
        count = index[group] if problem.grouping is Grouping.COUNTS else m
        first = index[group - 1] if group and problem.grouping is Grouping.K_OFFS else 0
        for row in range(count):
            if problem.grouping is Grouping.K_OFFS:
                k = slice(first, index[group])
                result[group, row] = a[row, k] @ b[k]
            else:
                result[group, row] = a[group, row] @ b[group]
    return result


@given(data=st.data(), grouping=st.sampled_from(GROUPINGS), seed=st.integers(0, 1 << 16))
def test_every_form_means_what_loops_say(data: st.DataObject, grouping: Grouping, seed: int):
    problem = data.draw(grouped_problems(grouping, most_m=150))
    index = data.draw(indices(grouping, extent_of(problem))) if grouping in INDEXED else None
    inputs = tensors_of(problem, index, seed)
    expected = expected_rows(problem, inputs)
    dtype = getattr(torch, problem.d.torch_name)
    out = torch.full(expected.shape, HELD, dtype=dtype)
    got = executed(problem, inputs, out=out, validate=True)
    assert got is out
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=2**-20)
    zeros = executed(problem, inputs)
    mask = written(grouping, Operands(inputs["x"], inputs["w"], index=inputs.get("index")))
    assert torch.equal(zeros[mask], got[mask])
    assert not zeros[~mask].any()
    assert bool((got[~mask] == HELD).all())


@given(data=st.data(), grouping=st.sampled_from(GROUPINGS), seed=st.integers(0, 1 << 16))
def test_the_bit_model_is_within_the_bound(data: st.DataObject, grouping: Grouping, seed: int):
    problem = data.draw(grouped_problems(grouping, most_m=140, most_groups=3))
    index = data.draw(indices(grouping, extent_of(problem))) if grouping in INDEXED else None
    inputs = tensors_of(problem, index, seed)
    given_ = (inputs["x"], inputs["w"], inputs.get("xs"), inputs.get("ws"))
    bits = gemm_model(problem, *given_, index=inputs.get("index"))
    exact, bound = exact_and_bound(problem, *given_, index=inputs.get("index"))
    assert worst_element(bits, exact, bound).holds
    op = the_matmul(parse_module(program_text(problem)))
    assert torch.equal(model_of(op, list(inputs.values())).view(torch.int16), bits.view(torch.int16))
    mask = written(grouping, Operands(*given_, index=inputs.get("index")))
    assert bool(bound[~mask].isinf().all())
    assert bool(bound[mask].isfinite().all())


@given(text=st.sampled_from(GROUPINGS).flatmap(lambda g: gemm_programs(most_m=12, grouping=g)), seed=st.integers(0, 99))
def test_every_clause_of_every_form_runs(text: str, seed: int):
    """Float32 sums of the reference lie within the bound of a kernel's, epilogues included."""
    module = parse_module(text)
    op = the_matmul(module)
    inputs = random_inputs(module, None, seed)
    values = dict(zip(op.parent_block().args, inputs.values(), strict=True))  # type: ignore[union-attr]
    result = run(module, list(inputs.values()), validate=True)
    assert isinstance(result, torch.Tensor)
    mask = written(op.grouping, operands_of(op, values))
    assert not result[~mask].any()
    exact, bound = exact_and_bound_of(op, values)
    assert worst_element(result, exact, bound).holds
    noise = torch.where(mask, result.double(), torch.nan)
    assert worst_element(noise, exact, bound).ratio == worst_element(result, exact, bound).ratio


@given(data=st.data(), grouping=st.sampled_from(GROUPINGS), seed=st.integers(0, 1 << 16))
def test_exact_data_is_exact_in_the_bit_model(data: st.DataObject, grouping: Grouping, seed: int):
    text = program_text(data.draw(grouped_problems(grouping, most_m=64, most_groups=3)))
    op = the_matmul(parse_module(text))
    check_exact(lambda *tensors: model_of(op, tensors), text, seed=seed)
    check_bits(lambda *tensors: model_of(op, tensors), text, seed=seed)
    check_bound(lambda *tensors: model_of(op, tensors), text, seed=seed)


@given(data=st.data(), grouping=st.sampled_from(INDEXED))
def test_an_invalid_index_computes_less(data: st.DataObject, grouping: Grouping):
    problem = data.draw(grouped_problems(grouping, most_m=140, most_groups=3))
    index = data.draw(any_indices(grouping, extent_of(problem)))
    inputs = tensors_of(problem, index, 0)
    shape = executed(problem, inputs).shape
    out = torch.full(shape, HELD, dtype=getattr(torch, problem.d.torch_name))
    mask = written(grouping, Operands(inputs["x"], inputs["w"], index=inputs["index"]))
    executed(problem, inputs, out=out)
    assert bool((out[~mask] == HELD).all())
    assert bool((out[mask] != HELD).any()) == bool(mask.any())


BAD = {
    Grouping.OFFS: ([3, 2, 5], r"offs\[1\] = 2"),
    Grouping.COUNTS: ([3, 2, 41], r"counts\[2\] = 41"),
    Grouping.GROUP_IDS: ([0] * 39 + [5], r"group_ids\[39\] = 5"),
    Grouping.K_OFFS: ([0, 64, 65], r"offs\[2\] = 65"),
}


@pytest.mark.parametrize("grouping", BAD)
def test_validation_names_the_entry(grouping: Grouping):
    index, message = BAD[grouping]
    problem = replace(half_problem(40, 16, 128), grouping=grouping, groups=3)
    with pytest.raises(InputError, match=message) as caught:
        executed(problem, tensors_of(problem, index, 0), validate=True)
    assert caught.value.code == "GMR-I009"


WITH_C = """
func.func @f(%a: tensor<4x256xbf16>, %b: tensor<256x16xbf16>, %i: tensor<3xi32>, %c: tensor<3x4x16xf32>)
    -> tensor<3x4x16xf32> {
  %y = gemm.grouped_matmul %a, %b groups (%i by k_offs) accumulate %c
    : (tensor<4x256xbf16>, tensor<256x16xbf16>, tensor<3xi32>, tensor<3x4x16xf32>) -> tensor<3x4x16xf32>
  func.return %y : tensor<3x4x16xf32>
}"""


def test_a_group_without_k_gives_c():
    module = parse_module(WITH_C)
    a, b, c = torch.ones(4, 256).bfloat16(), torch.ones(256, 16).bfloat16(), torch.randn(3, 4, 16)
    result = run(module, [a, b, torch.tensor([128, 128, 192], dtype=torch.int32), c])
    assert torch.equal(result, c + torch.tensor([128.0, 0.0, 64.0])[:, None, None])  # type: ignore[arg-type]


def test_what_a_result_may_be_written_to():
    module = parse_module(WITH_C)
    inputs = list(exact_inputs(module, None, 0).values())
    with pytest.raises(InputError, match="out: dtype is"):
        run(module, inputs, out=torch.empty(3, 4, 16).bfloat16())
    with pytest.raises(InputError, match="out: shape is"):
        run(module, inputs, out=torch.empty(4, 16))
    out = torch.empty(3, 16, 4).transpose(1, 2)
    assert run(module, inputs, out=out) is out
    assert torch.equal(out, run(module, inputs))  # type: ignore[arg-type]


def test_operands_of_another_shape_are_refused():
    problem = replace(fp8_problem(9, 128, 128), grouping=Grouping.COUNTS, groups=2)
    inputs = tensors_of(problem, [1, 2], 0)
    x, w, xs, ws, index = (inputs[name] for name in ("x", "w", "xs", "ws", "index"))
    exact_and_bound(problem, x, w, xs, ws, index=index)
    with pytest.raises(InputError, match="index: is missing"):
        exact_and_bound(problem, x, w, xs, ws)
    with pytest.raises(InputError, match="index: dtype is"):
        exact_and_bound(problem, x, w, xs, ws, index=index.long())
    with pytest.raises(InputError, match="scale_a: shape is"):
        exact_and_bound(problem, x, w, xs[0], ws, index=index)


def test_an_epilogue_needs_the_groups():
    op = the_matmul(
        parse_module(
            WITH_C.replace(": (", "epilogue { ^bb0(%x: f32): %n = arith.negf %x : f32 gemm.yield %n : f32 } : (")
        )
    )
    with pytest.raises(InputError, match=r"no groups for gemm\.grouped_matmul"):
        epilogue_bound(op, [], torch.zeros(3, 4, 16), torch.zeros(3, 4, 16))


def test_scales_of_every_group_are_laid_out_for_tma():
    scale = torch.randn(3, 5, 2)
    aligned = align_scales(scale)
    assert torch.equal(aligned, scale)
    assert aligned.stride() == (16, 1, 8)
    assert align_scales(aligned) is aligned


def test_the_bit_model_adds_c_to_each_group():
    inputs = list(exact_inputs(parse_module(WITH_C), None, 0).values())
    expected = run(parse_module(WITH_C), inputs)
    assert isinstance(expected, torch.Tensor)
    assert torch.equal(model_of(the_matmul(parse_module(WITH_C)), inputs), expected)


def test_inputs_lie_as_kernels_want_them():
    problem = replace(fp8_problem(9, 128, 256), grouping=Grouping.COUNTS, groups=2)
    inputs = random_inputs(parse_module(program_text(problem)), None, 0)
    assert inputs["x"].stride() == (9 * 256, 256, 1)
    assert inputs["w"].stride() == (128 * 256, 1, 256)
    assert inputs["xs"].stride() == (24, 1, 12)
    assert problem_of(the_matmul(parse_module(program_text(problem)))) == problem
