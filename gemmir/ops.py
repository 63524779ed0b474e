"""
Products of torch tensors in one call: `gemmir.matmul`, `gemmir.grouped_matmul`, `gemmir.batched_matmul`.

On a GPU each builds a program from the tensors' shapes and types, with M open, compiles it once and launches the
kernel: later calls, with any M, only look it up. On the CPU the reference backend computes the same product, slowly.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.compiler import is_compiling, is_dynamo_compiling

from gemmir.calls import Calls, MakeReady, Options, Ready, remember
from gemmir.errors import InputError
from gemmir.guards import Facts
from gemmir.once import Once
from gemmir.problem import Grouping
from gemmir.product_calls import Asked, Call, call_of, program_of, rank_of
from gemmir.tracing import is_traced, traced

if TYPE_CHECKING:
    from gemmir.kernel import CompiledKernel

MAX_KERNELS = 1024
"""Kernels that are kept in memory."""
MAX_SHAPES = 4096
"""Shapes and strides of calls, M included, whose kernel is found at once."""


class Compute(Protocol):
    """What computes calls: a kernel, or the reference."""

    def ready(self, tensors: Sequence[torch.Tensor], given: bool, overlap: bool, facts: Facts | None) -> Ready: ...


_known: OrderedDict[object, Compute] = OrderedDict()
"""What computes calls whose tensors have the shapes, strides, types and devices of the key."""


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
    validate: bool = False,
    overlap: bool = False,
    _make_ready: MakeReady | None = None,
) -> torch.Tensor:
    """
    A @ B (+ C), accumulated in float32.

    `a`: (M, K), `b`: (K, N); both 16-bit of one type or both FP8; kernels take A row by row and B column by column, as
    `w.t()` of a weight lies. `scale_a`, `scale_b`: float32 multipliers that decode FP8; their shapes say how (see
    `gemmir.problem.Recipe`; 1x128 scales of A lie as `gemmir.align_scales` lays them out). `c`: (M, N).

    The result is written to `out` where it is given, else to a new tensor of `out_dtype`: by default bfloat16 for FP8
    operands, else the operands' type. `expected_m`: the M that the schedule is chosen for; any M is computed. Without
    it there is a kernel each for M up to 16, 32, 64 and 128, and one for more. K may be summed in `split_k` parts,
    which decides the bits of a result. By default, with few rows, in as many as N and K ask for (`decode_split_k`): a
    row has the same bits in every batch of up to 128 rows, and in every larger one. `batch_invariant=False`: in as many
    as are fastest for this M, or `expected_m`. `split_k=1`: the same bits for every M, those of `grouped_matmul`.

    `validate=True` first looks for a scale that is NaN, infinite, zero or negative (`InputError` GMR-I010 names it),
    and waits for the device once: not during graph capture (GMR-I009). `overlap`: the kernel may start while the one
    before it on the stream ends, if it waits for that by itself, as those for few rows do. No result depends on it.

    Raises `InputError` for a tensor that does not fit, `UnsupportedError` or `DeviceError` without a kernel or a GPU.
    """
    if validate or is_dynamo_compiling():
        options = overlap, out_dtype, expected_m, split_k, batch_invariant
        return _matmul_anew(a, b, scale_a, scale_b, c, out, options, None, _make_ready, validate)
    # What follows is `Calls.call` without loops, and in one function: of all calls it is made most.
    if c is None and scale_a is not None and scale_b is not None:
        tensors = (a, b, scale_a, scale_b) if out is None else (a, b, scale_a, scale_b, out)
    elif c is None and scale_a is None and scale_b is None:
        tensors = (a, b) if out is None else (a, b, out)
    else:
        tensors = tuple([tensor for tensor in (a, b, scale_a, scale_b, c, out) if tensor is not None])
    key = None
    try:
        at_a, at_scale_a = a.data_ptr(), None if scale_a is None else scale_a.data_ptr()
        at_b, at_scale_b = b.data_ptr(), None if scale_b is None else scale_b.data_ptr()
        at_c, at_out = None if c is None else c.data_ptr(), None if out is None else out.data_ptr()
        key = at_a, at_b, at_scale_a, at_scale_b, at_c, at_out, overlap, out_dtype, expected_m, split_k, batch_invariant
        ready = _matmuls[key]
        run = ready.run if ready.accepts(*tensors) else None
    except (KeyError, AttributeError, TypeError, RuntimeError):
        run = None
    if run is not None:
        return run(tensors)
    options = overlap, out_dtype, expected_m, split_k, batch_invariant
    return _matmul_anew(a, b, scale_a, scale_b, c, out, options, key, _make_ready)


def _matmul_anew(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor | None,
    scale_b: torch.Tensor | None,
    c: torch.Tensor | None,
    out: torch.Tensor | None,
    options: tuple[Any, ...],
    key: Options | None = None,
    make_ready: MakeReady | None = None,
    validate: bool = False,
) -> torch.Tensor:
    """
    `matmul` where it is traced, validated or was not called so before.

    `options` are those of `Asked` from `overlap` on.
    """
    if make_ready is None and is_compiling() and is_traced(a, b):
        overlap, out_dtype, expected_m, split_k, batch_invariant = options
        named = {"split_k": split_k, "batch_invariant": batch_invariant, "validate": validate}
        return traced("matmul", a, b, out, scale_a, scale_b, c, out_dtype, expected_m, overlap=overlap, **named)
    others, missing = _optional(scale_a, scale_b, c, out)
    tensors = [a, b, *others]
    ready = (make_ready or Calls.resolved)(CALLS[Grouping.NONE], tensors, (*missing, *options), key)
    if validate:
        _validate(Grouping.NONE, a, b, scale_a, scale_b)
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
    overlap: bool = False,
    _make_ready: MakeReady | None = None,
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
    `InputError` (GMR-I009) that names the first invalid entry; then it looks at the scales as that of `matmul` does,
    but for those of rows and of K that belong to no group.

    Scales have a leading G where their operand has one. `expected_m`: rows of all groups; with `counts`, how many rows
    of a group are expected to count. `overlap` as for `matmul`: kernels for few rows in each group may start while the
    one before ends, and read all of their tensors, the index too, behind it. The rest as for `matmul`.
    """
    if _make_ready is None and is_compiling() and is_traced(a, b):
        options = {"offs": offs, "group_ids": group_ids, "counts": counts, "validate": validate, "overlap": overlap}
        return traced("grouped_matmul", a, b, out, scale_a, scale_b, c, out_dtype, expected_m, **options)
    grouping, _, index = grouping_of(a, b, offs, group_ids, counts)
    others, missing = _optional(scale_a, scale_b, c, out)
    calls, tensors, wanted = CALLS[grouping], [a, b, index, *others], (*missing, overlap, out_dtype, expected_m)
    make_ready = _make_ready or Calls.resolved
    if not validate:
        return calls.call(tensors, wanted, make_ready)
    ready = make_ready(calls, tensors, wanted, None)
    _validate(grouping, a, b, scale_a, scale_b, index)
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
    validate: bool = False,
    overlap: bool = False,
    _make_ready: MakeReady | None = None,
) -> torch.Tensor:
    """G products: `a` (G, M, K), `b` (G, K, N), result (G, M, N). The rest as for `grouped_matmul`."""
    if _make_ready is None and is_compiling() and is_traced(a, b):
        named = {"validate": validate, "overlap": overlap}
        return traced("batched_matmul", a, b, out, scale_a, scale_b, c, out_dtype, expected_m, **named)
    others, missing = _optional(scale_a, scale_b, c, out)
    calls, tensors, wanted = CALLS[Grouping.BATCH], [a, b, *others], (*missing, overlap, out_dtype, expected_m)
    make_ready = _make_ready or Calls.resolved
    if not validate:
        return calls.call(tensors, wanted, make_ready)
    ready = make_ready(calls, tensors, wanted, None)
    _validate(Grouping.BATCH, a, b, scale_a, scale_b)
    return ready.run(tensors)


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
    along_k = grouping is Grouping.OFFS and rank_of(a, "a") == rank_of(b, "b") == 2
    return Grouping.K_OFFS if along_k else grouping, grouping.value, index


