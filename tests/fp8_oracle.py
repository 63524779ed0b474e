"""
What quantising must give, by its definition alone: NumPy in float64, tables of all FP8 numbers, loops over blocks.

A product or quotient of two float32 numbers, computed in float64 and then rounded to float32, is rounded correctly: 53
bits are more than twice 24 and two more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
SIGNIFICAND_BITS = {torch.float8_e4m3fn: 3, torch.float8_e5m2: 2}
LEAST_EXPONENT = {torch.float8_e4m3fn: -6, torch.float8_e5m2: -14}
NAN = 0x7F
FLOOR = 2.0**-100
BLOCKS = {
    "block_wise_1x128": (1, 128),
    "block_wise_128x128": (128, 128),
    "row_wise": (1, None),
    "tensor_wise": (None, None),
}
"""Rows and columns of a block; None: all there are."""


def magnitudes(dtype: torch.dtype) -> np.ndarray:
    """The finite numbers of an FP8 type from 0 up, in float64: the index is the bit pattern."""
    bits = SIGNIFICAND_BITS[dtype]
    low, least = 1 << bits, LEAST_EXPONENT[dtype]
    values: list[float] = []
    for pattern in range(128):
        exponent, significand = divmod(pattern, low)
        scale = 2.0 ** (least + max(exponent, 1) - 1 - bits)
        values.append((significand + (low if exponent else 0)) * scale)
    return np.array([value for value in values if value <= LARGEST[dtype]])


def rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Bit patterns of finite float64 numbers, rounded to the nearest FP8 number, ties to the even pattern."""
    table = magnitudes(dtype)
    clamped = np.minimum(np.abs(values), table[-1])
    above = np.minimum(np.searchsorted(table, clamped), len(table) - 1)
    below = np.maximum(above - 1, 0)
    up, down = table[above] - clamped, clamped - table[below]
    take_up = (up < down) | ((up == down) & (above % 2 == 0))
    return np.where(take_up, above, below).astype(np.uint8) | (np.signbit(values).astype(np.uint8) << 7)


def blocks(shape: tuple[int, ...], recipe: str) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """The index of each scale, and what of a tensor of `shape` it covers."""
    if recipe == "tensor_wise":
        yield (), (slice(None),) * len(shape)
        return
    *groups, m, k = shape
    rows, columns = BLOCKS[recipe]
    assert rows is not None
    starts = (0,) if columns is None else range(0, k, columns)
    for group in np.ndindex(*groups):
        for row in range(0, m, rows):
            for block, column in enumerate(starts):
                covered = slice(column, k if columns is None else column + columns)
                yield (*group, row // rows, block), (*group, slice(row, row + rows), covered)


def scale_shape(shape: tuple[int, ...], recipe: str) -> tuple[int, ...]:
    *groups, m, k = shape
    rows, columns = BLOCKS[recipe]
    if rows is None:
        return ()
    return (*groups, -(-m // rows), 1 if columns is None else -(-k // columns))


def quantized(
    x: torch.Tensor, recipe: str, dtype: torch.dtype, power_of_two: bool, saturate: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Bit patterns of q, and the scales, of `gemmir.quantize`."""
    values = x.double().cpu().numpy()
    shape, largest = tuple(x.shape), LARGEST[dtype]
    patterns = np.zeros(shape, dtype=np.uint8)
    scales = np.zeros(scale_shape(shape, recipe), dtype=np.float32)
    for index, covered in blocks(shape, recipe):
        block = values[covered]
        finite = np.isfinite(block)
        amax = max([FLOOR, *np.abs(block[finite])])
        scale, inverse = np.float32(amax / largest), np.float32(largest / amax)
        if power_of_two:
            significand, exponent = np.frexp(np.float64(scale))
            scale = np.float32(2.0 ** (exponent - (significand == 0.5)))
            inverse = np.float32(1 / np.float64(scale))
        products = (np.where(finite, block, 0.0) * np.float64(inverse)).astype(np.float32)
        special = np.full(block.shape, NAN, dtype=np.uint8)
        if saturate:
            special = np.where(np.isinf(block), rounded(np.copysign(LARGEST[dtype], block), dtype), special)
        patterns[covered] = np.where(finite, rounded(products.astype(np.float64), dtype), special)
        scales[index] = scale
    return patterns, scales


def spread(scales: np.ndarray, shape: tuple[int, ...], recipe: str) -> np.ndarray:
    """The scale of each element of a tensor of `shape`, in float64."""
    whole = np.zeros(shape)
    for index, covered in blocks(shape, recipe):
        whole[covered] = scales[index]
    return whole


def half_ulp(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Half the distance between FP8 numbers at `values`."""
    exponents = np.frexp(np.abs(values))[1] - 1
    exponents = np.where(values == 0, LEAST_EXPONENT[dtype], np.maximum(exponents, LEAST_EXPONENT[dtype]))
    return 2.0 ** (exponents - SIGNIFICAND_BITS[dtype] - 1)
