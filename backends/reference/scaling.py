"""
What a scale means: how the five recipes spread scales over the elements of an operand.

Both operands are looked at as "outer x K": A as it is, B and its scale transposed. Scales decode: an element's value is
its stored value times its scale.
"""

from __future__ import annotations

import torch

from gemmir.matmul_rules import is_block_wise
from gemmir.problem import SCALE_BLOCK, Recipe


def scale_per_row(scale: torch.Tensor, recipe: Recipe, outer: int) -> torch.Tensor:
    """The scale with a row of its own for each of the `outer` rows: (outer, 1 or blocks of K); () stays ()."""
    return scale.repeat_interleave(SCALE_BLOCK, 0)[:outer] if recipe is Recipe.BLOCK_WISE_128X128 else scale


def dequantise(stored: torch.Tensor, scale: torch.Tensor | None, recipe: Recipe, dtype: torch.dtype) -> torch.Tensor:
    """
    The values of an outer x K operand, computed in `dtype`.

    `stored`: (outer, K), any float type; `scale`: float32, in the recipe's shape for such an operand, or None. Returns
    (outer, K) in `dtype`.
    """
    values = stored.to(dtype)
    if scale is None:
        return values
    scale = scale_per_row(scale.to(dtype), recipe, stored.shape[0])
    if is_block_wise(recipe):
        scale = scale.repeat_interleave(SCALE_BLOCK, 1)[:, : stored.shape[1]]
    return values * scale
