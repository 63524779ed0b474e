"""
What a call of a product is: all that a kernel for it depends on, and the program that it stands for.

Only shapes, strides and types of its tensors are looked at here, never their data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from gemmir.decode import DECODE_ROWS, decode_split_k
from gemmir.errors import InputError
from gemmir.problem import Grouping, blocks
from gemmir.records import dataclass

if TYPE_CHECKING:
    from gemmir.program import Program

Shape = tuple[int | None, ...]

FEW_ROWS = (16, 32, 64, DECODE_ROWS)
"""Without a hint, M up to each of these has a kernel of its own."""

INDICES = {
    Grouping.OFFS: "offs",
    Grouping.K_OFFS: "offs",
    Grouping.GROUP_IDS: "group_ids",
    Grouping.COUNTS: "counts",
}
"""What says what belongs to which group."""


@dataclass(frozen=True, slots=True)
class Parts:
    """In how many parts K is to be summed, or None; whether that may not depend on M."""

    wanted: int | None = None
    batch_invariant: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """All that a kernel depends on. `tensors`: name, shape with None where M stands, and dtype of each argument."""

    grouping: Grouping
    tensors: tuple[tuple[str, Shape, object], ...]
    recipe: tuple[str, str] | None
    majors: tuple[str, str]
    result: object
    expected_m: int | None
    few_rows: bool = False
    """M is one for which `gemmir.decode.decode_split_k` is meant."""
    parts: Parts = Parts()


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of a call; the first four say which tensors are missing."""

    no_scale_a: bool
    no_scale_b: bool
    no_c: bool
    no_out: bool
    overlap: bool
    out_dtype: torch.dtype | None
    expected_m: int | None
    split_k: int | None = None
    batch_invariant: bool = True

    def names(self, grouping: Grouping) -> list[str]:
        """Of the tensors that are there, in their order."""
        index = [INDICES[grouping]] if grouping in INDICES else []
        missing = {"scale_a": self.no_scale_a, "scale_b": self.no_scale_b, "c": self.no_c, "out": self.no_out}
        return ["a", "b", *index, *[name for name, is_missing in missing.items() if not is_missing]]


def call_of(grouping: Grouping, named: dict[str, torch.Tensor], asked: Asked) -> Call:
    """All that the kernel for a call with these tensors depends on; `InputError` (GMR-I005) if something is none."""
    for name, tensor in named.items():
        rank_of(tensor, name)
    tensors = {name: tensor for name, tensor in named.items() if name != "out"}
    return Call(
        grouping,
        tuple((name, _open_shape(grouping, name, tensor), tensor.dtype) for name, tensor in tensors.items()),
        _recipe(tensors),
        (_major(tensors["a"], -1, "m"), _major(tensors["b"], -2, "n")),
        result_type(grouping, tensors["a"], named.get("out"), asked.out_dtype),
        _expected(grouping, tensors["a"], asked.expected_m),
        grouping is Grouping.NONE and tensors["a"].dim() == 2 and tensors["a"].shape[0] <= FEW_ROWS[-1],
        Parts(asked.split_k, asked.batch_invariant),
    )


def checked_call(
    grouping: Grouping,
    tensors: dict[str, torch.Tensor],
    result: torch.dtype,
    expected_m: int | None,
    split_k: int | None,
) -> Call:
    """The call with such tensors, of which only shapes, strides and types are asked; errors as for a call."""
    asked = Asked(True, True, True, True, False, result, expected_m, 1 if split_k is None else split_k)
    call = call_of(grouping, tensors, asked)
    program_of(call)
    return call


def _expected(grouping: Grouping, a: torch.Tensor, hint: int | None) -> int | None:
    """The M that a schedule is chosen for, of one product without a hint: the least of `FEW_ROWS` that holds it."""
    if hint is not None or grouping is not Grouping.NONE or a.dim() != 2:
        return hint
    return next((rows for rows in FEW_ROWS if a.shape[0] <= rows), None)


def rank_of(tensor: Any, name: str) -> int:
    """The rank of what should be a tensor; `InputError` (GMR-I005) if it is none."""
    if not all(hasattr(tensor, attribute) for attribute in ("dim", "stride", "dtype", "device")):
        fix = "pass torch.as_tensor(...)"
        raise InputError("GMR-I005", f"{name}: {type(tensor).__name__}", rule="operands are torch tensors", fix=fix)
    return tensor.dim()


def _open_shape(grouping: Grouping, name: str, tensor: torch.Tensor) -> Shape:
    """The shape of an argument with None where M stands."""
    rank, shape = tensor.dim(), tuple(tensor.shape)
    axis = None
    if name in ("a", "scale_a", "c") and rank >= 2:
        axis = rank - 2
    elif name == grouping.value and grouping is Grouping.GROUP_IDS and rank == 1:
        axis = 0
    return tuple(None if i == axis else extent for i, extent in enumerate(shape))


