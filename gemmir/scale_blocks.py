"""How scales cover a tensor of rank 2 or 3, in which shape and where in memory. Plain arithmetic: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from gemmir.matmul_rules import operand_scale_shape
from gemmir.problem import SCALE_BLOCK, Recipe
from gemmir.scales import scale_pitch


@dataclass(frozen=True, slots=True)
class Tiling:
    """
    How scales cover a tensor of rank 2 or 3.

    `view` is the shape to see it in (rank 2 or 3), `counts` how many blocks there are along its last two dimensions,
    `block` how many elements of each a block covers. Blocks may reach past the end.
    """

    view: tuple[int, ...]
    counts: tuple[int, int]
    block: tuple[int, int]


def scale_shape(recipe: Recipe, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of a tensor of `shape`, (M, K) or (G, M, K)."""
    found = operand_scale_shape(recipe, shape, k_axis=1)
    return tuple(0 if extent is None else extent for extent in found)


def tiling(recipe: Recipe, shape: tuple[int, ...]) -> Tiling:
    """How the scales of `recipe` cover a tensor of `shape`."""
    if recipe is Recipe.TENSOR_WISE:
        count = prod(shape)
        return Tiling((1, count), (1, 1), (1, max(1, count)))
    row_blocks, k_blocks = scale_shape(recipe, shape)[-2:]
    rows = SCALE_BLOCK if recipe is Recipe.BLOCK_WISE_128X128 else 1
    columns = max(1, shape[-1]) if recipe is Recipe.ROW_WISE else SCALE_BLOCK
    return Tiling(shape, (row_blocks, k_blocks), (rows, columns))


def scale_layout(recipe: Recipe, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of the scales of a tensor of `shape`, as kernels read them."""
    found = scale_shape(recipe, shape)
    if recipe is Recipe.TENSOR_WISE:
        return found, ()
    rows, columns = found[-2:]
    pitch = scale_pitch(rows)
    by_row, by_block = (rows * columns, columns, 1), (pitch * columns, 1, pitch)
    return found, (by_block if recipe is Recipe.BLOCK_WISE_1X128 else by_row)[-len(found) :]
