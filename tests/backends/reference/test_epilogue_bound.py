"""The bound after an epilogue: float32 results that start anywhere within the accumulator's bound stay within it."""

import pytest
import torch

from gemmir.backends.reference import epilogue_bound, worst_element
from gemmir.backends.reference.interpreter import run_epilogue, spread
from gemmir.dialects.gemm import MatmulOp, the_matmul
from gemmir.errors import UnsupportedError
from gemmir.ir_text import parse_module

M, N = 40, 24
FLOAT64 = 2.0**-45
"""Both sides are a few operations in float64 on numbers below 2^6, each off by up to 2^-53 of its result."""
EPILOGUES = {
    "bias and silu": """
        %s = arith.addf %acc, %col : f32
        %n = arith.negf %s : f32
        %e = math.exp %n : f32
        %d = arith.addf %e, %one : f32
        %r = arith.divf %s, %d : f32""",
    "row scale and residual": """
        %s = arith.mulf %acc, %row : f32
        %r = arith.addf %s, %elem : f32""",
    "gelu with tanh": """
        %s = arith.mulf %acc, %acc : f32
        %q = arith.mulf %s, %acc : f32
        %f = math.fma %q, %tenth, %acc : f32
        %t = math.tanh %f : f32
        %u = arith.addf %t, %one : f32
        %r = arith.mulf %acc, %u : f32""",
    "gelu with erf": """
        %f = math.erf %acc : f32
        %u = arith.addf %f, %one : f32
        %r = arith.mulf %acc, %u : f32""",
    "clamp": """
        %s = arith.maximumf %acc, %col : f32
        %r = arith.minnumf %s, %one : f32""",
    "leaky relu": """
        %s = arith.mulf %acc, %tenth : f32
        %t = arith.cmpf ogt, %acc, %zero : f32
        %r = arith.select %t, %acc, %s : f32""",
    "normalise": """
        %s = math.fma %acc, %acc, %one : f32
        %t = math.rsqrt %s : f32
        %v = math.sqrt %s : f32
        %w = arith.subf %v, %t : f32
        %r = arith.mulf %acc, %w : f32""",
    "logarithms": """
        %s = math.absf %acc : f32
        %t = arith.addf %s, %tenth : f32
        %u = math.log %t : f32
        %v = math.log2 %t : f32
        %r = arith.mulf %u, %v : f32""",
    "waves and powers": """
        %s = math.sin %acc : f32
        %t = math.cos %acc : f32
        %two = arith.constant 2.0 : f32
        %u = math.powf %s, %two : f32
        %v = math.exp2 %t : f32
        %w = math.floor %col : f32
        %x = arith.addf %u, %w : f32
        %r = arith.addf %x, %v : f32""",
    "narrow on the way": """
        %s = arith.truncf %acc : f32 to bf16
        %t = arith.addf %s, %s : bf16
        %u = math.tanh %t : bf16
        %r = arith.extf %u : bf16 to f32""",
    "truth": """
        %s = arith.cmpf ogt, %acc, %zero : f32
        %t = arith.cmpf olt, %acc, %one : f32
        %u = arith.andi %s, %t : i1
        %v = arith.xori %u, %s : i1
        %w = arith.ori %v, %t : i1
        %x = arith.select %w, %acc, %one : f32
        %r = math.copysign %x, %col : f32""",
}


def product(epilogue: str, d: str = "f32") -> MatmulOp:
    """A product with an epilogue that computes %r from %acc, %col, %row, %elem and constants."""
    yielded = "gemm.yield %r : f32"
    if d != "f32":
        yielded = f"%narrow = arith.truncf %r : f32 to {d}\n gemm.yield %narrow : {d}"
    text = f"""
    func.func @f(%a: tensor<{M}x16xbf16>, %b: tensor<16x{N}xbf16>, %bias: tensor<{N}xf32>, %scale: tensor<{M}xf32>,
                 %residual: tensor<{M}x{N}xf32>) -> tensor<{M}x{N}x{d}> {{
      %y = gemm.matmul %a, %b epilogue (%bias by column, %scale by row, %residual by element) {{
      ^bb0(%acc: f32, %col: f32, %row: f32, %elem: f32):
        %zero = arith.constant 0.0 : f32
        %one = arith.constant 1.0 : f32
        %tenth = arith.constant 0.1 : f32
        {epilogue}
        {yielded}
      }} : (tensor<{M}x16xbf16>, tensor<16x{N}xbf16>, tensor<{N}xf32>, tensor<{M}xf32>, tensor<{M}x{N}xf32>)
           -> tensor<{M}x{N}x{d}>
      func.return %y : tensor<{M}x{N}x{d}>
    }}"""
    return the_matmul(parse_module(text))


