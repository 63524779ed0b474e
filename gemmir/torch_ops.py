"""
`torch.ops.gemmir`: `matmul`, `grouped_matmul`, `batched_matmul` and `quantize`, each with `_out`, for torch's graphs.

    import gemmir.torch_ops  # registers them

    y = torch.ops.gemmir.matmul(x, w.t(), scale_a=xs, scale_b=ws)
    torch.ops.gemmir.matmul_out(x, w.t(), out=y)

They take what the functions of the same name in `gemmir` take, compute the same bits and raise the same errors. An
`_out` form returns nothing; that of `quantize` writes to `q` and `scale`. On tensors without data (meta tensors, and
those that torch traces with) they return the shape and type of the result, for any M; what the tensors' shapes, types
and devices say about an error is an error there too. None has a backward pass: see `gemmir.linear`.

Where nothing is traced, an op of a product does not go through torch's dispatcher either, unless something stands in
between that must see it (see `gemmir.torch_ops_eager`); an overload, as `torch.ops.gemmir.matmul.default`, always does.
Under `torch.compile` and `torch.export` `gemmir.matmul` becomes the op by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gemmir import ops
from gemmir.quantization import quantize
from gemmir.torch_ops_eager import call_directly
from gemmir.torch_ops_fake import fake_of, fake_out_of
from gemmir.torch_ops_fake_quantize import fake_quantize, fake_quantize_out

Compute = Callable[..., Any]

_SCALED = "Tensor? scale_a=None, Tensor? scale_b=None, Tensor? c=None"
_RESULT = "ScalarType? out_dtype=None, SymInt? expected_m=None"
_INDEX = "Tensor? offs=None, Tensor? group_ids=None, Tensor? counts=None"
_QUANTIZE = (
    'Tensor x, str recipe="block_wise_1x128", *, ScalarType? dtype=None, bool power_of_two=False, bool saturate=False'
)

# NOTE: without the second one Inductor may pass a copy with other strides, which a kernel does not take.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

# On every device: `gemmir.ops` says which it computes on, and what to do about others.
_KEY = "CompositeExplicitAutograd"

_library = torch.library.Library("gemmir", "DEF")


def _register(name: str, signature: str, compute: Compute, fake: Compute) -> Compute:
    _library.define(f"{name}{signature}", tags=_TAGS)
    _library.impl(name, compute, _KEY)
    torch.library.register_fake(f"gemmir::{name}", fake, lib=_library)
    return getattr(torch.ops.gemmir, name)


def _discarding(compute: Compute) -> Callable[..., None]:
    def run(*tensors: torch.Tensor, **options: object) -> None:
        compute(*tensors, **options)

    return run


def _quantize_out(x: torch.Tensor, *recipe: str, q: torch.Tensor, scale: torch.Tensor, **options: Any) -> None:
    quantize(x, *recipe, out=(q, scale), **options)


def _products() -> tuple[dict[str, Compute], dict[str, Compute]]:
    """The ops by name: those that return a tensor, and those that write to one."""
    functional: dict[str, Compute] = {}
    mutating: dict[str, Compute] = {}
    split, rest = "int? split_k=None, bool batch_invariant=True", "bool validate=False, bool overlap=False"
    for name, (compute, tensors, options) in {
        "matmul": (ops.matmul, _SCALED, f"{_RESULT}, {split}, {rest}"),
        "grouped_matmul": (ops.grouped_matmul, f"{_INDEX}, {_SCALED}", f"{_RESULT}, {rest}"),
        "batched_matmul": (ops.batched_matmul, _SCALED, f"{_RESULT}, {rest}"),
    }.items():
        operands = f"Tensor a, Tensor b, *, {tensors}"
        functional[name] = _register(name, f"({operands}, {options}) -> Tensor", compute, fake_of(name))
        signature = f"({operands}, Tensor(a!) out, {options}) -> ()"
        mutating[name] = _register(f"{name}_out", signature, _discarding(compute), fake_out_of(name))
        call_directly(functional[name], compute, has_out=False)
        call_directly(mutating[name], compute, has_out=True)
    return functional, mutating


FUNCTIONAL, MUTATING = _products()
QUANTIZE = _register("quantize", f"({_QUANTIZE}) -> (Tensor, Tensor)", quantize, fake_quantize)
QUANTIZE_OUT = _register(
    "quantize_out", f"({_QUANTIZE}, Tensor(a!) q, Tensor(b!) scale) -> ()", _quantize_out, fake_quantize_out
)
