"""
Calls that torch traces instead of running: under `torch.compile` and `torch.export` they become ops of
`torch.ops.gemmir`.

Products ask `torch.compiler` first whether anything is traced, which is all that an eager call pays. `gemmir.matmul`
asks for dynamo alone: tensors of other tracers are none that it knows, and of those it asks then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def is_traced(*tensors: torch.Tensor) -> bool:
    """
    Whether a call with these tensors is traced.

    Where something compiles that may be another thread, or a pass that computes with tensors of its own: real tensors
    are computed with.
    """
    import torch

    if not torch.compiler.is_compiling():
        return False
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


def traced_quantize(
    x: torch.Tensor, recipe: str, out: tuple[torch.Tensor, torch.Tensor] | None, **options: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `traced`, of `gemmir.quantize`."""
    from gemmir import torch_ops

    if out is None:
        return torch_ops.QUANTIZE(x, recipe, **options)
    torch_ops.QUANTIZE_OUT(x, recipe, q=out[0], scale=out[1], **options)
    return out
