"""The error bound against a bit-exact model of the tensor core: never violated, and not vacuous."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemmir.backends.reference import WorstElement, exact_and_bound, worst_element
from gemmir.backends.reference.data import quantise
from gemmir.dtypes import BF16, DTYPES, F8E4M3FN, F8E5M2, F16, F32, DType
from gemmir.errors import InputError, UnsupportedError
from gemmir.numerics import NumericsSpec
from gemmir.problem import GemmProblem, Recipe
from tests import hopper_model as model

NONE = (Recipe.NONE, Recipe.NONE)
WEIGHTS = (Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_128X128)
BOTH = (Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_1X128)
ROW = (Recipe.ROW_WISE, Recipe.ROW_WISE)
TENSOR = (Recipe.TENSOR_WISE, Recipe.TENSOR_WISE)


def problem(m, n, k, a=F8E4M3FN, b=None, d=F32, recipes=NONE, every=None, **more) -> GemmProblem:
    numerics = NumericsSpec(32 if a.is_fp8 else 16, every)
    return GemmProblem(m, n, k, a, b or a, d, *recipes, numerics, **more)


def torch_type(dtype: DType) -> torch.dtype:
    return getattr(torch, dtype.torch_name)


def draw(kind: str, rows: int, k: int, seed: int) -> torch.Tensor:
    """Float32 data of the kinds that are hard on a bound."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=generator)
    if kind == "wide":
        x *= torch.exp2(torch.randint(-9, 9, (rows, k), generator=generator).float())
    if kind == "tiny":
        x *= 2.0**-8
    if kind == "sparse":
        x *= torch.rand(rows, k, generator=generator) < 0.05
    if kind == "positive":
        x = x.abs()
    if kind == "one large":
        x[:, :: max(1, k // 3)] *= 64
    return x


def cancel(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Append the same products with opposite sign: the exact sum is 0 while the partial sums are not."""
    return torch.cat([a, -a], 1), torch.cat([b, b], 1)


def model_result(p: GemmProblem, a, b, scale_a, scale_b) -> torch.Tensor:
    """`a` (M, K) and `b` (N, K) as stored, scales "outer x K", through the bit model; float32 (M, N)."""

    def spread(scale, outer):
        if scale is None:
            return None
        scale = scale.expand(outer, 1) if scale.dim() == 0 else scale
        return (scale.repeat_interleave(128, 0)[:outer] if scale.shape[0] != outer else scale).numpy()

    left, right = spread(scale_a, p.m), spread(scale_b, p.n)
    right = None if right is None else right.T
    names = (p.a.name, p.b.name)
    result = model.gemm(a.double().numpy(), b.double().numpy().T, left, right, names, p.numerics.promote_every)
    return torch.from_numpy(result)


def check(p: GemmProblem, x: torch.Tensor, y: torch.Tensor) -> WorstElement:
    """Quantise x (M, K) and y (N, K), run the model, compare in the type of the result."""
    scale_a = scale_b = None
    if p.scale_a is Recipe.NONE:
        a, b = x.to(torch_type(p.a)), y.to(torch_type(p.b))
    else:
        a, scale_a = quantise(x, p.scale_a, p.a)
        b, scale_b = quantise(y, p.scale_b, p.b)
    given_b = None if scale_b is None else scale_b.t()
    exact, bound = exact_and_bound(p, a, b.t(), scale_a, given_b)
    assert bound.isfinite().all()
    result = model_result(p, a, b, scale_a, scale_b)
    return worst_element(result.to(torch_type(p.d)), exact, bound)


KINDS = ("normal", "wide", "tiny", "sparse", "positive", "one large")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("recipes", "every"), [(WEIGHTS, 128), (BOTH, 128), (ROW, None), (TENSOR, 128), (NONE, None)])
def test_fp8_model_stays_within_the_bound(kind, recipes, every):
    p = problem(40, 136, 432, recipes=recipes, every=every)
    worst = check(p, draw(kind, 40, 432, 1), draw(kind, 136, 432, 2))
    assert worst.holds
    assert worst.ratio > 0 or kind == "tiny"  # without scales these are few and small multiples of 2^-18: exact


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", [(F8E5M2, F8E5M2), (F8E4M3FN, F8E5M2), (BF16, BF16), (F16, F16)])
def test_other_types_stay_within_the_bound(kind, pair):
    p = problem(48, 64, 328, *pair)
    assert 0 < check(p, draw(kind, 48, 328, 3), draw(kind, 64, 328, 4)).ratio <= 1


@pytest.mark.parametrize("dtype", [F8E4M3FN, BF16, F16])
def test_cancelling_sums_stay_within_the_bound(dtype):
    a, b = cancel(draw("wide", 48, 160, 5), draw("wide", 48, 160, 6))
    p = problem(48, 48, 320, dtype)
    exact, _ = exact_and_bound(p, a.to(torch_type(dtype)), b.to(torch_type(dtype)).t())
    assert exact.abs().max() < 1e-9
    assert 0 < check(p, a, b).ratio <= 1


@pytest.mark.parametrize("d", [BF16, F16])
def test_rounding_to_the_result_type_is_part_of_the_bound(d):
    p = problem(64, 64, 256, d=d, recipes=WEIGHTS, every=128)
    assert check(p, draw("normal", 64, 256, 7), draw("normal", 64, 256, 8)).holds
    wide = problem(64, 64, 256, recipes=WEIGHTS, every=128)
    a, b = torch.ones(64, 256).to(torch.float8_e4m3fn), torch.ones(256, 64).to(torch.float8_e4m3fn)
    scale_a, scale_b = torch.ones(64, 2), torch.ones(2, 1)
    narrow_bound = exact_and_bound(p, a, b, scale_a, scale_b)[1] - exact_and_bound(wide, a, b, scale_a, scale_b)[1]
    assert narrow_bound.min() >= 256 * (2.0**-8 if d is BF16 else 2.0**-11)


@given(
    k=st.integers(1, 300),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1 << 20),
    recipes=st.sampled_from([WEIGHTS, BOTH]),
)
def test_any_k_tail_stays_within_the_bound(k, kind, seed, recipes):
    p = problem(16, 24, k, recipes=recipes, every=128)
    assert check(p, draw(kind, 16, k, seed), draw(kind, 24, k, seed + 1)).holds


def test_bound_is_tight_enough_to_be_useful():
    k = 2048
    p = problem(64, 64, k, recipes=WEIGHTS, every=128)
    a, scale_a = quantise(draw("normal", 64, k, 9), p.scale_a, p.a)
    b, scale_b = quantise(draw("normal", 64, k, 10), p.scale_b, p.b)
    exact, bound = exact_and_bound(p, a, b.t(), scale_a, scale_b.t())
    assert bound.median() < 0.015 * exact.square().mean().sqrt()
    assert bound.max() < 0.03 * exact.square().mean().sqrt()
    half = problem(64, 64, k, BF16)
    a, b = draw("normal", 64, k, 9).bfloat16(), draw("normal", 64, k, 10).bfloat16()
    exact, bound = exact_and_bound(half, a, b.t())
    assert bound.max() < 3e-4 * exact.square().mean().sqrt()


def test_bound_grows_where_promotion_is_skipped():
    """The difference between a kernel that promotes and one that does not is visible: some element breaks the bound."""
    k = 4096
    x, y = draw("positive", 32, k, 11), draw("positive", 32, k, 12)
    p = problem(32, 32, k, every=128)
    a, b = x.to(torch.float8_e4m3fn), y.to(torch.float8_e4m3fn)
    exact, bound = exact_and_bound(p, a, b.t())
    unpromoted = model_result(problem(32, 32, k), a, b, None, None)
    assert not worst_element(unpromoted, exact, bound).holds
    assert worst_element(model_result(p, a, b, None, None), exact, bound).holds


def test_panels_do_not_change_the_result():
    p = problem(70, 40, 200, recipes=WEIGHTS, every=128)
    a, scale_a = quantise(draw("normal", 70, 200, 13), p.scale_a, p.a)
    b, scale_b = quantise(draw("normal", 40, 200, 14), p.scale_b, p.b)
    whole = exact_and_bound(p, a, b.t(), scale_a, scale_b.t())
    panels = exact_and_bound(p, a, b.t(), scale_a, scale_b.t(), rows_per_panel=17)
    assert torch.equal(whole[0], panels[0])
    # The bound's own float64 sums may be grouped differently: 200 steps of 2^-53.
    torch.testing.assert_close(whole[1], panels[1], rtol=1e-12, atol=0)


def test_exact_is_the_dequantised_product_plus_c():
    p = problem(33, 150, 300, d=BF16, recipes=WEIGHTS, every=128, has_c=True)
    a, scale_a = quantise(draw("normal", 33, 300, 15), p.scale_a, p.a)
    b, scale_b = quantise(draw("normal", 150, 300, 16), p.scale_b, p.b)
    c = draw("normal", 33, 150, 17).bfloat16()
    exact, _ = exact_and_bound(p, a, b.t(), scale_a, scale_b.t(), c)
    expected = c.double()
    for k in range(300):
        left = a[:, k].double() * scale_a[:, k // 128].double()
        right = b[:, k].double() * scale_b[torch.arange(150) // 128, k // 128].double()
        expected += torch.outer(left, right)
    # Two float64 sums of 300 terms of size 1 or less, in another order: 300 * 2^-53 each.
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)


def test_empty_sums():
    p = problem(5, 8, 0, d=BF16, recipes=WEIGHTS, every=128, has_c=True)
    a, b = torch.empty(5, 0).to(torch.float8_e4m3fn), torch.empty(0, 8).to(torch.float8_e4m3fn)
    c = torch.full((5, 8), 3.0)
    exact, bound = exact_and_bound(p, a, b, torch.empty(5, 0), torch.empty(0, 1), c)
    assert torch.equal(exact, c.double())
    assert (bound < 3 * 2.0**-8 * 1.01).all()
    nothing = problem(0, 8, 16, BF16)
    exact, bound = exact_and_bound(nothing, torch.empty(0, 16).bfloat16(), torch.empty(16, 8).bfloat16())
    assert exact.shape == bound.shape == (0, 8)


def test_bound_is_infinite_where_the_kernel_may_overflow():
    a = torch.full((2, 16), 2.0**100)
    a[1] = 1.0
    exact, bound = exact_and_bound(problem(2, 8, 16, BF16), a.bfloat16(), torch.full((16, 8), 2.0**40).bfloat16())
    assert bound[0].isinf().all()
    assert bound[1].isfinite().all()
    assert exact[0, 0] == 2.0**144
    _, bound = exact_and_bound(
        problem(1, 8, 16, F16, d=F16), torch.full((1, 16), 100.0).half(), torch.full((16, 8), 100.0).half()
    )
    assert bound.isinf().all()


def test_bound_of_zeros_is_negligible():
    p = problem(4, 8, 256, d=BF16, recipes=WEIGHTS, every=128)
    a, b = torch.zeros(4, 256).to(torch.float8_e4m3fn), torch.ones(256, 8).to(torch.float8_e4m3fn)
    exact, bound = exact_and_bound(p, a, b, torch.ones(4, 2), torch.ones(2, 1))
    assert exact.abs().max() == 0
    assert bound.max() < 1e-36


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"a": torch.zeros(4, 32)}, "GMR-I001"),
        ({"a": torch.zeros(4, 31).bfloat16()}, "GMR-I002"),
        ({"b": torch.zeros(31, 8).bfloat16()}, "GMR-I002"),
        ({"c": torch.zeros(4, 8)}, "GMR-I005"),
        ({"scale_a": torch.zeros(())}, "GMR-I005"),
        ({"b": torch.zeros(32, 8, device="meta").bfloat16()}, "GMR-I004"),
    ],
)
def test_operands_that_do_not_fit_the_problem(change, code):
    operands = {"a": torch.zeros(4, 32).bfloat16(), "b": torch.zeros(32, 8).bfloat16()} | change
    with pytest.raises(InputError) as error:
        exact_and_bound(problem(4, 8, 32, BF16), **operands)
    assert error.value.code == code


def test_numerics_without_a_derivation_are_refused():
    p = problem(4, 8, 256, recipes=WEIGHTS, every=None)
    a, b = torch.zeros(4, 256).to(torch.float8_e4m3fn), torch.zeros(256, 8).to(torch.float8_e4m3fn)
    with pytest.raises(UnsupportedError) as error:
        exact_and_bound(p, a, b, torch.ones(4, 2), torch.ones(2, 1))
    assert error.value.code == "GMR-U001"


class TestWorstElement:
    exact = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    bound = torch.full((2, 2), 0.5, dtype=torch.float64)

    def test_names_the_element(self):
        worst = worst_element(torch.tensor([[1.0, 2.25], [3.0, 3.0]]), self.exact, self.bound)
        assert (worst.row, worst.column, worst.got, worst.expected) == (1, 1, 3.0, 4.0)
        assert (worst.error, worst.bound, worst.ratio, worst.holds) == (1.0, 0.5, 2.0, False)

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
    def test_a_result_that_is_not_finite_is_a_violation(self, wrong):
        worst = worst_element(torch.tensor([[1.0, wrong], [3.0, 4.0]]), self.exact, self.bound)
        assert (worst.row, worst.column, worst.ratio) == (0, 1, float("inf"))

    @pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
    def test_unless_it_must_be_so(self, special):
        exact = self.exact.clone()
        exact[0, 1] = special
        bound = self.bound.clone()
        bound[0, 1] = float("nan")
        assert worst_element(torch.tensor([[1.0, special], [3.0, 4.0]]), exact, bound).ratio == 0
        assert worst_element(torch.tensor([[1.0, 7.0], [3.0, 4.0]]), exact, bound).ratio == float("inf")

    def test_infinities_of_the_wrong_sign(self):
        exact = torch.full((1, 1), float("inf"), dtype=torch.float64)
        assert not worst_element(torch.full((1, 1), float("-inf")), exact, torch.ones_like(exact)).holds

    def test_an_infinite_bound_allows_overflow(self):
        bound = torch.full_like(self.bound, float("inf"))
        assert worst_element(torch.full((2, 2), float("inf")), self.exact, bound).ratio == 0

    def test_no_error_and_no_bound(self):
        bound = torch.zeros_like(self.bound)
        assert worst_element(self.exact.float(), self.exact, bound).ratio == 0
        assert worst_element(self.exact.float() + 1, self.exact, bound).ratio == float("inf")

    def test_empty(self):
        empty = torch.empty(0, 4, dtype=torch.float64)
        assert worst_element(empty.float(), empty, empty) == WorstElement(-1, -1, 0.0, 0.0, 0.0, 0.0, 0.0)

    def test_shapes_must_agree(self):
        with pytest.raises(InputError) as error:
            worst_element(torch.zeros(2, 3), self.exact, self.bound)
        assert error.value.code == "GMR-I002"


def test_the_model_keeps_fourteen_bits():
    """255 * 128 = 28800 does not fit the FP8 accumulator of 14 significant bits; the first 2^14 do."""
    fifteens = np.full((1, 128), 15.0)
    assert model.chain(fifteens, fifteens.T, "f8E4M3FN", "f8E4M3FN")[0, 0] == 28768.0
    assert model.chain(fifteens, fifteens.T, "bf16", "bf16")[0, 0] == 28800.0
    assert set(model.FORMATS) == set(DTYPES) - {"i32"}
