"""Quantising to FP8 on the CPU: every bit against the definition, error bounds, products, and what is refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import gemmir
from gemmir import quantization
from gemmir.errors import InputError
from gemmir.problem import SCALING_TYPES, Recipe
from tests import fp8_oracle
from tests.quantize_data import DTYPES, FP8, KINDS, RECIPES, data

E4M3 = torch.float8_e4m3fn
SHAPES = st.tuples(st.integers(0, 140), st.integers(0, 300)) | st.tuples(
    st.integers(0, 3), st.integers(0, 40), st.integers(0, 300)
)
CASES = given(
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    fp8=st.sampled_from(FP8),
    recipe=st.sampled_from(RECIPES),
    kind=st.sampled_from(KINDS),
    power_of_two=st.booleans(),
    saturate=st.booleans(),
    seed=st.integers(0, 2**31),
)


def patterns(q: torch.Tensor) -> np.ndarray:
    return q.view(torch.uint8).cpu().numpy()


def bits(scale: torch.Tensor) -> np.ndarray:
    return scale.cpu().contiguous().numpy().view(np.int32)


@CASES
@example((3, 257), torch.float32, E4M3, "block_wise_1x128", "bits", False, True, 0)
@example((129, 129), torch.bfloat16, E4M3, "block_wise_128x128", "halfway", False, False, 1)
def test_every_bit(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    fp8: torch.dtype,
    recipe: str,
    kind: str,
    power_of_two: bool,
    saturate: bool,
    seed: int,
):
    x = data(kind, shape, dtype, seed)
    q, scale = gemmir.quantize(x, recipe, dtype=fp8, power_of_two=power_of_two, saturate=saturate)
    expected, scales = fp8_oracle.quantized(x, recipe, fp8, power_of_two, saturate)
    assert (q.dtype, q.shape, q.is_contiguous()) == (fp8, x.shape, True)
    assert (scale.dtype, tuple(scale.shape)) == (torch.float32, scales.shape)
    np.testing.assert_array_equal(patterns(q), expected)
    np.testing.assert_array_equal(bits(scale), scales.view(np.int32))
    whole = fp8_oracle.spread(scales, shape, recipe)
    with np.errstate(over="ignore"):  # the largest numbers may be rounded up to what float32 has not
        decoded = (q.double().numpy() * whole).astype(np.float32)
    np.testing.assert_array_equal(gemmir.dequantize(q, scale, recipe).numpy(), decoded)


@CASES
def test_the_error_of_each_element_is_half_an_ulp(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    fp8: torch.dtype,
    recipe: str,
    kind: str,
    power_of_two: bool,
    saturate: bool,
    seed: int,
):
    """Three roundings to float32, and the clamping of two of them, come on top, unless the scale is a power of two."""
    x = data(kind, shape, dtype, seed).nan_to_num(0.0, 1.0, -1.0)
    q, scale = gemmir.quantize(x, recipe, dtype=fp8, power_of_two=power_of_two, saturate=saturate)
    exact, number = x.double().numpy(), q.double().numpy()
    whole = fp8_oracle.spread(scale.numpy(), shape, recipe)
    bound = whole * fp8_oracle.half_ulp(number, fp8) + (0 if power_of_two else 6 * 2.0**-24) * np.abs(exact)
    assert (np.abs(exact - number * whole) <= bound).all()
    amax = max([2.0**-100, *np.abs(exact).flat])
    assert (scale.numpy() <= np.float32(amax / fp8_oracle.LARGEST[fp8]) * (2 if power_of_two else 1)).all()
    assert not power_of_two or (np.frexp(scale.numpy())[0] == 0.5).all()


def test_all_numbers_of_a_type_are_their_own_quantisation():
    for fp8, largest in fp8_oracle.LARGEST.items():
        numbers = torch.arange(256, dtype=torch.uint8).view(fp8).float().view(2, 128)
        numbers = torch.where(numbers.isfinite(), numbers, largest)
        q, scale = gemmir.quantize(numbers, dtype=fp8)
        assert scale.tolist() == [[1.0], [1.0]]
        assert torch.equal(q.float(), numbers)
        assert torch.equal(q.float().signbit(), numbers.signbit())


def test_what_is_not_finite_becomes_one_nan_and_counts_for_no_scale():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[nan, -nan, inf, -inf, 448.0, -0.0, 0.0]])
    for fp8 in FP8:
        q, scale = gemmir.quantize(x, dtype=fp8)
        assert patterns(q)[0, :4].tolist() == [0x7F] * 4
        assert patterns(q)[0, 5:].tolist() == [0x80, 0]
        assert scale.item() == np.float32(448 / fp8_oracle.LARGEST[fp8])


@pytest.mark.parametrize("recipe", RECIPES)
def test_infinities_saturate_if_that_is_asked_for(recipe: str):
    """And nothing else is another: not NaN, not what is finite, not a scale."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[nan, -nan, inf, -inf, 448.0, -0.0, 1.0]])
    for fp8, largest in fp8_oracle.LARGEST.items():
        (plain, scale), (q, same) = (gemmir.quantize(x, recipe, dtype=fp8, saturate=on) for on in (False, True))
        assert patterns(q)[0, :2].tolist() == patterns(plain)[0, :2].tolist() == [0x7F] * 2
        assert q.float()[0, 2:4].tolist() == [largest, -largest]
        assert patterns(q)[0, 4:].tolist() == patterns(plain)[0, 4:].tolist()
        assert torch.equal(scale, same)


