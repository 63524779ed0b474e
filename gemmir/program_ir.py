"""Writes a recorded program down as gemm IR."""

from __future__ import annotations

from xdsl.builder import Builder
from xdsl.dialects import arith, func, math
from xdsl.dialects.builtin import DYNAMIC_INDEX, Float32Type, FloatAttr, ModuleOp, TensorType
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue
from xdsl.rewriter import InsertPoint

from gemmir.dialects.gemm import BatchedMatmulOp, GroupedMatmulOp, MatmulOp, ProductOp, YieldOp
from gemmir.dialects.gemm_attributes import Layout, Numerics, NumericsAttr
from gemmir.dialects.gemm_types import element_type, tensor_element
from gemmir.dtypes import F32, DType
from gemmir.expression import Input, Step
from gemmir.problem import Grouping, Recipe
from gemmir.program import Description, Product
from gemmir.schedule import Schedule

_F32 = Float32Type()
_UNARY: dict[str, type[Operation]] = {"neg": arith.NegfOp, "exp": math.ExpOp, "tanh": math.TanhOp}
_BINARY: dict[str, type[Operation]] = {
    "add": arith.AddfOp,
    "sub": arith.SubfOp,
    "mul": arith.MulfOp,
    "div": arith.DivfOp,
    "maximum": arith.MaximumfOp,
    "minimum": arith.MinimumfOp,
}


def tensor_type(shape: tuple[int | None, ...], dtype: DType) -> TensorType[Attribute]:
    """`tensor<?x4096xbf16>` of shape (None, 4096)."""
    return TensorType[Attribute](tensor_element(dtype), [DYNAMIC_INDEX if d is None else d for d in shape])


def build_module(program: Description) -> ModuleOp:
    """The IR of a finished program: one function of one product, verified."""
    product = program.product
    types = [tensor_type(tensor.shape, tensor.dtype) for tensor in program.inputs]
    result = tensor_type(product.result_shape, program.dtype)
    function = func.FuncOp(program.name, (types, [result]))
    block = function.body.block
    arguments: dict[str, SSAValue] = {}
    for tensor, argument in zip(program.inputs, block.args, strict=True):
        argument.name_hint = tensor.name
        arguments[tensor.name] = argument
    builder = Builder(InsertPoint.at_end(block))
    op = builder.insert(_product(program, arguments, result))
    op.d.name_hint = "y"
    builder.insert(func.ReturnOp(op.d))
    module = ModuleOp([function])
    module.verify()
    return module


def _product(program: Description, arguments: dict[str, SSAValue], result: Attribute) -> ProductOp:
    product = program.product

    def value(tensor: Input | None) -> SSAValue | None:
        return None if tensor is None else arguments[tensor.name]

    scale_a, scale_b = value(product.scale_a), value(product.scale_b)
    scales = None if scale_a is None or scale_b is None else (scale_a, scale_b)
    kind = {Grouping.NONE: MatmulOp, Grouping.BATCH: BatchedMatmulOp}.get(product.grouping, GroupedMatmulOp)
    return kind(
        arguments[product.a.name],
        arguments[product.b.name],
        result,
        index=value(product.index),
        grouped_by=product.grouping if kind is GroupedMatmulOp else None,
        scales=scales,
        recipe=None if product.recipe == (Recipe.NONE, Recipe.NONE) else product.recipe,
        c=value(product.c),
        layout=_layout(product),
        numerics=_numerics(product),
        expected_m=product.expected_m,
        schedule=None if product.schedule == Schedule() else product.schedule,
        epilogue_operands=[arguments[tensor.name] for _, tensor in program.epilogue],
        epilogue_kinds=[kind for kind, _ in program.epilogue],
        epilogue=_epilogue(program),
    )


def _numerics(product: Product) -> NumericsAttr | None:
    said = Numerics(product.promote_every, product.split_k)
    return None if said == Numerics() else NumericsAttr(said)


def _layout(product: Product) -> Layout | None:
    layout = Layout(product.a_major, product.b_major)
    return None if layout == Layout() else layout


def _epilogue(program: Description) -> Region | None:
    if len(program.steps) == 1:
        return None
    block = Block(arg_types=[_F32, *(element_type(tensor.dtype) for _, tensor in program.epilogue)])
    block.args[0].name_hint = "acc"
    builder = Builder(InsertPoint.at_end(block))
    operands: dict[tuple[str | None, str | None], SSAValue] = {}
    for (kind, tensor), argument in zip(program.epilogue, block.args[1:], strict=True):
        argument.name_hint = tensor.name
        operands[(kind, tensor.name)] = _widen(builder, argument, tensor.dtype)
    values: list[SSAValue] = []
    for step in program.steps:
        values.append(_step(builder, step, values, block.args[0], operands))
    result = values[-1]
    if program.dtype != F32:
        result = builder.insert(arith.TruncFOp(result, element_type(program.dtype))).result
    builder.insert(YieldOp(result))
    return Region(block)


def _widen(builder: Builder, value: SSAValue, dtype: DType) -> SSAValue:
    return value if dtype == F32 else builder.insert(arith.ExtFOp(value, _F32)).result


def _step(
    builder: Builder,
    step: Step,
    values: list[SSAValue],
    accumulator: SSAValue,
    operands: dict[tuple[str | None, str | None], SSAValue],
) -> SSAValue:
    if step.op == "accumulator":
        return accumulator
    if step.op == "operand":
        return operands[(step.kind, step.operand)]
    if step.value is not None:
        return builder.insert(arith.ConstantOp(FloatAttr(step.value, _F32))).result
    arguments = [values[i] for i in step.args]
    op_type = _UNARY[step.op] if len(arguments) == 1 else _BINARY[step.op]
    return builder.insert(op_type(*arguments)).results[0]
