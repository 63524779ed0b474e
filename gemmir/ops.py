"""
Products of torch tensors in one call: `gemmir.matmul`, `gemmir.grouped_matmul`, `gemmir.batched_matmul`.

On a GPU each builds a program from the tensors' shapes and types, with M open, compiles it once and launches the
kernel: later calls, with any M, only look it up. On the CPU the reference backend computes the same product, slowly.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch.compiler import is_compiling

from gemmir.calls import Calls, MakeReady, Options, Ready, remember
from gemmir.errors import InputError
from gemmir.guards import Facts
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
    return run_matmul(a, b, scale_a, scale_b, c, out, overlap, out_dtype, expected_m, split_k, batch_invariant)


def run_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    overlap: bool = False,
    out_dtype: torch.dtype | None = None,
    expected_m: int | None = None,
    split_k: int | None = None,
    batch_invariant: bool = True,
    make_ready: MakeReady = Calls.resolved,
) -> torch.Tensor:
    """
    `matmul` where nothing is traced.

    This is `Calls.call`, spelled out without loops: of all calls it is made most, and so it takes a quarter less.
    """
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
        ready = make_ready(CALLS[Grouping.NONE], tensors, options, key)
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
    return run_grouped_matmul(a, b, offs, group_ids, counts, scale_a, scale_b, c, out, out_dtype, expected_m, validate)


def run_grouped_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
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
    make_ready: MakeReady = Calls.resolved,
) -> torch.Tensor:
    """`grouped_matmul` where nothing is traced."""
    grouping, _, index = grouping_of(a, b, offs, group_ids, counts)
    others, missing = _optional(scale_a, scale_b, c, out)
    calls, tensors, wanted = CALLS[grouping], [a, b, index, *others], (*missing, False, out_dtype, expected_m)
    if not validate:
        return calls.call(tensors, wanted, make_ready)
    ready = make_ready(calls, tensors, wanted, None)
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
    return run_batched_matmul(a, b, scale_a, scale_b, c, out, out_dtype, expected_m)


def run_batched_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    expected_m: int | None = None,
    make_ready: MakeReady = Calls.resolved,
) -> torch.Tensor:
    """`batched_matmul` where nothing is traced."""
    others, missing = _optional(scale_a, scale_b, c, out)
    return CALLS[Grouping.BATCH].call([a, b, *others], (*missing, False, out_dtype, expected_m), make_ready)


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


@lru_cache(MAX_KERNELS)
def kernel_of(call: Call) -> CompiledKernel:
    """The kernel for a call, compiled if neither this process nor the cache has it."""
    from gemmir.compiler import compile_call

    return compile_call(call, lambda: program_of(call))


@lru_cache(MAX_KERNELS)
def _reference(call: Call) -> Compute:
    from gemmir.reference_calls import Reference

    return Reference([name for name, *_ in call.tensors], program_of(call).module)


def _validate(grouping: Grouping, a: torch.Tensor, b: torch.Tensor, index: torch.Tensor) -> None:
    """`InputError` (GMR-I009) for the first invalid entry of the index; waits for the device."""
    from gemmir.backends.reference.groups import Operands, groups_of

    if grouping is Grouping.GROUP_IDS and index.shape[0] != a.shape[0]:
        return  # M disagrees: refused by what computes
    groups_of(grouping, Operands(a, b, index=index), validate=True)


_lock = threading.Lock()
CALLS = {grouping: Calls(partial(_ready, grouping)) for grouping in Grouping}
_matmuls = CALLS[Grouping.NONE].ready
