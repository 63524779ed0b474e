"""
Executes gemm IR with torch, on whatever device the tensors are: slow, obvious, the meaning of the IR.

Operands are dequantised and multiplied in float64, C is added, the sum is rounded to float32. The epilogue then runs op
by op; without one the sum is rounded to the result type. Products of several groups are computed group by group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from xdsl.dialects.builtin import DYNAMIC_INDEX, ModuleOp
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Block, Operation, SSAValue

from gemmir.backends.reference.checks import check_count, check_dtype, check_one_device, check_shape, torch_dtype
from gemmir.backends.reference.groups import Group, Operands, groups_of, result_shape
from gemmir.backends.reference.scalars import evaluate
from gemmir.backends.reference.scaling import dequantise
from gemmir.backends.reference.values import element_dtype, tensor_type
from gemmir.dialects.gemm import ProductOp, YieldOp, argument_names, the_function
from gemmir.errors import InputError, UnsupportedError
from gemmir.validation import check_values

Environment = dict[SSAValue, torch.Tensor]


def run(
    module: ModuleOp,
    inputs: Sequence[torch.Tensor],
    *,
    multiply: torch.dtype = torch.float64,
    out: torch.Tensor | None = None,
    validate: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """
    Execute the only function of `module`: any number of products, then `func.return`.

    `inputs`: one tensor for each argument, of exactly its dtype and shape, any strides, all on one device; dimensions
    that are `?` must agree with each other. `multiply`: the type products are summed in, float64 or float32. Returns
    what the function returns: one tensor, or a tuple.

    Rows of a result that no group writes, or whose group is invalid, are zero. With `out`, of the shape and dtype of
    the one result, that is what is written to and returned, and such rows keep what they held. With `validate` an
    invalid entry of an index operand (GMR-I009), or a scale that is no positive number (GMR-I010), is an `InputError`
    that names it.

    Raises `InputError` GMR-I001 (dtype), GMR-I002 (shape), GMR-I004 (devices), GMR-I005 (number) or GMR-I009
    (`multiply`), and `UnsupportedError` GMR-U001 for anything else than one function of known ops.
    """
    if multiply not in (torch.float64, torch.float32):
        raise InputError("GMR-I009", f"multiply: {multiply}", rule="torch.float64 or torch.float32")
    function = the_function(module)
    if len(function.body.blocks) != 1:
        raise UnsupportedError("GMR-U001", f"a function of {len(function.body.blocks)} blocks")
    check_inputs(function, inputs)
    values: Environment = dict(zip(function.body.block.args, inputs, strict=True))
    for op in function.body.block.ops:
        if isinstance(op, ReturnOp):
            results = tuple(values[value] for value in op.arguments)
            return results[0] if len(results) == 1 else results
        product = _expect_product(op)
        operands = operands_of(product, values)
        if validate:
            check_values(product.grouping, operands)
        groups = groups_of(product.grouping, operands)
        held = out if out is not None and _is_the_result(product) else None
        result = _new_result(product, operands) if held is None else _checked(held, product, operands)
        for group in groups:
            result[group.in_result] = _product(product, operands, group, values, multiply)
        values[product.d] = result
    raise UnsupportedError("GMR-U001", f"function {function.sym_name.data!r} does not end with func.return")


def check_inputs(function: FuncOp, inputs: Sequence[torch.Tensor]) -> None:
    """`InputError` unless `inputs` fit the arguments of `function`: number, dtypes, shapes, one M, one device."""
    names = argument_names(function)
    check_count(names, inputs)
    m: tuple[str, int] | None = None
    for name, argument, tensor in zip(names, function.body.block.args, inputs, strict=True):
        m = _check_tensor(name, argument, tensor, m)
    check_one_device(names, inputs)


def _check_tensor(
    name: str, argument: SSAValue, tensor: torch.Tensor, m: tuple[str, int] | None
) -> tuple[str, int] | None:
    """Check one input. `m`: where the run-time M was first seen, and its value; returned with what is known after."""
    check_dtype(name, tensor, element_dtype(argument))
    shape = tensor_type(argument).get_shape()
    if tensor.dim() != len(shape):
        check_shape(name, tensor, shape)
    for axis, size in enumerate(shape):
        found = tensor.shape[axis]
        if size != DYNAMIC_INDEX:
            continue
        if m is not None and m[1] != found:
            raise InputError(
                "GMR-I002", f"{name}: M is {found}", rule=f"M is {m[1]} in {m[0]}, and the same everywhere"
            )
        m = m or (name, found)
    check_shape(name, tensor, [m[1] if m is not None and d == DYNAMIC_INDEX else d for d in shape])
    return m


def _expect_product(op: Operation) -> ProductOp:
    if isinstance(op, ProductOp):
        return op
    raise UnsupportedError("GMR-U001", f"{op.name} in a function", rule="a function holds products and func.return")


def operands_of(op: ProductOp, values: Mapping[SSAValue, torch.Tensor]) -> Operands:
    """The tensors of the operands of `op`, but for those of its epilogue."""
    scale_a, scale_b, c, index = (
        None if value is None else values[value] for value in (op.scale_a, op.scale_b, op.c, op.index)
    )
    return Operands(values[op.a], values[op.b], scale_a, scale_b, c, index)


def _is_the_result(op: ProductOp) -> bool:
    """Whether the function returns what `op` computes, and nothing else."""
    block = op.parent_block()
    return block is not None and block.last_op is not None and tuple(block.last_op.operands) == (op.d,)


def _new_result(op: ProductOp, operands: Operands) -> torch.Tensor:
    dtype = torch_dtype(element_dtype(op.d))
    return torch.zeros(result_shape(op.grouping, operands), dtype=dtype, device=operands.a.device)


def _checked(out: torch.Tensor, op: ProductOp, operands: Operands) -> torch.Tensor:
    check_dtype("out", out, element_dtype(op.d))
    check_shape("out", out, result_shape(op.grouping, operands))
    check_one_device(("a", "out"), (operands.a, out))
    return out


def _product(op: ProductOp, whole: Operands, group: Group, values: Environment, multiply: torch.dtype) -> torch.Tensor:
    """D of one group, (M, N), of the result type."""
    part = whole.of(group, op.scale_a_recipe, op.scale_b_recipe)
    right_scale = part.scale_b.t() if part.scale_b is not None and part.scale_b.dim() == 2 else part.scale_b
    a = dequantise(part.a, part.scale_a, op.scale_a_recipe, multiply)
    b = dequantise(part.b.t(), right_scale, op.scale_b_recipe, multiply).t()
    product = a @ b
    if part.c is not None:
        product = product + part.c.to(multiply)
    accumulator = product.float()
    if op.epilogue is None:
        return accumulator.to(torch_dtype(element_dtype(op.d)))
    return run_epilogue(op.epilogue.block, [accumulator, *epilogue_operands(op, group, values)])


def epilogue_operands(op: ProductOp, group: Group, values: Mapping[SSAValue, torch.Tensor]) -> list[torch.Tensor]:
    """The epilogue's operands of one group, in shapes that broadcast to its M x N."""
    pairs = zip(op.epilogue_operands, op.epilogue_kinds, strict=True)
    return [spread(group.of_epilogue(values[operand], kind), kind) for operand, kind in pairs]


def spread(operand: torch.Tensor, kind: str) -> torch.Tensor:
    """An epilogue operand in a shape that broadcasts to M x N, by `column`, `row`, `element` or `scalar`."""
    return operand.unsqueeze(1) if kind == "row" else operand


def run_epilogue(block: Block, arguments: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    Run the scalar ops of an epilogue on whole tensors.

    `arguments`: the float32 accumulator (M, N), then the epilogue operands, which broadcast to it. Returns what the
    block yields, (M, N).
    """
    values: Environment = dict(zip(block.args, arguments, strict=True))
    shape, device = arguments[0].shape, arguments[0].device
    for op in block.ops:
        if isinstance(op, YieldOp):
            return values[op.value].expand(shape).contiguous()
        values[op.results[0]] = evaluate(op, [values[operand] for operand in op.operands], device)
    raise UnsupportedError("GMR-U001", "an epilogue without gemm.yield")