def _recipe(tensors: dict[str, torch.Tensor]) -> tuple[str, str] | None:
    """How FP8 operands are scaled, from the shapes of their scales; a recipe that does not fit is refused later."""
    scale_a, scale_b = tensors.get("scale_a"), tensors.get("scale_b")
    if scale_a is None and scale_b is None:
        return None
    ranks = {scale.dim() for scale in (scale_a, scale_b) if scale is not None}
    if ranks == {0}:
        return ("tensor_wise", "tensor_wise")
    b = tensors["b"]
    if scale_a is None or scale_b is None or b.dim() < 2 or scale_b.dim() < 2:
        return ("block_wise_1x128", "block_wise_128x128")
    depth, columns = blocks(b.shape[-2]), blocks(b.shape[-1])
    found = tuple(scale_b.shape[-2:])
    if found == (depth, b.shape[-1]) != (depth, columns):
        return ("block_wise_1x128", "block_wise_1x128")
    if found == (1, b.shape[-1]) and scale_a.shape[-1] == 1 and depth != 1:
        return ("row_wise", "row_wise")
    return ("block_wise_1x128", "block_wise_128x128")


def _major(tensor: torch.Tensor, k_axis: int, other: str) -> str:
    """Which dimension's elements are neighbours; FP8 is read along K only, and refused later if it lies otherwise."""
    if tensor.element_size() == 1 or tensor.dim() < 2:
        return "k"
    outer_axis = -3 - k_axis
    return other if tensor.stride(outer_axis) == 1 != tensor.stride(k_axis) else "k"


def dtype_of(dtype: object, where: str) -> torch.dtype:
    """Torch's type for one of torch's, or for a name; `InputError` (GMR-I001) if `where` names none."""
    from gemmir.expression import find_dtype

    return getattr(torch, find_dtype(dtype, where).torch_name)


def result_type(
    grouping: Grouping, a: torch.Tensor, out: torch.Tensor | None, out_dtype: torch.dtype | str | None
) -> torch.dtype:
    """The type of the result of a call; `InputError` (GMR-I001) for a word that names none."""
    if isinstance(out_dtype, torch.dtype):
        return out_dtype
    if out_dtype is not None:
        return dtype_of(out_dtype, "out_dtype")
    if out is not None:
        return out.dtype
    if grouping is Grouping.K_OFFS:
        return torch.float32
    return torch.bfloat16 if a.element_size() == 1 else a.dtype


def program_of(call: Call) -> Program:
    """The program of a call; `InputError` if its tensors do not fit each other."""
    from gemmir.program import Options, Program

    program = Program({Grouping.NONE: "matmul", Grouping.BATCH: "batched_matmul"}.get(call.grouping, "grouped_matmul"))
    inputs = {name: program.input(name, shape, dtype) for name, shape, dtype in call.tensors}
    options = Options(
        scale_a=inputs.get("scale_a"),
        scale_b=inputs.get("scale_b"),
        recipe=call.recipe,
        c=inputs.get("c"),
        expected_m=call.expected_m,
        a_major=call.majors[0],
        b_major=call.majors[1],
    )
    a, b = inputs["a"], inputs["b"]
    if (parts := _split_k(call)) != 1:
        options["split_k"] = parts
    if call.grouping is Grouping.NONE:
        product = program.matmul(a, b, **options)
    elif call.grouping is Grouping.BATCH:
        product = program.batched_matmul(a, b, **options)
    else:
        index = {word: inputs.get(word) for word in ("offs", "group_ids", "counts")}
        product = program.grouped_matmul(a, b, **index, **options)
    program.output(product.cast(call.result))
    return program


def _split_k(call: Call) -> int:
    """Parts of K: as asked for; else of a product of few rows, and 1 for all others and where no kernel splits K."""
    if call.parts.wanted is not None:
        return call.parts.wanted
    shapes = {name: shape for name, shape, _ in call.tensors}
    plain = call.majors == ("k", "k") and "c" not in shapes and getattr(call.result, "itemsize", 0) == 2
    by_column = call.recipe is not None and call.recipe != ("block_wise_1x128", "block_wise_128x128")
    if not call.few_rows or not plain or by_column or len(shapes["b"]) != 2:
        return 1
    depth, columns = shapes["b"]
    dtype = next(dtype for name, _, dtype in call.tensors if name == "b")
    assert depth is not None and columns is not None
    return decode_split_k(columns, depth, dtype) if call.parts.batch_invariant else _fastest_split_k(call)


def _fastest_split_k(call: Call) -> int:
    from gemmir.compiler import fastest_split_k

    return fastest_split_k(program_of(replace(call, few_rows=False)))
