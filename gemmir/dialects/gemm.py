"""
The gemm dialect: what is computed.

`gemm.matmul` is one scaled matrix product, D = epilogue(A @ B + C). Shapes are those of the mathematics: A is M x K,
B K x N, D M x N. How an operand lies in memory, how it is scaled, what may change a bit of the result and what is
already chosen about the kernel are clauses of the op. `gemm.grouped_matmul` and `gemm.batched_matmul` compute one such
product for each of several groups, and say the rest the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Self

from xdsl.dialects.arith import ExtFOp, TruncFOp
from xdsl.dialects.builtin import I64, AnyTensorTypeConstr, IndexType, IntegerAttr, IntegerType, ModuleOp, i64
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Dialect, Operation, Region, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    irdl_op_definition,
    lazy_traits_def,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    opt_region_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import HasParent, IsolatedFromAbove, IsTerminator, Pure, is_side_effect_free
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects.gemm_assembly import parse_product, print_product
from gemmir.dialects.gemm_attributes import (
    EpilogueKindsAttr,
    GroupingAttr,
    Layout,
    LayoutAttr,
    NumericsAttr,
    RecipeAttr,
    ScheduleAttr,
)
from gemmir.dialects.gemm_types import (
    FLOATS,
    EpilogueFault,
    GemmFault,
    ScheduleFault,
    dtype_of,
    element_type,
    tensor_info,
)
from gemmir.dtypes import F32
from gemmir.errors import UnsupportedError
from gemmir.legality import violation
from gemmir.matmul_rules import MatmulInfo, default_numerics, find_fault, numerics_with, problem_from
from gemmir.problem import GemmProblem, Grouping, Recipe
from gemmir.schedule import Schedule

_SCALARS = (IntegerType, IndexType, *FLOATS)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@irdl_op_definition
class YieldOp(IRDLOperation):
    """Gives one element of the result of an epilogue."""

    name = "gemm.yield"

    value = operand_def()

    traits = lazy_traits_def(lambda: (IsTerminator(), HasParent(*PRODUCTS), Pure()))

    assembly_format = "$value attr-dict `:` type($value)"

    def __init__(self, value: SSAValue | Operation):
        super().__init__(operands=[value])


class ProductOp(IRDLOperation):
    """
    D = epilogue(A @ B + C), accumulated in f32: what all products share.

    Clauses may be written in any order. Without an epilogue the accumulator is rounded to the result's type. An
    epilogue sees the f32 accumulator first, then one element of each of its operands. Which dimensions A, B, D and the
    index operand have is said by `gemmir.problem.Grouping`.
    """

    a = operand_def(AnyTensorTypeConstr)
    b = operand_def(AnyTensorTypeConstr)
    index = opt_operand_def(AnyTensorTypeConstr)
    scale_a = opt_operand_def(AnyTensorTypeConstr)
    scale_b = opt_operand_def(AnyTensorTypeConstr)
    c = opt_operand_def(AnyTensorTypeConstr)
    epilogue_operands = var_operand_def(AnyTensorTypeConstr)
    d = result_def(AnyTensorTypeConstr)
    epilogue = opt_region_def("single_block")

    grouped_by = opt_prop_def(GroupingAttr)
    recipe = opt_prop_def(RecipeAttr)
    layout = opt_prop_def(LayoutAttr)
    numerics = opt_prop_def(NumericsAttr)
    expect = opt_prop_def(IntegerAttr.constr(I64))
    schedule = opt_prop_def(ScheduleAttr)
    by = opt_prop_def(EpilogueKindsAttr)

    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    traits = traits_def(IsolatedFromAbove(), Pure())

    def __init__(
        self,
        a: SSAValue | Operation,
        b: SSAValue | Operation,
        result_type: Attribute,
        *,
        index: SSAValue | None = None,
        grouped_by: Grouping | None = None,
        scales: tuple[SSAValue, SSAValue] | None = None,
        recipe: tuple[Recipe, Recipe] | None = None,
        c: SSAValue | Operation | None = None,
        layout: Layout | None = None,
        numerics: NumericsAttr | None = None,
        expected_m: int | None = None,
        schedule: Schedule | None = None,
        epilogue_operands: Sequence[SSAValue] = (),
        epilogue_kinds: Sequence[str] = (),
        epilogue: Region | None = None,
    ):
        optional = ([], []) if scales is None else ([scales[0]], [scales[1]])
        super().__init__(
            operands=[a, b, [] if index is None else [index], *optional, [] if c is None else [c], epilogue_operands],
            result_types=[result_type],
            properties={
                "grouped_by": None if grouped_by is None else GroupingAttr(grouped_by),
                "recipe": None if recipe is None else RecipeAttr(recipe),
                "layout": None if layout is None else LayoutAttr(layout),
                "numerics": numerics,
                "expect": None if expected_m is None else IntegerAttr(expected_m, i64),
                "schedule": None if schedule is None else ScheduleAttr(schedule),
                "by": EpilogueKindsAttr(tuple(epilogue_kinds)) if epilogue_kinds else None,
            },
            regions=[[] if epilogue is None else [epilogue]],
        )

    @property
    def grouping(self) -> Grouping:
        """How the groups lie; `Grouping.NONE` for one product."""
        return Grouping.NONE if self.grouped_by is None else self.grouped_by.data

    @property
    def scale_a_recipe(self) -> Recipe:
        return Recipe.NONE if self.recipe is None else self.recipe.data[0]

    @property
    def scale_b_recipe(self) -> Recipe:
        return Recipe.NONE if self.recipe is None else self.recipe.data[1]

    @property
    def a_major(self) -> str:
        """ "k" or "m"."""
        return "k" if self.layout is None else self.layout.data.a

    @property
    def b_major(self) -> str:
        """ "k" or "n"."""
        return "k" if self.layout is None else self.layout.data.b

    @property
    def epilogue_kinds(self) -> tuple[str, ...]:
        """ "column", "row", "element" or "scalar", one for each epilogue operand."""
        return () if self.by is None else self.by.data

    @property
    def expected_m(self) -> int | None:
        return None if self.expect is None else self.expect.value.data

    def info(self) -> MatmulInfo:
        """The op as plain data, for `gemmir.matmul_rules`."""
        a = tensor_info("A", self.a)
        numerics = default_numerics(a.dtype, self.scale_a_recipe)
        if self.numerics is not None:
            said = self.numerics.data
            every = numerics.promote_every if said.promote_every == "default" else said.promote_every
            numerics = numerics_with(a.dtype, every, said.split_k)
        operands = (tensor_info(f"epilogue operand {i}", v) for i, v in enumerate(self.epilogue_operands))
        return MatmulInfo(
            a=a,
            b=tensor_info("B", self.b),
            d=tensor_info("D", self.d),
            numerics=numerics,
            scale_a=None if self.scale_a is None else tensor_info("scale of A", self.scale_a),
            scale_b=None if self.scale_b is None else tensor_info("scale of B", self.scale_b),
            recipe_a=self.scale_a_recipe,
            recipe_b=self.scale_b_recipe,
            c=None if self.c is None else tensor_info("C", self.c),
            a_major=self.a_major,
            b_major=self.b_major,
            expected_m=self.expected_m,
            epilogue=tuple(zip(self.epilogue_kinds, operands, strict=False)),
            grouping=self.grouping,
            index=None if self.index is None else tensor_info("index", self.index),
        )

    def verify_(self) -> None:
        if (self.grouped_by is not None) != isinstance(self, GroupedMatmulOp):
            state = "without its" if self.grouped_by is None else "with a"
            raise VerifyException(f"{self.name} {state} groups clause: gemm.grouped_matmul has one, and no other op")
        if len(self.epilogue_kinds) != len(self.epilogue_operands):
            raise VerifyException(
                f"{len(self.epilogue_operands)} epilogue operands but {len(self.epilogue_kinds)} kinds: each is "
                "`by` column, row, element or scalar"
            )
        info = self.info()
        if (fault := find_fault(info)) is not None:
            raise GemmFault(fault)
        _verify_epilogue(self, info)
        schedule = schedule_of(self)
        problem = problem_from(info, has_epilogue=self.epilogue is not None)
        if (found := violation(problem, schedule)) is not None:
            raise ScheduleFault(found)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        parsed = parse_product(parser, cls.name)
        return cls.build(
            operands=parsed.operands,
            result_types=[parsed.result_type],
            properties=parsed.properties,
            attributes=parsed.attributes,
            regions=[parsed.regions],
        )

    def print(self, printer: Printer) -> None:
        print_product(self, printer)


@irdl_op_definition
class MatmulOp(ProductOp):
    """
    One product.

    ```mlir
    %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128)
        schedule <block = 128x256x128, cluster = 2x1>
        epilogue (%bias by column) {
        ^bb0(%acc: f32, %b: f32):
          %sum = arith.addf %acc, %b : f32
          %r = arith.truncf %sum : f32 to bf16
          gemm.yield %r : bf16
        }
        : (tensor<?x2048xf8E4M3FN>, ..., tensor<7168xf32>) -> tensor<?x7168xbf16>
    ```
    """

    name = "gemm.matmul"


@irdl_op_definition
class GroupedMatmulOp(ProductOp):
    """
    One product for each of G groups, which an index operand tells apart when the kernel runs.

    ```mlir
    %y = gemm.grouped_matmul %x, %w groups (%ends by offs) scaled (%xs by 1x128, %ws by 128x128)
        : (tensor<?x2048xf8E4M3FN>, tensor<64x2048x7168xf8E4M3FN>, tensor<64xi32>, ...) -> tensor<?x7168xbf16>
    ```
    """

    name = "gemm.grouped_matmul"


@irdl_op_definition
class BatchedMatmulOp(ProductOp):
    """
    One product for each of G groups, all of one shape.

    ```mlir
    %y = gemm.batched_matmul %x, %w
        : (tensor<16x?x512xbf16>, tensor<16x512x128xbf16>) -> tensor<16x?x128xbf16>
    ```
    """

    name = "gemm.batched_matmul"

    @property
    def grouping(self) -> Grouping:
        return Grouping.BATCH


PRODUCTS: tuple[type[ProductOp], ...] = (MatmulOp, GroupedMatmulOp, BatchedMatmulOp)


def _verify_epilogue(op: ProductOp, info: MatmulInfo) -> None:
    region = op.epilogue
    if region is None:
        if op.epilogue_operands:
            raise VerifyException("epilogue operands without an epilogue that uses them")
        return
    if region.first_block is None:
        raise VerifyException("the epilogue is empty; leave it out, or yield a value")
    expected = (element_type(F32), *(element_type(tensor.dtype) for _, tensor in info.epilogue))
    got = tuple(argument.type for argument in region.block.args)
    if got != expected:
        raise VerifyException(
            f"the epilogue takes ({_list(got)}), expected ({_list(expected)}): the f32 accumulator, then one element "
            "of each operand"
        )
    for inner in region.block.ops:
        _verify_epilogue_op(inner)
    last = region.block.last_op
    if not isinstance(last, YieldOp):
        raise VerifyException("the epilogue ends with gemm.yield")
    if last.value.type != element_type(info.d.dtype):
        raise VerifyException(f"the epilogue yields {last.value.type}, but the result holds {info.d.dtype}")


def _verify_epilogue_op(op: Operation) -> None:
    if isinstance(op, YieldOp):
        return
    if op.dialect_name() not in ("arith", "math") or op.regions or not is_side_effect_free(op):
        raise EpilogueFault(op, "is neither arith nor math without side effects")
    for value in (*op.operands, *op.results):
        if not isinstance(value.type, _SCALARS):
            raise EpilogueFault(op, f"has {value.type}: only scalars of integer or float type")
    if isinstance(op, ExtFOp | TruncFOp):
        _verify_cast(op)


def _verify_cast(op: ExtFOp | TruncFOp) -> None:
    """xDSL lets `extf` and `truncf` go either way."""
    source, target = dtype_of(op.input.type), dtype_of(op.result.type)
    if (source.bits < target.bits) is not isinstance(op, ExtFOp) or source.bits == target.bits:
        raise EpilogueFault(op, f"goes from {source} to {target}: extf widens, truncf narrows")


def _list(types: Iterable[Attribute]) -> str:
    return ", ".join(map(str, types))


Gemm = Dialect(
    "gemm",
    [*PRODUCTS, YieldOp],
    [EpilogueKindsAttr, GroupingAttr, LayoutAttr, NumericsAttr, RecipeAttr, ScheduleAttr],
)


def schedule_of(op: ProductOp) -> Schedule:
    """The choices made so far; every field open where there is no schedule."""
    return Schedule() if op.schedule is None else op.schedule.data


def set_schedule(op: ProductOp, schedule: Schedule) -> None:
    """Replace the schedule; one without a choice removes the clause. Legality is checked when the op verifies."""
    op.schedule = None if schedule == Schedule() else ScheduleAttr(schedule)


def problem_of(op: ProductOp) -> GemmProblem:
    """The problem of a verified op. `UnsupportedError` (GMR-U001) if N, K or G is known only at run time."""
    info = op.info()
    sizes = {"N": info.n, "K": info.k} | ({} if info.grouping is Grouping.NONE else {"G": info.groups})
    if None in sizes.values():
        raise UnsupportedError(
            "GMR-U001",
            ", ".join(f"{name} = {'?' if size is None else size}" for name, size in sizes.items()),
            rule=f"a kernel is made for one {' and one '.join(sizes)}; only M may be known at run time",
            fix=f"write {' and '.join(sizes)} as numbers",
        )
    return problem_from(info, has_epilogue=op.epilogue is not None)


def the_function(module: ModuleOp) -> FuncOp:
    """The only function of a module; `UnsupportedError` (GMR-U001) otherwise."""
    functions = [op for op in module.ops if isinstance(op, FuncOp)]
    if len(functions) != 1:
        raise _unsupported(f"a module with {len(functions)} functions")
    return functions[0]


def the_matmul(module: ModuleOp) -> ProductOp:
    """
    The one product of the one function, which takes the function's arguments and whose result it returns.

    `UnsupportedError` (GMR-U001) names whatever else is there.
    """
    function = the_function(module)
    if len(function.body.blocks) != 1:
        raise _unsupported(f"a function of {len(function.body.blocks)} blocks")
    op, *rest = function.body.block.ops or (None,)
    if not isinstance(op, ProductOp) or len(rest) != 1 or not isinstance(rest[0], ReturnOp):
        raise _unsupported(f"a function of {_op_names(function)}")
    if tuple(rest[0].operands) != (op.d,):
        raise _unsupported("a function that returns something else than its product")
    return op


def _op_names(function: FuncOp) -> str:
    found = [op.name for op in function.body.block.ops]
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "") if found else "no op"


def _unsupported(what: str) -> UnsupportedError:
    rule = "one function that takes its operands as arguments, computes one product and returns its result"
    return UnsupportedError("GMR-U001", what, rule=rule, fix="compile each product by itself")


def argument_names(function: FuncOp) -> tuple[str, ...]:
    """
    Names of a function's arguments, fit for any language: as the IR prints them, or arg0, arg1, ...

    A name of the IR is taken if it is an ASCII identifier of at most 64 characters; all are unique.
    """
    names: list[str] = []
    for i, argument in enumerate(function.body.block.args):
        hint = argument.name_hint or ""
        name = base = hint if _IDENTIFIER.fullmatch(hint) is not None else f"arg{i}"
        repeats = 0
        while name in names:
            repeats += 1
            name = f"{base}_{repeats}"
        names.append(name)
    return tuple(names)
