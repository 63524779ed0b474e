"""The reference backend against the same mathematics written down differently."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gemmir.backends.reference import random_inputs, run
from gemmir.dtypes import DTYPES
from gemmir.errors import InputError, UnsupportedError
from gemmir.ir_text import parse_module

FP8 = "f8E4M3FN"
TORCH = {name: getattr(torch, dtype.torch_name) for name, dtype in DTYPES.items()}
BLOCKS = {"1x128": (1, 128), "128x128": (128, 128), "row": (1, 1 << 20), "tensor": (1 << 20, 1 << 20)}
"""Rows and elements of K that share a scale, of an operand seen as outer x K."""


def blocks(size: int) -> int:
    return -(-size // 128)


def scale_types(recipes: Sequence[str], m: str, n: int, k: int) -> tuple[str, str]:
    left = {"tensor": "", "row": f"{m}x1x", "1x128": f"{m}x{blocks(k)}x"}[recipes[0]]
    right = {
        "tensor": "",
        "row": f"1x{n}x",
        "1x128": f"{blocks(k)}x{n}x",
        "128x128": f"{blocks(k)}x{blocks(n)}x",
    }[recipes[1]]
    return f"tensor<{left}f32>", f"tensor<{right}f32>"


def program(
    n: int,
    k: int,
    element: str = FP8,
    result: str = "f32",
    recipes: Sequence[str] = (),
    m: str = "?",
    c: str = "",
    extra: Sequence[tuple[str, str, str]] = (),
    epilogue: str = "",
    layout: str = "",
) -> str:
    """The text of one product. `extra`: (name, kind, type) of epilogue operands; `epilogue`: the region."""
    a, b, d = f"tensor<{m}x{k}x{element}>", f"tensor<{k}x{n}x{element}>", f"tensor<{m}x{n}x{result}>"
    arguments = {"a": a, "b": b}
    clauses = [layout]
    if recipes:
        arguments["sa"], arguments["sb"] = scale_types(recipes, m, n, k)
        clauses.append(f"scaled (%sa by {recipes[0]}, %sb by {recipes[1]})")
    if c:
        arguments["c"] = f"tensor<{m}x{n}x{c}>"
        clauses.append("accumulate %c")
    if epilogue:
        arguments |= {name: type for name, _, type in extra}
        operands = ", ".join(f"%{name} by {kind}" for name, kind, _ in extra)
        clauses.append(f"epilogue {f'({operands})' if extra else ''} {{ {epilogue} }}")
    signature = ", ".join(f"%{name}: {type}" for name, type in arguments.items())
    return f"""
    func.func @f({signature}) -> {d} {{
      %y = gemm.matmul %a, %b {" ".join(clauses)} : ({", ".join(arguments.values())}) -> {d}
      func.return %y : {d}
    }}"""


def spread(scale: torch.Tensor, recipe: str, outer: int, k: int) -> np.ndarray:
    """One scale per element of an outer x K operand."""
    rows, columns = BLOCKS[recipe]
    grid = scale.double().reshape(1, 1) if recipe == "tensor" else scale.double()
    row, column = np.arange(outer) // rows, np.arange(k) // columns
    return grid.numpy()[row[:, None], column[None, :]]


def expected(inputs: dict[str, torch.Tensor], recipes: Sequence[str] = ()) -> np.ndarray:
    """A @ B + C in float64, element by element dequantised."""
    a, b = inputs["a"].double().numpy(), inputs["b"].double().numpy().T
    if recipes:
        a = a * spread(inputs["sa"], recipes[0], *a.shape)
        b = b * spread(inputs["sb"].t() if inputs["sb"].dim() else inputs["sb"], recipes[1], *b.shape)
    product = np.einsum("mk,nk->mn", a, b)
    return product + inputs["c"].double().numpy() if "c" in inputs else product


def evaluate(text: str, m: int = 37, seed: int = 0, **options):
    module = parse_module(text)
    inputs = random_inputs(module, m, seed)
    return inputs, run(module, list(inputs.values()), **options)


F32 = 2.0**-23
"""A result is rounded to float32 once, by at most 2^-24 of it; as much again for the float64 sums on both sides."""

CANCELLED = 1e-12
"""Where products cancel, what is left of sums of up to 400 terms of size 1 in float64: 400 * 2^-53 * 10."""

RECIPES = [("1x128", "128x128"), ("1x128", "1x128"), ("row", "row"), ("tensor", "tensor"), ()]


@pytest.mark.parametrize("recipes", RECIPES)
@pytest.mark.parametrize(("n", "k"), [(128, 256), (144, 400), (8, 16), (264, 130)])
def test_every_recipe_with_tails(recipes, n, k):
    inputs, result = evaluate(program(n, k, recipes=recipes))
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.double().numpy(), expected(inputs, recipes), rtol=F32, atol=CANCELLED)


@pytest.mark.parametrize("element", [FP8, "f8E5M2", "bf16", "f16"])
def test_every_operand_type(element):
    inputs, result = evaluate(program(24, 64, element))
    np.testing.assert_allclose(result.double().numpy(), expected(inputs), rtol=F32, atol=CANCELLED)


def test_mixed_fp8_types():
    text = program(24, 64).replace(f"64x24x{FP8}", "64x24xf8E5M2")
    inputs, result = evaluate(text)
    assert inputs["b"].dtype == torch.float8_e5m2
    np.testing.assert_allclose(result.double().numpy(), expected(inputs), rtol=F32, atol=CANCELLED)


@pytest.mark.parametrize("result_type", ["bf16", "f16", "f32"])
def test_rounding_to_the_result_type(result_type):
    inputs, result = evaluate(program(40, 256, result=result_type, recipes=RECIPES[0]))
    accumulator = torch.from_numpy(expected(inputs, RECIPES[0])).float()
    assert torch.equal(result, accumulator.to(TORCH[result_type]))


@pytest.mark.parametrize("c", ["bf16", "f16", "f32", FP8])
def test_operand_c(c):
    inputs, result = evaluate(program(40, 48, "bf16", c=c))
    assert inputs["c"].dtype == TORCH[c]
    np.testing.assert_allclose(result.double().numpy(), expected(inputs), rtol=F32, atol=CANCELLED)


def test_majors_change_the_memory_and_not_the_result():
    text = program(40, 48, "bf16", layout="layout <a = m, b = n>")
    module = parse_module(text)
    inputs = random_inputs(module, 16, 0)
    assert inputs["a"].stride() == (1, 16)
    assert inputs["b"].stride() == (40, 1)
    plain = parse_module(program(40, 48, "bf16"))
    assert torch.equal(run(module, list(inputs.values())), run(plain, list(inputs.values())))


BIAS_SILU = """^bb0(%acc: f32, %shift: f32):
    %s = arith.addf %acc, %shift : f32
    %n = arith.negf %s : f32
    %e = math.exp %n : f32
    %one = arith.constant 1.0 : f32
    %d = arith.addf %e, %one : f32
    %q = arith.divf %s, %d : f32
    %r = arith.truncf %q : f32 to bf16
    gemm.yield %r : bf16"""


def test_bias_and_silu():
    extra = [("bias", "column", "tensor<40xf32>")]
    text = program(40, 256, result="bf16", recipes=RECIPES[0], extra=extra, epilogue=BIAS_SILU)
    inputs, result = evaluate(text)
    x = expected(inputs, RECIPES[0]) + inputs["bias"].double().numpy()
    np.testing.assert_allclose(
        result.double().numpy(), x / (1 + np.exp(-x)), rtol=2.0**-8 * 1.01
    )  # BF16 rounds by 2^-8; float32 before it


def test_residual_row_scale_and_scalar():
    region = """^bb0(%acc: f32, %r0: bf16, %r1: f32, %r2: f32):
        %s = arith.mulf %acc, %r1 : f32
        %t = arith.mulf %s, %r2 : f32
        %w = arith.extf %r0 : bf16 to f32
        %r = arith.addf %t, %w : f32
        gemm.yield %r : f32"""
    extra = [
        ("res", "element", "tensor<?x40xbf16>"),
        ("row", "row", "tensor<?xf32>"),
        ("alpha", "scalar", "tensor<f32>"),
    ]
    inputs, result = evaluate(program(40, 64, "f16", "f32", extra=extra, epilogue=region))
    assert inputs["row"].shape == (37,)
    assert inputs["alpha"].shape == ()
    x = expected(inputs) * inputs["row"].double().numpy()[:, None] * float(inputs["alpha"])
    np.testing.assert_allclose(result.double().numpy(), x + inputs["res"].double().numpy(), rtol=1e-6, atol=1e-5)


def test_an_epilogue_that_ignores_the_accumulator_has_the_shape_of_the_result():
    region = "^bb0(%acc: f32):\n %one = arith.constant 1.5 : f32\n gemm.yield %one : f32"
    _, result = evaluate(program(40, 64, epilogue=region))
    assert torch.equal(result, torch.full((37, 40), 1.5))


CHAIN = """
func.func @two(%x: tensor<?x64xbf16>, %u: tensor<64x48xbf16>, %v: tensor<48x32xbf16>)
    -> (tensor<?x32xf32>, tensor<?x48xbf16>) {
  %h = gemm.matmul %x, %u : (tensor<?x64xbf16>, tensor<64x48xbf16>) -> tensor<?x48xbf16>
  %y = gemm.matmul %h, %v : (tensor<?x48xbf16>, tensor<48x32xbf16>) -> tensor<?x32xf32>
  func.return %y, %h : tensor<?x32xf32>, tensor<?x48xbf16>
}"""


def test_a_chain_rounds_between_its_products():
    inputs, (y, h) = evaluate(CHAIN, m=9)
    hidden = torch.from_numpy(inputs["x"].double().numpy() @ inputs["u"].double().numpy()).float().bfloat16()
    assert torch.equal(h, hidden)
    np.testing.assert_allclose(y.double(), hidden.double().numpy() @ inputs["v"].double().numpy(), rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("recipes", [RECIPES[0], ()])
def test_no_rows(recipes):
    _, result = evaluate(program(40, 256, result="bf16", recipes=recipes), m=0)
    assert result.shape == (0, 40)
    assert result.dtype == torch.bfloat16


def test_no_k_gives_zeros_or_c():
    module = parse_module(program(40, 0, "bf16"))
    assert torch.equal(run(module, list(random_inputs(module, 3, 0).values())), torch.zeros(3, 40))
    inputs, result = evaluate(program(40, 0, recipes=RECIPES[0], c="f32", result="bf16"), m=3)
    assert inputs["sa"].shape == (3, 0)
    assert torch.equal(result, inputs["c"].bfloat16())


def test_no_k_still_runs_the_epilogue():
    extra = [("bias", "column", "tensor<40xf32>")]
    inputs, result = evaluate(program(40, 0, "bf16", "bf16", extra=extra, epilogue=BIAS_SILU), m=3)
    x = inputs["bias"].double().numpy()
    np.testing.assert_allclose(result.double()[1], x / (1 + np.exp(-x)), rtol=2.0**-8)


def test_float32_products_on_request():
    text = program(40, 512, "bf16")
    inputs, narrow = evaluate(text, multiply=torch.float32)
    _, wide = evaluate(text)
    assert not torch.equal(narrow, wide)
    np.testing.assert_allclose(narrow.double(), expected(inputs), rtol=1e-3, atol=1e-3)


def fresh():
    module = parse_module(program(40, 256, recipes=RECIPES[0], c="f32"))
    return module, random_inputs(module, 8, 0)


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("a", lambda x: x.float(), "GMR-I001"),
        ("a", lambda x: x.float().to(torch.float8_e5m2), "GMR-I001"),
        ("sa", lambda x: x.double(), "GMR-I001"),
        ("a", lambda x: x[:, :255], "GMR-I002"),
        ("a", lambda x: x[0], "GMR-I002"),
        ("sa", lambda x: x[:7], "GMR-I002"),
        ("c", lambda x: torch.cat([x, x]), "GMR-I002"),
        ("sb", lambda x: x.reshape(-1), "GMR-I002"),
        ("b", lambda x: x.to("meta"), "GMR-I004"),
        ("b", lambda x: x.float().numpy(), "GMR-I005"),
    ],
)
def test_input_errors_name_the_argument(name, change, code):
    module, inputs = fresh()
    inputs[name] = change(inputs[name])
    with pytest.raises(InputError) as error:
        run(module, list(inputs.values()))
    assert error.value.code == code
    assert name in error.value.what


def test_wrong_number_of_inputs():
    module, inputs = fresh()
    with pytest.raises(InputError) as error:
        run(module, list(inputs.values())[:-1])
    assert error.value.code == "GMR-I005"
    assert "a, b, sa, sb, c" in str(error.value)


def test_products_in_float16_are_refused():
    module, inputs = fresh()
    with pytest.raises(InputError) as error:
        run(module, list(inputs.values()), multiply=torch.float16)
    assert error.value.code == "GMR-I009"


@pytest.mark.parametrize(
    "text",
    [
        "func.func @f(%x: tensor<4xf32>) -> tensor<4xf32> {\n"
        "  %y = arith.addf %x, %x : tensor<4xf32>\n  func.return %y : tensor<4xf32>\n}",
        "func.func @f(%x: tensor<4xf32>) {\n  func.return\n}\nfunc.func @g() {\n  func.return\n}",
        "func.func @f(%x: tensor<4xi64>) -> tensor<4xi64> {\n  func.return %x : tensor<4xi64>\n}",
        "func.func @f(%x: f32) -> f32 {\n  func.return %x : f32\n}",
    ],
)
def test_other_programs_are_refused(text):
    module = parse_module(text)
    with pytest.raises(UnsupportedError) as error:
        run(module, [torch.zeros(4)])
    assert error.value.code == "GMR-U001"


def test_an_epilogue_on_integers_is_refused():
    region = "^bb0(%acc: f32):\n %i = arith.constant 1 : i32\n %f = arith.sitofp %i : i32 to f32\n gemm.yield %f : f32"
    with pytest.raises(UnsupportedError) as error:
        evaluate(program(40, 64, epilogue=region))
    assert error.value.code == "GMR-U001"
