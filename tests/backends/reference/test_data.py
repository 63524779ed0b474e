"""Data for kernels: quantised as in practice, laid out for the copy engine, and exact where promised."""

import numpy as np
import pytest
import torch

from gemmir.backends.reference import exact_inputs, random_inputs, run
from gemmir.backends.reference.data import exact_budget, quantise
from gemmir.dialects.gemm import MatmulOp, problem_of, the_matmul
from gemmir.dtypes import F8E4M3FN, F8E5M2
from gemmir.errors import InputError
from gemmir.ir_text import parse_module
from gemmir.problem import Recipe
from gemmir.scales import align_scales, scale_pitch
from tests import hopper_model as model

BLOCK_WISE = """
func.func @f(%x: tensor<?x{k}xf8E4M3FN>, %xs: tensor<?x{blocks}xf32>, %w: tensor<{k}x136x{other}>,
             %ws: tensor<{blocks}x2xf32>) -> tensor<?x136xf32> {{
  %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128)
    : (tensor<?x{k}xf8E4M3FN>, tensor<{k}x136x{other}>, tensor<?x{blocks}xf32>, tensor<{blocks}x2xf32>)
    -> tensor<?x136xf32>
  func.return %y : tensor<?x136xf32>
}}"""
PLAIN = """
func.func @f(%x: tensor<?x{k}x{element}>, %w: tensor<{k}x24x{element}>) -> tensor<?x24xf32> {{
  %y = gemm.matmul %x, %w {numerics} : (tensor<?x{k}x{element}>, tensor<{k}x24x{element}>) -> tensor<?x24xf32>
  func.return %y : tensor<?x24xf32>
}}"""


