"""Is a result right? Each element against the exact product, within the bound derived for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmir.cli.inputs import Argument, arguments_of, function_of

if TYPE_CHECKING:
    import torch
    from xdsl.ir import SSAValue

    from gemmir.backends.reference import WorstElement
    from gemmir.dialects.gemm import ProductOp


def check_result(op: ProductOp, inputs: dict[str, torch.Tensor], result: torch.Tensor) -> WorstElement:
    """
    The element of `result` (M, N) that comes closest to its bound, or breaks it.

    `inputs`: tensors by argument name; the check runs where `result` is. Raises `UnsupportedError` where no bound is
    derived.
    """
    from gemmir.backends.reference import exact_and_bound, worst_element
    from gemmir.dialects.gemm import problem_of

    inputs = {name: tensor.to(result.device) for name, tensor in inputs.items()}
    given = by_role(arguments_of(op), inputs)
    exact, bound = exact_and_bound(
        problem_of(op), given["a"], given["b"], given.get("scale_a"), given.get("scale_b"), given.get("c")
    )
    if op.epilogue is not None:
        exact, bound = through_epilogue(op, inputs, exact, bound)
    return worst_element(result, exact, bound)


def by_role(arguments: tuple[Argument, ...], inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {argument.role: inputs[argument.name] for argument in arguments if argument.role != "epilogue"}


def through_epilogue(
    op: ProductOp, inputs: dict[str, torch.Tensor], exact: torch.Tensor, bound: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact result and bound after the epilogue, from those of the accumulator that enters it."""
    from gemmir.backends.reference.epilogue_bound import epilogue_bound

    values: dict[SSAValue, torch.Tensor] = dict(zip(function_of(op).args, inputs.values(), strict=True))
    operands = [values[value] for value in op.epilogue_operands]
    return epilogue_bound(op, operands, exact, bound)
