"""
The builder: write a GEMM from Python.

    p = gemmir.Program("down_proj")
    x, xs = p.input("x", (None, 2048), "f8E4M3FN"), p.input("xs", (None, 16), "f32")
    w, ws = p.input("w", (2048, 7168), "f8E4M3FN"), p.input("ws", (16, 56), "f32")
    y = p.matmul(x, w, scale_a=xs, scale_b=ws, recipe=("block_wise_1x128", "block_wise_128x128"))
    p.output(y.cast("bf16"))

A program is plain data until `module` or `text` is asked for: that alone imports xDSL. Whatever is wrong is raised by
the call that is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from gemmir.dtypes import BF16, DType
from gemmir.errors import InputError, UnsupportedError
from gemmir.expression import Expression, Input, Result, Step, find_dtype, flatten, leaves
from gemmir.legality import check_schedule
from gemmir.matmul_rules import (
    MAX_DIM,
    MatmulInfo,
    TensorInfo,
    default_numerics,
    find_fault,
    numerics_with,
    problem_from,
)
from gemmir.problem import RECIPES, SCALING_TYPES, Grouping, Recipe
from gemmir.schedule import SCALES_OF_TILE, Evict, Family, RasterAxis, Schedule, Split, least

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

KEY_SCHEMA = 2
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NUMBERED = re.compile(r"_[0-9]+$")
_SCHEDULE_ENUMS: dict[str, type[Enum]] = {
    "family": Family,
    "split": Split,
    "raster_axis": RasterAxis,
    "evict": Evict,
}

PromoteEvery = int | None | Literal["default"]


class Options(TypedDict, total=False):
    """What `Program.matmul`, `grouped_matmul` and `batched_matmul` take by name; `matmul` says what each means."""

    scale_a: Input | None
    scale_b: Input | None
    recipe: object
    c: Input | None
    promote_every: PromoteEvery
    split_k: int
    expected_m: int | None
    schedule: Schedule | Mapping[str, object] | None
    a_major: str
    b_major: str


@dataclass(frozen=True, slots=True)
class Product:
    """
    One recorded product. `promote_every` and `split_k` are as in `NumericsSpec`; "default": what the recipe implies.
    """

    a: Input
    b: Input
    scale_a: Input | None
    scale_b: Input | None
    recipe: tuple[Recipe, Recipe]
    c: Input | None
    a_major: str
    b_major: str
    promote_every: PromoteEvery
    split_k: int
    expected_m: int | None
    schedule: Schedule
    grouping: Grouping = Grouping.NONE
    index: Input | None = None

    @property
    def result_shape(self) -> tuple[int | None, ...]:
        """M x N, or G x M x N; None also stands for what operands of a wrong rank do not say."""
        of = self.b if self.index is None or self.grouping is not Grouping.K_OFFS else self.index
        groups = of.shape[:1] if self.grouping.stacked else ()
        return groups + (self.a.shape[-2:-1] or (None,)) + (self.b.shape[-1:] or (None,))

    def info(self, dtype: DType, epilogue: tuple[tuple[str, Input], ...] = ()) -> MatmulInfo:
        """The product as plain data for `gemmir.matmul_rules`, with a result of type `dtype`."""
        numerics = default_numerics(self.a.dtype, self.recipe[0])
        every = numerics.promote_every if self.promote_every == "default" else self.promote_every
        return MatmulInfo(
            a=_info(self.a),
            b=_info(self.b),
            d=TensorInfo("the result", self.result_shape, dtype),
            numerics=numerics_with(self.a.dtype, every, self.split_k),
            scale_a=None if self.scale_a is None else _info(self.scale_a),
            scale_b=None if self.scale_b is None else _info(self.scale_b),
            recipe_a=self.recipe[0],
            recipe_b=self.recipe[1],
            c=None if self.c is None else _info(self.c),
            a_major=self.a_major,
            b_major=self.b_major,
            expected_m=self.expected_m,
            epilogue=tuple((kind, _info(operand)) for kind, operand in epilogue),
            grouping=self.grouping,
            index=None if self.index is None else _info(self.index),
        )


@dataclass(frozen=True, slots=True)
class Description:
    """A finished program: all that its IR is written from. One step (the accumulator itself) means no epilogue."""

    name: str
    inputs: tuple[Input, ...]
    product: Product
    steps: tuple[Step, ...]
    epilogue: tuple[tuple[str, Input], ...]
    """Kind and tensor of each epilogue operand, in the order of their first use."""
    dtype: DType


class Program:
    """
    One function that computes one matrix product, or one for each of several groups. `name`: an identifier.

    Add inputs in the order in which the kernel takes them, then one `matmul`, `grouped_matmul` or `batched_matmul`,
    then one `output`.
    """

    def __init__(self, name: str):
        self.name = _identifier(name, "the program's name")
        self._inputs: dict[str, Input] = {}
        self._product: Product | None = None
        self._description: Description | None = None

    def input(self, name: str, shape: tuple[int | None, ...], dtype: object) -> Input:
        """
        Declare a tensor argument.

        `shape` is that of the mathematics (A: M x K, B: K x N), None where a dimension is known only at run time.
        `dtype`: MLIR name, torch dtype or torch name. Raises `InputError`.
        """
        self._check_open("an input")
        name = _identifier(name, "an input's name")
        if _NUMBERED.search(name) is not None:
            rule = "names do not end in an underscore and digits: the IR tells repeated names apart so"
            raise InputError("GMR-I009", f"input {name!r}", rule=rule, fix=f"use {name.replace('_', '')!r}")
        if name in self._inputs:
            raise InputError("GMR-I009", f"input {name!r} twice", rule="names are unique", fix="use another name")
        tensor = Input(name, _shape(name, shape), find_dtype(dtype, name))
        self._inputs[name] = tensor
        return tensor

    def matmul(self, a: Input, b: Input, **options: Unpack[Options]) -> Expression:
        """
        A @ B (+ C), accumulated in f32: the expression that `cast` and `output` take.

        A is M x K, B K x N; both 16-bit of one type, or both FP8. `a_major` is "k" or "m", `b_major` "k" or "n". FP8
        operands may be scaled: `recipe` is a pair of names ("tensor_wise", "row_wise", "block_wise_1x128",
        "block_wise_128x128") or of torch's `ScalingType`, and `scale_a`, `scale_b` are f32 multipliers that decode
        (shapes: `gemmir.problem.Recipe`). `c` is M x N of any type. `promote_every`: elements of K between promotions,
        or None. `split_k`: parts of K that are summed by themselves, then added. `expected_m`: a hint where M is None.
        `schedule`: choices that no pass may change.

        Raises `InputError`, or `ScheduleError` if a fixed choice is illegal.
        """
        return self._record(a, b, Grouping.NONE, None, **options)

    def grouped_matmul(
        self,
        a: Input,
        b: Input,
        *,
        offs: Input | None = None,
        group_ids: Input | None = None,
        counts: Input | None = None,
        **options: Unpack[Options],
    ) -> Expression:
        """
        One product for each of G groups; exactly one int32 operand says which elements belong to which group.

        - `offs` (G), where each group ends, with B of rank 3: rows of A (M x K) belong to groups, B is G x K x N, the
          result M x N. With A and B of rank 2: columns of A (M x K) and rows of B (K x N) do, the result is G x M x N.
        - `group_ids` (M), the group of each row or -1: A is M x K, B G x K x N, the result M x N.
        - `counts` (G), how many rows of each group count: A is G x M x K, B G x K x N, the result G x M x N.

        What may stand in them and what is left unwritten: `gemmir.problem.Grouping`. Scales have the shapes of the
        recipe for each matrix, with a leading G where their operand has one; C has the result's shape. Epilogue
        operands by column are G x N, by row and by element as the result. `expected_m`: rows of all groups where M is
        None; with `counts`, how many rows of a group are expected to count. The rest as for `matmul`.
        """
        given = {Grouping.OFFS: offs, Grouping.GROUP_IDS: group_ids, Grouping.COUNTS: counts}
        found = [(grouping, index) for grouping, index in given.items() if index is not None]
        if len(found) != 1:
            what = " and ".join(grouping.value for grouping, _ in found) or "no index operand"
            rule = "one of offs, group_ids and counts says which elements belong to which group"
            raise InputError("GMR-I005", f"grouped_matmul with {what}", rule=rule, fix="pass offs")
        grouping, index = found[0]
        if grouping is Grouping.OFFS and len(self._own(a, "a").shape) == len(self._own(b, "b").shape) == 2:
            grouping = Grouping.K_OFFS
        return self._record(a, b, grouping, index, **options)

    def batched_matmul(self, a: Input, b: Input, **options: Unpack[Options]) -> Expression:
        """G products: A is G x M x K, B G x K x N, the result G x M x N. The rest as for `grouped_matmul`."""
        return self._record(a, b, Grouping.BATCH, None, **options)

    def _record(
        self,
        a: Input,
        b: Input,
        grouping: Grouping,
        index: Input | None,
        *,
        scale_a: Input | None = None,
        scale_b: Input | None = None,
        recipe: object = None,
        c: Input | None = None,
        promote_every: PromoteEvery = "default",
        split_k: int = 1,
        expected_m: int | None = None,
        schedule: Schedule | Mapping[str, object] | None = None,
        a_major: str = "k",
        b_major: str = "k",
    ) -> Expression:
        """Check and keep a product."""
        self._check_open("a matmul")
        if self._product is not None:
            rule = "a program computes one product"
            raise UnsupportedError("GMR-U001", "a second matmul", rule=rule, fix="write a second program")
        product = Product(
            a=self._own(a, "a"),
            b=self._own(b, "b"),
            scale_a=None if scale_a is None else self._own(scale_a, "scale_a"),
            scale_b=None if scale_b is None else self._own(scale_b, "scale_b"),
            recipe=recipes_of(recipe),
            c=None if c is None else self._own(c, "c"),
            a_major=a_major,
            b_major=b_major,
            promote_every=_integer_or(promote_every, "promote_every", (None, "default")),
            split_k=_integer_or(split_k, "split_k", ()),
            expected_m=_integer_or(expected_m, "expected_m", (None,)),
            schedule=_schedule(schedule),
            grouping=grouping,
            index=None if index is None else self._own(index, grouping.value),
        )
        _check(product, product.info(BF16))
        self._product = product
        return Expression("accumulator", product=product)

    def output(self, result: Result | Expression) -> None:
        """
        Declare what the program returns: an expression with its `cast`, or without one the f32 values themselves.

        Raises `InputError` if it does not use this program's product, or if an epilogue operand has the wrong shape.
        """
        self._check_open("an output")
        if isinstance(result, Expression):
            result = result.cast("f32")
        if not isinstance(result, Result):  # pyright: ignore[reportUnnecessaryIsInstance]
            what = f"output: {type(result).__name__}"
            raise InputError(
                "GMR-I005", what, rule="a program returns a product", fix='pass p.matmul(...).cast("bf16")'
            )
        product, epilogue = self._product, self._epilogue(result.expression)
        if product is None or not any(leaf.product is product for leaf in leaves(result.expression)):
            what = "output: an expression without this program's product"
            raise InputError("GMR-I005", what, rule="a program returns its product", fix="use what p.matmul returned")
        _check(product, product.info(result.dtype, epilogue), has_epilogue=result.expression.op != "accumulator")
        steps = flatten(result.expression)
        inputs = tuple(self._inputs.values())
        self._description = Description(self.name, inputs, product, steps, epilogue, result.dtype)

    @property
    def description(self) -> Description:
        """The finished program. `InputError` (GMR-I005) before `output`."""
        if self._description is None:
            what, rule = f"program {self.name} without an output", "a program returns something"
            raise InputError("GMR-I005", what, rule=rule, fix='call p.output(p.matmul(...).cast("bf16"))')
        return self._description

    @property
    def module(self) -> ModuleOp:
        """The program as IR, built anew each time: passes may change it."""
        from gemmir.program_ir import build_module

        return build_module(self.description)

    @property
    def text(self) -> str:
        """The program as IR text."""
        return str(self.module) + "\n"

    def key(self) -> str:
        """
        The program as canonical JSON: equal for equal programs, in every process. Imports no xDSL.
        """
        description = self.description
        info = description.product.info(description.dtype, description.epilogue)
        product = {f.name: _plain(getattr(description.product, f.name)) for f in fields(Product)}
        product["promote_every"] = info.numerics.promote_every
        return json.dumps(
            {
                "schema": KEY_SCHEMA,
                "name": description.name,
                "inputs": [[i.name, i.dtype.name, list(i.shape)] for i in description.inputs],
                "product": product,
                "steps": [asdict(step) for step in description.steps],
                "result": description.dtype.name,
            },
            sort_keys=True,
            separators=(",", ":"),
        )

    def _epilogue(self, expression: Expression) -> tuple[tuple[str, Input], ...]:
        found: dict[tuple[str, str], tuple[str, Input]] = {}
        for leaf in leaves(expression):
            if leaf.operand is None or leaf.kind is None:
                continue
            operand = self._own(leaf.operand, "an epilogue operand")
            found.setdefault((leaf.kind, operand.name), (leaf.kind, operand))
        return tuple(found.values())

    def _own(self, tensor: object, what: str) -> Input:
        if not isinstance(tensor, Input):
            message = f"{what}: {type(tensor).__name__}"
            raise InputError("GMR-I005", message, rule="operands are inputs of the program", fix="use p.input(...)")
        if self._inputs.get(tensor.name) is not tensor:
            message = f"{what}: input {tensor.name!r} of another program"
            raise InputError("GMR-I005", message, rule="operands are inputs of this program", fix="declare it here too")
        return tensor

    def _check_open(self, what: str) -> None:
        if self._description is not None:
            rule = "a program ends with its output"
            raise InputError("GMR-I005", f"{what} after the output", rule=rule, fix="call output last, once")


def _check(product: Product, info: MatmulInfo, *, has_epilogue: bool = False) -> None:
    if (fault := find_fault(info)) is not None:
        raise InputError(fault.code, fault.what, rule=fault.rule, fix=fault.fix)
    check_schedule(problem_from(info, has_epilogue=has_epilogue), product.schedule)


def _info(tensor: Input) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.shape, tensor.dtype)


def _identifier(name: object, what: str) -> str:
    if isinstance(name, str) and _IDENTIFIER.fullmatch(name) is not None:
        return name
    rule = "a name is an identifier: ASCII letters, digits and underscores, at most 64 of them"
    raise InputError("GMR-I009", f"{what}: {name!r:.60}", rule=rule, fix='use a name such as "x"')


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shape(name: str, shape: object) -> tuple[int | None, ...]:
    if not isinstance(shape, tuple | list):
        what = f"{name}: shape {shape!r:.40}"
        raise InputError("GMR-I005", what, rule="a shape is a tuple of integers and None", fix="use (None, 2048)")
    dims: list[int | None] = []
    for dim in shape:
        if dim is not None and not (_is_integer(dim) and 0 <= dim <= MAX_DIM):
            rule = f"a dimension is an integer from 0 to {MAX_DIM}, or None"
            raise InputError("GMR-I007", f"{name}: dimension {dim!r:.40}", rule=rule, fix="use None where M stands")
        dims.append(dim)
    return tuple(dims)


def recipes_of(recipe: object) -> tuple[Recipe, Recipe]:
    """Those of A and B, of a pair or of one for both: names, torch's `ScalingType`s or themselves; None: no scales."""
    if recipe is None:
        return Recipe.NONE, Recipe.NONE
    pair: tuple[object, ...] = tuple(recipe) if isinstance(recipe, tuple | list) else (recipe, recipe)
    if len(pair) != 2:
        what = f"recipe of {len(pair)} entries"
        raise InputError("GMR-I009", what, rule="one for A and one for B", fix='use ("row_wise", "row_wise")')
    return _recipe(pair[0]), _recipe(pair[1])


