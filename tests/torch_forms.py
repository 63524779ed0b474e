"""Calls of every form, for tests of `torch.ops.gemmir`. All rows of their results are written."""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo
from torch._dynamo.utils import counters

import gemmir

N, K, GROUPS = 144, 256, 3
Call = tuple[str, tuple[torch.Tensor, torch.Tensor], dict[str, Any]]
"""The name of the function, A and B, and what it takes by name."""


def half(*shape: int, device: str = "cpu") -> torch.Tensor:
    """The same numbers for the same shape, everywhere."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16().to(device)


def _index(*numbers: int, device: str) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def _fp8(m: int, device: str) -> Call:
    (a, scale_a), (w, scale_w) = (
        gemmir.quantize(half(m, K, device=device)),
        gemmir.quantize(half(N, K, device=device), "block_wise_128x128"),
    )
    return "matmul", (a, w.t()), {"scale_a": scale_a, "scale_b": scale_w.t()}


def _fp8_offs(m: int, device: str) -> Call:
    a, scale_a = gemmir.quantize(half(m, K, device=device))
    w, scale_w = gemmir.quantize(half(GROUPS, N, K, device=device), "block_wise_128x128")
    offs = _index(m // 2, m // 2, m, device=device)
    return "grouped_matmul", (a, w.mT), {"offs": offs, "scale_a": scale_a, "scale_b": scale_w.mT, "overlap": True}


def _weights(device: str) -> torch.Tensor:
    return half(GROUPS, N, K, device=device).mT


FORMS = {
    "half": lambda m, device: ("matmul", (half(m, K, device=device), half(N, K, device=device).t()), {}),
    "float32 with C": lambda m, device: (
        "matmul",
        (half(m, K, device=device), half(N, K, device=device).t()),
        {"c": half(m, N, device=device).float(), "out_dtype": torch.float32, "split_k": 1, "expected_m": 64},
    ),
    "fp8": _fp8,
    "offs": _fp8_offs,
    "group_ids": lambda m, device: (
        "grouped_matmul",
        (half(m, K, device=device), _weights(device)),
        {"group_ids": _index(*[min(row // 128, GROUPS - 1) for row in range(m)], device=device)},
    ),
    "counts": lambda m, device: (
        "grouped_matmul",
        (half(GROUPS, m, K, device=device), _weights(device)),
        {"counts": _index(*[m] * GROUPS, device=device), "validate": True},
    ),
    "k_offs": lambda m, device: (
        "grouped_matmul",
        (half(K, m, device=device).t(), half(K, N, device=device)),
        {"offs": _index(64, 64, K, device=device)},
    ),
    "batch": lambda m, device: ("batched_matmul", (half(GROUPS, m, K, device=device), _weights(device)), {}),
}


def direct(call: Call, **more: Any) -> torch.Tensor:
    """The call, of the function in `gemmir`."""
    name, tensors, options = call
    return getattr(gemmir, name)(*tensors, **options, **more)


def through_op(call: Call, **more: Any) -> torch.Tensor:
    """The call, of the op in `torch.ops.gemmir`."""
    name, tensors, options = call
    return getattr(torch.ops.gemmir, name)(*tensors, **options, **more)


def through_out(call: Call) -> torch.Tensor:
    """The call, of the `_out` form of the op."""
    name, tensors, options = call
    out = torch.full_like(direct(call), -77.0)
    assert getattr(torch.ops.gemmir, f"{name}_out")(*tensors, **options, out=out) is None
    return out


def check_eager(form: str, rows: tuple[int, ...], device: str) -> None:
    """Both forms of the op give the bits of the function."""
    for m in rows:
        call = FORMS[form](m, device)
        expected = direct(call)
        assert torch.equal(through_op(call), expected)
        assert torch.equal(through_out(call), expected)


def check_compiled(form: str, backend: str, rows: tuple[int, ...], device: str, **options: Any) -> None:
    """One graph serves all numbers of rows, and has the results of eager calls; in a new tensor and in a given one."""
    torch._dynamo.reset()
    counters.clear()
    function = getattr(gemmir, FORMS[form](8, device)[0])

    def call(a: torch.Tensor, b: torch.Tensor, given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        result = function(a, b, **given)
        held = torch.zeros_like(result)
        assert function(a, b, **given, out=held) is held
        return result.relu(), held.relu()

    compiled = torch.compile(call, backend=backend, fullgraph=True, dynamic=True, **options)
    for m in rows:
        _, tensors, given = made = FORMS[form](m, device)
        expected = direct(made).relu()
        for found in compiled(*tensors, given):
            assert torch.equal(found, expected)
    assert counters["stats"]["unique_graphs"] == 1
