"""
`torch.ops.gemmir`: `matmul`, `grouped_matmul`, `batched_matmul`, and each with `_out`, for graphs that torch makes.

    import gemmir.torch_ops  # registers them

    y = torch.ops.gemmir.matmul(x, w.t(), scale_a=xs, scale_b=ws)
    torch.ops.gemmir.matmul_out(x, w.t(), out=y)

They take what the functions of the same name in `gemmir` take, compute the same bits and raise the same errors. An
`_out` form returns nothing. On tensors without data (meta tensors, and those that torch traces with) they return the
shape and type of the result, for any M; what the tensors' shapes, types and devices say about an error is an error
there too. None has a backward pass: see `gemmir.linear`.

`gemmir.matmul` is quicker where nothing is traced, for it does not go through torch's dispatcher; under `torch.compile`
and `torch.export` it becomes the op by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from gemmir import ops
from gemmir.torch_ops_fake import fake_of, fake_out_of

_SCALED = "Tensor? scale_a=None, Tensor? scale_b=None, Tensor? c=None"
_RESULT = "ScalarType? out_dtype=None, SymInt? expected_m=None"
_INDEX = "Tensor? offs=None, Tensor? group_ids=None, Tensor? counts=None"

OPTIONS: dict[str, tuple[str, str]] = {
    "matmul": (_SCALED, f"{_RESULT}, int? split_k=None, bool batch_invariant=True, bool overlap=False"),
    "grouped_matmul": (f"{_INDEX}, {_SCALED}", f"{_RESULT}, bool validate=False"),
    "batched_matmul": (_SCALED, _RESULT),
}
"""What each op takes by name, before and after `out`."""

COMPUTE: dict[str, Callable[..., torch.Tensor]] = {
    "matmul": ops.matmul,
    "grouped_matmul": ops.grouped_matmul,
    "batched_matmul": ops.batched_matmul,
}

# NOTE: without the second one Inductor may pass a copy with other strides, which a kernel does not take.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

# On every device: `gemmir.ops` says which it computes on, and what to do about others.
_KEY = "CompositeExplicitAutograd"

_library = torch.library.Library("gemmir", "DEF")


def _discarding(compute: Callable[..., torch.Tensor]) -> Callable[..., None]:
    def run(*tensors: torch.Tensor, **options: object) -> None:
        compute(*tensors, **options)

    return run


def _register(name: str) -> None:
    tensors, rest = OPTIONS[name]
    _library.define(f"{name}(Tensor a, Tensor b, *, {tensors}, {rest}) -> Tensor", tags=_TAGS)
    _library.define(f"{name}_out(Tensor a, Tensor b, *, {tensors}, Tensor(a!) out, {rest}) -> ()", tags=_TAGS)
    _library.impl(name, COMPUTE[name], _KEY)
    _library.impl(f"{name}_out", _discarding(COMPUTE[name]), _KEY)
    torch.library.register_fake(f"gemmir::{name}", fake_of(name), lib=_library)
    torch.library.register_fake(f"gemmir::{name}_out", fake_out_of(name), lib=_library)


for _name in OPTIONS:
    _register(_name)

FUNCTIONAL: dict[str, Callable[..., torch.Tensor]] = {name: getattr(torch.ops.gemmir, name) for name in OPTIONS}
MUTATING: dict[str, Callable[..., None]] = {name: getattr(torch.ops.gemmir, f"{name}_out") for name in OPTIONS}
