"""
What `validate=True` reads of a call before it is made: the entries of an index, and scales.

All of it is read in one copy to the host, and so in one wait for the device. Scales of rows that belong to no group, or
do not count, and those behind the last group's end along K are not looked at: they may be anything. Those of B are, of
groups without rows too: the next call may have rows for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from gemmir.backends.reference.groups import Operands, groups_of
from gemmir.errors import InputError
from gemmir.problem import SCALE_BLOCK, Grouping

FOUND = 2
"""Numbers that are read of each tensor of scales: where the first bad one is, and what it is."""


def check_values(grouping: Grouping, operands: Operands) -> None:
    """
    Raise for the first value that makes a call mean nothing; waits for the device.

    `operands` are those of a call whose shapes and types were checked. `InputError`: GMR-I009 for an entry of the index
    that is invalid, GMR-I010 for a scale that is NaN, infinite, zero or negative; in that order, A's scales before B's.
    """
    index = operands.index
    _refuse_capture(operands.a)
    if not _agree_on_m(grouping, operands):
        return  # refused by what computes
    scales = [(name, scale) for name, scale in _scales(operands) if scale.numel()]
    if not scales:
        groups_of(grouping, operands, validate=True)
        return
    parts = [_first_bad(scale, _counted(grouping, operands, name, scale)) for name, scale in scales]
    entries = [] if index is None else [index.reshape(-1).double()]
    numbers = torch.cat([*parts, *entries]).cpu()
    if index is not None:
        read = numbers[FOUND * len(parts) :].to(torch.int32)
        groups_of(grouping, replace(operands, index=read), validate=True)
    for (name, scale), (where, value) in zip(scales, _pairs(numbers.tolist()), strict=False):
        if where < scale.numel():
            raise _bad_scale(name, tuple(scale.shape), int(where), value)


def _refuse_capture(a: torch.Tensor) -> None:
    if a.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise InputError(
            "GMR-I009",
            "validate=True while a CUDA graph is being captured",
            rule="it waits for the device, which a capture cannot",
            fix="validate a call before the capture",
        )


def _agree_on_m(grouping: Grouping, operands: Operands) -> bool:
    """Whether M is one size: the only one that is not checked where a call is resolved."""
    m, index, scale = operands.a.shape[-2], operands.index, operands.scale_a
    if grouping is Grouping.GROUP_IDS and index is not None and index.shape[0] != m:
        return False
    return scale is None or scale.dim() < 2 or scale.shape[-2] == m


def _scales(operands: Operands) -> list[tuple[str, torch.Tensor]]:
    named = {"scale_a": operands.scale_a, "scale_b": operands.scale_b}
    return [(name, scale) for name, scale in named.items() if scale is not None]


def _first_bad(scale: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """Number in row-major order of the first scale that is no positive number, their count if all are; its value."""
    flat, size = scale.reshape(-1), scale.numel()
    bad = ~((flat > 0) & (flat < math.inf))
    if counted is not None:
        bad &= counted.expand(scale.shape).reshape(-1)
    places = torch.arange(size, device=scale.device)
    first = torch.where(bad, places, size).amin().reshape(1)
    return torch.cat([first.double(), flat.index_select(0, first.clamp(max=size - 1)).double()])


def _counted(grouping: Grouping, operands: Operands, name: str, scale: torch.Tensor) -> torch.Tensor | None:
    """Which scales the result depends on, in a shape that spreads to that of `scale`; None: on all of them."""
    index = operands.index
    if index is None or scale.dim() < 2:
        return None
    if grouping is Grouping.K_OFFS:
        axis = -1 if name == "scale_a" else -2
        blocks = torch.arange(scale.shape[axis], device=scale.device)
        return _along(blocks * SCALE_BLOCK < index[-1:], axis)
    if name == "scale_b":
        return None
    if grouping is Grouping.GROUP_IDS:
        return _along(index != -1, -2)
    rows = torch.arange(scale.shape[-2], device=scale.device)
    return _along(rows < (index[-1:] if grouping is Grouping.OFFS else index[:, None]), -2)


def _along(mask: torch.Tensor, axis: int) -> torch.Tensor:
    """`mask`, whose last dimension is `axis` of what it spreads to."""
    return mask if axis == -1 else mask.unsqueeze(-1)


def _pairs(numbers: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(numbers[::FOUND], numbers[1::FOUND], strict=False))


def _bad_scale(name: str, shape: tuple[int, ...], number: int, value: float) -> InputError:
    place: list[int] = []
    for extent in reversed(shape):
        number, at = divmod(number, extent)
        place.insert(0, at)
    return InputError(
        "GMR-I010",
        f"{name}{place if place else ''} = {value:g}",
        rule="scales are positive and finite: they decode numbers that were divided by them",
        fix="quantise with gemmir.quantize, which gives blocks of zeros a positive scale too",
    )
