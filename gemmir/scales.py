"""The memory layout of activation scales that the copy engine can read."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from gemmir.errors import InputError

if TYPE_CHECKING:
    import torch

PITCH_MULTIPLE = 4
"""Floats: TMA strides are multiples of 16 bytes."""


def scale_pitch(m: int) -> int:
    """Distance in floats between the scales of one row in two neighbouring blocks of K: M rounded up to 16 bytes."""
    return -(-m // PITCH_MULTIPLE) * PITCH_MULTIPLE


def align_scales(scale: torch.Tensor) -> torch.Tensor:
    """
    Lay out the 1x128 scales of A so that TMA can load those of neighbouring rows at once.

    `scale`: float32, shape (M, ceil(K/128)) or (G, M, ceil(K/128)), any strides. Returns the same values and shape, on
    the same device: row index fastest, blocks of K a multiple of 4 rows apart, then groups. Returns `scale` itself if
    it already lies so. Raises `InputError`: GMR-I001 if it is not float32, GMR-I002 if its rank is neither 2 nor 3;
    `OutOfMemoryError` (GMR-D009) if a GPU has no memory for a copy.
    """
    import torch

    if scale.dtype != torch.float32:
        raise InputError(
            "GMR-I001", f"scale: dtype is {scale.dtype}", rule="scales are torch.float32", fix="pass scale.float()"
        )
    if scale.dim() not in (2, 3):
        raise InputError(
            "GMR-I002",
            f"scale: shape is {tuple(scale.shape)}",
            rule="1x128 scales of A have the shape (M, ceil(K/128)), or (G, M, ceil(K/128)) for groups",
            fix="reshape it to one row per row of A",
        )
    m, blocks = scale.shape[-2:]
    pitch = scale_pitch(m)
    strides = (blocks * pitch, 1, pitch)[-scale.dim() :]
    if scale.stride() == strides and scale.data_ptr() % 16 == 0:
        return scale
    extents = (*scale.shape[:-2], blocks, pitch)
    try:
        aligned = scale.new_zeros(extents)
    except torch.OutOfMemoryError as error:
        from gemmir.backends.cuda.memory import out_of_memory

        raise out_of_memory("scales", 4 * prod(extents), scale.device, "lay them out when they are made") from error
    return aligned.transpose(-1, -2)[..., :m, :].copy_(scale)
