"""How far two results are apart, as DeepGEMM measures it. It hides a wrong tile: `gemmir.testing` does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> Any:
    """1 - 2 <x, y> / (<x, x> + <y, y>), in float64; 0 where both are zero."""
    one, other = x.double(), y.double()
    total = (one.square() + other.square()).sum()
    return 1 - 2 * (one * other).sum() / total if bool(total != 0) else 0.0


def count_bytes(*tensors: Any) -> int:
    """Bytes of all elements of tensors, and of those in tuples and lists; None counts for nothing."""
    nested = [t for t in tensors if isinstance(t, tuple | list)]
    plain = [t for t in tensors if t is not None and not isinstance(t, tuple | list)]
    return sum(t.numel() * t.element_size() for t in plain) + sum(count_bytes(*t) for t in nested)