def _recipe(value: object) -> Recipe:
    if isinstance(value, Recipe):
        return value
    name = value if isinstance(value, str) else str(getattr(value, "name", value))
    if (found := RECIPES.get(name) or SCALING_TYPES.get(name)) is not None:
        return found
    rule = f"one of {', '.join(RECIPES)}"
    raise InputError("GMR-I009", f"recipe {name!r:.40}", rule=rule, fix='use "block_wise_1x128"')


def _integer_or(value: Any, name: str, others: tuple[object, ...]) -> Any:
    if _is_integer(value) or value in others:
        return value
    words = ", ".join(map(repr, others))
    what = f"{name} = {value!r:.40}"
    raise InputError("GMR-I009", what, rule=f"{name} is an integer or {words}", fix="leave it out")


def _schedule(schedule: object) -> Schedule:
    if schedule is None:
        return Schedule()
    given = (
        {f.name: getattr(schedule, f.name) for f in fields(Schedule)} if isinstance(schedule, Schedule) else schedule
    )
    if not isinstance(given, Mapping):
        what = f"schedule: {type(schedule).__name__}"
        raise InputError("GMR-I005", what, rule="a Schedule or a dict of its fields", fix="use {'block_m': 128}")
    return Schedule(**{str(name): _choice(str(name), value) for name, value in given.items()})


