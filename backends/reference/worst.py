"""Judges a result element by element."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gemmir.errors import InputError


@dataclass(frozen=True, slots=True)
class WorstElement:
    """
    The element of a result that uses up most of its bound: `ratio` = `error` / `bound`.

    The result is right if `holds`, that is, if `ratio` <= 1. An empty result has row and column -1 and ratio 0. Rows of
    several matrices are counted through all of them.
    """

    row: int
    column: int
    got: float
    expected: float
    error: float
    bound: float
    ratio: float

    @property
    def holds(self) -> bool:
        return self.ratio <= 1.0

    def __str__(self) -> str:
        where = f"element [{self.row}, {self.column}]"
        return f"{where}: got {self.got:.9g}, expected {self.expected:.9g}, error {self.error:.3g} of {self.bound:.3g}"


def worst_element(result: torch.Tensor, exact: torch.Tensor, bound: torch.Tensor) -> WorstElement:
    """
    Compare a kernel's `result` with `exact` element by element and return the worst; all (M, N), or (G, M, N), on one
    device.

    Where `exact` is NaN or infinite the result must be the same (ratio 0, else infinity). Where it is finite a result
    of NaN or infinity has ratio infinity, unless the bound is infinite, which says that the kernel may overflow there.
    Raises `InputError` GMR-I002 if the shapes disagree.
    """
    if not result.shape == exact.shape == bound.shape or result.dim() not in (2, 3):
        shapes = ", ".join(str(tuple(t.shape)) for t in (result, exact, bound))
        raise InputError(
            "GMR-I002", f"result, exact and bound have the shapes {shapes}", rule="all are M x N, or G x M x N"
        )
    if result.numel() == 0:
        return WorstElement(-1, -1, 0.0, 0.0, 0.0, 0.0, 0.0)
    got, exact, bound = (t.reshape(-1, t.shape[-1]) for t in (result.double(), exact, bound))
    ratio = _ratios(got, exact, bound)
    row, column = divmod(int(ratio.argmax()), ratio.shape[1])
    values = [float(t[row, column]) for t in (got, exact, bound, ratio)]
    error = abs(values[0] - values[1])
    return WorstElement(row, column, values[0], values[1], error, values[2], values[3])


def _ratios(got: torch.Tensor, exact: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    ratio = (got - exact).abs_()
    same = (got == exact) | (got.isnan() & exact.isnan())
    ratio.div_(bound)
    ratio.masked_fill_(~got.isfinite() | ~exact.isfinite(), torch.inf)
    ratio.masked_fill_(bound.isinf() & exact.isfinite(), 0.0)
    ratio.masked_fill_(same, 0.0)
    return ratio.nan_to_num_(nan=torch.inf, posinf=torch.inf)