def block_wise(k: int, other: str = "f8E4M3FN"):
    return parse_module(BLOCK_WISE.format(k=k, blocks=-(-k // 128), other=other))


def plain(k: int, element: str, numerics: str = ""):
    return parse_module(PLAIN.format(k=k, element=element, numerics=numerics))


@pytest.mark.parametrize("make", [random_inputs, exact_inputs])
def test_names_shapes_types_and_layouts(make):
    inputs = make(block_wise(200), 6, 0)
    assert {name: (tuple(x.shape), x.stride(), x.dtype) for name, x in inputs.items()} == {
        "x": ((6, 200), (200, 1), torch.float8_e4m3fn),
        "xs": ((6, 2), (1, 8), torch.float32),
        "w": ((200, 136), (1, 200), torch.float8_e4m3fn),
        "ws": ((2, 2), (2, 1), torch.float32),
    }


@pytest.mark.parametrize("make", [random_inputs, exact_inputs])
def test_the_same_seed_gives_the_same_data(make):
    one, two, other = (make(block_wise(200), 6, seed) for seed in (3, 3, 4))
    assert all(torch.equal(one[name].float(), two[name].float()) for name in one)
    assert not torch.equal(one["x"].float(), other["x"].float())


def test_random_data_use_the_whole_range_of_fp8():
    inputs = random_inputs(block_wise(256), 16, 0)
    blocks = inputs["x"].float().reshape(16, 2, 128)
    assert (blocks.abs().amax(-1) == 448).all()
    assert (inputs["xs"] > 0).all()
    decoded = blocks * inputs["xs"][:, :, None]
    assert 0.9 < decoded.std() < 1.1


def test_a_missing_m_is_an_error():
    with pytest.raises(InputError) as error:
        random_inputs(block_wise(128), None, 0)
    assert error.value.code == "GMR-I005"
    with pytest.raises(InputError) as error:
        random_inputs(block_wise(128), -1, 0)
    assert error.value.code == "GMR-I002"


@pytest.mark.parametrize("dtype", [F8E4M3FN, F8E5M2])
@pytest.mark.parametrize("recipe", [r for r in Recipe if r is not Recipe.NONE])
def test_quantised_data_decode_to_what_they_were(recipe, dtype):
    x = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    x[0, :128] = 0
    stored, scale = quantise(x, recipe, dtype)
    shape = {"tensor": (), "row": (200, 1), "1x128": (200, 3), "128x128": (2, 3)}[recipe.value]
    assert tuple(scale.shape) == shape
    grid = scale.reshape(1, 1) if scale.dim() == 0 else scale
    rows, columns = np.arange(200) * grid.shape[0] // 200, np.arange(300) * grid.shape[1] // 300
    if recipe.value in ("1x128", "128x128"):
        columns = np.arange(300) // 128
    if recipe.value == "128x128":
        rows = np.arange(200) // 128
    decoded = stored.double() * grid.double()[rows[:, None], columns[None, :]]
    # Half a step of the format (2^-4 of e4m3, 2^-3 of e5m2); below its smallest normal half a subnormal step.
    torch.testing.assert_close(decoded, x.double(), rtol=2.0**-3 if dtype is F8E5M2 else 2.0**-4, atol=2e-4)


def model_of(op: MatmulOp, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    problem = problem_of(op)
    x, w = inputs["x"].double().numpy(), inputs["w"].double().numpy()
    left = right = None
    if "xs" in inputs:
        left = inputs["xs"].numpy()
        right = inputs["ws"].repeat_interleave(128, 1)[:, : w.shape[1]].numpy()
    names = (problem.a.name, problem.b.name)
    return torch.from_numpy(model.gemm(x, w, left, right, names, problem.numerics.promote_every))


@pytest.mark.parametrize(
    "module",
    [
        block_wise(1024),
        block_wise(200),
        block_wise(640, "f8E5M2"),
        plain(96, "f8E4M3FN"),
        plain(2048, "f8E4M3FN"),
        plain(20000, "f8E4M3FN"),
        plain(2048, "f8E4M3FN", "numerics <promote_every = 256>"),
        plain(1000, "bf16"),
        plain(1000, "f16"),
    ],
)
def test_exact_data_are_exact_in_the_tensor_core(module):
    inputs = exact_inputs(module, 5, 1)
    op = the_matmul(module)
    result = run(module, list(inputs.values()))
    assert torch.equal(model_of(op, inputs), result)
    assert result.unique().numel() > 50


def test_random_data_are_not():
    module = block_wise(1024)
    inputs = random_inputs(module, 5, 1)
    assert not torch.equal(model_of(the_matmul(module), inputs), run(module, list(inputs.values())))


@pytest.mark.parametrize("k", [1, 100, 128, 4096, 7168, 16384, 16385, 70000, 1 << 20])
@pytest.mark.parametrize("every", [None, 128])
@pytest.mark.parametrize("fp8", [True, False])
def test_exact_budgets_hold_in_the_worst_case(k, every, fp8):
    block_scales = fp8 and every == 128
    budget = exact_budget(k, every, fp8=fp8, block_wise=block_scales)
    stretch = min(k, every or k)
    square = budget.largest**2
    assert -(-stretch // budget.step) * square <= 2 ** (14 if fp8 else 24)
    spread = 4 * budget.scale_exponent if block_scales else 0
    assert -(-k // budget.step) * square * 2**spread <= 2**24
    assert budget.largest == 4 or k > 128


def test_aligned_scales_keep_their_values():
    scale = torch.rand(7, 3)
    aligned = align_scales(scale)
    assert torch.equal(aligned, scale)
    assert aligned.stride() == (1, 8)
    assert aligned.untyped_storage().nbytes() == 3 * 8 * 4
    assert align_scales(aligned) is aligned
    assert [scale_pitch(m) for m in (0, 1, 4, 5, 4096)] == [0, 4, 4, 8, 4096]


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (4, 0), (8, 5)])
def test_aligned_scales_of_odd_shapes(shape):
    aligned = align_scales(torch.ones(shape))
    assert tuple(aligned.shape) == shape
    assert aligned.numel() == 0 or aligned.stride() == (1, scale_pitch(shape[0]))


@pytest.mark.parametrize(
    ("scale", "code"),
    [(torch.ones(4, 2).double(), "GMR-I001"), (torch.ones(8), "GMR-I002"), (torch.ones(2, 2, 2, 2), "GMR-I002")],
)
def test_scales_that_cannot_be_aligned(scale, code):
    with pytest.raises(InputError) as error:
        align_scales(scale)
    assert error.value.code == code
