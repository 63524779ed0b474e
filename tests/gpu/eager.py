"""The eager functions on the inputs of a problem, whatever its form."""

from __future__ import annotations

import torch

import gemmir
from gemmir.backends.reference.groups import Operands
from gemmir.problem import Grouping


def operands_of(inputs: dict[str, torch.Tensor]) -> Operands:
    names = ("x", "w", "xs", "ws", "c", "index")
    return Operands(*(inputs.get(name) for name in names))  # type: ignore[arg-type]


def called(grouping: Grouping, o: Operands, out: torch.Tensor, **options: bool) -> torch.Tensor:
    """The product of the form, in `out`."""
    rest = {"scale_a": o.scale_a, "scale_b": o.scale_b, "c": o.c, "out": out} | options
    if grouping is Grouping.NONE:
        return gemmir.matmul(o.a, o.b, **rest)
    if grouping is Grouping.BATCH:
        return gemmir.batched_matmul(o.a, o.b, **rest)
    word = "offs" if grouping is Grouping.K_OFFS else grouping.value
    return gemmir.grouped_matmul(o.a, o.b, **{word: o.index}, **rest)  # type: ignore[arg-type]
