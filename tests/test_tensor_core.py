"""The arithmetic of the kernels: against exact rationals, an integer model and torch, and on specials."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemmir import tensor_core
from gemmir.dtypes import BF16, F8E4M3FN, F8E5M2, F16, F32, DType
from gemmir.errors import InputError, UnsupportedError
from gemmir.problem import Recipe
from gemmir.tensor_core import (
    core_of,
    fma,
    fused_sum,
    gemm_model,
    multiply,
    raw_bits,
    round_to,
    table,
    values_of,
    wgmma_chain,
)
from gemmir.testing import torch_model
from gemmir.testing.strategies import FP8_PAIRS, fp8_problem, half_problem
from tests import hopper_model

PAIRS = [*FP8_PAIRS, (BF16, BF16), (F16, F16)]
NAN = 0x7FFFFFFF


def random_bits(generator, dtype: DType, *shape: int, kind: str = "all", finite: bool = True) -> np.ndarray:
    """Bit patterns of a type: `all` of them, `near` one another in size, or `sparse`."""
    bits = generator.integers(0, 1 << dtype.bits, shape).astype(f"u{dtype.bytes}")
    if kind == "near":
        exponent = 7 << 3 if dtype is F8E4M3FN else 0x3C << (dtype.bits - 8)
        low = {F8E4M3FN: 0x0F, F8E5M2: 0x07, F16: 0x07FF, BF16: 0x01FF}[dtype]
        bits = bits & (low | 1 << (dtype.bits - 1)) | exponent
    if kind == "sparse":
        bits[generator.random(shape) < 0.8] = 0
    if finite:
        bits[table(dtype).special[bits]] = 0
    return bits


def bits_of(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32)


def exact(value: float) -> Fraction:
    return Fraction(float(value))


def toward_zero(value: Fraction, unit_exponent: int) -> Fraction:
    """Truncated to a multiple of 2^unit_exponent."""
    unit = Fraction(2) ** unit_exponent
    count = abs(value) // unit
    return (count if value >= 0 else -count) * unit


def exponent_of(value: Fraction) -> int:
    """floor(log2 |value|)."""
    numerator, denominator = abs(value.numerator), value.denominator
    guess = numerator.bit_length() - denominator.bit_length()
    return guess if Fraction(2) ** guess <= abs(value) else guess - 1


def sum_by_the_book(a, b, c, a_type: DType, b_type: DType) -> Fraction:
    """The definition in docs/numerics.md for one output, in rationals: `a`, `b` are lists of bits, `c` a float."""
    core, left, right = core_of(a_type, b_type), table(a_type), table(b_type)
    terms = [
        (exact(left.values[x]) * exact(right.values[y]), int(left.exponents[x]) + int(right.exponents[y]))
        for x, y in zip(a, b, strict=True)
    ]
    terms.append((exact(c), max(exponent_of(exact(c)), -126) if c else 0))
    terms = [(value, exponent) for value, exponent in terms if value]
    if not terms:
        return Fraction(0)
    largest = max(-133, *(exponent for _, exponent in terms))
    total = sum((toward_zero(value, largest - core.aligned_bits) for value, _ in terms), Fraction(0))
    if not total:
        return Fraction(0)
    return toward_zero(total, max(exponent_of(total), -126) - core.result_bits)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
@pytest.mark.parametrize("kind", ["all", "near", "sparse"])
def test_one_instruction_is_the_definition_in_rationals(pair, kind):
    generator = np.random.default_rng(1)
    k = core_of(*pair).k
    a, b = (random_bits(generator, t, n, k, kind=kind) for t, n in zip(pair, (4, 5), strict=True))
    c = (generator.standard_normal((4, 5)) * 2.0 ** generator.integers(-12, 12, (4, 5))).astype(np.float32)
    if pair[0].is_fp8:
        c = (c.view(np.uint32) & np.uint32(0xFFFFFC00)).view(np.float32)
    got = fused_sum(a, b, c, *pair)
    for row in range(4):
        for column in range(5):
            want = sum_by_the_book(a[row], b[column], c[row, column], *pair)
            if abs(want) < Fraction(2) ** 128:
                assert exact(got[row, column]) == want


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
@pytest.mark.parametrize("kind", ["all", "near", "sparse"])
def test_chains_equal_the_integer_model(pair, kind):
    generator = np.random.default_rng(2)
    a, b = (random_bits(generator, t, n, 200, kind=kind) for t, n in zip(pair, (24, 40), strict=True))
    if pair[0] is BF16 and kind != "near":  # keep sums finite: the integer model knows no infinity
        a, b = a & 0xBFFF, b & 0xBFFF
    names = (pair[0].name, pair[1].name)
    want = hopper_model.chain(values_of(a, pair[0]), values_of(b, pair[1]).T, *names)
    np.testing.assert_array_equal(bits_of(wgmma_chain(a, b, *pair)), bits_of(want))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
@pytest.mark.parametrize("size", [1.0, 2.0**-3, 2.0**9, 2.0**20, 3 * 2.0**-140, 1.5 * 2.0**90])
def test_where_nothing_is_truncated_sums_are_the_same(pair, size, monkeypatch):
    """Small numbers of few bits on accumulators of every size: the short way, where it is taken, and the long one."""
    generator = np.random.default_rng(7)
    few = [np.flatnonzero(np.isin(table(t).values, (-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3))) for t in pair]
    a, b = (bits[generator.integers(0, len(bits), (n, 200))] for bits, n in zip(few, (24, 40), strict=True))
    c = (generator.integers(-40, 41, (24, 40)) * size).astype(np.float32)
    short: list[bool] = []
    asked = tensor_core._loses_nothing
    monkeypatch.setattr(tensor_core, "_loses_nothing", lambda *given: short.append(asked(*given)) or short[-1])
    found = wgmma_chain(a, b, *pair, c)
    assert all(short) == (size in (1.0, 2.0**-3) or (size == 2.0**9 and not pair[0].is_fp8))
    monkeypatch.setattr(tensor_core, "_loses_nothing", lambda *given: False)
    np.testing.assert_array_equal(bits_of(found), bits_of(wgmma_chain(a, b, *pair, c)))


def test_fp8_accumulators_that_float32_cannot_align_take_the_double_path():
    generator = np.random.default_rng(3)
    a, b = (random_bits(generator, F8E4M3FN, n, 32) for n in (4, 4))
    c = np.full((4, 4), 2.0**-100, np.float32)
    c[0] = np.float32(1.5 * 2.0**100)
    a[3] = 0
    got = fused_sum(a, b, c, F8E4M3FN, F8E4M3FN)
    for row in range(4):
        for column in range(4):
            assert exact(got[row, column]) == sum_by_the_book(a[row], b[column], c[row, column], F8E4M3FN, F8E4M3FN)
    assert (got[3] == np.float32(2.0**-100)).all()


def test_an_fp8_accumulator_holds_fourteen_bits():
    fifteen = np.full((1, 128), 0x57, np.uint8)  # 15.0
    assert values_of(fifteen, F8E4M3FN)[0, 0] == 15
    assert wgmma_chain(fifteen, fifteen, F8E4M3FN, F8E4M3FN)[0, 0] == 28768  # of 28800
    bits = int(bits_of(wgmma_chain(fifteen, fifteen, F8E4M3FN, F8E4M3FN))[0, 0])
    assert bits & 0x3FF == 0


def test_a_small_term_is_cut_before_it_is_added():
    one, tiny = 0x38, 0x01  # 1 and 2^-9
    a, b = np.zeros((1, 32), np.uint8), np.zeros((1, 32), np.uint8)
    a[0, 0] = b[0, 0] = one
    a[0, 1:] = b[0, 1:] = tiny  # 31 products of 2^-18, all below 2^-13
    assert wgmma_chain(a, b, F8E4M3FN, F8E4M3FN)[0, 0] == 1
    a[0, 0] = 0
    assert wgmma_chain(a, b, F8E4M3FN, F8E4M3FN)[0, 0] == 31 * 2.0**-18


def test_short_last_instructions_are_filled_with_zeros_and_order_within_one_is_free():
    generator = np.random.default_rng(4)
    a, b = random_bits(generator, F8E4M3FN, 8, 80), random_bits(generator, F8E4M3FN, 8, 80)
    padded = [np.pad(x, ((0, 0), (0, 48))) for x in (a, b)]
    want = bits_of(wgmma_chain(a, b, F8E4M3FN, F8E4M3FN))
    np.testing.assert_array_equal(bits_of(wgmma_chain(*padded, F8E4M3FN, F8E4M3FN)), want)
    order = np.concatenate([generator.permutation(32), 32 + generator.permutation(32), np.arange(64, 80)])
    np.testing.assert_array_equal(bits_of(wgmma_chain(a[:, order], b[:, order], F8E4M3FN, F8E4M3FN)), want)


def special_case(dtype: DType, first: tuple[float, float], second: tuple[float, float] = (0, 0)) -> int:
    """The bits that one instruction makes of two products."""
    k = core_of(dtype, dtype).k
    codes = {float(v): i for i, v in reversed(list(enumerate(table(dtype).values)))}
    nan = int(np.flatnonzero(np.isnan(table(dtype).values))[0])
    a, b = (np.zeros((1, k), f"u{dtype.bytes}") for _ in range(2))
    for i, pair in enumerate((first, second)):
        a[0, i], b[0, i] = (nan if np.isnan(v) else codes[v] for v in pair)
    return int(bits_of(fused_sum(a, b, np.zeros((1, 1), np.float32), dtype, dtype))[0, 0])


@pytest.mark.parametrize("dtype", [F8E5M2, BF16, F16], ids=str)
def test_nan_and_infinity(dtype):
    inf, nan = float("inf"), float("nan")
    assert special_case(dtype, (nan, 0.0)) == NAN
    assert special_case(dtype, (inf, 0.0)) == NAN
    assert special_case(dtype, (inf, 1.0), (inf, -1.0)) == NAN
    assert special_case(dtype, (inf, 1.0), (inf, 1.0)) == 0x7F800000
    assert special_case(dtype, (inf, -1.0)) == 0xFF800000
    assert special_case(dtype, (1.0, 1.0), (1.0, -1.0)) == 0


def test_e4m3_has_one_nan_per_sign_and_no_infinity():
    known = table(F8E4M3FN)
    assert np.flatnonzero(np.isnan(known.values)).tolist() == [0x7F, 0xFF]
    assert not np.isinf(known.values).any()
    assert known.values[0x7E] == 448
    assert special_case(F8E4M3FN, (float("nan"), 0.0)) == NAN


def test_specials_stay_in_a_chain_and_opposite_infinities_meet():
    infinite, one = 0x7C, 0x3C
    a, b = np.zeros((3, 96), np.uint8), np.full((1, 96), one, np.uint8)
    a[:, 0] = infinite
    a[1, 40] = infinite | 0x80
    a[2, 95] = one
    assert bits_of(wgmma_chain(a, b, F8E5M2, F8E5M2))[:, 0].tolist() == [0x7F800000, NAN, 0x7F800000]


def test_overflow_is_infinite():
    huge = np.full((1, 16), 0x7F7F, np.uint16)  # the largest BF16
    assert bits_of(wgmma_chain(huge, huge, BF16, BF16))[0, 0] == 0x7F800000
    c = np.full((1, 1), np.finfo(np.float32).max, np.float32)
    same = fused_sum(np.zeros_like(huge), huge, c, BF16, BF16)
    assert same[0, 0] == c[0, 0]
    one = np.full((1, 16), 0x3F80, np.uint16)
    assert fused_sum(one, one, c, BF16, BF16)[0, 0] == c[0, 0]  # toward zero: no step beyond the largest


def nearest_even(value: Fraction) -> np.float32:
    """A rational rounded to float32."""
    if value == 0:
        return np.float32(0)
    unit = Fraction(2) ** (max(exponent_of(value), -126) - 23)
    count, rest = divmod(abs(value), unit)
    count += rest > unit / 2 or (rest == unit / 2 and count % 2 == 1)
    size = float(count * unit)
    return np.float32(np.inf if size >= 2.0**128 else size) * np.float32(1 if value > 0 else -1)


FLOATS = st.integers(0, 2**32 - 1).map(lambda b: np.uint32(b).view(np.float32)).filter(np.isfinite)


@given(a=FLOATS, b=FLOATS, c=FLOATS)
def test_fma_rounds_once(a, b, c):
    check_fma(a, b, c)


@given(a=FLOATS, b=FLOATS, ulps=st.integers(-3, 3), scale=st.integers(-30, 30))
def test_fma_rounds_once_where_terms_nearly_cancel_or_tie(a, b, ulps, scale):
    product = np.float64(a) * np.float64(b)
    with np.errstate(over="ignore", under="ignore"):
        c = np.float32(-product * 2.0**scale)
    if np.isfinite(c):
        check_fma(a, b, np.uint32((int(c.view(np.uint32)) + ulps) % 2**32).view(np.float32))


def check_fma(a, b, c):
    if not np.isfinite(c):
        return
    want = nearest_even(exact(a) * exact(b) + exact(c))
    got = fma(*(np.array([x], np.float32) for x in (a, b, c)))[0]
    assert got == want
    got = torch_model.fma(*(torch.tensor([float(x)]) for x in (a, b, c)))[0]
    assert float(got) == want


def test_fma_and_multiply_make_the_one_nan():
    inf, zero, one = (np.array([x], np.float32) for x in (np.inf, 0.0, 1.0))
    assert bits_of(fma(inf, zero, one))[0] == NAN
    assert bits_of(fma(inf, one, -inf))[0] == NAN
    assert bits_of(multiply(inf, zero))[0] == NAN
    assert fma(inf, one, one)[0] == np.inf


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_rounding_to_a_result_type_is_that_of_torch(dtype):
    bits = np.random.default_rng(5).integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    got = round_to(x, dtype)
    want = torch.from_numpy(x.copy()).to(getattr(torch, dtype.torch_name))
    number = ~np.isnan(x)
    np.testing.assert_array_equal(got[number], raw_bits(want)[number])
    assert set(got[~number].tolist()) == {NAN if dtype is F32 else 0x7FFF}
    np.testing.assert_array_equal(raw_bits(torch_model.round_to(torch.from_numpy(x.copy()), dtype)), got)


def operands(problem, kind: str, seed: int, finite: bool = True):
    """Bits of A (M, K) and B (K, N), and scales in the problem's shapes."""
    generator = np.random.default_rng(seed)
    a = random_bits(generator, problem.a, problem.m, problem.k, kind=kind, finite=finite)
    b = random_bits(generator, problem.b, problem.n, problem.k, kind=kind, finite=finite).T
    if problem.scale_a is Recipe.NONE:
        return a, b, None, None
    blocks = -(-problem.k // 128)
    columns = problem.n if problem.scale_b is Recipe.BLOCK_WISE_1X128 else -(-problem.n // 128)
    sizes = (problem.m, blocks), (blocks, columns)
    scale_a, scale_b = (np.exp2(generator.uniform(-9, 9, size)).astype(np.float32) for size in sizes)
    return a, b, scale_a, scale_b


PROBLEMS = [
    *(fp8_problem(33, 136, 272, *pair) for pair in FP8_PAIRS),
    fp8_problem(1, 8, 16, d=F32),
    half_problem(33, 136, 72),
    half_problem(65, 8, 128, F16, F16),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_whole_products_equal_the_integer_model(problem):
    kind = "near" if problem.a is BF16 else "all"
    a, b, scale_a, scale_b = operands(problem, kind, 6)
    columns = None if scale_b is None else scale_b.repeat(128, axis=1)[:, : problem.n]
    names = (problem.a.name, problem.b.name)
    left, right = values_of(a, problem.a), values_of(b, problem.b)
    want = hopper_model.gemm(left, right, scale_a, columns, names, problem.numerics.promote_every)
    np.testing.assert_array_equal(gemm_model(problem, a, b, scale_a, scale_b), round_to(want, problem.d))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Many small operations: threads that wait for one another cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def as_torch(bits: np.ndarray, dtype: DType) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(bits).view(f"i{dtype.bytes}")).view(getattr(torch, dtype.torch_name))


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("kind", ["all", "near"])
@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.usefixtures("one_thread")
def test_the_torch_model_has_the_same_bits(problem, kind, finite):
    a, b, scale_a, scale_b = operands(problem, kind, 7, finite)
    if not finite:  # some rows and columns only, or every sum is NaN
        a[::2], b[:, ::2] = 0, 0
    want = gemm_model(problem, a, b, scale_a, scale_b)
    scales = [None if s is None else torch.from_numpy(s) for s in (scale_a, scale_b)]
    tensors = as_torch(a, problem.a), as_torch(b.T, problem.b).t()
    for panel in ((1024, 2048), (20, 100)):
        got = torch_model.gemm_model(problem, *tensors, *scales, panel=panel)
        np.testing.assert_array_equal(raw_bits(got), want)


def test_scales_of_b_per_column_are_those_of_their_blocks():
    wide = fp8_problem(16, 256, 384)
    a, b, scale_a, scale_b = operands(wide, "all", 8)
    narrow = replace(wide, scale_b=Recipe.BLOCK_WISE_1X128)
    want = gemm_model(wide, a, b, scale_a, scale_b)
    np.testing.assert_array_equal(gemm_model(narrow, a, b, scale_a, scale_b.repeat(128, axis=1)), want)


@given(rows=st.integers(1, 80), seed=st.integers(0, 1 << 16))
def test_a_row_does_not_depend_on_the_others(rows, seed):
    problem = fp8_problem(80, 16, 144)
    a, b, scale_a, scale_b = operands(problem, "all", seed)
    want = gemm_model(problem, a, b, scale_a, scale_b)[:rows]
    np.testing.assert_array_equal(gemm_model(problem, a[:rows], b, scale_a[:rows], scale_b), want)


def test_swapping_the_operands_transposes_the_result():
    problem = half_problem(24, 40, 80)
    a, b, _, _ = operands(problem, "near", 9)
    np.testing.assert_array_equal(gemm_model(problem, b.T, a.T), gemm_model(problem, a, b).T)


def test_raw_bits_of_torch_and_numpy():
    x = torch.tensor([[1.0, -2.0]])
    assert raw_bits(x).tolist() == [[0x3F800000, 0xC0000000]]
    assert raw_bits(x.bfloat16()).tolist() == [[0x3F80, 0xC000]]
    assert raw_bits(x.to(torch.float8_e4m3fn)).tolist() == [[0x38, 0xC0]]
    assert raw_bits(x.numpy()).tolist() == [[0x3F800000, 0xC0000000]]


def test_what_has_no_model_is_refused():
    a = np.zeros((1, 32), np.uint8)
    with pytest.raises(UnsupportedError, match="WGMMA of bf16 x f16"):
        core_of(BF16, F16)
    with pytest.raises(InputError, match="one WGMMA sums 32"):
        fused_sum(a[:, :16], a[:, :16], np.zeros((1, 1), np.float32), F8E4M3FN, F8E4M3FN)
    with pytest.raises(UnsupportedError, match="no bit model"):
        gemm_model(replace(fp8_problem(1, 8, 32), has_epilogue=True), a, a.T)
    with pytest.raises(UnsupportedError, match="results of type f8E4M3FN"):
        round_to(np.zeros(1, np.float32), F8E4M3FN)
