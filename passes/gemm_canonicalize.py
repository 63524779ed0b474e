"""
`gemm-canonicalize`: one way to write each product.

Nothing that it changes can change a bit of the result:

- numerics are written out, and a layout that is the default is left out;
- scalar ops of an epilogue on constants are computed, and dead ones dropped;
- an epilogue operand that nothing uses is dropped;
- an epilogue that only rounds the accumulator to the result's type is dropped, for that is what happens without one;
- a schedule without a choice is dropped.

Before:

    epilogue (%bias by column) {
    ^bb0(%acc: f32, %b: f32):
      %r = arith.truncf %acc : f32 to bf16
      gemm.yield %r : bf16
    }

After: no epilogue.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.arith import AddfOp, ConstantOp, DivfOp, MulfOp, NegfOp, SubfOp, TruncFOp
from xdsl.dialects.builtin import Float32Type, FloatAttr, ModuleOp
from xdsl.folder import Folder
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import Rewriter
from xdsl.traits import IsTerminator, is_side_effect_free

from gemmir.dialects.gemm import ProductOp, YieldOp, schedule_of, set_schedule
from gemmir.dialects.gemm_attributes import EpilogueKindsAttr, Layout, Numerics, NumericsAttr

_F32 = Float32Type()
_SMALLEST_NORMAL = 2.0**-126
_ARITHMETIC: dict[type[Operation], Callable[..., float]] = {
    AddfOp: float.__add__,
    SubfOp: float.__sub__,
    MulfOp: float.__mul__,
    DivfOp: float.__truediv__,
    NegfOp: float.__neg__,
}
"""
Ops on f32 whose result, computed in double precision and rounded once, is the correctly rounded one: 53 bits are more
than twice 24 and two. That holds for normal results, so others are left alone.
"""


@dataclass(frozen=True)
class GemmCanonicalizePass(ModulePass):
    """Bring every product into its normal form. Idempotent."""

    name = "gemm-canonicalize"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for matmul in [child for child in op.walk() if isinstance(child, ProductOp)]:
            _normalize_clauses(matmul)
            _normalize_epilogue(ctx, matmul)


def _normalize_clauses(op: ProductOp) -> None:
    spec = op.info().numerics
    op.numerics = NumericsAttr(Numerics(spec.promote_every, spec.split_k))
    if op.layout is not None and op.layout.data == Layout():
        op.layout = None
    set_schedule(op, schedule_of(op))


def _normalize_epilogue(ctx: Context, op: ProductOp) -> None:
    if op.epilogue is None:
        return
    block = op.epilogue.block
    _fold_constants(ctx, block)
    _erase_dead(block)
    used = [i for i in range(len(op.epilogue_operands)) if block.args[i + 1].uses.get_length() > 0]
    trivial = _only_rounds(block)
    if trivial or len(used) < len(op.epilogue_operands):
        _replace(op, [] if trivial else used, keep_epilogue=not trivial)


def _fold_constants(ctx: Context, block: Block) -> None:
    for op in list(block.ops):
        if isinstance(op, ConstantOp) or op.has_trait(IsTerminator):
            continue
        folded = _fold_f32(op) or Folder(ctx).try_fold(op)
        if folded is None:
            continue
        values, constants = folded
        for constant in constants:
            constant.location = op.location
            constant.results[0].name_hint = op.results[0].name_hint
        Rewriter.replace_op(op, constants, values)


def _fold_f32(op: Operation) -> tuple[list[SSAValue], list[Operation]] | None:
    compute = _ARITHMETIC.get(op.__class__)
    values = [_constant(operand) for operand in op.operands]
    if compute is None or op.results[0].type != _F32 or None in values:
        return None
    try:
        result = compute(*values)
    except ZeroDivisionError:
        return None
    rounded = _round_f32(result)
    if result != 0.0 and not (math.isfinite(rounded) and abs(rounded) >= _SMALLEST_NORMAL):
        return None
    constant = ConstantOp(FloatAttr(rounded, _F32))
    return [constant.result], [constant]


def _constant(value: SSAValue) -> float | None:
    owner = value.owner
    if not isinstance(owner, ConstantOp) or not isinstance(number := owner.value, FloatAttr):
        return None
    return _round_f32(number.value.data) if number.type == _F32 else None


def _round_f32(value: float) -> float:
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def _erase_dead(block: Block) -> None:
    for op in reversed(list(block.ops)):
        unused = all(result.uses.get_length() == 0 for result in op.results)
        if unused and not op.has_trait(IsTerminator) and is_side_effect_free(op):
            Rewriter.erase_op(op)


def _only_rounds(block: Block) -> bool:
    """Whether the epilogue does no more than what happens without one."""
    match list(block.ops):
        case [YieldOp() as result]:
            return result.value is block.args[0]
        case [TruncFOp() as rounding, YieldOp() as result]:
            return rounding.input is block.args[0] and result.value is rounding.result
        case _:
            return False


def _replace(op: ProductOp, used: list[int], *, keep_epilogue: bool) -> None:
    """Rebuild `op` with only the epilogue operands `used`, or without an epilogue."""
    region = op.epilogue
    assert region is not None
    op.detach_region(region)
    for i in reversed(range(len(op.epilogue_operands))):
        if i not in used:
            region.block.erase_arg(region.block.args[i + 1])
    kinds = tuple(op.epilogue_kinds[i] for i in used)
    dropped = ("by", "operandSegmentSizes")
    properties = {name: value for name, value in op.properties.items() if name not in dropped}
    if kinds:
        properties["by"] = EpilogueKindsAttr(kinds)
    optional = [[] if value is None else [value] for value in (op.index, op.scale_a, op.scale_b, op.c)]
    new = type(op).build(
        operands=[op.a, op.b, *optional, [op.epilogue_operands[i] for i in used]],
        result_types=[op.d.type],
        properties=properties,
        attributes=op.attributes,
        regions=[[region] if keep_epilogue else []],
    )
    new.location = op.location
    new.d.name_hint = op.d.name_hint
    Rewriter.replace_op(op, new)