def _choice(name: str, value: object) -> Any:
    """One field of a schedule; enums may be given by the word that the IR uses."""
    known = [f.name for f in fields(Schedule)]
    if name not in known:
        raise InputError("GMR-I009", f"schedule: {name!r:.40}", rule=f"one of {', '.join(known)}", fix="check the name")
    if value is None:
        return None
    if (kind := _SCHEDULE_ENUMS.get(name)) is not None:
        words = {member.value: member for member in kind}
        if isinstance(value, kind) or (isinstance(value, str) and value in words):
            return value if isinstance(value, kind) else words[str(value)]
        rule = f"one of {', '.join(words)}"
    elif name in ("turns", "balanced"):
        if isinstance(value, bool):
            return value
        rule = "True or False"
    else:
        if name == "scale_slots" and value == "tile":
            return SCALES_OF_TILE
        if _is_integer(value) and least(name) <= int(str(value)) <= MAX_DIM:
            return value
        rule = f"an integer, at least {max(0, least(name))}" + (", or 'tile'" if least(name) < 0 else "")
    raise InputError("GMR-I009", f"schedule: {name} = {value!r:.40}", rule=rule, fix="leave it open")


def _plain(value: object) -> object:
    """`value` as JSON can hold it."""
    if isinstance(value, Input):
        return value.name
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Schedule):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(Schedule)}
    return value
