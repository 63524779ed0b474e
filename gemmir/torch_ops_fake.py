"""
What the ops of `torch.ops.gemmir` return and refuse where tensors hold no data.

The shape of a result is made of the operands' dimensions, which may be symbols. Whether tensors fit each other is asked
of the numbers that the symbols stand for at present: so nothing is assumed of later ones, and one graph serves all of
them; a call that does not fit is refused when the op runs. Where a symbol stands for no number, that is left to the run
too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gemmir.backends.cuda.arguments import refuse_gradient
from gemmir.backends.reference.checks import check_dtype, check_one_device, check_shape
from gemmir.expression import find_dtype
from gemmir.ops import grouping_of
from gemmir.problem import Grouping
from gemmir.product_calls import checked_call, result_type


@dataclass(frozen=True, slots=True)
class Outline:
    """What `gemmir.product_calls` asks a tensor for, in numbers."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def dim(self) -> int:
        return len(self.shape)

    def stride(self, dimension: int) -> int:
        return self.strides[dimension]

    def element_size(self) -> int:
        return self.dtype.itemsize


def fake_of(name: str) -> Callable[..., torch.Tensor]:
    """The op `name` on tensors without data."""

    def fake(a: torch.Tensor, b: torch.Tensor, **options: Any) -> torch.Tensor:
        grouping, tensors = _operands(name, a, b, options)
        dtype = _result_type(grouping, tensors, None, options)
        return a.new_empty(_result_shape(grouping, tensors), dtype=dtype)

    return fake


def fake_out_of(name: str) -> Callable[..., None]:
    """The `_out` form of the op `name` on tensors without data."""

    def fake(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor, **options: Any) -> None:
        grouping, tensors = _operands(name, a, b, options)
        _result_type(grouping, tensors, out, options)

    return fake


def _operands(
    name: str, a: torch.Tensor, b: torch.Tensor, options: dict[str, Any]
) -> tuple[Grouping, dict[str, torch.Tensor]]:
    """The form of a call, and its tensors in the order in which programs take them."""
    tensors = {"a": a, "b": b}
    grouping = Grouping.BATCH if name == "batched_matmul" else Grouping.NONE
    if name == "grouped_matmul":
        grouping, word, tensors["index"] = grouping_of(
            a, b, options.get("offs"), options.get("group_ids"), options.get("counts")
        )
        tensors[word] = tensors.pop("index")
    rest = {word: options.get(word) for word in ("scale_a", "scale_b", "c")}
    return grouping, tensors | {word: tensor for word, tensor in rest.items() if tensor is not None}


def _result_shape(grouping: Grouping, tensors: dict[str, Any]) -> tuple[Any, ...]:
    a, b = tensors["a"], tensors["b"]
    groups = (tensors["offs"] if grouping is Grouping.K_OFFS else b).shape[:1] if grouping.stacked else ()
    return (*groups, a.shape[-2], b.shape[-1])


def _result_type(
    grouping: Grouping, tensors: dict[str, torch.Tensor], out: torch.Tensor | None, options: dict[str, Any]
) -> torch.dtype:
    """The type of the result; errors as for a call, as far as tensors without data tell."""
    if torch.is_grad_enabled() and (tracked := [name for name, tensor in tensors.items() if tensor.requires_grad]):
        raise refuse_gradient(tracked[0])
    every = tensors if out is None else tensors | {"out": out}
    check_one_device(list(every), list(every.values()))
    dtype = result_type(grouping, tensors["a"], out, options.get("out_dtype"))
    outlines = {name: outline_of(tensor) for name, tensor in every.items()}
    if all(outline is not None for outline in outlines.values()):
        hint = _number(options.get("expected_m"))
        _check_sizes(grouping, outlines, dtype, hint, options.get("split_k"))
    if out is not None:
        check_dtype("out", out, find_dtype(dtype, "out"))
    return dtype


def _check_sizes(
    grouping: Grouping, outlines: dict[str, Any], dtype: torch.dtype, hint: int | None, split_k: int | None
) -> None:
    out = outlines.pop("out", None)
    call = checked_call(grouping, outlines, dtype, hint, split_k)
    m = outlines["a"].shape[-2]
    for name, shape, _ in call.tensors:
        check_shape(name, outlines[name], [m if extent is None else extent for extent in shape])
    if out is not None:
        check_shape("out", out, _result_shape(grouping, outlines))


def outline_of(tensor: torch.Tensor) -> Outline | None:
    """A tensor's sizes in numbers; None if one is a symbol that stands for none."""
    shape = [_number(extent) for extent in tensor.shape]
    strides = [_number(stride) for stride in tensor.stride()]
    known_shape = tuple(extent for extent in shape if extent is not None)
    known_strides = tuple(stride for stride in strides if stride is not None)
    if len(known_shape) != len(shape) or len(known_strides) != len(strides):
        return None
    return Outline(known_shape, known_strides, tensor.dtype, tensor.device)


def _number(size: Any) -> int | None:
    """What a size is at present, without torch taking note that anyone asked; None if it stands for no number."""
    if size is None or isinstance(size, int):
        return size
    hint = size.node.hint
    return hint if isinstance(hint, int) else None
