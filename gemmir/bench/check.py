"""A cheap look at a kernel's result before it is timed."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from gemmir.problem import SCALE_BLOCK, Grouping

if TYPE_CHECKING:
    import torch

    from gemmir.backends.reference import WorstElement
    from gemmir.backends.reference.groups import Operands
    from gemmir.problem import GemmProblem

ROWS = 64
BLOCKS = 4
"""At most so many rows and blocks of 128 columns are compared with the exact product, the last of each among them."""
PARTS = 4
"""Of so many groups, the last among them; where rows carry their group's number, of so many blocks of 128 rows."""


def fault_of(problem: GemmProblem, inputs: dict[str, torch.Tensor], result: torch.Tensor) -> str | None:
    """
    What is wrong with `result`, the product of `inputs`, which was NaN before the kernel wrote it; None if fine.

    Every element must be finite, but for rows that belong to no group: those must still be NaN. A sample, some rows
    times some blocks of columns of some groups, must lie within the bound that `gemmir.backends.reference.bound`
    derives for each element; the exact product is computed in float64 on the device.
    """
    from gemmir.backends.reference.groups import Operands, products_of

    operands = Operands(inputs["x"], inputs["w"], inputs.get("xs"), inputs.get("ws"), index=inputs.get("index"))
    if (fault := fault_of_writing(problem.grouping, operands, result)) is not None:
        return fault
    parts = list(products_of(problem, operands))
    for group, product, part in (parts[number] for number in sample(len(parts), PARTS)):
        worst = worst_of_sample(product, part, group.of_result(result))
        if not worst.holds:
            span = group.span
            where = "" if problem.grouping is Grouping.NONE else f" of group {span.number} from row {span.first}"
            return f"out of its bound in a sample{where}: {worst}"
    return None


def fault_of_writing(grouping: Grouping, operands: Operands, result: torch.Tensor) -> str | None:
    """Elements that should have been written and are not, or the other way round."""
    from gemmir.backends.reference.groups import written

    mine = written(grouping, operands)
    if unwritten := int((mine & ~result.isfinite()).sum()):
        return f"{unwritten} of {int(mine.sum())} elements are not finite, or were never written"
    if stray := int((~mine & ~result.isnan()).sum()):
        return f"{stray} elements of rows that belong to no group were written"
    return None


def worst_of_sample(problem: GemmProblem, operands: Operands, result: torch.Tensor) -> WorstElement:
    """The worst element of the sample of one product; its row and column count within the sample."""
    import torch

    from gemmir.backends.reference import exact_and_bound, worst_element

    device = result.device
    rows = torch.tensor(sample(result.shape[0], ROWS), device=device)
    blocks = torch.tensor(sample(-(-problem.n // SCALE_BLOCK), BLOCKS), device=device)
    columns = (blocks[:, None] * SCALE_BLOCK + torch.arange(SCALE_BLOCK, device=device)).reshape(-1)
    columns = columns[columns < problem.n]
    xs, ws = operands.scale_a, operands.scale_b
    exact, bound = exact_and_bound(
        replace(problem, m=None, n=len(columns)),
        _taken(operands.a, 0, rows),
        _taken(operands.b, 1, columns),
        None if xs is None else xs.index_select(0, rows),
        None if ws is None else ws.index_select(1, columns if problem.column_scales else blocks),
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
