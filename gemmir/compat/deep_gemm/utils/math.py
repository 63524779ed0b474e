"""
Sizes, and DeepGEMM's quantisation to e4m3.

Its arithmetic differs from `gemmir.quantize` in one constant: blocks whose largest element is below 1e-4 are scaled as
if it were that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmir.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    import torch

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
    import torch

    mantissa, exponent = torch.frexp(x.float())
    return torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).int())


def per_token_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool, gran_k: int = 128, use_packed_ue8m0: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (M, K) in e4m3, and its scales (M, ceil(K / gran_k)) in float32."""
    _check(x, use_packed_ue8m0)
    m, k = x.shape
    padded = _padded(x, 1, gran_k).view(m, -1, gran_k)
    q, scale = _cast(padded, (2,), use_ue8m0)
    return q.view(m, -1)[:, :k].contiguous(), scale.view(m, -1)


def per_channel_cast_to_fp8(x: torch.Tensor, use_ue8m0: bool, gran_k: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """x (K, N) in e4m3, and its scales (K / gran_k, N) in float32; K is a multiple of `gran_k`."""
    _check(x, False)
    k, n = x.shape
    if k % gran_k:
        raise InputError("GMR-I002", f"x: {k} rows", rule=f"a multiple of {gran_k}", fix="pad it with zeros")
    q, scale = _cast(x.reshape(-1, gran_k, n), (1,), use_ue8m0)
    return q.view(k, n), scale.view(-1, n)


def per_block_cast_to_fp8(x: torch.Tensor, use_ue8m0: bool, gran_k: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, K) in e4m3, and its scales (ceil(N / gran_k), ceil(K / gran_k)) in float32."""
    _check(x, False)
    n, k = x.shape
    padded = _padded(x, gran_k, gran_k)
    rows, columns = (extent // gran_k for extent in padded.shape)
    q, scale = _cast(padded.view(rows, gran_k, columns, gran_k), (1, 3), use_ue8m0)
    return q.view(padded.shape)[:n, :k].contiguous(), scale.view(rows, columns)


def _cast(x: torch.Tensor, axes: tuple[int, ...], powers_of_two: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """x divided by a scale for all elements along `axes`, and that scale."""
    import torch

    scale = x.abs().float().amax(dim=axes, keepdim=True).clamp(LEAST) / LARGEST
    if powers_of_two:
        scale = ceil_to_ue8m0(scale)
    return (x * (1.0 / scale)).to(torch.float8_e4m3fn), scale


def _padded(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """x with zeros up to multiples of so many rows and columns."""
    import torch

    m, n = x.shape
    return torch.nn.functional.pad(x, (0, align(n, columns) - n, 0, align(m, rows) - m))


def _check(x: torch.Tensor, packed: bool) -> None:
    if packed:
        rule = "kernels for Hopper take float32 scales"
        raise UnsupportedError("GMR-U001", "packed UE8M0 scales", rule=rule, fix="pass use_packed_ue8m0=False")
    if x.dim() != 2:
        raise InputError("GMR-I002", f"x: shape is {tuple(x.shape)}", rule="a matrix")
