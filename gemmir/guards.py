"""
Telling whether tensors are of the kind that was seen before.

`facts_of` is all about tensors that a kernel depends on, but for their addresses. `guard` compares it, in one call into
torch where torch has one: about a sixth of the time that it takes to ask each tensor for each fact from Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

Facts: TypeAlias = "tuple[tuple[object, ...], ...]"
Guard: TypeAlias = "Callable[..., bool]"


def facts_of(tensors: Sequence[torch.Tensor]) -> Facts:
    """
    Shape, strides, dtype and device of each tensor, and whether autograd would have to follow it.

    Raises `AttributeError`, `TypeError` or `RuntimeError` if something is no tensor, or has no strides.
    """
    import torch

    tracked = torch.is_grad_enabled()
    return tuple([(t.shape, t.stride(), t.dtype, t.device, tracked and t.requires_grad) for t in tensors])


def guard(tensors: Sequence[torch.Tensor], facts: Facts) -> Guard:
    """What says of as many tensors whether their facts are `facts`, which are those of `tensors`."""
    import torch

    plain = all(isinstance(t, torch.Tensor) for t in tensors)  # pyright: ignore[reportUnnecessaryIsInstance]
    once = len({id(t) for t in tensors}) == len(tensors)  # torch's accepts no tensor that is there twice
    if plain and once and (native := _native()) is not None:
        return native(tensors)
    return lambda *given: facts_of(given) == facts


@cache
def _native() -> Callable[[Sequence[torch.Tensor]], Guard] | None:
    """Torch's own comparison, which its compiler uses; it is not public, so it is tried before it is trusted."""
    try:
        from torch._C._dynamo.guards import TensorGuards
    except ImportError:
        return None
    import torch

    def make(tensors: Sequence[torch.Tensor]) -> Guard:
        sizes: Any = [list(t.shape) for t in tensors]
        strides: Any = [list(t.stride()) for t in tensors]
        made: Any = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        check: Guard = made.check
        if not any(t.requires_grad for t in tensors):
            return check
        return lambda *given: not torch.is_grad_enabled() and check(*given)  # it asks whether they require gradients

    return make if _tells_apart(make) else None


def _tells_apart(make: Callable[[Sequence[torch.Tensor]], Guard]) -> bool:
    """Whether guards of `make` accept what is alike, and nothing that differs in any one fact."""
    import torch

    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    other = [
        tensor(4, 6),
        tensor(4, 2, 3),
        tensor(4, 6).as_strided((4, 3), (6, 1)),
        tensor(3, 4).t(),
        tensor(4, 3, dtype=torch.int32),
        torch.empty(4, 3, device="meta"),
        tensor(4, 3).requires_grad_(),
    ]
    try:
        with torch.enable_grad():
            alike = make([tensor(4, 3), tensor(2)])
            accepted = alike(tensor(4, 3), tensor(2))
            refused = [not alike(wrong, tensor(2)) and not alike(tensor(4, 3), wrong) for wrong in other]
        with torch.no_grad():
            untracked = make([other[-1]])
            accepted = accepted and untracked(other[-1])
        with torch.enable_grad():
            refused.append(not untracked(other[-1]))
        return accepted and all(refused)
    except (TypeError, RuntimeError, AttributeError):
        return False
