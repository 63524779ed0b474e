"""
DeepGEMM's dense products, D = A B (+ C).

The letters say how A (M x K) and B (K x N) are passed: n as such, t transposed. FP8 operands are pairs of a tensor and
its scales, of e4m3 and float32; each is contiguous along K, however it is passed. 16-bit operands may lie either way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gemmir
from gemmir.compat.deep_gemm.operands import Scaled, check_result, scaled, tensor
from gemmir.compat.deep_gemm.runtime import settings
from gemmir.compat.deep_gemm.scaling import Granularity, Recipe, both_laid_out, granularity_of_b

if TYPE_CHECKING:
    import torch


def fp8_gemm_nt(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Recipe | None = None,
    recipe_a: Granularity | None = None,
    recipe_b: Granularity | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
) -> None:
    """
    A (M, K) with scales (M, ceil(K/128)), B (N, K) with scales (ceil(N/128), ceil(K/128)), D (M, N).

    With `recipe=(1, 1, 128)` the scales of B are (N, ceil(K/128)). D is bfloat16 or float32, and C
    of the same type; C may be D. `compiled_dims` and `disable_ue8m0_cast` change nothing.
    """
    (x, scale_x), (w, scale_w) = scaled("a", a, 2), scaled("b", b, 2)
    check_result(d, c, 2)
    granularity = granularity_of_b(recipe, recipe_a, recipe_b)
    scale_a, scale_b = both_laid_out(x, scale_x, w, scale_w, granularity)
    gemmir.matmul(x, w.t(), scale_a=scale_a, scale_b=scale_b, c=c, out=d, overlap=settings.pdl)


def fp8_gemm_nn(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Recipe | None = None,
    recipe_a: Granularity | None = None,
    recipe_b: Granularity | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
) -> None:
    """As `fp8_gemm_nt`, with B and its scales transposed."""
    fp8_gemm_nt(a, _turned("b", b), d, c, recipe, recipe_a, recipe_b)


def fp8_gemm_tn(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Recipe | None = None,
    recipe_a: Granularity | None = None,
    recipe_b: Granularity | None = None,
    compiled_dims: str = "mn",
    disable_ue8m0_cast: bool = False,
) -> None:
    """As `fp8_gemm_nt`, with A, B and their scales transposed."""
    fp8_gemm_nt(_turned("a", a), _turned("b", b), d, c, recipe, recipe_a, recipe_b)


def fp8_gemm_tt(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Recipe | None = None,
    recipe_a: Granularity | None = None,
    recipe_b: Granularity | None = None,
    compiled_dims: str = "mn",
    disable_ue8m0_cast: bool = False,
) -> None:
    """As `fp8_gemm_nt`, with A and its scales transposed."""
    fp8_gemm_nt(_turned("a", a), b, d, c, recipe, recipe_a, recipe_b)


def bf16_gemm_nt(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None, compiled_dims: str = "nk"
) -> None:
    """A (M, K), B (N, K), D (M, N) in bfloat16 or float32, C (M, N) of D's type, which may be D."""
    check_result(d, c, 2)
    gemmir.matmul(tensor("a", a, 2), tensor("b", b, 2).mT, c=c, out=d, overlap=settings.pdl)


def bf16_gemm_nn(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None, compiled_dims: str = "nk"
) -> None:
    """As `bf16_gemm_nt`, with B (K, N)."""
    bf16_gemm_nt(a, tensor("b", b, 2).mT, d, c)


def bf16_gemm_tn(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None, compiled_dims: str = "mn"
) -> None:
    """As `bf16_gemm_nt`, with A (K, M) and B (K, N)."""
    bf16_gemm_nt(tensor("a", a, 2).mT, tensor("b", b, 2).mT, d, c)


def bf16_gemm_tt(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None, compiled_dims: str = "mn"
) -> None:
    """As `bf16_gemm_nt`, with A (K, M)."""
    bf16_gemm_nt(tensor("a", a, 2).mT, b, d, c)


def _turned(name: str, operand: Scaled) -> Scaled:
    matrix, scales = scaled(name, operand, 2)
    return matrix.mT, tensor(f"scales of {name}", scales, 2).mT
