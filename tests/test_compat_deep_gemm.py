"""DeepGEMM's functions: their names and signatures, what they compute, what they leave alone, what they refuse."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

import gemmir
import gemmir.compat.deep_gemm as deep_gemm
from gemmir.compat.deep_gemm.missing import HELPERS, LEGACY, MEGA, MISSING, TESTING
from gemmir.compat.deep_gemm.runtime import settings
from gemmir.errors import DeviceError, GemmirError, InputError, UnsupportedError
from gemmir.sm_limit import limit

BF16, F32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
M, N, K, G = 40, 256, 384, 3

FP8_DENSE = "a b d c=None recipe=None recipe_a=None recipe_b=None compiled_dims={} disable_ue8m0_cast=False"
FP8_ROWS = "a b d grouped_layout recipe=None recipe_a=None recipe_b=None compiled_dims='nk' disable_ue8m0_cast=False "
FP8_ROWS += "use_psum_layout=False ensure_zero_padding=True"
BF16_ROWS = "a b d grouped_layout compiled_dims='nk' use_psum_layout=False ensure_zero_padding=True"
SIGNATURES = {
    "fp8_gemm_nt": FP8_DENSE.format("'nk'"),
    "fp8_gemm_nn": FP8_DENSE.format("'nk'"),
    "fp8_gemm_tn": FP8_DENSE.format("'mn'"),
    "fp8_gemm_tt": FP8_DENSE.format("'mn'"),
    "bf16_gemm_nt": "a b d c=None compiled_dims='nk'",
    "bf16_gemm_nn": "a b d c=None compiled_dims='nk'",
    "bf16_gemm_tn": "a b d c=None compiled_dims='mn'",
    "bf16_gemm_tt": "a b d c=None compiled_dims='mn'",
    "m_grouped_fp8_gemm_nt_contiguous": FP8_ROWS + " expected_m_for_psum_layout=None",
    "m_grouped_fp8_gemm_nn_contiguous": FP8_ROWS,
    "m_grouped_fp8_gemm_nt_masked": "a b d masked_m expected_m recipe=None recipe_a=None recipe_b=None "
    "compiled_dims='nk' disable_ue8m0_cast=False",
    "m_grouped_bf16_gemm_nt_contiguous": BF16_ROWS + " expected_m_for_psum_layout=None",
    "m_grouped_bf16_gemm_nn_contiguous": BF16_ROWS,
    "m_grouped_bf16_gemm_nt_masked": "a b d masked_m expected_m compiled_dims='nk'",
    "k_grouped_fp8_gemm_nt_contiguous": "a b d ks_cpu grouped_layout c=None recipe=(1, 1, 128) compiled_dims='mn' "
    "use_psum_layout=False",
    "k_grouped_bf16_gemm_tn_contiguous": "a b d ks_cpu grouped_layout c=None compiled_dims='mn' use_psum_layout=False",
    "transform_sf_into_required_layout": "sf mn k recipe num_groups=None is_sfa=None disable_ue8m0_cast=False "
    "psum_layout=None",
    "get_theoretical_mk_alignment_for_contiguous_layout": "expected_m=None",
    "per_token_cast_to_fp8": "x use_ue8m0 gran_k=128 use_packed_ue8m0=False",
    "per_channel_cast_to_fp8": "x use_ue8m0 gran_k=128",
    "per_block_cast_to_fp8": "x use_ue8m0 gran_k=128",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_deep_gemms(name: str):
    parameters = inspect.signature(getattr(deep_gemm, name)).parameters.values()
    found = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert " ".join(found) == SIGNATURES[name]


def test_everything_that_is_exported_is_there():
    assert len(deep_gemm.__all__) == len(set(deep_gemm.__all__)) > 45
    for name in deep_gemm.__all__:
        assert getattr(deep_gemm, name) is not None
    for other in ("fp8_fp4_gemm", "m_grouped_fp8_fp4_gemm_nt_masked"):
        assert any(name.startswith(other) for name in deep_gemm.__all__)
    assert deep_gemm.fp8_m_grouped_gemm_nt_masked is deep_gemm.m_grouped_fp8_gemm_nt_masked


ABSENT: list[tuple[Any, dict[str, str]]] = [
    (deep_gemm, MISSING),
    (deep_gemm, HELPERS),
    (deep_gemm.utils, HELPERS),
    (deep_gemm.utils.math, HELPERS),
    (deep_gemm.utils.layout, HELPERS),
    (deep_gemm.utils.dist, HELPERS),
    (deep_gemm.testing, TESTING),
    (import_module("gemmir.compat.deep_gemm.testing.bench"), TESTING),
    (deep_gemm.testing.utils, TESTING),
    (deep_gemm.mega, MEGA),
]


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, table in ABSENT for name in table])
def test_what_gemmir_has_not_says_what_to_use(module: Any, name: str):
    with pytest.raises(UnsupportedError, match=f"GMR-U001: deep_gemm.{name}") as error:
        getattr(module, name)(1, 2, option=3)
    assert error.value.fix == (MISSING | HELPERS | TESTING)[name]


@pytest.mark.parametrize("module", [module for module, _ in ABSENT], ids=lambda module: module.__name__)
def test_other_names_are_not_there(module: Any):
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'fp4_gemm'"):
        module.fp4_gemm  # noqa: B018


def test_of_kernels_for_a100_there_is_none():
    """DeepGEMM's names of them are many, and no promise."""
    with pytest.raises(UnsupportedError, match=r"GMR-U001: deep_gemm\.legacy\.any_gemm") as error:
        deep_gemm.legacy.any_gemm(1, out=2)
    assert error.value.fix == LEGACY
    assert not hasattr(deep_gemm.legacy, "__wrapped__")


