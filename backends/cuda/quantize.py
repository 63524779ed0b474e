"""
The fused kernels of `gemmir.quantize`: `quantize.cuh`, compiled for the types of a call and launched on torch's stream.

One kernel for each recipe, type of x and type of q serves every shape. Each is compiled once and kept in the cache.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gemmir.backends.cuda import driver, from_torch
from gemmir.backends.cuda.compiler_log import check_log
from gemmir.backends.cuda.nvrtc import build_id, compile_cubin, version
from gemmir.backends.cuda.recent import launched as last_launched
from gemmir.cache import Cache
from gemmir.cache_files import Entry, Json
from gemmir.cache_keys import digest, recorded, sources_digest
from gemmir.dtypes import BF16, BY_TORCH_NAME, F8E4M3FN, F8E5M2, F16, F32, DType
from gemmir.errors import CaptureError, InputError
from gemmir.problem import SCALE_BLOCK, Recipe
from gemmir.target import SM_90A

if TYPE_CHECKING:
    import torch

INPUTS = (BF16, F16, F32)
OUTPUTS = (F8E4M3FN, F8E5M2)
MAX_GRID_YZ = 65535
"""CTAs along the second and third dimension of a grid."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a kernel's CTA: threads, and the rows and columns of x that it reads."""

    threads: int
    rows: int
    columns: int


SHAPES: dict[Recipe, Shape] = {
    Recipe.BLOCK_WISE_1X128: Shape(128, 8, 4 * SCALE_BLOCK),
    Recipe.BLOCK_WISE_128X128: Shape(512, SCALE_BLOCK, SCALE_BLOCK),
}
"""The recipes that have kernels."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kernel is compiled for: a recipe of `SHAPES`, a type of `INPUTS` and one of `OUTPUTS`."""

    recipe: Recipe
    x: DType
    q: DType

    @property
    def entry(self) -> str:
        return f"quantize_{self.recipe.value}_{self.x.ptx}_{self.q.ptx}"


KINDS = tuple(Kind(recipe, x, q) for recipe in SHAPES for x in INPUTS for q in OUTPUTS)


