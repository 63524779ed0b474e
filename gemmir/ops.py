"""
Products of torch tensors in one call: `gemmir.matmul`, `gemmir.grouped_matmul`, `gemmir.batched_matmul`.

On a GPU each builds a program from the tensors' shapes and types, with M open, compiles it once and launches the
kernel: later calls, with any M, only look it up. On the CPU the reference backend computes the same product, slowly.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.compiler import is_compiling

from gemmir.calls import Calls, Options, Ready, remember
from gemmir.decode import DECODE_ROWS, decode_split_k
from gemmir.errors import InputError
from gemmir.guards import Facts
from gemmir.problem import Grouping, blocks
from gemmir.records import dataclass
from gemmir.tracing import is_traced, traced

if TYPE_CHECKING:
    from gemmir.kernel import CompiledKernel
    from gemmir.program import Program

MAX_KERNELS = 1024
"""Kernels that are kept in memory."""
MAX_SHAPES = 4096
"""Shapes and strides of calls, M included, whose kernel is found at once."""

Shape = tuple[int | None, ...]


class Compute(Protocol):
    """What computes calls: a kernel, or the reference."""

    def ready(self, tensors: Sequence[torch.Tensor], given: bool, overlap: bool, facts: Facts | None) -> Ready: ...


_known: OrderedDict[object, Compute] = OrderedDict()
"""What computes calls whose tensors have the shapes, strides, types and devices of the key."""


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


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    expected_m: int | None = None,
    split_k: int | None = None,
    batch_invariant: bool = True,
    overlap: bool = False,
) -> torch.Tensor:
    """
    A @ B (+ C), accumulated in float32.

    `a`: (M, K), `b`: (K, N); both 16-bit of one type or both FP8; kernels take A row by row and B column by column, as
    `w.t()` of a weight lies. `scale_a`, `scale_b`: float32 multipliers that decode FP8; their shapes say how (see
    `gemmir.problem.Recipe`; 1x128 scales of A lie as `gemmir.align_scales` lays them out). `c`: (M, N).

    The result is written to `out` where it is given, else to a new tensor of `out_dtype`: by default bfloat16 for FP8
    operands, else the operands' type. `expected_m`: the M that the schedule is chosen for; any M is computed. Without
    it there is a kernel each for M up to 16, 32, 64 and 128, and one for more.

    K may be summed in `split_k` parts, which decides the bits of a result. By default, with few rows, in as many as N
    and K ask for (`gemmir.decode_split_k`): a row has the same bits in every batch of up to 128 rows, and so it has in
    every larger one. `batch_invariant=False`: in as many as are fastest for this M, or for `expected_m`. `split_k=1`:
    the same bits for every M, those of `grouped_matmul`.

    `overlap`: the kernel may start while the one before it on the stream ends, where it waits for that by itself: those
    for few rows do. No result depends on it.

    Raises `InputError` if a tensor does not fit, `UnsupportedError` if there is no such kernel, `DeviceError` without a
    GPU that it runs on.
    """
    if is_compiling() and is_traced(a, b):
        options = {"split_k": split_k, "batch_invariant": batch_invariant, "overlap": overlap}
        return traced("matmul", a, b, out, scale_a, scale_b, c, out_dtype, expected_m, **options)
    return _matmul(a, b, scale_a, scale_b, c, out, overlap, out_dtype, expected_m, split_k, batch_invariant)


def _matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor | None,
    scale_b: torch.Tensor | None,
    c: torch.Tensor | None,
    out: torch.Tensor | None,
    overlap: bool,
    out_dtype: torch.dtype | None,
    expected_m: int | None,
    split_k: int | None,
    batch_invariant: bool,
) -> torch.Tensor:
    """`Calls.call`, spelled out without loops: of all calls this is made most, and so it takes a quarter less."""
    tensors = [a, b]
    if scale_a is not None:
        tensors.append(scale_a)
    if scale_b is not None:
        tensors.append(scale_b)
    if c is not None:
        tensors.append(c)
    if out is not None:
        tensors.append(out)
    try:
        key = (
            a.data_ptr(),
            b.data_ptr(),
            None if scale_a is None else scale_a.data_ptr(),
            None if scale_b is None else scale_b.data_ptr(),
            None if c is None else c.data_ptr(),
            None if out is None else out.data_ptr(),
            overlap,
            out_dtype,
            expected_m,
            split_k,
            batch_invariant,
        )
        ready = _matmuls.get(key)
        known = ready is not None and ready.accepts(*tensors)
    except (AttributeError, TypeError, RuntimeError):
        key, ready, known = None, None, False
    if ready is None or not known:
        missing = scale_a is None, scale_b is None, c is None, out is None
        options = *missing, overlap, out_dtype, expected_m, split_k, batch_invariant
        ready = _CALLS[Grouping.NONE].resolved(tensors, options, key)
    return ready.run(tensors)


def grouped_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    offs: torch.Tensor | None = None,
    group_ids: torch.Tensor | None = None,
    counts: torch.Tensor | None = None,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    expected_m: int | None = None,
    validate: bool = False,
) -> torch.Tensor:
    """
    One product for each of G groups. Exactly one int32 tensor on the same device says what belongs to which group.

    - `offs` (G,), where each group ends, with `b` of rank 3: `a` (M, K), `b` (G, K, N), result (M, N).
    - `offs` (G,) along K, with `b` of rank 2: `a` (M, K), `b` (K, N), result (G, M, N), by default float32. Groups end
      at multiples of 128 elements of K (FP8) or 64. A kernel is compiled for each K: keep `a` and `b` at one length,
      since what lies past the last end is not read.
    - `group_ids` (M,), the group of each row, -1 for padding; a group starts at a multiple of 128 rows: `a` (M, K), `b`
      (G, K, N), result (M, N).
    - `counts` (G,), how many rows of each group count: `a` (G, M, K), `b` (G, K, N), result (G, M, N).

    Rows of no group, padding, and rows that do not count are not written: `out` keeps there what it held, and a new
    tensor holds anything. Nothing waits for the device, so an invalid entry is not an error: its group or row is not
    written, and nothing out of bounds is touched. `validate=True` reads the index on the host first, and raises an
    `InputError` (GMR-I009) that names the first invalid entry; not during graph capture.

    Scales have a leading G where their operand has one. `expected_m`: rows of all groups; with `counts`, how many rows
    of a group are expected to count. The rest as for `matmul`.
    """
    if is_compiling() and is_traced(a, b):
        options = {"offs": offs, "group_ids": group_ids, "counts": counts, "validate": validate}
        return traced("grouped_matmul", a, b, out, scale_a, scale_b, c, out_dtype, expected_m, **options)
    grouping, _, index = grouping_of(a, b, offs, group_ids, counts)
    others, missing = _optional(scale_a, scale_b, c, out)
    calls, tensors, wanted = _CALLS[grouping], [a, b, index, *others], (*missing, False, out_dtype, expected_m)
    if not validate:
        return calls.call(tensors, wanted)
    ready = calls.resolved(tensors, wanted)
    _validate(grouping, a, b, index)
    return ready.run(tensors)


def batched_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    expected_m: int | None = None,
) -> torch.Tensor:
    """G products: `a` (G, M, K), `b` (G, K, N), result (G, M, N). The rest as for `grouped_matmul`."""
    if is_compiling() and is_traced(a, b):
        return traced("batched_matmul", a, b, out, scale_a, scale_b, c, out_dtype, expected_m)
    others, missing = _optional(scale_a, scale_b, c, out)
    return _CALLS[Grouping.BATCH].call([a, b, *others], (*missing, False, out_dtype, expected_m))


def grouping_of(
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None,
    group_ids: torch.Tensor | None,
    counts: torch.Tensor | None,
) -> tuple[Grouping, str, torch.Tensor]:
    """The form of a grouped product, and its one index operand by name; `InputError` (GMR-I005) without exactly one."""
    indices = {Grouping.OFFS: offs, Grouping.GROUP_IDS: group_ids, Grouping.COUNTS: counts}
    found = [(grouping, index) for grouping, index in indices.items() if index is not None]
    if len(found) != 1:
        what = " and ".join(grouping.value for grouping, _ in found) or "no index"
        rule = "one of offs, group_ids and counts says what belongs to which group"
        raise InputError("GMR-I005", f"grouped_matmul with {what}", rule=rule, fix="pass offs")
    grouping, index = found[0]
    along_k = grouping is Grouping.OFFS and _rank(a, "a") == _rank(b, "b") == 2
    return Grouping.K_OFFS if along_k else grouping, grouping.value, index


def _optional(*tensors: torch.Tensor | None) -> tuple[list[torch.Tensor], tuple[bool, ...]]:
    """Those tensors that are there, and of each whether it is missing."""
    return [tensor for tensor in tensors if tensor is not None], tuple([tensor is None for tensor in tensors])


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


INDICES = {
    Grouping.OFFS: "offs",
    Grouping.K_OFFS: "offs",
    Grouping.GROUP_IDS: "group_ids",
    Grouping.COUNTS: "counts",
}
"""What says what belongs to which group."""


def _ready(grouping: Grouping, tensors: Sequence[torch.Tensor], options: Options, facts: Facts | None) -> Ready:
    """A call that only has to be made: of its kernel, or of the reference."""
    asked = Asked(*options)  # pyright: ignore[reportArgumentType]
    key = (grouping, options, facts)
    compute = None if facts is None else _known.get(key)
    if compute is None:
        named = dict(zip(asked.names(grouping), tensors, strict=True))
        compute = _resolve(grouping, named, asked)
        with _lock:
            remember(_known, key, compute, MAX_SHAPES)
    return compute.ready(tensors, not asked.no_out, asked.overlap, facts)


def forget() -> None:
    """Check and resolve every call again; kernels stay."""
    for calls in _CALLS.values():
        calls.forget()
    _known.clear()


def _resolve(grouping: Grouping, named: dict[str, torch.Tensor], asked: Asked) -> Compute:
    """What computes a call with such tensors: its kernel, or the reference."""
    call = call_of(grouping, named, asked)
    device = named["a"].device.type
    nothing = named["b"].dim() > 0 and named["b"].shape[-1] == 0  # no columns, and no kernel that has none
    if device == "cuda" and not nothing:
        return kernel_of(call)
    if device in ("cpu", "cuda"):
        return _reference(call)
    rule = "products are computed on CUDA devices, or by the reference on the CPU"
    raise InputError("GMR-I004", f"a: is on {device}", rule=rule, fix="pass tensors on a GPU")


def call_of(grouping: Grouping, named: dict[str, torch.Tensor], asked: Asked) -> Call:
    """All that the kernel for a call with these tensors depends on; `InputError` (GMR-I005) if something is none."""
    for name, tensor in named.items():
        _rank(tensor, name)
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
    _program(call)
    return call


FEW_ROWS = (16, 32, 64, DECODE_ROWS)
"""Without a hint, M up to each of these has a kernel of its own."""


def _expected(grouping: Grouping, a: torch.Tensor, hint: int | None) -> int | None:
    """The M that a schedule is chosen for, of one product without a hint: the least of `FEW_ROWS` that holds it."""
    if hint is not None or grouping is not Grouping.NONE or a.dim() != 2:
        return hint
    return next((rows for rows in FEW_ROWS if a.shape[0] <= rows), None)


def _rank(tensor: Any, name: str) -> int:
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


def result_type(
    grouping: Grouping, a: torch.Tensor, out: torch.Tensor | None, out_dtype: torch.dtype | None
) -> torch.dtype:
    """The type of the result of a call."""
    if out_dtype is not None or out is not None:
        return out_dtype or out.dtype  # pyright: ignore[reportOptionalMemberAccess]
    if grouping is Grouping.K_OFFS:
        return torch.float32
    return torch.bfloat16 if a.element_size() == 1 else a.dtype


def _program(call: Call) -> Program:
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

    return fastest_split_k(_program(replace(call, few_rows=False)))


@lru_cache(MAX_KERNELS)
def kernel_of(call: Call) -> CompiledKernel:
    """The kernel for a call, compiled if neither this process nor the cache has it."""
    from gemmir.compiler import compile_call

    return compile_call(call, lambda: _program(call))


@lru_cache(MAX_KERNELS)
def _reference(call: Call) -> Compute:
    from gemmir.reference_calls import Reference

    return Reference([name for name, *_ in call.tensors], _program(call).module)


def _validate(grouping: Grouping, a: torch.Tensor, b: torch.Tensor, index: torch.Tensor) -> None:
    """`InputError` (GMR-I009) for the first invalid entry of the index; waits for the device."""
    from gemmir.backends.reference.groups import Operands, groups_of

    if grouping is Grouping.GROUP_IDS and index.shape[0] != a.shape[0]:
        return  # M disagrees: refused by what computes
    groups_of(grouping, Operands(a, b, index=index), validate=True)


_lock = threading.Lock()
_CALLS = {grouping: Calls(partial(_ready, grouping)) for grouping in Grouping}
_matmuls = _CALLS[Grouping.NONE].ready
