"""
DeepGEMM's products of groups.

Rows in groups (m_grouped): A is (M, K), or with "masked" (G, M, K); B has a matrix for each of G groups. K in groups
(k_grouped): the gradients of such weights. The index tensors are int32, on the device, and are never waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index as whole
from typing import TYPE_CHECKING

import gemmir
from gemmir.compat.deep_gemm.operands import Scaled, check_result, index, scaled, tensor
from gemmir.compat.deep_gemm.runtime import settings
from gemmir.compat.deep_gemm.scaling import Granularity, Recipe, both_laid_out, granularity_of_b, laid_out
from gemmir.errors import InputError, UnsupportedError
from gemmir.problem import GROUP_ALIGNMENT

if TYPE_CHECKING:
    import torch

K_ALIGNMENT = 128


def m_grouped_fp8_gemm_nt_contiguous(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    recipe: Recipe | None = None,
    recipe_a: Granularity | None = None,
    recipe_b: Granularity | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
    expected_m_for_psum_layout: int | None = None,
) -> None:
    """
    A (M, K) with scales (M, ceil(K/128)), B (G, N, K) with scales (G, ceil(N/128), ceil(K/128)), D (M, N) in bfloat16.

    `grouped_layout` (M,) has the group of each row, -1 for padding; groups start at multiples of 128 rows. With
    `use_psum_layout` it is (G,) and has where each group ends; the next one starts at the next multiple of 128. Rows of
    no group are not written.
    """
    (x, scale_x), (w, scale_w) = scaled("a", a, 2), scaled("b", b, 3)
    check_result(d, None, 2)
    granularity = granularity_of_b(recipe, recipe_a, recipe_b)
    scale_a, scale_b = both_laid_out(x, scale_x, w, scale_w, granularity)
    gemmir.grouped_matmul(
        x,
        w.mT,
        group_ids=_ids(grouped_layout, use_psum_layout, w.shape[0], x.shape[0]),
        scale_a=scale_a,
        scale_b=scale_b,
        out=d,
        expected_m=_expected(expected_m_for_psum_layout, w.shape[0]),
        overlap=settings.pdl,
    )


def m_grouped_fp8_gemm_nn_contiguous(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    recipe: Recipe | None = None,
    recipe_a: Granularity | None = None,
    recipe_b: Granularity | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
) -> None:
    """As `m_grouped_fp8_gemm_nt_contiguous`, with B and its scales transposed; B is contiguous along K all the same."""
    w, scale_w = scaled("b", b, 3)
    turned = w.mT, tensor("scales of b", scale_w, 3).mT
    m_grouped_fp8_gemm_nt_contiguous(
        a, turned, d, grouped_layout, recipe, recipe_a, recipe_b, use_psum_layout=use_psum_layout
    )


def m_grouped_fp8_gemm_nt_masked(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    recipe: Recipe | None = None,
    recipe_a: Granularity | None = None,
    recipe_b: Granularity | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
) -> None:
    """
    A (G, M, K) with scales (G, M, ceil(K/128)), B as in `m_grouped_fp8_gemm_nt_contiguous`, D (G, M, N) in bfloat16.

    `masked_m` (G,) has how many rows of each group count; others are not written. `expected_m`: how many are expected
    to, on average. M may be any.
    """
    (x, scale_x), (w, scale_w) = scaled("a", a, 3), scaled("b", b, 3)
    check_result(d, None, 3)
    granularity = granularity_of_b(recipe, recipe_a, recipe_b)
    scale_a, scale_b = both_laid_out(x, scale_x, w, scale_w, granularity)
    gemmir.grouped_matmul(
        x,
        w.mT,
        counts=masked_m,
        scale_a=scale_a,
        scale_b=scale_b,
        out=d,
        expected_m=expected_m,
        overlap=settings.pdl,
    )


def m_grouped_bf16_gemm_nt_contiguous(
    a: torch.Tensor,
    b: torch.Tensor,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    compiled_dims: str = "nk",
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
    expected_m_for_psum_layout: int | None = None,
) -> None:
    """As `m_grouped_fp8_gemm_nt_contiguous`, in bfloat16 and without scales."""
    x, w = tensor("a", a, 2), tensor("b", b, 3)
    check_result(d, None, 2)
    ids = _ids(grouped_layout, use_psum_layout, w.shape[0], x.shape[0])
    expected_m = _expected(expected_m_for_psum_layout, w.shape[0])
    gemmir.grouped_matmul(x, w.mT, group_ids=ids, out=d, expected_m=expected_m, overlap=settings.pdl)


def m_grouped_bf16_gemm_nn_contiguous(
    a: torch.Tensor,
    b: torch.Tensor,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    compiled_dims: str = "nk",
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
) -> None:
    """As `m_grouped_bf16_gemm_nt_contiguous`, with B (G, K, N)."""
    m_grouped_bf16_gemm_nt_contiguous(a, tensor("b", b, 3).mT, d, grouped_layout, use_psum_layout=use_psum_layout)


def m_grouped_bf16_gemm_nt_masked(
    a: torch.Tensor,
    b: torch.Tensor,
    d: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    compiled_dims: str = "nk",
) -> None:
    """As `m_grouped_fp8_gemm_nt_masked`, in bfloat16 and without scales."""
    check_result(d, None, 3)
    x, w = tensor("a", a, 3), tensor("b", b, 3)
    gemmir.grouped_matmul(x, w.mT, counts=masked_m, out=d, expected_m=expected_m, overlap=settings.pdl)


def k_grouped_fp8_gemm_nt_contiguous(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    ks_cpu: Sequence[int] | None,
    grouped_layout: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Recipe = (1, 1, 128),
    compiled_dims: str = "mn",
    use_psum_layout: bool = False,
) -> None:
    """
    D (G, M, N) = A B of each group (+ C), in float32; C may be D.

    A is flat: for each group a contiguous (M, K of the group), one after another, with scales (M, ceil(K/128)) for all
    of K; B likewise, with N. `ks_cpu` has the K of each group, multiples of 128, and `grouped_layout` (G,) the same on
    the device. gemmir's kernel takes rows along all of K, so both operands are copied once.
    """
    if use_psum_layout or granularity_of_b(recipe, None, None) != 1:
        what = "ends of groups" if use_psum_layout else f"recipe {recipe}"
        raise UnsupportedError("GMR-U001", what, rule="kernels for Hopper have (1, 1, 128) and a K for each group")
    (x, scale_x), (w, scale_w) = scaled("a", a), scaled("b", b)
    check_result(d, c, 3)
    ends, ks = _ends(grouped_layout, d.shape[0]), _checked_ks(ks_cpu, d.shape[0])
    gemmir.grouped_matmul(
        _along_k("a", x, d.shape[-2], ks),
        _along_k("b", w, d.shape[-1], ks).t(),
        offs=ends,
        scale_a=gemmir.align_scales(scale_x),
        scale_b=laid_out(scale_w, 1),
        c=c,
        out=d,
        overlap=settings.pdl,
    )


def k_grouped_bf16_gemm_tn_contiguous(
    a: torch.Tensor,
    b: torch.Tensor,
    d: torch.Tensor,
    ks_cpu: Sequence[int] | None,
    grouped_layout: torch.Tensor,
    c: torch.Tensor | None = None,
    compiled_dims: str = "mn",
    use_psum_layout: bool = False,
) -> None:
    """
    A (K, M) and B (K, N) with the groups' rows one after another, D (G, M, N), C as D; the rest as for FP8.

    Rows of A and B that follow those of the last group are not read.
    """
    if use_psum_layout:
        raise UnsupportedError("GMR-U001", "ends of groups", rule="kernels for Hopper have a K for each group")
    check_result(d, c, 3)
    ends, ks = _ends(grouped_layout, d.shape[0]), _checked_ks(ks_cpu, d.shape[0])
    x, w = tensor("a", a, 2), tensor("b", b, 2)
    if sum(ks) > x.shape[0]:
        rule = f"the groups have {sum(ks)} rows"
        raise InputError("GMR-I002", f"a: {x.shape[0]} rows", rule=rule, fix="pass the rows of all groups")
    gemmir.grouped_matmul(x.t(), w, offs=ends, c=c, out=d, overlap=settings.pdl)


def _checked_ks(ks: Sequence[int] | None, groups: int) -> list[int]:
    try:
        found = [whole(k) for k in ks or ()]
    except (TypeError, RuntimeError):  # no sequence of integers, or a tensor, whose truth is not one
        found = []
    if len(found) != groups or any(k < 0 or k % K_ALIGNMENT for k in found):
        rule = f"the K of each of the {groups} groups, multiples of {K_ALIGNMENT}, in a list"
        raise InputError("GMR-I009", f"ks_cpu = {ks!r:.60}", rule=rule, fix="pad each group with zeros")
    return found


def _along_k(name: str, flat: torch.Tensor, rows: int, ks: Sequence[int]) -> torch.Tensor:
    """(rows, all of K) out of the groups' matrices one after another."""
    if flat.element_size() != 1:
        raise InputError("GMR-I001", f"{name}: dtype is {flat.dtype}", rule="it is FP8", fix="quantise it")
    if flat.numel() != rows * sum(ks):
        rule = f"{rows} x K of each group, one after another: {rows * sum(ks)} elements"
        raise InputError("GMR-I002", f"{name}: {flat.numel()} elements", rule=rule)
    import torch

    parts = flat.reshape(-1).view(torch.uint8).split([rows * k for k in ks])
    bytes_ = torch.cat([part.view(rows, k) for part, k in zip(parts, ks, strict=True)], 1)
    return bytes_.view(flat.dtype)


