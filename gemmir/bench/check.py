"""A cheap look at a kernel's result before it is timed."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from gemmir.problem import SCALE_BLOCK

if TYPE_CHECKING:
    import torch

    from gemmir.backends.reference import WorstElement
    from gemmir.problem import GemmProblem

ROWS = 64
BLOCKS = 4
"""At most so many rows and blocks of 128 columns are compared with the exact product, the last of each among them."""


def fault_of(problem: GemmProblem, inputs: dict[str, torch.Tensor], result: torch.Tensor) -> str | None:
    """
    What is wrong with `result` (M, N), the product of `inputs`, which was NaN before the kernel wrote it; None if fine.

    Every element must be finite. A sample, some rows times some blocks of columns, must lie within the bound that
    `gemmir.backends.reference.bound` derives for each element; the exact product is computed in float64 on the device.
    """
    if unwritten := int((~result.isfinite()).sum()):
        return f"{unwritten} of {result.numel()} elements are not finite, or were never written"
    worst = worst_of_sample(problem, inputs, result)
    return None if worst.holds else f"out of its bound in a sample: {worst}"


def worst_of_sample(problem: GemmProblem, inputs: dict[str, torch.Tensor], result: torch.Tensor) -> WorstElement:
    """The worst element of the sample; its row and column count within the sample."""
    import torch

    from gemmir.backends.reference import exact_and_bound, worst_element

    device = result.device
    rows = torch.tensor(sample(result.shape[0], ROWS), device=device)
    blocks = torch.tensor(sample(-(-problem.n // SCALE_BLOCK), BLOCKS), device=device)
    columns = (blocks[:, None] * SCALE_BLOCK + torch.arange(SCALE_BLOCK, device=device)).reshape(-1)
    columns = columns[columns < problem.n]
    xs, ws = inputs.get("xs"), inputs.get("ws")
    exact, bound = exact_and_bound(
        replace(problem, m=None, n=len(columns)),
        _taken(inputs["x"], 0, rows),
        _taken(inputs["w"], 1, columns),
        None if xs is None else xs.index_select(0, rows),
        None if ws is None else ws.index_select(1, blocks),
    )
    return worst_element(result.index_select(0, rows).index_select(1, columns), exact, bound)


def sample(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, ascending, the last one among them; the same every time."""
    if count <= most:
        return list(range(count))
    return [*sorted(random.Random(count).sample(range(count - 1), most - 1)), count - 1]


def _taken(tensor: torch.Tensor, dimension: int, which: torch.Tensor) -> torch.Tensor:
    """`index_select` by bits: torch does not have it for every float of 8 bits."""
    import torch

    bits = {1: torch.uint8, 2: torch.int16}[tensor.element_size()]
    return tensor.view(bits).index_select(dimension, which).view(tensor.dtype)