def setting(size: float = 3.0):
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(M, N, generator=generator, dtype=torch.float64) * size
    bound = exact.abs() * 2.0**-10 + 2.0**-12
    operands = [torch.randn(*shape, generator=generator) for shape in ((N,), (M,), (M, N))]
    return exact, bound, operands


def kernel(op: MatmulOp, accumulator: torch.Tensor, operands) -> torch.Tensor:
    assert op.epilogue is not None
    spread_out = [spread(x, kind) for x, kind in zip(operands, op.epilogue_kinds, strict=True)]
    return run_epilogue(op.epilogue.block, [accumulator.float(), *spread_out])


@pytest.mark.parametrize("d", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", EPILOGUES)
def test_results_stay_within_the_bound(name, d):
    op = product(EPILOGUES[name], d)
    exact, bound, operands = setting()
    after, limit = epilogue_bound(op, operands, exact, bound)
    assert limit.isfinite().all()
    for offset in (-0.99, -0.5, 0.0, 0.3, 0.99):
        result = kernel(op, exact + bound * offset, operands)
        worst = worst_element(result, after, limit)
        assert worst.holds, f"{name} at {offset}: {worst}"


def test_the_bound_of_an_affine_epilogue_is_tight():
    op = product(EPILOGUES["row scale and residual"])
    exact, bound, operands = setting()
    after, limit = epilogue_bound(op, operands, exact, bound)
    expected = exact * operands[1].double()[:, None] + operands[2].double()
    torch.testing.assert_close(after, expected, rtol=FLOAT64, atol=FLOAT64)
    slope = bound * operands[1].double().abs()[:, None]
    assert (limit >= slope).all()
    assert (limit <= slope + 1e-5).all()


def test_exact_is_the_function_itself():
    op = product(EPILOGUES["bias and silu"])
    exact, bound, operands = setting()
    after, _ = epilogue_bound(op, operands, exact, bound)
    expected = torch.nn.functional.silu(exact + operands[0].double())
    torch.testing.assert_close(after, expected, rtol=FLOAT64, atol=FLOAT64)


def test_overflow_inside_the_epilogue_is_followed():
    """exp overflows float32 to infinity, and x / (1 + inf) is -0: the exact value is tiny and not zero."""
    op = product(EPILOGUES["bias and silu"])
    exact, bound, operands = setting(size=60.0)
    after, limit = epilogue_bound(op, operands, exact, bound)
    assert (exact < -95).any()
    assert limit[exact < -95].isfinite().all()
    assert worst_element(kernel(op, exact, operands), after, limit).holds


def test_a_wrong_activation_breaks_the_bound():
    op = product(EPILOGUES["bias and silu"])
    exact, bound, operands = setting()
    after, limit = epilogue_bound(op, operands, exact, bound)
    wrong = kernel(product(EPILOGUES["gelu with erf"]), exact, operands)
    assert worst_element(wrong, after, limit).ratio > 100


def test_division_by_what_may_be_zero_has_no_bound():
    op = product("%r = arith.divf %one, %acc : f32")
    exact, bound, operands = setting()
    exact[0, 0], exact[0, 1] = 0.0, 1.0
    _, limit = epilogue_bound(op, operands, exact, bound)
    assert limit[0, 0].isinf()
    assert limit[0, 1] < 2e-3


def test_logarithm_of_what_may_be_negative_has_no_bound():
    op = product("%s = math.log %acc : f32\n %r = arith.maximumf %s, %zero : f32")
    exact, bound, operands = setting()
    exact[0, 0], exact[0, 1] = -1e-6, 8.0
    after, limit = epilogue_bound(op, operands, exact, bound)
    assert limit[0, 0].isinf()
    assert after.isfinite().all()
    assert limit[0, 1] < 2e-3


def test_an_op_without_a_rule_is_refused():
    op = product("%r = math.log1p %acc : f32")
    exact, bound, operands = setting()
    with pytest.raises(UnsupportedError) as error:
        epilogue_bound(op, operands, exact, bound)
    assert error.value.code == "GMR-U001"
