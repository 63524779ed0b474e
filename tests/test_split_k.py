"""K in parts that are summed by themselves: what it means, in every place that knows the arithmetic."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gemmir.backends.reference import exact_and_bound
from gemmir.compiler import lower
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.dtypes import BF16, F8E4M3FN, F32
from gemmir.errors import InputError, IRError
from gemmir.ir_text import parse_module
from gemmir.numerics import NumericsSpec
from gemmir.problem import GemmProblem, Recipe
from gemmir.program import Program
from gemmir.tensor_core import add, gemm_model, round_to, values_of
from gemmir.testing import torch_model
from tests import hopper_model

WEIGHTS = (Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_128X128)


def fp8(k: int, parts: int, m: int = 5, n: int = 24) -> GemmProblem:
    return GemmProblem(m, n, k, F8E4M3FN, F8E4M3FN, F32, *WEIGHTS, NumericsSpec(32, 128, parts))


def half(k: int, parts: int, every: int | None = None) -> GemmProblem:
    return GemmProblem(5, 24, k, BF16, BF16, F32, Recipe.NONE, Recipe.NONE, NumericsSpec(16, every, parts))


def test_parts_are_whole_k_blocks_of_which_the_last_part_may_have_fewer():
    assert fp8(1024, 2).parts == (range(512), range(512, 1024))
    assert fp8(1000, 2).parts == (range(512), range(512, 1000))
    assert fp8(900, 3).parts == (range(384), range(384, 768), range(768, 900))
    assert half(100, 2).parts == (range(64), range(64, 100))
    assert fp8(0, 1).parts == (range(0),)
    assert (fp8(900, 3).part_k_blocks, fp8(900, 1).part_k_blocks) == (3, 8)


@given(st.integers(1, 5000), st.integers(1, 9))
def test_parts_cover_k_once(k, parts):
    problem = half(k, min(parts, half(k, 1).k_blocks))
    assume((problem.numerics.split_k - 1) * problem.part_k_blocks < problem.k_blocks)
    assert [k for part in problem.parts for k in part] == list(range(k))
    assert max(len(part) for part in problem.parts) <= problem.part_k_blocks * problem.block_k
    assert min(len(part) for part in problem.parts) > 0


def operands(problem: GemmProblem, seed: int):
    """Random bits of A and B and their scales: values of all sizes, so that the order of sums shows."""
    generator = np.random.default_rng(seed)
    if problem.a is BF16:
        a, b = (generator.standard_normal((rows, problem.k)) * 2.0**12 for rows in (problem.m, problem.n))
        bits = [torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16) for x in (a, b)]
        return bits[0], bits[1].T, None, None
    a, b = (generator.integers(0, 126, (rows, problem.k), np.uint8) for rows in (problem.m, problem.n))
    a, b = (x | generator.integers(0, 2, x.shape, np.uint8) << 7 for x in (a, b))
    blocks = -(-problem.k // 128)
    scales = [np.exp2(generator.uniform(-9, 9, size)).astype(np.float32) for size in ((problem.m, blocks), (blocks, 1))]
    return a, b.T, *scales


@pytest.mark.parametrize("problem", [fp8(1024, 2), fp8(900, 3), half(640, 2), half(1000, 4), half(640, 2, 48)], ids=str)
def test_the_models_sum_the_parts_in_order(problem):
    """numpy and torch against an independent model of each part, added in float32 in ascending order."""
    a, b, scale_a, scale_b = operands(problem, 1)
    left, right = values_of(a, problem.a), values_of(b, problem.b)
    total = None
    for part in problem.parts:
        of_k, of_blocks = slice(part.start, part.stop), slice(part.start // 128, -(-part.stop // 128))
        rows = None if scale_a is None else scale_a[:, of_blocks]
        columns = None if scale_b is None else np.repeat(scale_b[of_blocks], problem.n, 1)
        names, every = (problem.a.name, problem.b.name), problem.numerics.promote_every
        part_sum = hopper_model.gemm(left[:, of_k], right[of_k], rows, columns, names, every)
        total = part_sum if total is None else total + part_sum
    result = gemm_model(problem, a, b, scale_a, scale_b)
    np.testing.assert_array_equal(result, round_to(total, F32))
    dtype = getattr(torch, problem.a.torch_name)
    x, w = (torch.from_numpy(np.ascontiguousarray(bits).view(f"i{bits.itemsize}")).view(dtype) for bits in (a, b))
    scales = [None if scale is None else torch.from_numpy(scale) for scale in (scale_a, scale_b)]
    with_torch = torch_model.gemm_model(problem, x, w, *scales)
    np.testing.assert_array_equal(with_torch.numpy().view(np.uint32), result)
    whole = GemmProblem(**{**fields_of(problem), "numerics": NumericsSpec(problem.numerics.instruction_k, every)})
    assert (gemm_model(whole, a, b, scale_a, scale_b) != result).any()  # the data tell the orders apart
    exact, bound = exact_and_bound(problem, x, w, *scales)
    assert (abs(with_torch.double() - exact) <= bound).all()


def fields_of(problem: GemmProblem) -> dict[str, object]:
    return {name: getattr(problem, name) for name in GemmProblem.__dataclass_fields__}


def test_parts_add_up_as_float32_does():
    big, small = np.float32([2.0**24, np.inf, np.inf, -0.0]), np.float32([1.0, -np.inf, 1.0, -0.0])
    np.testing.assert_array_equal(add(big, small).view(np.uint32), [0x4B800000, 0x7FFFFFFF, 0x7F800000, 0x80000000])


X, W, D = "tensor<?x{k}xbf16>", "tensor<{k}x16xbf16>", "tensor<?x16xbf16>"


def text(numerics: str, k: int = 256) -> str:
    x, w = X.format(k=k), W.format(k=k)
    return (
        f"func.func @f(%x: {x}, %w: {w}) -> {D} {{\n"
        f"  %y = gemm.matmul %x, %w numerics <{numerics}> : ({x}, {w}) -> {D}\n  func.return %y : {D}\n}}"
    )


def test_the_clause_is_read_and_written():
    for clause in ("split_k = 2", "promote_every = 48, split_k = 4", "promote_every = none, split_k = 2"):
        module = parse_module(text(clause))
        assert f"numerics <{clause}>" in str(module)
        assert parse_module(str(module)).is_structurally_equivalent(module)
    turned = parse_module(text("split_k = 2, promote_every = none"))
    assert problem_of(the_matmul(turned)).numerics == NumericsSpec(16, None, 2)
    assert "numerics <promote_every = none, split_k = 2>" in lower(text("split_k = 2"), until="gemm").ir["gemm"]
    assert "numerics <promote_every = none>" in lower(text("split_k = 1"), until="gemm").ir["gemm"]


@pytest.mark.parametrize(
    ("clause", "k", "message"),
    [
        ("split_k = 0", 256, "split_k = 0"),
        ("split_k = 65", 1 << 20, "1 <= split_k <= 64"),
        ("split_k = 5", 256, "split_k = 5 with 4 k-blocks (K = 256)"),
        ("split_k = 2", 64, "split_k = 2 with 1 k-blocks (K = 64)"),
        ("split_k = 2", 0, "split_k = 2 with 1 k-blocks (K = 0)"),
        ("split_k = 2, split_k = 2", 256, "'split_k' is given twice"),
        ("parts = 2", 256, "split_k"),
    ],
)
def test_what_cannot_be_split_is_refused(clause: str, k: int, message: str):
    with pytest.raises(IRError) as caught:
        parse_module(text(clause, k))
    assert message in str(caught.value)


def program(**more) -> Program:
    p = Program("f")
    p.output(p.matmul(p.input("x", (None, 256), "bf16"), p.input("w", (256, 16), "bf16"), **more).cast("bf16"))
    return p


def test_programs_say_it_and_have_keys_of_their_own():
    assert "numerics <split_k = 2>" in program(split_k=2).text
    assert "numerics" not in program(split_k=1).text
    assert program(split_k=2).key() != program().key() == program(split_k=1).key()
    assert json.loads(program(split_k=2).key())["product"]["split_k"] == 2


def test_products_of_several_groups_sum_k_as_a_whole():
    p = Program("f")
    x, w = p.input("x", (4, None, 256), "bf16"), p.input("w", (4, 256, 16), "bf16")
    with pytest.raises(InputError, match="split_k = 2 with batch") as caught:
        p.batched_matmul(x, w, split_k=2)
    assert caught.value.fix == "leave split_k out"


@pytest.mark.parametrize("wrong", [0.5, None, "2", True])
def test_parts_are_counted(wrong: object):
    with pytest.raises(InputError, match="split_k = "):
        program(split_k=wrong)


def test_k_blocks_that_the_last_part_lacks_are_zeros():
    """640 elements in three parts of two k-blocks lack one: a sum that has underflown to -0 becomes 0 there."""
    problem = fp8(640, 3, m=1, n=8)
    assert [problem.fills(part) for part in problem.parts] == [True, True, False]
    a = np.zeros((1, 640), np.uint8)
    a[:, 512] = 0x81  # -2^-9, the last part's only element
    b = np.full((640, 8), 0x01, np.uint8)
    tiny = np.full((1, 5), 2.0**-100, np.float32), np.full((5, 1), 2.0**-40, np.float32)
    whole = gemm_model(fp8(640, 1, m=1, n=8), a, b, *tiny)
    assert (whole == 0x80000000).all()
    assert (gemm_model(problem, a, b, *tiny) == 0).all()
