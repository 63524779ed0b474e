"""
Calls that torch traces instead of running: under `torch.compile` and `torch.export` they become ops of `torch.ops.gemmir`.

Whoever asks first whether anything compiles at all (`torch.compiler.is_compiling()`) pays nothing else when run eagerly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def is_traced(*tensors: torch.Tensor) -> bool:
    """
    Whether a call with these tensors is traced, given that something compiles.

    That may be another thread, or a pass that computes with tensors of its own: real tensors are computed with.
    """
    import torch

    if torch.compiler.is_dynamo_compiling():
        return True
    return any(isinstance(t, torch.Tensor) and type(t) not in (torch.Tensor, torch.nn.Parameter) for t in tensors)  # pyright: ignore[reportUnnecessaryIsInstance]


def traced(
    name: str,
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor | None,
    scale_a: torch.Tensor | None,
    scale_b: torch.Tensor | None,
    c: torch.Tensor | None,
    out_dtype: torch.dtype | None,
    expected_m: int | None,
    **options: object,
) -> torch.Tensor:
    """The op of that name in the graph; its `_out` form where there is an `out`, which is returned."""
    from gemmir import torch_ops

    shared = {"scale_a": scale_a, "scale_b": scale_b, "c": c, "out_dtype": out_dtype, "expected_m": expected_m}
    if out is None:
        return torch_ops.FUNCTIONAL[name](a, b, **shared, **options)
    torch_ops.MUTATING[name](a, b, out=out, **shared, **options)
    return out
