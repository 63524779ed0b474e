"""DeepGEMM's functions on a GPU: the checks of tests/test_compat_deep_gemm.py, with every tensor there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gemmir
import gemmir.compat.deep_gemm as deep_gemm
from gemmir.testing import check_bound, check_exact
from tests import test_compat_deep_gemm as cpu
from tests import test_compat_oracles as oracles
from tests.test_compat_deep_gemm import BF16, F32, IDS, KS, K, M, N

pytestmark = pytest.mark.gpu


def there(value: Any) -> Any:
    """A tensor, or a tuple of them, on the GPU, lying as it did."""
    if isinstance(value, tuple):
        return tuple(there(part) for part in value)
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda").copy_(value)


@pytest.mark.parametrize(
    ("ours", "shape"),
    [
        (lambda d, x, w: deep_gemm.fp8_gemm_nt(x, w, d), (M, N, K)),
        (lambda d, x, w: deep_gemm.fp8_gemm_nt(x, w, d), (4096, 2112, 7168)),
        (lambda d, x, w: deep_gemm.fp8_gemm_nn(x, (w[0].t(), w[1].t()), d), (300, 512, 640)),
    ],
    ids=["few rows", "4096x2112x7168", "nn"],
)
def test_fp8_has_the_bits_of_gemmirs_own_call(ours: Callable[..., None], shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    x, w = there(cpu.tokens(m, k)), there(cpu.weights(n, k))
    d = torch.empty(m, n, dtype=BF16, device="cuda")
    ours(d, x, w)
    wanted = gemmir.matmul(x[0], w[0].t(), scale_a=gemmir.align_scales(x[1]), scale_b=w[1].t())
    assert torch.equal(d, wanted)
    rows = slice(0, 40)
    cpu.check_dense(d.cpu()[rows], cpu.exact(cpu.tokens(m, k))[rows], cpu.exact(cpu.weights(n, k)))


def test_scales_for_each_column_added_to_c() -> None:
    x, w, c = cpu.tokens(300), cpu.tokens(N), cpu.draw(300, N)
    d = there(c)
    deep_gemm.fp8_gemm_nt(there(x), there(w), d, c=d, recipe=(1, 1, 128))
    cpu.check_dense(d.cpu(), cpu.exact(x), cpu.exact(w), c)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("letters", ["nt", "nn", "tn", "tt"])
def test_bf16(letters: str, dtype: torch.dtype) -> None:
    x, w, c = cpu.draw(304, K).to(BF16), cpu.draw(N, K).to(BF16), cpu.draw(304, N).to(dtype)
    a = x if letters[0] == "n" else x.t().contiguous()
    b = w if letters[1] == "t" else w.t().contiguous()
    d = torch.empty(304, N, dtype=dtype, device="cuda")
    getattr(deep_gemm, f"bf16_gemm_{letters}")(there(a), there(b), d, c=there(c))
    cpu.check_dense(d.cpu(), x.double(), w.double(), c)


@pytest.mark.parametrize(
    ("layout", "ids", "psum"), [(IDS, IDS, False), (cpu.ENDS, cpu.OF_ENDS, True)], ids=["ids", "ends"]
)
def test_rows_in_groups(layout: torch.Tensor, ids: torch.Tensor, psum: bool) -> None:
    x, w = cpu.tokens(384), cpu.stacked_weights()
    d = torch.full((384, N), 7.0, dtype=BF16, device="cuda")
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(there(x), there(w), d, there(layout), use_psum_layout=psum)
    cpu.check_rows(d.cpu(), cpu.exact(x), cpu.exact(w), ids)
    a, b = cpu.draw(384, K).to(BF16), cpu.draw(cpu.G, N, K).to(BF16)
    d.fill_(7.0)
    deep_gemm.m_grouped_bf16_gemm_nt_contiguous(there(a), there(b), d, there(layout), use_psum_layout=psum)
    cpu.check_rows(d.cpu(), a.double(), b.double(), ids)


def test_rows_that_count() -> None:
    counts = torch.tensor([5, 0, 64], dtype=torch.int32)
    x, w = cpu.draw(cpu.G, 64, K).to(BF16), cpu.stacked_weights()
    q = torch.stack([deep_gemm.per_token_cast_to_fp8(part, False)[0].view(torch.uint8) for part in x]).view(cpu.FP8)
    scales = torch.stack([deep_gemm.per_token_cast_to_fp8(part, False)[1] for part in x])
    d = torch.full((cpu.G, 64, N), 7.0, dtype=BF16, device="cuda")
    deep_gemm.m_grouped_fp8_gemm_nt_masked(there((q, scales)), there(w), d, counts.cuda(), 20)
    a, b = cpu.exact((q, scales)), cpu.exact(w)
    for group, rows in enumerate(counts.tolist()):
        cpu.check_dense(d[group, :rows].cpu(), a[group, :rows], b[group])
        assert bool((d[group, rows:] == 7).all())


def test_k_in_groups() -> None:
    ks = torch.tensor(KS, dtype=torch.int32, device="cuda")
    x, y, c = cpu.draw(sum(KS), M), cpu.draw(sum(KS), N), cpu.draw(cpu.G, M, N)
    d = there(c)
    deep_gemm.k_grouped_fp8_gemm_nt_contiguous(there(cpu.flat(x)), there(cpu.flat(y)), d, KS, ks, c=d)
    decoded = [q.double() * s.double().repeat_interleave(128, 0) for q, s in (cpu._channels(x), cpu._channels(y))]
    cpu.check_groups(d.cpu(), *decoded, c)


@pytest.mark.parametrize("sms", [2, 3, 77, 132])
def test_fewer_sms_change_no_bit(sms: int) -> None:
    x, w = there(cpu.tokens(1000)), there(cpu.weights(1024))
    wanted, d = (torch.empty(1000, 1024, dtype=BF16, device="cuda") for _ in range(2))
    deep_gemm.fp8_gemm_nt(x, w, wanted)
    grouped = torch.full((384, N), 7.0, dtype=BF16, device="cuda")
    rows, weights, ids = there(cpu.tokens(384)), there(cpu.stacked_weights()), there(IDS)
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(rows, weights, grouped, ids)
    try:
        deep_gemm.set_num_sms(sms)
        deep_gemm.fp8_gemm_nt(x, w, d)
        again = torch.full_like(grouped, 7.0)
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(rows, weights, again, ids)
        torch.cuda.synchronize()
    finally:
        gemmir.limit_sms(None)
    assert torch.equal(d, wanted)
    assert torch.equal(again, grouped)


@pytest.mark.parametrize("m", [1, 64])
@pytest.mark.parametrize("sms", [1, 2, 3, 77])
def test_fewer_sms_change_no_bit_of_few_rows(sms: int, m: int) -> None:
    """K may be in parts there, which the CTAs of a cluster sum: one cluster is launched at least."""
    x, w = there(cpu.tokens(m, 7168)), there(cpu.weights(2112, 7168))
    wanted, d = (torch.empty(m, 2112, dtype=BF16, device="cuda") for _ in range(2))
    deep_gemm.fp8_gemm_nt(x, w, wanted)
    try:
        deep_gemm.set_num_sms(sms)
        deep_gemm.fp8_gemm_nt(x, w, d)
        torch.cuda.synchronize()
    finally:
        gemmir.limit_sms(None)
    assert torch.equal(d, wanted)


@pytest.mark.parametrize("m", [8, 40, 256])
@pytest.mark.parametrize("case", oracles.CASES)
def test_integers_exactly_and_random_data_within_the_bound(case: str, m: int) -> None:
    product, kernel = oracles.CASES[case]
    check_exact(kernel, product, m, device="cuda")
    check_bound(kernel, product, m, device="cuda")


def test_the_number_of_sms_is_the_devices() -> None:
    assert deep_gemm.get_num_sms() == torch.cuda.get_device_properties(0).multi_processor_count
