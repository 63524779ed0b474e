"""
Sizes, and DeepGEMM's quantisation to e4m3.

Its arithmetic differs from `gemmir.quantize` in one constant: blocks whose largest element is below 1e-4 are scaled as
if it were that.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from gemmir.compat.deep_gemm.missing import HELPERS, refusing
from gemmir.compat.deep_gemm.operands import tensor
from gemmir.errors import InputError, UnsupportedError

__getattr__ = refusing(__name__, HELPERS)

LEAST = 1e-4
LARGEST = 448.0
"""Of e4m3."""


def ceil_div(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def align(x: int, y: int) -> int:
    """x, rounded up to a multiple of y."""
    return ceil_div(x, y) * y


def ceil_to_ue8m0(x: torch.Tensor) -> torch.Tensor:
    """The next power of two of each positive float32."""
    mantissa, exponent = torch.frexp(x.float())
    return torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).int())


def per_token_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool, gran_k: int = 128, use_packed_ue8m0: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (M, K) in e4m3, and its scales (M, ceil(K / gran_k)) in float32."""
    _check(x, gran_k, use_packed_ue8m0)
    m, k = x.shape
    padded = _padded(x, 1, gran_k)
    columns = padded.shape[1] // gran_k
    q, scale = _cast(padded.view(m, columns, gran_k), (2,), use_ue8m0)
    return q.view(padded.shape)[:, :k].contiguous(), scale.view(m, columns)


def per_channel_cast_to_fp8(x: torch.Tensor, use_ue8m0: bool, gran_k: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """x (K, N) in e4m3, and its scales (K / gran_k, N) in float32; K is a multiple of `gran_k`."""
    _check(x, gran_k)
    k, n = x.shape
    if k % gran_k:
        raise InputError("GMR-I002", f"x: {k} rows", rule=f"a multiple of {gran_k}", fix="pad it with zeros")
    q, scale = _cast(x.reshape(k // gran_k, gran_k, n), (1,), use_ue8m0)
    return q.view(k, n), scale.view(k // gran_k, n)


def per_block_cast_to_fp8(x: torch.Tensor, use_ue8m0: bool, gran_k: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, K) in e4m3, and its scales (ceil(N / gran_k), ceil(K / gran_k)) in float32."""
    _check(x, gran_k)
    n, k = x.shape
    padded = _padded(x, gran_k, gran_k)
    rows, columns = (extent // gran_k for extent in padded.shape)
    q, scale = _cast(padded.view(rows, gran_k, columns, gran_k), (1, 3), use_ue8m0)
    return q.view(padded.shape)[:n, :k].contiguous(), scale.view(rows, columns)


def per_custom_dims_cast_to_fp8(
    x: torch.Tensor, dims: Collection[int], use_ue8m0: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """x in e4m3, with a scale for each index along `dims`, counted from 0; its scales in float32, squeezed."""
    others = tuple(axis for axis in range(tensor("x", x).dim()) if axis not in set(dims))
    q, scale = _cast(x, others, use_ue8m0)
    return q, scale.squeeze()


def _cast(x: torch.Tensor, axes: tuple[int, ...], powers_of_two: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """x divided by a scale for all elements along `axes`, and that scale."""
    scale = x.abs().float().amax(dim=axes, keepdim=True).clamp(LEAST) / LARGEST
    if powers_of_two:
        scale = ceil_to_ue8m0(scale)
    return (x * (1.0 / scale)).to(torch.float8_e4m3fn), scale


def _padded(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """x with zeros up to multiples of so many rows and columns."""
    m, n = x.shape
    return torch.nn.functional.pad(x, (0, align(n, columns) - n, 0, align(m, rows) - m))


def _check(x: torch.Tensor, gran_k: int, packed: bool = False) -> None:
    if packed:
        rule = "kernels for Hopper take float32 scales"
        raise UnsupportedError("GMR-U001", "packed UE8M0 scales", rule=rule, fix="pass use_packed_ue8m0=False")
    tensor("x", x, 2)
    if gran_k < 1:
        raise InputError("GMR-I009", f"gran_k = {gran_k}", rule="elements that share a scale", fix="pass 128")
