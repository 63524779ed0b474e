"""Compiling and loading kernels before they are needed, so that no call has to wait for that."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import TYPE_CHECKING, TypeAlias

from gemmir.decode import DECODE_ROWS
from gemmir.errors import InputError
from gemmir.matmul_rules import operand_scale_shape
from gemmir.ops import kernel_of
from gemmir.problem import Grouping, Recipe
from gemmir.product_calls import FEW_ROWS, INDICES, Asked, Call, call_of, dtype_of

if TYPE_CHECKING:
    import torch

    from gemmir.kernel import CompiledKernel

Progress: TypeAlias = "Callable[[int, int, CompiledKernel], None]"
"""Called with how many kernels are ready, of how many, and the one that just became so."""

_DEFAULT = Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_128X128

_BAR = 30
"""Characters of a full one."""


def prepare(
    shapes: Iterable[tuple[int | None, int, int]],
    dtype: object,
    *,
    recipe: object = None,
    out_dtype: object = None,
    c_dtype: object = None,
    grouping: Grouping | str = "none",
    groups: int = 1,
    expected_m: int | None = None,
    split_k: int | None = None,
    batch_invariant: bool = True,
    device: torch.device | str | int | None = None,
    load: bool = True,
    threads: int | None = None,
    progress: bool | Progress = False,
) -> list[CompiledKernel]:
    """
    Compile the kernels of calls with these shapes, side by side, and load them into `device` (torch's current one).

    `shapes` are (M, N, K) of `gemmir.matmul`, or of each group of `gemmir.grouped_matmul` (M: rows of all groups, or
    with `grouping="counts"` the room of one) or `gemmir.batched_matmul`; M = None for every M. `dtype` is that of A and
    B, which lie along K, as `x` and `w.t()` do; like `out_dtype` and `c_dtype` a torch dtype, or a name of one, torch's
    or MLIR's. FP8 operands have scales by `recipe`, which is as in `gemmir.Program.matmul`: a pair of names or of
    torch's `ScalingType`; by default 1x128 of A and 128x128 of B. `grouping` is a `gemmir.problem.Grouping` or the name
    of one, with that many `groups`. The rest is as in those calls, and must be: a kernel is found by what a call says.

    `load=False` only compiles, which needs no GPU and leaves the kernels in the cache on disk. `threads`: how many
    compile at once, by default one for each processor, up to 8. `progress`: a bar on stderr, or what to call.

    Returns the kernels, each once, in the order of the shapes. Raises what the calls would; `DeviceError` before
    anything is compiled if `load` finds no Hopper GPU.
    """
    index = _device(device) if load else None
    form = _grouping(grouping)
    types = dtype_of(dtype, "dtype"), None if c_dtype is None else dtype_of(c_dtype, "c_dtype")
    result = None if out_dtype is None else dtype_of(out_dtype, "out_dtype")
    asked = Asked(True, True, c_dtype is None, True, False, result, expected_m, split_k, batch_invariant)
    calls: dict[Call, None] = {}
    for m, n, k in shapes:
        for rows in (m,) if m is not None else _every_m(form):
            calls[call_of(form, _stand_ins(form, (rows, n, k), groups, recipe, *types), asked)] = None
    kernels = _make([*calls], index, threads or min(8, cpu_count() or 1), _bar if progress is True else progress)
    return [*{id(kernel): kernel for kernel in kernels}.values()]


def _device(device: torch.device | str | int | None) -> int:
    """Number of a device that kernels can be loaded into."""
    from gemmir.backends.cuda import driver, from_torch

    driver.bindings()
    driver.require_hopper(index := from_torch.device_index(device))
    return index


def _make(calls: list[Call], device: int | None, threads: int, report: Progress | bool) -> list[CompiledKernel]:
    """The kernel of each call, compiled by that many threads, and loaded if there is a `device`."""
    done = itertools.count(1)
    lock = threading.Lock()

    def make(call: Call) -> CompiledKernel:
        kernel = kernel_of(call)
        if device is not None:
            kernel.prepare(device)
        with lock:
            if callable(report):
                report(next(done), len(calls), kernel)
        return kernel

    pool = ThreadPoolExecutor(threads, "gemmir-prepare")
    try:
        made = [*pool.map(make, calls)]
    except KeyboardInterrupt:  # what has begun goes on, and is in the cache for the next time
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        pool.shutdown()
        raise
    pool.shutdown()
    return made


def _every_m(grouping: Grouping) -> tuple[int, ...]:
    """An M of each kind that has a kernel of its own."""
    return (*FEW_ROWS, DECODE_ROWS + 1) if grouping is Grouping.NONE else (1,)


def _grouping(name: object) -> Grouping:
    for grouping in Grouping:
        if name in (grouping, grouping.value):
            return grouping
    rule = "one of " + ", ".join(grouping.value for grouping in Grouping)
    raise InputError("GMR-I009", f"grouping {name!r:.40}", rule=rule, fix="use 'none'")


def _stand_ins(
    grouping: Grouping,
    shape: tuple[int, int, int],
    groups: int,
    recipe: object,
    dtype: torch.dtype,
    c_dtype: torch.dtype | None,
) -> dict[str, torch.Tensor]:
    """Tensors without data, as a call with this shape would have them."""
    import torch

    from gemmir.program import recipes_of

    def empty(*extents: int | None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty([extent or 0 for extent in extents], dtype=dtype, device="meta")

    m, n, k = shape
    of_a = (groups,) if grouping in (Grouping.BATCH, Grouping.COUNTS) else ()
    of_b = () if grouping in (Grouping.NONE, Grouping.K_OFFS) else (groups,)
    tensors = {"a": empty(*of_a, m, k, dtype=dtype), "b": empty(*of_b, n, k, dtype=dtype).mT}
    if grouping in INDICES:
        rows = m if grouping is Grouping.GROUP_IDS else groups
        tensors[INDICES[grouping]] = empty(rows, dtype=torch.int32)
    recipe_a, recipe_b = recipes_of(_DEFAULT if recipe is None and dtype.itemsize == 1 else recipe)
    if recipe_a is not Recipe.NONE:
        tensors["scale_a"] = empty(*operand_scale_shape(recipe_a, (*of_a, m, k), k_axis=1))
        tensors["scale_b"] = empty(*operand_scale_shape(recipe_b, (*of_b, k, n), k_axis=0))
    if c_dtype is not None:
        tensors["c"] = empty(*((groups,) if grouping.stacked else ()), m, n, dtype=c_dtype)
    return tensors


def _bar(done: int, total: int, kernel: CompiledKernel) -> None:
    """One line on stderr, written over itself on a terminal."""
    full = _BAR * done // total
    line = f"[{'#' * full}{'.' * (_BAR - full)}] {done}/{total} {kernel.manifest.entry}"
    terminal = sys.stderr.isatty()
    start, end = ("\r\x1b[K", "\n" if done == total else "") if terminal else ("", "\n")
    sys.stderr.write(f"{start}{line}{end}")
    sys.stderr.flush()
