"""DeepGEMM's recipes of FP8 scales, and the layouts that they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import gemmir
from gemmir.errors import InputError, UnsupportedError
from gemmir.problem import SCALE_BLOCK, blocks

if TYPE_CHECKING:
    import torch

Recipe: TypeAlias = "tuple[int, int, int]"
"""Rows of A, rows of B (columns of the product), and elements of K that share a scale."""
Granularity: TypeAlias = "tuple[int, int]"
"""The same for one operand: rows, and elements of K."""

DEFAULT: Recipe = (1, 128, 128)


def granularity_of_b(recipe: Recipe | None, of_a: Granularity | None, of_b: Granularity | None) -> int:
    """Rows of B that share a scale, 1 or 128; `UnsupportedError` (GMR-U001) for other recipes."""
    if (of_a is None) != (of_b is None) or (recipe is not None and of_a is not None):
        rule = "scales are described by recipe, or by recipe_a and recipe_b"
        raise InputError("GMR-I005", "recipes that do not go together", rule=rule, fix="pass recipe=(1, 128, 128)")
    if of_a is not None and of_b is not None:
        (rows, along_k), (columns, other) = _numbers(of_a, 2), _numbers(of_b, 2)
        found = (rows, columns, along_k) if along_k == other else (rows, columns, along_k, other)
    else:
        found = DEFAULT if recipe is None else _numbers(recipe, 3)
    if found not in ((1, 128, 128), (1, 1, 128)):
        rule = "kernels for Hopper have scales by (1, 128, 128) or (1, 1, 128)"
        raise UnsupportedError("GMR-U001", f"recipe {found}", rule=rule, fix="quantise by blocks of 128")
    return found[1]


def _numbers(recipe: object, count: int) -> tuple[int, ...]:
    """`recipe`; `InputError` (GMR-I005) unless it is so many of them."""
    if not isinstance(recipe, tuple | list) or len(recipe) != count:
        fix = "pass recipe=(1, 128, 128)"
        raise InputError("GMR-I005", f"recipe {recipe!r:.40}", rule=f"a recipe is {count} numbers", fix=fix)
    return tuple(recipe)


def check_scales(name: str, scales: torch.Tensor, rows: int, granularity: int, k: int, groups: int | None) -> None:
    """`InputError` (GMR-I002) unless the scales of an operand with rows along K have the shape of its recipe."""
    wanted = (*(() if groups is None else (groups,)), -(-rows // granularity), blocks(k))
    if tuple(scales.shape) != wanted:
        rule = f"scales for {granularity} x {SCALE_BLOCK} elements have the shape {wanted}"
        raise InputError("GMR-I002", f"{name}: scales have the shape {tuple(scales.shape)}", rule=rule)


def both_laid_out(
    x: torch.Tensor, scale_x: torch.Tensor, w: torch.Tensor, scale_w: torch.Tensor, granularity: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales of A and of B, whose rows lie along K, checked and as kernels take them; groups come first."""
    for name, operand, scales, rows in (("a", x, scale_x, 1), ("b", w, scale_w, granularity)):
        groups = operand.shape[0] if operand.dim() == 3 else None
        check_scales(name, scales, operand.shape[-2], rows, operand.shape[-1], groups)
    return gemmir.align_scales(scale_x), laid_out(scale_w, granularity)


def laid_out(scales: torch.Tensor, granularity: int) -> torch.Tensor:
    """The scales of B, a row for each row or 128 rows of it, as kernels take them: (..., ceil(K/128), columns)."""
    return (gemmir.align_scales(scales) if granularity == 1 else scales).mT
