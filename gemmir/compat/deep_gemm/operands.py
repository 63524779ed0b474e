"""Arguments of DeepGEMM's functions, checked before a view is made of them."""

from __future__ import annotations

from typing import TypeAlias

import torch

from gemmir.errors import InputError

Scaled: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
"""An FP8 operand and its scales."""


def tensor(name: str, value: object, rank: int | None = None) -> torch.Tensor:
    """`value`; `InputError` if it is no tensor (GMR-I005), or of another rank (GMR-I002)."""
    if not isinstance(value, torch.Tensor):
        fix = "pass torch.as_tensor(...)"
        raise InputError("GMR-I005", f"{name}: {type(value).__name__}", rule="operands are torch tensors", fix=fix)
    if rank is not None and value.dim() != rank:
        what = f"{name}: shape is {tuple(value.shape)}"
        raise InputError("GMR-I002", what, rule=f"it has rank {rank}", fix=f"reshape it to rank {rank}")
    return value


def scaled(name: str, operand: object, rank: int | None = None) -> Scaled:
    """An operand with a matrix of `rank`, and its scales; `InputError` (GMR-I005) if it is no pair of them."""
    if not isinstance(operand, tuple | list) or len(operand) != 2:
        rule = "an FP8 operand is a pair: the tensor and its scales"
        raise InputError("GMR-I005", f"{name}: {type(operand).__name__}", rule=rule, fix="pass (tensor, scales)")
    matrix, scales = operand
    return tensor(name, matrix, rank), tensor(f"scales of {name}", scales)


def check_result(d: object, c: object, rank: int) -> None:
    """`InputError` unless D is a tensor of `rank`, and C, where it is given, one of D's type (GMR-I001)."""
    result = tensor("d", d, rank)
    if c is None or (addend := tensor("c", c)).dtype == result.dtype:
        return
    what = f"c: {addend.dtype} with d of {result.dtype}"
    raise InputError("GMR-I001", what, rule="C has the type of D", fix=f"pass c.to({result.dtype})")


def index(name: str, value: object, length: int) -> torch.Tensor:
    """`value`; `InputError` unless it is a tensor (`length`,) of int32."""
    found = tensor(name, value, 1)
    if found.dtype != torch.int32:
        what = f"{name}: dtype is {found.dtype}"
        raise InputError("GMR-I001", what, rule="it is torch.int32", fix=f"pass {name}.int()")
    if found.shape[0] != length:
        what = f"{name}: {found.shape[0]} entries"
        raise InputError("GMR-I002", what, rule=f"one for each of {length} groups", fix="pass one for each group")
    return found
