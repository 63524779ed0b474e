"""
Plans: calls that were checked, and only have to be made.

A `Plan` is a kernel with tensors of one kind: shapes, strides, types and a device. For each set of addresses that such
tensors were seen at there is a block of packed parameters, and a `Ready` call (see `gemmir.calls`) that launches it.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, TypeAlias

from gemmir.backends.cuda import driver, from_torch
from gemmir.backends.cuda.arguments import TensorInfo, alignments
from gemmir.backends.cuda.parameters import Block, Map, Values, launch_config, number, slots_of
from gemmir.backends.cuda.recent import Launched, launched
from gemmir.backends.cuda.tensor_map import tensor_map_fields
from gemmir.calls import Ready, remember
from gemmir.guards import Guard
from gemmir.manifest import Manifest, PointerParam, SeedParam, TensorMapParam
from gemmir.records import dataclass

if TYPE_CHECKING:
    import torch

Run: TypeAlias = "Callable[[Sequence[torch.Tensor]], torch.Tensor]"
"""Launches with parameters that it holds, and returns the last of the tensors, which is the output."""

MAX_OUTPUTS = 16
"""Addresses of new outputs that a call remembers."""

MAX_STREAMS = 64
"""Streams that a plan remembers how to launch on."""

OTHER_CONTEXT = frozenset({201, 400})
"""What a launch answers that needs another context: invalid context, invalid handle. It has done nothing then."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in a device's context. `clusters`: how many run there at once."""

    function: Any
    module: Any
    context: int
    clusters: int