def test_the_version_is_gemmirs():
    assert deep_gemm.__version__ == gemmir.__version__


def test_names_of_functions_are_imported_as_from_deep_gemm():
    from gemmir.compat.deep_gemm.testing import bench
    from gemmir.compat.deep_gemm.testing.bench import empty_suppress
    from gemmir.compat.deep_gemm.utils.dist import dist_print

    for function in (bench, empty_suppress, dist_print):
        with pytest.raises(UnsupportedError, match="GMR-U001"):
            function()


# ------------------------------------------------------------ dense products


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def tokens(rows: int, k: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    return deep_gemm.per_token_cast_to_fp8(draw(rows, k), use_ue8m0=False)


def weights(n: int = N, k: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    return deep_gemm.per_block_cast_to_fp8(draw(n, k, seed=1), use_ue8m0=False)


def exact(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The decoded operand, rows along K, in float64; scales of 1 or 128 rows."""
    q, scale = pair
    rows = 1 if scale.shape[-2] == q.shape[-2] else 128
    spread = scale.double().repeat_interleave(rows, -2).repeat_interleave(128, -1)
    return q.double() * spread[..., : q.shape[-2], : q.shape[-1]]


def close(got: torch.Tensor, wanted: torch.Tensor, magnitude: torch.Tensor) -> None:
    """Within the rounding of the result, and 2^-12 of the sum of magnitudes: two roundings for each 128 of K."""
    error = (got.double() - wanted).abs()
    rounding = 2.0**-8 if got.dtype == BF16 else 2.0**-23
    assert bool((error <= rounding * wanted.abs() + 2.0**-12 * magnitude + 2.0**-30).all()), float(error.max())


def check_dense(got: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> None:
    """Against A (M, K) B (N, K)^T (+ C)."""
    wanted = a @ b.mT + (0 if c is None else c.double())
    close(got, wanted, a.abs() @ b.abs().mT + (0 if c is None else c.double().abs()))


def turned(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return pair[0].t(), pair[1].t()


@pytest.mark.parametrize("letters", ["nt", "nn", "tn", "tt"])
def test_fp8(letters: str):
    x, w = tokens(M), weights()
    a = x if letters[0] == "n" else turned(x)
    b = w if letters[1] == "t" else turned(w)
    d = torch.empty(M, N, dtype=BF16)
    assert getattr(deep_gemm, f"fp8_gemm_{letters}")(a, b, d) is None
    check_dense(d, exact(x), exact(w))
    assert torch.equal(d, gemmir.matmul(x[0], w[0].t(), scale_a=gemmir.align_scales(x[1]), scale_b=w[1].t()))


@pytest.mark.parametrize("recipe", [{"recipe": (1, 1, 128)}, {"recipe_a": (1, 128), "recipe_b": (1, 128)}], ids=str)
def test_fp8_with_scales_for_each_column_added_to_c(recipe: dict[str, Any]):
    x, w = tokens(M), tokens(N)
    c = draw(M, N)
    d = c.clone()
    deep_gemm.fp8_gemm_nt(x, w, d, c=d, **recipe)
    check_dense(d, exact(x), exact(w), c)
    other = torch.empty_like(c)
    deep_gemm.fp8_gemm_nt(x, w, other, c=c, **recipe)
    assert torch.equal(d, other)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("letters", ["nt", "nn", "tn", "tt"])
def test_bf16(letters: str, dtype: torch.dtype):
    x, w, c = draw(M, K).to(BF16), draw(N, K).to(BF16), draw(M, N).to(dtype)
    a = x if letters[0] == "n" else x.t().contiguous()
    b = w if letters[1] == "t" else w.t().contiguous()
    function = getattr(deep_gemm, f"bf16_gemm_{letters}")
    d = torch.empty(M, N, dtype=dtype)
    function(a, b, d)
    check_dense(d, x.double(), w.double())
    function(a, b, d, c=c)
    check_dense(d, x.double(), w.double(), c)


# ------------------------------------------------------------ rows in groups

IDS = torch.tensor([1] * 70 + [-1] * 58 + [0] * 128 + [2] * 3 + [-1] * 125, dtype=torch.int32)
ENDS = torch.tensor([130, 130, 259], dtype=torch.int32)
"""Group 1 is empty; group 2 starts at 256."""
OF_ENDS = torch.tensor([0] * 130 + [-1] * 126 + [2] * 3 + [-1] * 125, dtype=torch.int32)


def stacked_weights() -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [deep_gemm.per_block_cast_to_fp8(draw(N, K, seed=10 + g), use_ue8m0=False) for g in range(G)]
    return torch.stack([q.view(torch.uint8) for q, _ in pairs]).view(FP8), torch.stack([s for _, s in pairs])


def check_rows(d: torch.Tensor, a: torch.Tensor, b: torch.Tensor, ids: torch.Tensor) -> None:
    """Rows of a group are its product; others hold what they held, which is 7."""
    assert bool((d[ids < 0] == 7).all())
    for group in range(G):
        check_dense(d[ids == group], a[ids == group], b[group])


@pytest.mark.parametrize(("layout", "ids", "psum"), [(IDS, IDS, False), (ENDS, OF_ENDS, True)], ids=["ids", "ends"])
@pytest.mark.parametrize("letters", ["nt", "nn"])
def test_rows_in_groups(letters: str, layout: torch.Tensor, ids: torch.Tensor, psum: bool):
    x, w = tokens(384), stacked_weights()
    b = w if letters == "nt" else (w[0].mT, w[1].mT)
    d = torch.full((384, N), 7.0, dtype=BF16)
    getattr(deep_gemm, f"m_grouped_fp8_gemm_{letters}_contiguous")(x, b, d, layout, use_psum_layout=psum)
    check_rows(d, exact(x), exact(w), ids)
    a, plain = draw(384, K).to(BF16), draw(G, N, K).to(BF16)
    d.fill_(7.0)
    given = plain if letters == "nt" else plain.mT.contiguous()
    getattr(deep_gemm, f"m_grouped_bf16_gemm_{letters}_contiguous")(a, given, d, layout, use_psum_layout=psum)
    check_rows(d, a.double(), plain.double(), ids)


def test_ends_become_groups_of_rows():
    from gemmir.compat.deep_gemm.grouped import _group_ids

    assert torch.equal(_group_ids(ENDS, 384), OF_ENDS)
    assert torch.equal(
        _group_ids(torch.tensor([0, 0, 0], dtype=torch.int32), 5), torch.full((5,), -1, dtype=torch.int32)
    )
    assert torch.equal(_group_ids(torch.tensor([3], dtype=torch.int32), 3), torch.zeros(3, dtype=torch.int32))


def test_rows_that_count():
    counts = torch.tensor([5, 0, 64], dtype=torch.int32)
    pairs = [tokens(64, K), tokens(64, K), deep_gemm.per_token_cast_to_fp8(draw(64, K, seed=5), use_ue8m0=False)]
    x = torch.stack([q.view(torch.uint8) for q, _ in pairs]).view(FP8), torch.stack([s for _, s in pairs])
    w = stacked_weights()
    plain_x, plain_w = draw(G, 64, K).to(BF16), draw(G, N, K).to(BF16)
    for call, a, b in (
        (lambda d: deep_gemm.m_grouped_fp8_gemm_nt_masked(x, w, d, counts, 20), exact(x), exact(w)),
        (
            lambda d: deep_gemm.m_grouped_bf16_gemm_nt_masked(plain_x, plain_w, d, counts, 20),
            plain_x.double(),
            plain_w.double(),
        ),
    ):
        d = torch.full((G, 64, N), 7.0, dtype=BF16)
        call(d)
        for group, rows in enumerate(counts.tolist()):
            check_dense(d[group, :rows], a[group, :rows], b[group])
            assert bool((d[group, rows:] == 7).all())


# ------------------------------------------------------------ K in groups

KS = [128, 0, 256]


def flat(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (K, rows) as DeepGEMM takes it: each group's transpose, flat, one after another; scales (rows, K/128)."""
    q, scale = deep_gemm.per_channel_cast_to_fp8(x, use_ue8m0=False)
    parts = q.view(torch.uint8).split(KS)
    return torch.cat([part.t().reshape(-1) for part in parts]).view(FP8), scale.t()


@pytest.mark.parametrize("in_place", [True, False])
def test_k_in_groups(in_place: bool):
    ks = torch.tensor(KS, dtype=torch.int32)
    x, y, c = draw(sum(KS), M), draw(sum(KS), N), draw(G, M, N)
    d = c.clone() if in_place else torch.empty_like(c)
    deep_gemm.k_grouped_fp8_gemm_nt_contiguous(flat(x), flat(y), d, KS, ks, c=d if in_place else c)
    decoded = [q.double() * s.double().repeat_interleave(128, 0) for q, s in (_channels(x), _channels(y))]
    check_groups(d, *decoded, c)
    a, b = x.to(BF16), y.to(BF16)
    plain = torch.empty_like(c)
    deep_gemm.k_grouped_bf16_gemm_tn_contiguous(a, b, plain, KS, ks, c=c)
    check_groups(plain, a.double(), b.double(), c)


def _channels(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return deep_gemm.per_channel_cast_to_fp8(x, use_ue8m0=False)


def check_groups(d: torch.Tensor, x: torch.Tensor, y: torch.Tensor, c: torch.Tensor) -> None:
    for group, (a, b) in enumerate(zip(x.split(KS), y.split(KS), strict=True)):
        check_dense(d[group], a.mT, b.mT, c[group])


# ------------------------------------------------------------ refusals

ROWS, COLUMNS = tokens(M), tokens(N)
OUT = torch.empty(M, N, dtype=BF16)
BLANK, STACK, LAYOUT = torch.ones(M, K, dtype=BF16), torch.zeros(G, N, N), torch.tensor(KS, dtype=torch.int32)


def by_ends(ends: Any) -> None:
    plain = torch.ones(G, N, K, dtype=BF16)
    deep_gemm.m_grouped_bf16_gemm_nt_contiguous(BLANK, plain, OUT, ends, use_psum_layout=True)


def along_k(ks: Any, layout: Any = LAYOUT) -> None:
    rows = torch.ones(sum(KS), N, dtype=BF16)
    deep_gemm.k_grouped_bf16_gemm_tn_contiguous(rows, rows, STACK, ks, layout)


WRONG: dict[str, tuple[str, Callable[[], object]]] = {
    "scales of another recipe": ("GMR-I002", lambda: deep_gemm.fp8_gemm_nt(ROWS, COLUMNS, OUT)),
    "a recipe for FP4": ("GMR-U001", lambda: deep_gemm.fp8_gemm_nt(ROWS, weights(), OUT, recipe=(1, 1, 32))),
    "recipes for both": (
        "GMR-I005",
        lambda: deep_gemm.fp8_gemm_nt(
            ROWS, weights(), OUT, recipe=(1, 128, 128), recipe_a=(1, 128), recipe_b=(128, 128)
        ),
    ),
    "half of a recipe": ("GMR-I005", lambda: deep_gemm.fp8_gemm_nt(ROWS, weights(), OUT, recipe_a=(1, 128))),
    "another K": ("GMR-I002", lambda: deep_gemm.fp8_gemm_nt(tokens(M, 512), weights(), OUT)),
    "another result": ("GMR-I002", lambda: deep_gemm.fp8_gemm_nt(ROWS, weights(), OUT[1:])),
    "K of groups that is no multiple": (
        "GMR-I009",
        lambda: deep_gemm.k_grouped_bf16_gemm_tn_contiguous(
            OUT, OUT, torch.empty(1, N, N), [M], torch.tensor([M], dtype=torch.int32)
        ),
    ),
    "ends of groups of K": (
        "GMR-U001",
        lambda: deep_gemm.k_grouped_bf16_gemm_tn_contiguous(OUT, OUT, OUT, [M], OUT, use_psum_layout=True),
    ),
    "no D": ("GMR-I005", lambda: deep_gemm.bf16_gemm_nt(BLANK, BLANK, None)),  # pyright: ignore
    "an operand without scales": ("GMR-I005", lambda: deep_gemm.fp8_gemm_nt(ROWS[0], weights(), OUT)),  # pyright: ignore
    "an operand with no scales": ("GMR-I005", lambda: deep_gemm.fp8_gemm_nt((ROWS[0], None), weights(), OUT)),  # pyright: ignore
    "a vector": ("GMR-I002", lambda: deep_gemm.bf16_gemm_nt(BLANK, BLANK[0], OUT)),
    "a vector turned": ("GMR-I002", lambda: deep_gemm.bf16_gemm_tn(BLANK[0], BLANK, OUT)),
    "a recipe of one number": ("GMR-I005", lambda: deep_gemm.fp8_gemm_nt(ROWS, weights(), OUT, recipe=128)),  # pyright: ignore
    "C of another type": ("GMR-I001", lambda: deep_gemm.fp8_gemm_nt(ROWS, weights(), OUT, c=OUT.float())),
    "ends of two groups for three": ("GMR-I002", lambda: by_ends(torch.tensor([3, 130], dtype=torch.int32))),
    "the groups of rows for ends": ("GMR-I002", lambda: by_ends(torch.zeros(M, dtype=torch.int32))),
    "ends of another type": ("GMR-I001", lambda: by_ends(torch.tensor([3, 30, 40]))),
    "no ends": ("GMR-I005", lambda: by_ends(None)),
    "groups with more rows than there are": ("GMR-I002", lambda: along_k([128, 0, 512])),
    "K of groups that is no list": ("GMR-I009", lambda: along_k(3)),
    "K of groups in words": ("GMR-I009", lambda: along_k(["128", "0", "128"])),
    "K of two groups for three": ("GMR-I009", lambda: along_k([128, 128])),
    "K of groups on the device as float": ("GMR-I001", lambda: along_k(KS, torch.tensor(KS).float())),
    "flat operands of another type": (
        "GMR-I001",
        lambda: deep_gemm.k_grouped_fp8_gemm_nt_contiguous((OUT, ROWS[1]), (OUT, ROWS[1]), STACK, KS, LAYOUT),
    ),
    "elements that 16 bytes are no multiple of": ("GMR-I009", lambda: deep_gemm.get_tma_aligned_size(5, 3)),
    "scales of SM100": (
        "GMR-U001",
        lambda: deep_gemm.transform_sf_into_required_layout(weights()[1].int(), N, K, (128, 128)),
    ),
    "blocks of nothing": ("GMR-I009", lambda: deep_gemm.per_token_cast_to_fp8(OUT, False, gran_k=0)),
    "a block size": ("GMR-U001", lambda: deep_gemm.set_block_size_multiple_of(64)),
    "another alignment": ("GMR-U001", lambda: deep_gemm.set_mk_alignment_for_contiguous_layout(64)),
    "packed scales": ("GMR-U001", lambda: deep_gemm.per_token_cast_to_fp8(OUT, True, use_packed_ue8m0=True)),
    "scales for 64 rows": ("GMR-U001", lambda: deep_gemm.transform_sf_into_required_layout(ROWS[1], M, K, (64, 128))),
    "no SMs": ("GMR-I009", lambda: deep_gemm.set_num_sms(-1)),
    "a percentage": ("GMR-I009", lambda: deep_gemm.set_tc_util(101)),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused(what: str):
    code, call = WRONG[what]
    OUT.fill_(3.0)
    with pytest.raises(GemmirError) as error:
        call()
    assert error.value.code == code
    assert bool((OUT == 3).all())
    assert not STACK.any()


# ------------------------------------------------------------ settings and helpers


def test_settings():
    assert deep_gemm.get_pdl() is False
    deep_gemm.set_pdl(True)
    assert deep_gemm.get_pdl() is True
    deep_gemm.set_pdl(False)
    deep_gemm.set_tc_util(80)
    assert deep_gemm.get_tc_util() == 80
    deep_gemm.set_tc_util(100)
    deep_gemm.set_ignore_compile_dims(True)
    deep_gemm.set_block_size_multiple_of((1, 1))
    deep_gemm.set_mk_alignment_for_contiguous_layout(128)
    assert deep_gemm.get_m_alignment_for_contiguous_layout() == 128
    assert deep_gemm.get_theoretical_mk_alignment_for_contiguous_layout(3) == 128


def test_launches_of_every_product_overlap_if_that_is_set(monkeypatch: pytest.MonkeyPatch):
    seen: list[bool] = []
    for name in ("matmul", "grouped_matmul"):
        monkeypatch.setattr(gemmir, name, lambda *_, overlap=False, **__: seen.append(overlap))
    x, w, of_groups, half = tokens(384), weights(), stacked_weights(), draw(384, K).to(BF16)
    stack, many, per_group = draw(G, N, K).to(BF16), torch.empty(G, 384, N), torch.ones(G, dtype=torch.int32)
    rows, along = (x[0].expand(G, 384, K), x[1].expand(G, 384, 3)), flat(draw(sum(KS), N))
    for pdl in (True, False):
        monkeypatch.setattr(settings, "pdl", not pdl)
        deep_gemm.set_pdl(pdl)
        deep_gemm.fp8_gemm_nt(x, w, many[0])
        deep_gemm.bf16_gemm_nt(half, stack[0], many[0])
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(x, of_groups, many[0], IDS)
        deep_gemm.m_grouped_bf16_gemm_nt_contiguous(half, stack, many[0], IDS)
        deep_gemm.m_grouped_fp8_gemm_nt_masked(rows, of_groups, many, per_group, 9)
        deep_gemm.m_grouped_bf16_gemm_nt_masked(half.expand(G, 384, K), stack, many, per_group, 9)
        deep_gemm.k_grouped_fp8_gemm_nt_contiguous(along, along, STACK, KS, LAYOUT)
        deep_gemm.k_grouped_bf16_gemm_tn_contiguous(half, half, STACK, KS, LAYOUT)
    assert seen == [True] * 8 + [False] * 8


def test_the_number_of_sms():
    try:
        deep_gemm.set_num_sms(78)
        assert (deep_gemm.get_num_sms(), limit.sms) == (78, 78)
        deep_gemm.set_num_sms(0)
        assert limit.sms is None
        if not torch.cuda.is_available():
            with pytest.raises(DeviceError, match="GMR-D001"):
                deep_gemm.get_num_sms()
    finally:
        gemmir.limit_sms(None)
    with pytest.raises(InputError, match="GMR-I009: True SMs"):
        gemmir.limit_sms(True)


def test_layouts_of_scales():
    sf = draw(M, 3)
    assert deep_gemm.get_tma_aligned_size(5, 4) == 8
    assert deep_gemm.get_mn_major_tma_aligned_tensor(sf).stride() == (1, M)
    assert deep_gemm.transform_sf_into_required_layout(sf, M, K, (1, 128, 128), is_sfa=True).stride() == (1, M)
    square = draw(2, 3)
    assert deep_gemm.transform_sf_into_required_layout(square, N, K, (1, 128, 128), is_sfa=False) is square
    assert deep_gemm.transform_sf_into_required_layout(square, N, K, (128, 128)) is square


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("name", ["token", "channel", "block"])
def test_quantisation_is_within_half_a_step(name: str, power: bool):
    x = draw(256, 256) * torch.logspace(-6, 6, 256)[:, None]
    x[0] = 0
    q, scale = getattr(deep_gemm, f"per_{name}_cast_to_fp8")(x, use_ue8m0=power)
    assert (q.shape, q.dtype, scale.dtype) == (x.shape, FP8, F32)
    rows, columns = {"token": (1, 128), "channel": (128, 1), "block": (128, 128)}[name]
    spread = scale.double().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    error = (q.double() * spread - x.double()).abs()
    assert bool((error <= x.double().abs() * 2**-4 * (1 + 2**-20) + spread * 2**-10).all())
    assert bool((scale >= 1e-4 / 448).all())
    if power:
        assert bool((torch.frexp(scale)[0] == 0.5).all())


def test_padding_of_quantisation():
    q, scale = deep_gemm.per_token_cast_to_fp8(draw(3, 130), use_ue8m0=False)
    assert (q.shape, scale.shape, q.is_contiguous()) == ((3, 130), (3, 2), True)
    q, scale = deep_gemm.per_block_cast_to_fp8(draw(130, 130), use_ue8m0=False)
    assert (q.shape, scale.shape) == ((130, 130), (2, 2))
    with pytest.raises(InputError, match="GMR-I002: x: 130 rows"):
        deep_gemm.per_channel_cast_to_fp8(draw(130, 3), use_ue8m0=False)
    with pytest.raises(InputError, match="GMR-I002: x: shape"):
        deep_gemm.per_channel_cast_to_fp8(draw(2, 128, 3), use_ue8m0=False)


def test_quantisation_along_any_dimensions():
    x = draw(4, 6, 8)
    q, scale = deep_gemm.per_custom_dims_cast_to_fp8(x, (0, 1), use_ue8m0=False)
    assert (q.shape, q.dtype) == (x.shape, FP8)
    assert torch.equal(scale, x.abs().amax(2) / 448)
    assert bool(((q.float() * scale[..., None] - x).abs() <= x.abs() * 2**-4 + scale[..., None] * 2**-10).all())


@pytest.mark.parametrize("name", ["token", "channel", "block"])
def test_nothing_is_quantised_to_nothing(name: str):
    q, scale = getattr(deep_gemm, f"per_{name}_cast_to_fp8")(torch.empty(0, 256), use_ue8m0=False)
    assert (q.shape, scale.shape[0]) == ((0, 256), 0)


def test_powers_of_two():
    x = torch.tensor([1.0, 1.5, 2.0, 2.0**-20, 3e-30, 1e30])
    got = deep_gemm.utils.ceil_to_ue8m0(x)
    assert torch.equal(got[:4], torch.tensor([1.0, 2.0, 2.0, 2.0**-20]))
    assert bool(((got >= x) & (got < 2 * x)).all())


def test_measures():
    x = draw(4, 4)
    assert float(deep_gemm.testing.calc_diff(x, x)) == pytest.approx(0, abs=1e-15)
    assert deep_gemm.testing.calc_diff(x * 0, x * 0) == 0
    assert deep_gemm.testing.count_bytes(x, (x.to(BF16), None), None) == 64 + 32
    assert (deep_gemm.ceil_div(7, 2), deep_gemm.align(7, 4)) == (4, 8)
