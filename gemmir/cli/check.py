"""Is a result right? Each element against the exact product, within the bound derived for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmir.cli.inputs import function_of

if TYPE_CHECKING:
    import torch
    from xdsl.ir import SSAValue

    from gemmir.backends.reference import WorstElement
    from gemmir.dialects.gemm import ProductOp


def check_result(op: ProductOp, inputs: dict[str, torch.Tensor], result: torch.Tensor) -> WorstElement:
    """
    The element of `result` that comes closest to its bound, or breaks it.

    `inputs`: tensors by argument name; the check runs where `result` is. Raises `UnsupportedError` where no bound is
    derived.
    """
    from gemmir.backends.reference import exact_and_bound_of, worst_element

    tensors = (tensor.to(result.device) for tensor in inputs.values())
    values: dict[SSAValue, torch.Tensor] = dict(zip(function_of(op).args, tensors, strict=True))
    return worst_element(result, *exact_and_bound_of(op, values))