@dataclass(slots=True, eq=False)
class Plan:
    """
    A kernel, and tensors of one kind that fit it.

    `tensors` are the inputs and the output, where they were first seen (0 for an output that was new). `grid` is a
    number of CTAs, `key` that of the kernel in the cache, or "". `accepts` says whether the inputs, and the output
    where the caller gave it, are of this kind.
    """

    manifest: Manifest
    kernel: Kernel
    grid: int
    tensors: tuple[TensorInfo, ...]
    device: torch.device
    overlap: bool
    accepts: Guard
    values: Values
    key: str = ""
    first: Block | None = None
    configs: OrderedDict[int, tuple[Any, Launched]] = field(default_factory=OrderedDict[int, "tuple[Any, Launched]"])
    lock: threading.Lock = field(default_factory=threading.Lock)
    places: tuple[tuple[int, int], ...] = ()
    """Of each tensor: what its address is a multiple of, and how many bytes its elements span."""
    index: int = 0
    """Number of the device."""
    function: Any = None
    call: Any = None
    success: object = None
    stream_of: Any = None

    def __post_init__(self) -> None:
        cuda = driver.bindings()
        self.call, self.success = cuda.cuLaunchKernelEx, cuda.CUresult.CUDA_SUCCESS
        self.stream_of = from_torch.raw_stream()
        self.function, self.index = self.kernel.function, self.tensors[0].device_index
        steps = alignments(self.manifest, self.tensors)
        self.places = tuple(zip(steps, (info.reach for info in self.tensors), strict=True))

    def fits_at(self, addresses: Sequence[int]) -> bool:
        """
        Whether tensors of this kind may lie at `addresses`, the output last if the caller gave it.

        False where it has to be looked at more closely: the result may replace an operand C, which it then overlaps.
        """
        places = self.places
        if any(at % step for at, (step, _) in zip(addresses, places, strict=False)):
            return False
        if len(addresses) < len(places):
            return True
        out, end = addresses[-1], addresses[-1] + places[-1][1]
        return not any(out < at + reach and at < end for at, (_, reach) in zip(addresses[:-1], places, strict=False))

    def ready(self, addresses: Sequence[int], given: bool) -> Ready:
        """The call with tensors at `addresses`, the output last if it is `given`."""
        if given:
            block = self.block(addresses)
            return Launch(self, self.accepts, block, self.launching(block))
        return LaunchIntoNew(self, self.accepts, tuple(addresses))

    def block(self, addresses: Sequence[int]) -> Block:
        """The parameters for tensors at `addresses`, the output last."""
        first = self.first
        if first is not None and driver.current_context() != 0:
            return self.values.moved(first, addresses)
        # The driver handles tensor maps in a context, and a thread that has made no CUDA call yet has none.
        with driver.in_context(self.kernel.context):
            if first is not None:
                return self.values.moved(first, addresses)
            self.first = first = self.values.encoded(addresses)
        return first

    def empty(self) -> torch.Tensor:
        """New memory for the result. Rows that belong to no group keep what it held."""
        driver.refuse_if_unusable()
        return new_tensor(self.tensors[-1], self.device)

    def launching(self, block: Block) -> Run:
        """
        What launches on torch's current stream with the parameters in `block`, which it keeps.

        A function of its own for each block: of what it needs, nothing is asked of an object in a call.
        """
        fate, success, again, config_for = driver.fate, self.success, self._again, self._config
        launch, function = self.call, self.function
        configs, stream_of, index, note = self.configs, self.stream_of, self.index, launched.append

        def run(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            if fate.refusal is not None:
                driver.refuse_if_unusable()
            stream = stream_of(index)
            try:
                config, about = configs[stream]
            except KeyError:
                config, about = config_for(stream)
            note(about)
            result = launch(config, function, block.address, 0)
            if result[0] is not success:
                again(result, config, block.address)
            return tensors[-1]

        return run

    def _config(self, stream: int) -> tuple[Any, Launched]:
        shape = self.grid, self.manifest.threads, self.manifest.shared_bytes
        made = launch_config(shape, stream, self.overlap), (self, stream)
        with self.lock:
            remember(self.configs, stream, made, MAX_STREAMS)
        return made

    def told(self, stream: int) -> str:
        """What a launch on that stream is, in one line."""
        kernel = f"{self.manifest.name} ({self.manifest.entry}{f', key {self.key[:16]}' if self.key else ''})"
        shapes = ", ".join(f"{info.name} {'x'.join(map(str, info.shape))} {info.dtype}" for info in self.tensors)
        return f"{kernel}: {shapes}; device {self.index}, stream {stream:#x}, {self.grid} CTAs"

    def _again(self, result: tuple[Any, ...], config: Any, parameters: int) -> None:
        """
        Launch in the kernel's context if that was all that was wrong, else raise.

        A thread that has made no CUDA call yet has no context, and the tensors may be on another device. Both are rare:
        so the current context is not asked for before each launch.
        """
        if int(result[0]) in OTHER_CONTEXT:
            with driver.in_context(self.kernel.context):
                result = self.call(config, self.function, parameters, 0)
        driver.checked(result, "cuLaunchKernelEx")


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """A call with an output that the caller gives, as the last tensor."""

    plan: Plan
    accepts: Guard
    parameters: Block
    run: Run


@dataclass(frozen=True, slots=True, eq=False)
class LaunchIntoNew:
    """A call that returns a new tensor; `runs` has what launches for addresses that such had."""

    plan: Plan
    accepts: Guard
    inputs: tuple[int, ...]
    runs: OrderedDict[int, Run] = field(default_factory=OrderedDict[int, Run])

    def run(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        out = self.plan.empty()
        address = out.data_ptr()
        return (self.runs.get(address) or self._run(address))((out,))

    def _run(self, address: int) -> Run:
        run = self.plan.launching(self.plan.block((*self.inputs, address)))
        with self.plan.lock:
            remember(self.runs, address, run, MAX_OUTPUTS)
        return run


@dataclass(frozen=True, slots=True, eq=False)
class SumsOfNothing:
    """
    A call where there are no products to add up, or no elements at all: the result is zeros, or C.

    `addend` is C's number among the tensors; `new` describes the output unless the caller gives it.
    """

    accepts: Guard
    addend: int | None
    new: TensorInfo | None
    device: torch.device

    def run(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        out = tensors[-1] if self.new is None else new_tensor(self.new, self.device)
        return out.zero_() if self.addend is None else out.copy_(self._sum(tensors[self.addend]))

    def _sum(self, c: torch.Tensor) -> torch.Tensor:
        """C added to nothing, in float32."""
        import torch

        try:
            return c.float() + 0.0
        except torch.OutOfMemoryError as error:
            from gemmir.backends.cuda.memory import out_of_memory

            raise out_of_memory("a float32 copy of c", 4 * c.numel(), self.device, "copy c yourself") from error


def new_tensor(info: TensorInfo, device: torch.device) -> torch.Tensor:
    """Memory for a tensor that lies as `info` says; `OutOfMemoryError` (GMR-D009) if there is none."""
    import torch

    try:
        return torch.empty_strided(info.shape, info.strides, dtype=from_torch.torch_dtype(info.dtype), device=device)
    except torch.OutOfMemoryError as error:
        from gemmir.backends.cuda.memory import out_of_memory

        raise out_of_memory(info.name, info.reach, device, "pass out=, split M, or free some") from error


def values_of(
    manifest: Manifest, tensors: Sequence[TensorInfo], m: int, overlap: bool, seed: ctypes.c_uint32
) -> Values:
    """The parameters of calls with such tensors, the output last; `UnsupportedError` (GMR-U001) for an unknown one."""
    specs = (*manifest.inputs, manifest.output)
    strides = [info.strides for info in tensors]
    maps: list[Map] = []
    pointers: list[tuple[int, int]] = []
    numbers: list[tuple[int, int]] = []
    slots = slots_of(manifest.params)
    for param, offset in zip(manifest.params, slots.offsets, strict=True):
        if isinstance(param, TensorMapParam):
            info = tensors[param.tensor]
            fields = tensor_map_fields(0, specs[param.tensor], param, info.shape, info.strides)
            maps.append(Map(offset, param.tensor, fields))
        elif isinstance(param, PointerParam):
            pointers.append((offset, param.tensor))
        elif not isinstance(param, SeedParam):
            numbers.append((offset, number(param, strides, m, overlap)))
    seeds = [i for i, param in enumerate(manifest.params) if isinstance(param, SeedParam)]
    return Values(slots, maps, pointers, numbers, seeds, seed)
