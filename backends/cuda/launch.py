"""
Launching a kernel on torch's current stream.

The first call with tensors of some kind checks them, loads the kernel and encodes tensor maps; what comes of that is a
plan (see `gemmir.backends.cuda.plan`), and later calls only launch.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from gemmir.backends.cuda import driver, from_torch, watchdog
from gemmir.backends.cuda.arguments import (
    TensorInfo,
    check_arguments,
    check_output,
    describe,
    refuse_gradient,
)
from gemmir.backends.cuda.plan import Kernel, Plan, SumsOfNothing, values_of
from gemmir.calls import Calls, Options, Ready, remember
from gemmir.dtypes import DTYPES
from gemmir.errors import CaptureError, DeviceError, InputError
from gemmir.guards import Facts, guard
from gemmir.manifest import Manifest, TensorMapParam
from gemmir.sm_limit import limit
from gemmir.target import find_target

if TYPE_CHECKING:
    import torch

MAX_PLANS = 256
"""Plans that a kernel remembers; the oldest goes first."""


def grid_size(manifest: Manifest, m: int, resident_clusters: int) -> int:
    """
    CTAs to launch: persistent clusters, as many as run at once, but no more than there are tiles or rounds need.

    The tiles of groups are counted on the device; here, the most that there can be.
    """
    return manifest.grid_rule.ctas(m, resident_clusters)


class Launcher:
    """
    A compiled kernel that can be called with torch tensors. One serves every M, device, stream and thread.

    `manifest` says what the kernel takes, `cubin` is its machine code, `source` the CUDA C++ that this was made of, by
    which the reports of its watchdog are read. `key` is its key in the cache, for people. Making one touches no GPU.
    """

    def __init__(self, manifest: Manifest, cubin: bytes, source: str = "", key: str = ""):
        self.manifest = manifest
        self.seed = ctypes.c_uint32(0)
        """Of the delays of a kernel under chaos; read at each launch."""
        self.key = key
        self._cubin = cubin
        self._source = source
        self._names = tuple(spec.name for spec in manifest.inputs)
        self._lock = threading.Lock()
        self._kernels: dict[int, Kernel] = {}
        self._plans: OrderedDict[object, Plan] = OrderedDict()
        self._calls = Calls(self._resolve)

    def __call__(
        self, tensors: Sequence[torch.Tensor], out: torch.Tensor | None = None, overlap: bool = False
    ) -> torch.Tensor:
        """
        The product of `tensors` (in the order of `manifest.inputs`), in `out` or in a new tensor.

        `overlap`: start while the kernel before on the stream ends, if this one waits for it by itself.

        Asynchronous, on torch's current stream of the tensors' device. `InputError` if the tensors do not fit (see
        `check_arguments` and `check_output`), `DeviceError` if they cannot be computed on.
        """
        if out is None:
            return self._calls.call(tensors, (False, overlap, limit.sms))
        return self._calls.call([*tensors, out], (True, overlap, limit.sms))

    def _resolve(self, tensors: Sequence[torch.Tensor], options: Options, facts: Facts | None) -> Ready:
        given, overlap, _ = options
        return self.ready(tensors, bool(given), bool(overlap), facts)

    def ready(self, tensors: Sequence[torch.Tensor], given: bool, overlap: bool, facts: Facts | None) -> Ready:
        """
        What makes this call, checked and packed; errors as for a call.

        `given`: the last tensor is the output. `facts` are those of `tensors`, or None if they have none.
        """
        driver.refuse_if_unusable()
        overlap = overlap and self.manifest.waits
        key = (facts, given, overlap, limit.sms)
        plan = None if facts is None else self._plans.get(key)
        if plan is not None and plan.fits_at(addresses := [tensor.data_ptr() for tensor in tensors]):
            return plan.ready(addresses, given)
        m, infos = self._checked(tensors, given)
        assert facts is not None, "what can be described has facts"
        accepts = guard(tensors, facts)
        if 0 in (m, self.manifest.n, self.manifest.k):
            return SumsOfNothing(accepts, self._addend(), None if given else infos[-1], tensors[0].device)
        if plan is None:
            kernel = self._kernel(infos[0].device_index)
            grid = grid_size(self.manifest, m, self._resident(kernel))
            values = values_of(self.manifest, infos, m, overlap, self.seed)
            plan = Plan(self.manifest, kernel, grid, infos, tensors[0].device, overlap, accepts, values, self.key)
            with self._lock:
                remember(self._plans, key, plan, MAX_PLANS)
        return plan.ready([info.address for info in infos][: len(tensors)], given)

    def _resident(self, kernel: Kernel) -> int:
        """Clusters that may run at once."""
        if limit.sms is None:
            return kernel.clusters
        return max(1, min(kernel.clusters, limit.sms // self.manifest.cluster_ctas))

    def prepare(self, device: torch.device | str | int | None = None) -> None:
        """
        Load the kernel into `device` (None: torch's current one) now, not in the first call.

        Needed before a first call inside CUDA graph capture, where nothing can be loaded. `DeviceError` if there is no
        driver (GMR-D001) or another GPU (GMR-D002), `CaptureError` if a capture is going on (GMR-D005).
        """
        driver.refuse_if_unusable()
        driver.bindings()
        self._kernel(from_torch.device_index(device))

    def _checked(self, tensors: Sequence[torch.Tensor], given: bool) -> tuple[int, tuple[TensorInfo, ...]]:
        """M, and the tensors that were passed with the output last; what is wrong with them is raised."""
        infos = _describe_all(tensors[:-1] if given else tensors, self._names)
        m = _check(self.manifest, infos)
        if not given:
            return m, (*infos, _new_output(self.manifest, m, infos[0]))
        out = _describe(tensors[-1], "out")
        check_output(self.manifest, out, m, infos)
        return m, (*infos, out)

    def _addend(self) -> int | None:
        params = (p for p in self.manifest.params if isinstance(p, TensorMapParam) and p.addend)
        return next((p.tensor for p in params), None)

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
                rule="a CTA's shared memory is that of one SM of this device",
                fix="compile with fewer stages, or use a whole GPU",
            )
        context = driver.primary_context(device)
        with driver.in_context(context):
            if driver.is_capturing(from_torch.raw_stream()(device)):
                raise CaptureError(
                    "GMR-D005",
                    "the kernel is called for the first time while a CUDA graph is being captured",
                    rule="kernels cannot be loaded during capture",
                    fix="call kernel.prepare(), gemmir.prepare(...) or the product itself, once, before the capture",
                )
            shape = manifest.threads, manifest.shared_bytes, manifest.cluster_ctas
            with driver.loaded(self._cubin) as module:
                if (watched := watchdog.watched(self._source)) is not None:
                    watchdog.attach(module, f"{manifest.name} ({manifest.entry})", watched)
                function = driver.function(module, manifest.entry, manifest.shared_bytes)
                clusters = driver.resident_clusters(function, *shape, info.sms)
        return Kernel(function, module, context, clusters)


def _new_output(manifest: Manifest, m: int, beside: TensorInfo) -> TensorInfo:
    """An output that is not there yet: dense, row by row, on the device of the inputs."""
    spec = manifest.output
    shape = tuple(m if extent is None else extent for extent in spec.shape)
    strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    where = beside.device_type, beside.device_index
    return TensorInfo("out", spec.dtype, shape, strides, *where, address=0, item_bytes=DTYPES[spec.dtype].bytes)


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
    import torch

    info = describe(tensor, name)
    if tensor.requires_grad and torch.is_grad_enabled():
        raise refuse_gradient(name)
    return info
