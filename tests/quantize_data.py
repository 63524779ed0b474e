"""Tensors to quantise: as in practice, every bit pattern, numbers at the ends of the range, halfway cases."""

from __future__ import annotations

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
RECIPES = ("block_wise_1x128", "block_wise_128x128", "row_wise", "tensor_wise")
KINDS = ("normal", "bits", "finite bits", "subnormal", "zeros", "extreme", "halfway", "wide")


def data(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A tensor of `shape` and `dtype` on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator)
    if kind == "normal":
        return normal.to(dtype)
    if kind == "zeros":
        return torch.where(normal < 0, -0.0, 0.0).to(dtype)
    if kind == "wide":
        return (normal * 2.0 ** (normal.sin() * 14)).to(dtype)
    if kind == "extreme":
        info = torch.finfo(dtype)
        ends = torch.tensor([info.max, -info.max, info.tiny, info.smallest_normal, 2.0**-100, 1.0], dtype=dtype)
        return ends[torch.randint(len(ends), shape, generator=generator)]
    if kind == "halfway":
        # With 448 in each block the inverse is 1: odd integers over 16 lie halfway between neighbours in e4m3.
        odd = 2 * torch.randint(-240, 240, shape, generator=generator) + 1
        return torch.where(normal > 1.5, 448.0, odd / 16).to(dtype)
    integer = torch.int32 if dtype.itemsize == 4 else torch.int16
    info = torch.iinfo(integer)
    bits = torch.randint(info.min, info.max + 1, shape, generator=generator, dtype=torch.int64).to(integer)
    if kind == "subnormal":
        least = torch.tensor([torch.finfo(dtype).smallest_normal], dtype=dtype).view(integer)
        bits &= info.min | (int(least) - 1)
    drawn = bits.view(dtype)
    return torch.where(drawn.isfinite(), drawn, 1.0) if kind == "finite bits" else drawn
