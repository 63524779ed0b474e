"""
Launching a kernel on torch's current stream.

The first call with a kind of tensors checks them, encodes tensor maps and packs parameters; a later call with the
same tensors finds all that by their addresses and only launches.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from gemmir.backends.cuda import driver
from gemmir.backends.cuda.arguments import (
    OUTPUT,
    TensorInfo,
    check_arguments,
    check_output,
    describe,
    refuse_gradient,
)
from gemmir.backends.cuda.tensor_map import TensorMapFields, encode, tensor_map_fields
from gemmir.dtypes import DTYPES
from gemmir.errors import CaptureError, DeviceError, InputError, UnsupportedError
from gemmir.manifest import (
    Manifest,
    OverlapsParam,
    Param,
    PointerParam,
    RowsParam,
    SeedParam,
    StrideParam,
    TensorMapParam,
)
from gemmir.problem import Grouping
from gemmir.target import balanced_clusters, find_target

if TYPE_CHECKING:
    import torch

MAX_PLANS = 256
"""Plans and tensor maps that a kernel remembers; the oldest goes first."""

MAX_OUTPUTS = 16
"""Output addresses that a plan remembers."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in a device's context. `clusters`: how many run there at once."""

    function: Any
    module: Any
    context: int
    clusters: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A kernel's parameters: `address` of the array of their addresses. `keep` owns the memory."""

    address: int
    keep: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What is known of a call once its inputs are: M, the kernel and the grid (CTAs).

    `kernel` is None where there is nothing to compute. `outputs` holds packed parameters by output, `overlapping` those
    of launches that overlap with the kernel before.
    """

    m: int
    inputs: tuple[TensorInfo, ...]
    device: torch.device
    kernel: Kernel | None
    grid: int
    outputs: dict[object, Packed] = field(default_factory=dict[object, Packed])
    overlapping: dict[object, Packed] = field(default_factory=dict[object, Packed])


def grid_size(manifest: Manifest, m: int, resident_clusters: int) -> int:
    """
    CTAs to launch: persistent clusters, as many as run at once, but no more than there are tiles or rounds need.

    The tiles of groups are counted on the device; here, the most that there can be.
    """
    tiles = manifest.most_cluster_tiles(m)
    alone = manifest.grouping == Grouping.NONE.value
    if manifest.balanced and alone:
        clusters = balanced_clusters(tiles, resident_clusters)
    else:  # a kernel of several groups counts its tiles, and balances them, itself
        clusters = min(resident_clusters, tiles)
    return clusters * manifest.cluster_ctas


class Launcher:
    """
    A compiled kernel that can be called with torch tensors. One serves every M, device, stream and thread.

    `manifest` says what the kernel takes, `cubin` is its machine code. Making one touches no GPU.
    """

    def __init__(self, manifest: Manifest, cubin: bytes):
        self.manifest = manifest
        self.seed = ctypes.c_uint32(0)
        """Of the delays of a kernel under chaos; read at each launch."""
        self._cubin = cubin
        self._names = tuple(spec.name for spec in manifest.inputs)
        self._lock = threading.Lock()
        self._kernels: dict[int, Kernel] = {}
        self._plans: dict[object, Plan] = {}
        self._maps: dict[TensorMapFields, Any] = {}

    def __call__(
        self, tensors: Sequence[torch.Tensor], out: torch.Tensor | None = None, overlap: bool = False
    ) -> torch.Tensor:
        """
        The product of `tensors` (in the order of `manifest.inputs`), in `out` or in a new tensor.

        `overlap`: start while the kernel before on the stream ends, if this one waits for it by itself.

        Asynchronous, on torch's current stream of the tensors' device. `InputError` if the tensors do not fit (see
        `check_arguments` and `check_output`), `DeviceError` if they cannot be computed on.
        """
        driver.refuse_if_unusable()
        plan = self._plan(tensors)
        if plan.kernel is None:
            return self._sums_of_nothing(plan, tensors, out)
        overlap = overlap and self.manifest.waits
        known = plan.overlapping if overlap else plan.outputs
        if out is None:
            out = self._empty(plan)
            packed = known.get(out.data_ptr()) or self._pack_output(plan, out, out.data_ptr(), overlap)
        else:
            key = _key((out,), ("out",))
            packed = known.get(key) or self._pack_output(plan, out, key, overlap)
        self._launch(plan.kernel, plan.grid, packed, _stream(plan.device.index), overlap)
        return out

    def prepare(self, device: torch.device | str | int | None = None) -> None:
        """
        Load the kernel into `device` (None: torch's current one) now, not in the first call.

        Needed before a first call inside CUDA graph capture, where nothing can be loaded. `DeviceError` if there is no
        driver (GMR-D001) or another GPU (GMR-D002), `CaptureError` if a capture is going on (GMR-D005).
        """
        driver.refuse_if_unusable()
        driver.bindings()
        self._kernel(_device_index(device))

    def _plan(self, tensors: Sequence[torch.Tensor]) -> Plan:
        key = _key(tensors, self._names)
        if (plan := self._plans.get(key)) is not None:
            return plan
        infos = _describe_all(tensors, self._names)
        m = _check(self.manifest, infos)
        kernel, grid = None, 0
        if m > 0 and self.manifest.n > 0 and self.manifest.k > 0:
            kernel = self._kernel(infos[0].device_index)
            grid = grid_size(self.manifest, m, kernel.clusters)
        plan = Plan(m, infos, tensors[0].device, kernel, grid)
        with self._lock:
            _remember(self._plans, key, plan, MAX_PLANS)
        return plan

    def _kernel(self, device: int) -> Kernel:
        """The kernel in device number `device`, loaded if this is the first time."""
        if (kernel := self._kernels.get(device)) is not None:
            return kernel
        with self._lock:
            if (kernel := self._kernels.get(device)) is None:
                kernel = self._kernels[device] = self._load(device)
        return kernel

    def _load(self, device: int) -> Kernel:
        manifest = self.manifest
        info = driver.require_hopper(device, find_target(manifest.target))
        if manifest.shared_bytes > info.shared_bytes:
            raise DeviceError(
                "GMR-D002",
                f"the kernel needs {manifest.shared_bytes} bytes of shared memory, {info.name} has {info.shared_bytes}",
                fix="compile with fewer stages, or use a whole GPU",
            )
        context = driver.primary_context(device)
        with driver.in_context(context):
            if driver.is_capturing(_stream(device)):
                raise CaptureError(
                    "GMR-D005",
                    "the kernel is called for the first time while a CUDA graph is being captured",
                    rule="kernels cannot be loaded during capture",
                    fix="call kernel.prepare() before the capture",
                )
            module = driver.load(self._cubin)
            function = driver.function(module, manifest.entry, manifest.shared_bytes)
            shape = manifest.threads, manifest.shared_bytes, manifest.cluster_ctas
            clusters = driver.resident_clusters(function, *shape, info.sms)
        return Kernel(function, module, context, clusters)

    def _empty(self, plan: Plan) -> torch.Tensor:
        """New memory for the result. Rows that belong to no group keep what it held."""
        spec = self.manifest.output
        shape = [plan.m if extent is None else extent for extent in spec.shape]
        return _torch().empty(shape, dtype=_dtype(spec.dtype), device=plan.device)

    def _sums_of_nothing(self, plan: Plan, tensors: Sequence[torch.Tensor], out: torch.Tensor | None) -> torch.Tensor:
        """The result where there are no products to add up, or no elements at all: zeros, or C."""
        if out is None:
            out = self._empty(plan)
        else:
            check_output(self.manifest, _describe(out, "out"), plan.m, plan.inputs)
        params = (p for p in self.manifest.params if isinstance(p, TensorMapParam) and p.addend)
        addend = next((tensors[p.tensor] for p in params), None)
        return out.zero_() if addend is None else out.copy_(addend.float() + 0.0)

    def _pack_output(self, plan: Plan, out: torch.Tensor, key: object, overlap: bool) -> Packed:
        info = _describe(out, "out")
        check_output(self.manifest, info, plan.m, plan.inputs)
        assert plan.kernel is not None
        # A tensor map is encoded in a context, and a thread that has made no CUDA call yet has none.
        with driver.in_context(plan.kernel.context):
            packed = self._pack(plan, info, overlap)
        with self._lock:
            _remember(plan.overlapping if overlap else plan.outputs, key, packed, MAX_OUTPUTS)
        return packed

    def _pack(self, plan: Plan, out: TensorInfo, overlap: bool) -> Packed:
        """Every parameter in memory of its own, and the array of their addresses that the driver takes."""
        values: list[Any] = []
        addresses: list[int] = []
        for param in self.manifest.params:
            if isinstance(param, TensorMapParam):
                values.append(self._map(param, _tensor_of(param, plan, out)))
                addresses.append(int(values[-1].getPtr()))
                continue
            values.append(self.seed if isinstance(param, SeedParam) else _scalar(param, plan, out, overlap))
            addresses.append(ctypes.addressof(values[-1]))
        array = (ctypes.c_void_p * len(addresses))(*addresses)
        return Packed(ctypes.addressof(array), (array, *values))

    def _map(self, param: TensorMapParam, info: TensorInfo) -> Any:
        spec = self.manifest.output if param.tensor == OUTPUT else self.manifest.inputs[param.tensor]
        fields = tensor_map_fields(info.address, spec, param, info.shape, info.strides)
        if (packed := self._maps.get(fields)) is None:
            packed = encode(fields)
            with self._lock:
                _remember(self._maps, fields, packed, MAX_PLANS)
        return packed

    def _launch(self, kernel: Kernel, grid: int, packed: Packed, stream: int, overlap: bool) -> None:
        # A thread that has made no CUDA call yet has no context, and the tensors may be on another device.
        if driver.current_context() != kernel.context:
            with driver.in_context(kernel.context):
                self._launch_here(kernel, grid, packed, stream, overlap)
            return
        self._launch_here(kernel, grid, packed, stream, overlap)

    def _launch_here(self, kernel: Kernel, grid: int, packed: Packed, stream: int, overlap: bool) -> None:
        threads, shared = self.manifest.threads, self.manifest.shared_bytes
        if overlap:
            return driver.launch_overlapping(kernel.function, (grid, threads, shared), stream, packed.address)
        launched = driver.bindings().cuLaunchKernel(
            kernel.function, grid, 1, 1, threads, 1, 1, shared, stream, packed.address, 0
        )
        driver.checked(launched, "cuLaunchKernel")


def _tensor_of(param: TensorMapParam | PointerParam | StrideParam, plan: Plan, out: TensorInfo) -> TensorInfo:
    return out if param.tensor == OUTPUT else plan.inputs[param.tensor]


def _scalar(param: Param, plan: Plan, out: TensorInfo, overlap: bool) -> Any:
    """A parameter other than a tensor map, as the C type that the kernel declares."""
    if isinstance(param, PointerParam):
        return ctypes.c_uint64(_tensor_of(param, plan, out).address)
    if isinstance(param, StrideParam):
        return ctypes.c_int64(_tensor_of(param, plan, out).strides[param.dimension])
    if isinstance(param, RowsParam):
        return ctypes.c_int32(plan.m)
    if isinstance(param, OverlapsParam):
        return ctypes.c_int32(overlap)
    raise UnsupportedError("GMR-U001", f"a kernel parameter of kind {param.kind!r}", rule="the launcher must know it")


def _key(tensors: Sequence[torch.Tensor], names: Sequence[str]) -> tuple[object, ...]:
    """Everything about tensors that a plan depends on; `InputError` if they are none."""
    tracked = _torch().is_grad_enabled()
    try:
        return tuple(
            [(t.data_ptr(), t.shape, t.stride(), t.dtype, t.device, tracked and t.requires_grad) for t in tensors]
        )
    except (AttributeError, TypeError, RuntimeError):
        _describe_all(tensors, names)
        raise


def _describe_all(tensors: Sequence[torch.Tensor], names: Sequence[str]) -> tuple[TensorInfo, ...]:
    surplus = [f"argument {i}" for i in range(len(names), len(tensors))]
    return tuple(_describe(tensor, name) for tensor, name in zip(tensors, [*names, *surplus], strict=False))


def _check(manifest: Manifest, infos: Sequence[TensorInfo]) -> int:
    try:
        return check_arguments(manifest, infos)
    except InputError as error:
        if error.code == "GMR-I004":
            driver.bindings()  # where there is no driver, that is the better answer to tensors on the CPU
        raise


def _describe(tensor: torch.Tensor, name: str) -> TensorInfo:
    info = describe(tensor, name)
    if tensor.requires_grad and _torch().is_grad_enabled():
        raise refuse_gradient(name)
    return info


def _remember(table: dict[Any, Any], key: object, value: object, limit: int) -> None:
    """Add to a table of bounded size; a lookup needs no lock."""
    while len(table) >= limit:
        del table[next(iter(table))]
    table[key] = value


@cache
def _torch() -> Any:
    import torch

    return torch


@cache
def _dtype(name: str) -> Any:
    return getattr(_torch(), DTYPES[name].torch_name)


@cache
def _raw_stream() -> Any:
    """Torch's getter of a device's current stream as an integer, without building a Stream object around it."""
    torch = _torch()
    if (getter := getattr(torch._C, "_cuda_getCurrentRawStream", None)) is not None:
        return getter
    return lambda device: torch.cuda.current_stream(device).cuda_stream  # pyright: ignore[reportUnknownLambdaType]


def _stream(device: int) -> int:
    return _raw_stream()(device)


def _device_index(device: torch.device | str | int | None) -> int:
    """Number of a CUDA device that torch can use; None is its current one."""
    torch = _torch()
    if not torch.cuda.is_available():
        raise DeviceError("GMR-D001", f"torch {torch.__version__} cannot use CUDA", fix="install torch with CUDA")
    torch.cuda.init()
    if device is None:
        return torch.cuda.current_device()
    if isinstance(device, int):
        return device
    wanted = torch.device(device)
    if wanted.type != "cuda":
        raise InputError("GMR-I004", f"device {wanted}", rule="kernels run on CUDA devices", fix="use 'cuda'")
    return torch.cuda.current_device() if wanted.index is None else wanted.index