@pytest.mark.parametrize("fp8", FP8, ids=str)
@pytest.mark.parametrize("exponent", [-100, 127], ids=["the least amax", "the largest"])
def test_what_is_finite_never_overflows(fp8: torch.dtype, exponent: int):
    """
    Every significand that the largest magnitude of a block may have: it becomes a number that rounds to `largest`
    without any clamping, and smaller ones become no larger ones. Exponents in between only scale all of it exactly.
    """
    largest = np.float32(fp8_oracle.LARGEST[fp8])
    rounds_down = largest * (1 + 2.0 ** -(fp8_oracle.SIGNIFICAND_BITS[fp8] + 2))  # less than halfway to the next
    amax = ((127 + exponent << 23) + np.arange(1 << 23, dtype=np.uint32)).view(np.float32)
    scale, inverse = amax / largest, largest / amax
    raised = ((scale.view(np.int32) + 0x7FFFFF) & -0x800000).view(np.float32)
    for found in (inverse, np.float32(1) / raised):
        products = amax * found
        assert products.max() <= largest * np.float32(1 + 2.0**-22) < rounds_down
        assert np.isfinite(found).all()
    assert min(scale.min(), inverse.min(), 1 / raised.max()) >= np.finfo(np.float32).smallest_normal


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(5, 300), (3, 5, 300), (1, 1), (130, 129)], ids=str)
def test_layouts_and_out(shape: tuple[int, ...], recipe: str):
    x = data("normal", shape, torch.bfloat16, 0)
    q, scale = gemmir.quantize(x, recipe)
    if recipe == "block_wise_1x128":
        *_, m, _ = shape
        assert scale.stride()[-2:] == (1, -(-m // 4) * 4)
        assert gemmir.align_scales(scale) is scale
    else:
        assert scale.is_contiguous()
    again = torch.zeros_like(q), torch.zeros_like(scale)
    if recipe == "block_wise_1x128":
        again = again[0], gemmir.align_scales(again[1])
    assert gemmir.quantize(x, recipe, out=again) is again
    assert torch.equal(again[0].view(torch.uint8), q.view(torch.uint8))
    assert torch.equal(again[1], scale)


def test_rows_may_be_any_distance_apart():
    wide = data("normal", (2, 7, 400), torch.bfloat16, 0)
    for x in (wide[:, ::2, 3:260], wide.transpose(0, 1)[..., 1:], wide[:, :1].expand(2, 7, 400)):
        for recipe in RECIPES:
            for strided, dense in zip(gemmir.quantize(x, recipe), gemmir.quantize(x.contiguous(), recipe), strict=True):
                assert torch.equal(strided.float(), dense.float())


PAIRS = [
    ("tensor_wise", "tensor_wise"),
    ("row_wise", "row_wise"),
    ("block_wise_1x128", "block_wise_128x128"),
    ("block_wise_1x128", "block_wise_1x128"),
]


@pytest.mark.parametrize("pair", PAIRS, ids=" x ".join)
def test_products_of_what_was_quantised(pair: tuple[str, str]):
    """Small integers survive scales that are powers of two, and their sums are exact."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (5, 384), generator=generator).float()
    w = torch.randint(-8, 9, (144, 384), generator=generator).float()
    (qx, sx), (qw, sw) = (gemmir.quantize(t, r, power_of_two=True) for t, r in zip((x, w), pair, strict=True))
    y = gemmir.matmul(qx, qw.t(), scale_a=sx, scale_b=sw.t(), out_dtype=torch.float32)
    assert torch.equal(y, x @ w.t())


def test_groups_of_what_was_quantised():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (3, 4, 256), generator=generator).bfloat16()
    w = torch.randint(-8, 9, (3, 144, 256), generator=generator).bfloat16()
    qx, sx = gemmir.quantize(x, power_of_two=True)
    qw, sw = gemmir.quantize(w, "block_wise_128x128", power_of_two=True)
    y = gemmir.batched_matmul(qx, qw.mT, scale_a=sx, scale_b=sw.mT, out_dtype=torch.float32)
    assert torch.equal(y, x.float() @ w.float().mT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantised_types(dtype: torch.dtype):
    x = data("normal", (5, 300), torch.float32, 0)
    q, scale = gemmir.quantize(x)
    decoded = gemmir.dequantize(q, scale, dtype=dtype)
    assert (decoded.dtype, decoded.is_contiguous()) == (dtype, True)
    assert torch.equal(decoded, gemmir.dequantize(q, scale).to(dtype))
    turned = gemmir.dequantize(q.t().contiguous().t(), scale.contiguous(), dtype=dtype)
    assert torch.equal(turned, decoded)


X = torch.ones(4, 256)
Q, S = torch.zeros(4, 256, dtype=E4M3), torch.zeros(2, 4).t()
BUFFER = torch.zeros(8, 256)
REFUSED: dict[str, tuple[str, Callable[[], object]]] = {
    "a list": ("GMR-I005", lambda: gemmir.quantize([1.0])),  # type: ignore[arg-type]
    "integers": ("GMR-I001", lambda: gemmir.quantize(X.int())),
    "FP8": ("GMR-I001", lambda: gemmir.quantize(Q)),
    "a vector": ("GMR-I002", lambda: gemmir.quantize(X[0])),
    "rank 4": ("GMR-I002", lambda: gemmir.quantize(X[None, None])),
    "columns first": ("GMR-I006", lambda: gemmir.quantize(X.t())),
    "a negated view": ("GMR-I006", lambda: gemmir.quantize(torch.ones(4, 2, dtype=torch.complex64).conj().imag)),
    "sparse": ("GMR-I006", lambda: gemmir.quantize(X.to_sparse())),
    "no data": ("GMR-I004", lambda: gemmir.quantize(X.to("meta"))),
    "a gradient": ("GMR-I005", lambda: gemmir.quantize(X.clone().requires_grad_())),
    "too long": ("GMR-I007", lambda: gemmir.quantize(torch.zeros(1, 1).expand(2**31, 1))),
    "an unknown recipe": ("GMR-I009", lambda: gemmir.quantize(X, "row")),
    "no recipe": ("GMR-I009", lambda: gemmir.quantize(X, "none")),
    "a recipe that is no string": ("GMR-I009", lambda: gemmir.quantize(X, 3)),  # type: ignore[arg-type]
    "to bfloat16": ("GMR-I001", lambda: gemmir.quantize(X, dtype=torch.bfloat16)),
    "out of one": ("GMR-I005", lambda: gemmir.quantize(X, out=Q)),  # type: ignore[arg-type]
    "out of another type": ("GMR-I001", lambda: gemmir.quantize(X, dtype=torch.float8_e5m2, out=(Q, S))),
    "out that is not FP8": ("GMR-I001", lambda: gemmir.quantize(X, out=(X.clone(), S))),
    "out of another shape": ("GMR-I002", lambda: gemmir.quantize(X, out=(Q[:3], S))),
    "scales of another shape": ("GMR-I002", lambda: gemmir.quantize(X, out=(Q, S[:, :1]))),
    "scales of another type": ("GMR-I001", lambda: gemmir.quantize(X, out=(Q, S.double()))),
    "out in columns": ("GMR-I006", lambda: gemmir.quantize(X, out=(Q.t().contiguous().t(), S))),
    "1x128 scales in rows": ("GMR-I006", lambda: gemmir.quantize(X, out=(Q, S.contiguous()))),
    "128x128 scales in columns": (
        "GMR-I006",
        lambda: gemmir.quantize(X.expand(4, 256).repeat(40, 1), "block_wise_128x128", out=(Q.repeat(40, 1), WIDE)),
    ),
    "out over x": ("GMR-I008", lambda: gemmir.quantize(BUFFER[:4], out=(BUFFER.view(E4M3)[0].view(4, 256), S))),
    "meta out": ("GMR-I004", lambda: gemmir.quantize(X, out=(Q, S.to("meta")))),
    "x dequantised": ("GMR-I001", lambda: gemmir.dequantize(X, S)),
    "a vector dequantised": ("GMR-I002", lambda: gemmir.dequantize(Q[0], S)),
    "scales of another recipe": ("GMR-I002", lambda: gemmir.dequantize(Q, S, "row_wise")),
    "scales of float64": ("GMR-I001", lambda: gemmir.dequantize(Q, S.double())),
    "to float64": ("GMR-I001", lambda: gemmir.dequantize(Q, S, dtype=torch.float64)),
    "dequantised by none": ("GMR-I009", lambda: gemmir.dequantize(Q, S, "none")),
}
WIDE = torch.zeros(2, 2).t()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str):
    code, call = REFUSED[name]
    with pytest.raises(InputError) as error:
        call()
    assert error.value.code == code
    assert error.value.rule


def test_a_call_like_one_before_is_checked_too():
    """What its kind does not say: where the tensors lie, and whether a gradient is followed."""
    room = torch.zeros(4096)
    x, q = room[:1024].view(4, 256), room[1024:1280].view(E4M3).view(4, 256)
    scale = room[1280:1288].as_strided((4, 2), (1, 4))
    for _ in range(2):
        assert gemmir.quantize(x, out=(q, scale))[1] is scale
    over_x, over_scale = room[900:1156].view(E4M3).view(4, 256), room[1276:1532].view(E4M3).view(4, 256)
    for other in (over_x, over_scale):
        with pytest.raises(InputError, match="GMR-I008"):
            gemmir.quantize(x, out=(other, scale))
    with pytest.raises(InputError, match="GMR-I006"):
        gemmir.quantize(x, out=(q, room[1281:1289].as_strided((4, 2), (1, 4))))
    gemmir.quantize(X)
    with pytest.raises(InputError, match="GMR-I005"):
        gemmir.quantize(X.clone().requires_grad_())


def test_few_kinds_of_calls_are_remembered(monkeypatch: pytest.MonkeyPatch):
    plans: OrderedDict[object, quantization.Plan] = OrderedDict()
    monkeypatch.setattr(quantization, "_plans", plans)
    monkeypatch.setattr(quantization, "MAX_PLANS", 2)
    for m in (1, 2, 1, 3, 4):
        gemmir.quantize(torch.ones(m, 128))
        assert len(plans) <= 2
    assert [plan.shape for plan in plans.values()] == [(3, 128), (4, 128)]


def test_nothing_is_written_by_a_call_that_is_refused():
    q, scale = torch.full((4, 256), 2.0).to(E4M3), torch.full((4, 2), 7.0)
    with pytest.raises(InputError, match="GMR-I006"):
        gemmir.quantize(X, out=(q, scale))
    assert torch.equal(q.float(), torch.full((4, 256), 2.0))
    assert (scale == 7).all()


def test_gradients_are_not_followed_where_none_are_recorded():
    x = X.clone().requires_grad_()
    with torch.no_grad():
        q, _ = gemmir.quantize(x)
    assert not q.requires_grad


@pytest.mark.parametrize("name", ["TensorWise", "RowWise", "BlockWise1x128", "BlockWise128x128"])
def test_recipes_may_be_torch_scaling_types(name: str):
    recipe = SCALING_TYPES[name]
    x = data("normal", (130, 200), torch.float32, 0)
    kinds: tuple[object, ...] = (name, recipe, getattr(getattr(torch.nn.functional, "ScalingType", recipe), name, name))
    q, scale = gemmir.quantize(x, recipe.torch_name)
    for kind in kinds:
        found, scales = gemmir.quantize(x, kind)
        assert np.array_equal(patterns(found), patterns(q))
        assert np.array_equal(bits(scales), bits(scale))
        assert torch.equal(gemmir.dequantize(q, scale, kind), gemmir.dequantize(q, scale, recipe.torch_name))


@pytest.mark.parametrize("recipe", [Recipe.NONE, "none", 4, None])
def test_what_is_no_recipe_of_fp8(recipe: object):
    with pytest.raises(InputError, match="GMR-I009"):
        gemmir.quantize(torch.zeros(4, 64), recipe)