def _optional(*tensors: torch.Tensor | None) -> tuple[list[torch.Tensor], tuple[bool, ...]]:
    """Those tensors that are there, and of each whether it is missing."""
    return [tensor for tensor in tensors if tensor is not None], tuple([tensor is None for tensor in tensors])


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
    for calls in CALLS.values():
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


def _kernel_of(call: Call) -> CompiledKernel:
    from gemmir.compiler import compile_call

    return compile_call(call, lambda: program_of(call))


def _reference_of(call: Call) -> Compute:
    from gemmir.reference_calls import Reference

    return Reference([name for name, *_ in call.tensors], program_of(call).module)


def _validate(
    grouping: Grouping,
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor | None,
    scale_b: torch.Tensor | None,
    index: torch.Tensor | None = None,
) -> None:
    """`InputError` for the first invalid entry of the index, or the first bad scale; waits for the device."""
    from gemmir.backends.reference.groups import Operands
    from gemmir.validation import check_values

    check_values(grouping, Operands(a, b, scale_a, scale_b, index=index))


kernel_of: Once[Call, CompiledKernel] = Once(_kernel_of, MAX_KERNELS)
"""The kernel for a call, compiled if neither this process nor the cache has it; by one thread."""
_reference: Once[Call, Compute] = Once(_reference_of, MAX_KERNELS)
_lock = threading.Lock()
CALLS = {grouping: Calls(partial(_ready, grouping)) for grouping in Grouping}
_matmuls = CALLS[Grouping.NONE].ready
