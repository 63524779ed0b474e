"""The checks that turn unfit tensors into `InputError`s before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gemmir.backends.reference.groups import Operands
from gemmir.dtypes import BY_TORCH_NAME, F32, I32, DType
from gemmir.errors import InputError
from gemmir.matmul_rules import DIMS, operand_scale_shape
from gemmir.problem import GemmProblem, Recipe


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch type of the same name."""
    return getattr(torch, dtype.torch_name)


def check_count(names: Sequence[str], given: Sequence[object]) -> None:
    """`InputError` GMR-I005 unless there is exactly one tensor per name."""
    if len(names) != len(given):
        raise InputError(
            "GMR-I005",
            f"{len(given)} inputs were given",
            rule=f"the function takes {len(names)}: {', '.join(names)}",
            fix="pass one tensor for each argument, in this order",
        )
    for name, value in zip(names, given, strict=True):
        if not isinstance(value, torch.Tensor):
            raise InputError("GMR-I005", f"{name}: is a {type(value).__name__}", rule="every input is a torch.Tensor")


def check_dtype(name: str, tensor: torch.Tensor, dtype: DType) -> None:
    """`InputError` GMR-I001 unless `tensor` has the type; nothing is ever converted silently."""
    if tensor.dtype == torch_dtype(dtype):
        return
    given = str(tensor.dtype).removeprefix("torch.")
    known = BY_TORCH_NAME.get(given)
    raise InputError(
        "GMR-I001",
        f"{name}: dtype is {tensor.dtype}" + (f" ({known})" if known else ""),
        rule=f"it must be torch.{dtype.torch_name} ({dtype})",
        fix=f"pass {name}.to(torch.{dtype.torch_name}), or change the type in the IR",
    )


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int | None]) -> None:
    """`InputError` GMR-I002 unless `tensor` has exactly this shape."""
    if tuple(tensor.shape) != tuple(shape):
        raise InputError("GMR-I002", f"{name}: shape is {tuple(tensor.shape)}", rule=f"it must be {tuple(shape)}")


def check_one_device(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> None:
    """`InputError` GMR-I004 unless all tensors are on one device."""
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.device != tensors[0].device:
            raise InputError(
                "GMR-I004",
                f"{name} is on {tensor.device}, {names[0]} on {tensors[0].device}",
                rule="all tensors are on one device",
                fix=f"pass {name}.to({str(tensors[0].device)!r})",
            )


def check_operands(problem: GemmProblem, operands: Operands) -> None:
    """`InputError` unless these are the operands of `problem`: present or absent, dtypes, shapes, one device."""
    a, dims = operands.a, DIMS[problem.grouping]
    m = a.shape[-2] if problem.m is None and a.dim() >= 2 else problem.m or 0
    sizes = {"G": problem.groups, "M": m, "N": problem.n, "K": problem.k}

    def shape(text: str) -> tuple[int | None, ...]:
        return tuple(sizes[dim] for dim in text.split(" x "))

    scaled_a, scaled_b = problem.scale_a is not Recipe.NONE, problem.scale_b is not Recipe.NONE
    left = operand_scale_shape(problem.scale_a, shape(dims.a), k_axis=1)
    right = operand_scale_shape(problem.scale_b, shape(dims.b), k_axis=0)
    wanted: list[tuple[str, torch.Tensor | None, DType | None, tuple[int | None, ...] | None]] = [
        ("a", a, problem.a, shape(dims.a)),
        ("b", operands.b, problem.b, shape(dims.b)),
        ("scale_a", operands.scale_a, F32, left if scaled_a else None),
        ("scale_b", operands.scale_b, F32, right if scaled_b else None),
        ("c", operands.c, None, shape(dims.d) if problem.has_c else None),
        ("index", operands.index, I32, shape(dims.index) if dims.index else None),
    ]
    given: dict[str, torch.Tensor] = {}
    for name, tensor, dtype, size in wanted:
        if (tensor is None) != (size is None):
            state = "is missing" if tensor is None else "was given"
            raise InputError("GMR-I005", f"{name}: {state}", rule=f"the problem is {problem}")
        if tensor is None or size is None:
            continue
        if dtype is not None:
            check_dtype(name, tensor, dtype)
        check_shape(name, tensor, size)
        given[name] = tensor
    check_one_device(list(given), list(given.values()))