class Arguments(ctypes.Structure):
    """The kernel's only parameter, as `quantize.cuh` declares it."""

    _fields_ = (
        ("x", ctypes.c_uint64),
        ("q", ctypes.c_uint64),
        ("scale", ctypes.c_uint64),
        ("x_group", ctypes.c_int64),
        ("x_row", ctypes.c_int64),
        ("scale_group", ctypes.c_int64),
        ("scale_row", ctypes.c_int64),
        ("scale_column", ctypes.c_int64),
        ("rows", ctypes.c_uint32),
        ("columns", ctypes.c_uint32),
        ("largest", ctypes.c_float),
        ("least", ctypes.c_float),
        ("power_of_two", ctypes.c_int32),
        ("saturate", ctypes.c_int32),
        ("vector", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True)
class Launch:
    """
    A loaded kernel with all of its arguments but addresses.

    `aligned`: every 8 elements of a row lie at a multiple of 16 bytes in x, and of 8 in q, if the first ones do.
    """

    entry: str
    function: Any
    context: int
    device: int
    threads: int
    grid: tuple[int, int, int]
    arguments: Arguments
    aligned: bool

    def run(self, x: int, q: int, scale: int) -> None:
        """Launch on torch's current stream of the device, given the tensors' addresses; asynchronous."""
        driver.refuse_if_unusable()
        arguments = Arguments.from_buffer_copy(self.arguments)
        arguments.x, arguments.q, arguments.scale = x, q, scale
        arguments.vector = self.aligned and (x | 2 * q) % 16 == 0
        # A thread that has made no CUDA call yet has no context, and the tensors may be on another device.
        if driver.current_context() == self.context:
            return self._launch(arguments)
        with driver.in_context(self.context):
            self._launch(arguments)

    def _launch(self, arguments: Arguments) -> None:
        addresses = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        stream = from_torch.raw_stream()(self.device)
        last_launched.append((self, stream))
        launched = driver.bindings().cuLaunchKernel(
            self.function,
            *self.grid,
            self.threads,
            1,
            1,
            0,
            stream,
            ctypes.addressof(addresses),
            0,
        )
        driver.checked(launched, "cuLaunchKernel")

    def told(self, stream: int) -> str:
        """What a launch on that stream is, in one line."""
        rows, columns = self.arguments.rows, self.arguments.columns
        return f"{self.entry}: {rows}x{columns}; device {self.device}, stream {stream:#x}, {self.grid} CTAs"


@dataclass
class Loaded:
    """The kernels in each device's context, by kind and device: handle and context. A lookup needs no lock."""

    functions: dict[tuple[Kind, int], tuple[Any, int]] = field(default_factory=dict[tuple[Kind, int], tuple[Any, int]])
    lock: threading.Lock = field(default_factory=threading.Lock)


_loaded = Loaded()


def prepare(
    recipe: Recipe,
    x: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    *,
    least: float,
    power_of_two: bool,
    saturate: bool,
) -> Launch:
    """
    What quantises tensors like `x` (rank 2 or 3, elements of the last dimension neighbours) to ones like `q`, `scale`.

    `q` is row-major, `scale` has one number for each block of `recipe` (one of `SHAPES`) in any layout; a block's
    largest magnitude counts as at least `least`. There must be elements. The rest is as in `gemmir.quantize`.

    `InputError` (GMR-I007) if the grid would be too large, `DeviceError` without a Hopper GPU, `CaptureError` if the
    kernel would have to be loaded during capture, `CompileError` if it cannot be compiled.
    """
    import torch

    shape, device = SHAPES[recipe], x.device.index or 0
    grid = _grid(shape, tuple(x.shape))
    driver.refuse_if_unusable()
    kind = Kind(recipe, _dtype(x), _dtype(q))
    function, context = _function(kind, device)
    x_group, x_row = _strides(x)
    arguments = Arguments(
        rows=x.shape[-2],
        columns=x.shape[-1],
        x_group=x_group,
        x_row=x_row,
        scale_group=_strides(scale)[0],
        scale_row=scale.stride(-2),
        scale_column=scale.stride(-1),
        largest=torch.finfo(q.dtype).max,
        least=least,
        power_of_two=power_of_two,
        saturate=saturate,
    )
    steps = (x_group * x.element_size(), x_row * x.element_size(), 2 * x.shape[-1])
    return Launch(
        kind.entry, function, context, device, shape.threads, grid, arguments, not any(step % 16 for step in steps)
    )


def source(kind: Kind) -> str:
    """The CUDA C++ of a kernel: the file, what the launch takes for granted, and the entry point."""
    shape, name = SHAPES[kind.recipe], kind.recipe.value
    tail = (
        f"static_assert(sizeof(Arguments) == {ctypes.sizeof(Arguments)});",
        f"static_assert(THREADS_{name} == {shape.threads} && ROWS_{name} == {shape.rows});",
        f"static_assert(COLUMNS_{name} == {shape.columns});",
        f"ENTRY({name}, {kind.x.ptx}, {kind.q.ptx})",
    )
    return _text() + "\n" + "\n".join(tail) + "\n"


def compiled(kind: Kind) -> bytes:
    """The cubin of a kernel, out of the cache if it is there. Needs no GPU."""
    store = Cache()
    facts = {"quantize": kind.entry, "target": SM_90A.name, "gemmir": sources_digest(), "nvrtc": build_id()}
    key = digest(facts)
    if (entry := store.found(key, facts)) is not None:
        return entry.payload
    with store.lock(key):
        if (entry := store.found(key, facts)) is None:
            entry = _built(kind, facts)
            store.put(key, entry)
    return entry.payload


def _built(kind: Kind, facts: dict[str, str]) -> Entry:
    from gemmir import __version__

    text = source(kind)
    found = compile_cubin(text)
    check_log(found.log)
    made_by: Json = {"gemmir": __version__, "nvrtc": "{}.{}".format(*version())}
    header: dict[str, Json] = {
        "entry": kind.entry,
        "facts": recorded(facts),
        "made_by": made_by,
        "source": text,
        "log": found.log,
    }
    return Entry(header, found.cubin)


@cache
def _text() -> str:
    return files("gemmir.backends.cuda").joinpath("quantize.cuh").read_text(encoding="ascii")


def _function(kind: Kind, device: int) -> tuple[Any, int]:
    """The kernel on device number `device`, loaded if this is the first time; and the context that it is in."""
    if (known := _loaded.functions.get((kind, device))) is not None:
        return known
    with _loaded.lock:
        if (known := _loaded.functions.get((kind, device))) is None:
            known = _loaded.functions[(kind, device)] = _load(kind, device)
    return known


def _load(kind: Kind, device: int) -> tuple[Any, int]:
    driver.require_hopper(device)
    context = driver.primary_context(device)
    with driver.in_context(context):
        if driver.is_capturing(from_torch.raw_stream()(device)):
            raise CaptureError(
                "GMR-D005",
                f"{kind.entry} is called for the first time while a CUDA graph is being captured",
                rule="kernels cannot be loaded during capture",
                fix="call gemmir.quantize once, with tensors of these types, before the capture",
            )
        with driver.loaded(compiled(kind)) as module:
            return driver.function(module, kind.entry, 0), context


def _grid(shape: Shape, extents: tuple[int, ...]) -> tuple[int, int, int]:
    *groups, rows, columns = extents
    grid = -(-rows // shape.rows), -(-columns // shape.columns), *(groups or [1])
    if max(grid[1:]) > MAX_GRID_YZ:
        raise InputError(
            "GMR-I007",
            f"x: shape is {extents}",
            rule=f"on a GPU at most {MAX_GRID_YZ} groups and {MAX_GRID_YZ * shape.columns} elements of K",
            fix="split it",
        )
    return grid


def _strides(tensor: torch.Tensor) -> tuple[int, int]:
    """Elements between groups, and between rows; 0 where there is but one, since torch may say anything there."""
    padded = [(1, 0), *zip(tensor.shape, tensor.stride(), strict=True)][-3:-1]
    group, row = (stride if extent > 1 else 0 for extent, stride in padded)
    return group, row


def _dtype(tensor: torch.Tensor) -> DType:
    return BY_TORCH_NAME[str(tensor.dtype).removeprefix("torch.")]