def _ends(ks: torch.Tensor, groups: int) -> torch.Tensor:
    """Where each of `groups` ends, on the device."""
    import torch

    return index("grouped_layout", ks, groups).cumsum(0, dtype=torch.int32)


def _ids(layout: torch.Tensor, has_ends: bool, groups: int, m: int) -> torch.Tensor:
    """The group of each of `m` rows, which `layout` holds, or else where each of `groups` ends."""
    return _group_ids(index("grouped_layout", layout, groups), m) if has_ends else layout


def _group_ids(ends: torch.Tensor, m: int) -> torch.Tensor:
    """The group of each of `m` rows, on the device: groups end at `ends` and start at multiples of 128."""
    import torch

    rows = torch.arange(m, dtype=torch.int32, device=ends.device)
    starts = torch.zeros_like(ends)
    starts[1:] = (ends[:-1] + GROUP_ALIGNMENT - 1).div(GROUP_ALIGNMENT, rounding_mode="floor") * GROUP_ALIGNMENT
    group = torch.searchsorted(ends, rows, right=True, out_int32=True)
    known = group.clamp(max=ends.shape[0] - 1)
    inside = (group == known) & (rows >= starts[known.long()])
    return torch.where(inside, group, torch.full_like(group, -1))


def _expected(rows: int | None, groups: int) -> int | None:
    """Rows of all groups, of those of one."""
    return None if rows is None else rows * groups
