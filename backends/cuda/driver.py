"""
The CUDA driver: whether there is one, what its devices are, and how kernels are loaded into them.

Nothing here is imported or called before a kernel is about to run. Every call's result goes through `checked`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

from gemmir.backends.cuda.elf import toolkit_of
from gemmir.errors import DeviceError, ForkError, OutOfMemoryError
from gemmir.records import dataclass
from gemmir.target import SM_90A, Target

_SONAME = "libcuda.so.1"
_OUT_OF_MEMORY = 2
_CAPTURE_IMPLICIT = 906
"""What the legacy stream answers while another stream of the context is being captured."""

STICKY = frozenset({214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911})
"""Errors after which this process cannot use the device any more: memory errors, faults and timeouts of kernels."""

OLDEST_TOOLKIT = (13, 0)
"""Of CUDA, that kernels are compiled with."""

_NOT_INITIALIZED = 3
"""What `cuInit` answers in a process that was forked off one that used CUDA."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A GPU: `sms` of them, `shared_bytes` of shared memory that one block may ask for."""

    name: str
    sms: int
    compute_capability: tuple[int, int]
    shared_bytes: int


class Fate:
    """Why CUDA cannot be used in this process any more, if so."""

    __slots__ = ("refusal",)

    def __init__(self) -> None:
        self.refusal: DeviceError | None = None


fate = Fate()


def driver_available() -> bool:
    """Whether there is a driver with at least one GPU. Asks once."""
    return driver_problem() is None


@cache
def driver_problem() -> str | None:
    """What keeps the driver from being used, or None."""
    try:
        library = ctypes.CDLL(_SONAME)
    except OSError:
        return f"{_SONAME} was not found: no NVIDIA driver is installed"
    if (status := library.cuInit(0)) != 0:
        if status == _NOT_INITIALIZED:
            _forked()
        return f"the driver is installed, but cuInit returned {status}" + (" (no GPU)" if status == 100 else "")
    os.register_at_fork(after_in_child=_forked)
    return None


def _forked() -> None:
    fate.refusal = ForkError(
        "GMR-D006",
        "CUDA was in use when this process was forked",
        rule="a forked process cannot use its parent's CUDA",
        fix='start processes with multiprocessing.get_context("spawn")',
    )


def refuse_if_unusable() -> None:
    """Raise if this process has lost the device, or was forked off one that used it."""
    if fate.refusal is not None:
        raise fate.refusal.with_traceback(None)


@cache
def bindings() -> Any:
    """`cuda.bindings.driver`, once there is a driver; `DeviceError` (GMR-D001), `ForkError` (GMR-D006)."""
    if (problem := driver_problem()) is not None:
        refuse_if_unusable()
        raise DeviceError(
            "GMR-D001",
            problem,
            rule=f"kernels for {SM_90A.name} run on a Hopper GPU",
            fix="install the NVIDIA driver and check nvidia-smi, or run on the reference backend",
        )
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise DeviceError(
            "GMR-D001", "cuda.bindings is not installed", fix='pip install "cuda-python>=13.3,<14"'
        ) from (error)


def checked(result: tuple[Any, ...], call: str) -> Any:
    """
    The values that the driver call `call` returned.

    `DeviceError` (GMR-D003) if it failed, `OutOfMemoryError` (GMR-D009) if for want of memory. After an error that the
    device does not recover from, `DeviceLostError` (GMR-D004 if a kernel may have made it, GMR-D010 if one hung, else
    GMR-D007), and from then on for every further use.
    """
    status, *values = result
    if int(status) == 0:
        return values[0] if len(values) == 1 else tuple(values)
    raise _error(int(status), status.name, call)


def _error(status: int, name: str, call: str) -> DeviceError:
    what = f"{call} failed: {name} ({status})"
    if status == _OUT_OF_MEMORY:
        fix = "free some: del tensors, torch.cuda.empty_cache(), or end another process"
        return OutOfMemoryError("GMR-D009", f"{what}; {free_memory()}", fix=fix)
    if status not in STICKY:
        return DeviceError("GMR-D003", what)
    from gemmir.backends.cuda.lost import lost_device

    fate.refusal = lost_device(status, what)
    return fate.refusal


@cache
def device_info(device: int) -> DeviceInfo:
    """What device number `device` (torch's numbering) is; `DeviceError` if there is none."""
    cuda = bindings()
    handle = checked(cuda.cuDeviceGet(device), "cuDeviceGet")
    kinds = cuda.CUdevice_attribute

    def attribute(kind: Any) -> int:
        return int(checked(cuda.cuDeviceGetAttribute(kind, handle), "cuDeviceGetAttribute"))

    name: bytes = checked(cuda.cuDeviceGetName(256, handle), "cuDeviceGetName")
    return DeviceInfo(
        name=name.split(b"\0")[0].decode(errors="replace"),
        sms=attribute(kinds.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
        compute_capability=(
            attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        ),
        shared_bytes=attribute(kinds.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
    )


def require_hopper(device: int, target: Target = SM_90A) -> DeviceInfo:
    """Device `device` if it runs kernels of `target`; else `DeviceError` (GMR-D001 no driver, GMR-D002 other GPU)."""
    info = device_info(device)
    if info.compute_capability == target.compute_capability:
        return info
    major, minor = info.compute_capability
    raise DeviceError(
        "GMR-D002",
        f"device {device} is {info.name}, sm_{major}{minor}",
        rule=f"a kernel for {target.name} runs on compute capability "
        f"{target.compute_capability[0]}.{target.compute_capability[1]} and no other",
        fix="use an H100, H200, H800 or GH200, or the reference backend",
    )


@cache
def primary_context(device: int) -> int:
    """The context of `device` that torch uses too. Kept until the process ends."""
    cuda = bindings()
    handle = checked(cuda.cuDeviceGet(device), "cuDeviceGet")
    return int(checked(cuda.cuDevicePrimaryCtxRetain(handle), "cuDevicePrimaryCtxRetain"))


def current_context() -> int:
    """The calling thread's context, 0 if it has none."""
    return int(checked(bindings().cuCtxGetCurrent(), "cuCtxGetCurrent"))


@contextmanager
def in_context(context: int) -> Generator[None]:
    """Make `context` the calling thread's inside the `with` block, and restore what was there."""
    if current_context() == context:
        yield
        return
    cuda = bindings()
    checked(cuda.cuCtxPushCurrent(context), "cuCtxPushCurrent")
    try:
        yield
    finally:
        checked(cuda.cuCtxPopCurrent(), "cuCtxPopCurrent")


def free_memory(context: int | None = None) -> str:
    """How much memory the device of `context` (None: the current one) has left, in words."""
    cuda = bindings()
    with in_context(context) if context is not None else nullcontext():
        status, free, total = cuda.cuMemGetInfo()
    if int(status) in STICKY:
        checked((status,), "cuMemGetInfo")
    return "nobody knows how many are free" if int(status) else f"{free} of {total} bytes are free"


def is_capturing(stream: int) -> bool:
    """Whether work on `stream` is being captured into a graph."""
    cuda = bindings()
    status, capture = cuda.cuStreamIsCapturing(stream)
    if int(status) == _CAPTURE_IMPLICIT:
        return True
    checked((status, capture), "cuStreamIsCapturing")
    return int(capture) != int(cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)


def version() -> tuple[int, int]:
    """The version of CUDA that the driver is for, e.g. (13, 0)."""
    number = int(checked(bindings().cuDriverGetVersion(), "cuDriverGetVersion"))
    return number // 1000, number % 1000 // 10


def load(cubin: bytes) -> Any:
    """
    Load `cubin` into the current context; the module's handle. Never during capture.

    `DeviceError`: GMR-D008, before anything is loaded, if the driver is for an older major version of CUDA than the
    tools that made it; GMR-D003 if the driver does not take it for another reason.
    """
    found, made_by = version(), toolkit_of(cubin) or OLDEST_TOOLKIT
    both = "the driver is for CUDA {}.{}, the kernel was compiled by NVRTC {}.{}".format(*found, *made_by)
    if found[0] < made_by[0]:
        raise DeviceError(
            "GMR-D008",
            both,
            rule="a driver loads machine code of its own major version of CUDA, and of older ones",
            fix="update the NVIDIA driver (CUDA 13 needs R580 or newer), or install cuda-compat-{}-{}".format(*made_by),
        )
    result = bindings().cuModuleLoadData(cubin)
    if int(result[0]) in (0, _OUT_OF_MEMORY) or int(result[0]) in STICKY:
        return checked(result, f"cuModuleLoadData of {len(cubin)} bytes")
    raise DeviceError(
        "GMR-D003",
        f"cuModuleLoadData failed: {result[0].name} ({int(result[0])}); {both}",
        fix="update the NVIDIA driver",
    )


@contextmanager
def loaded(cubin: bytes) -> Generator[Any]:
    """The module of `cubin`, as by `load`; it is unloaded again if the `with` block fails."""
    module = load(cubin)
    try:
        yield module
    except DeviceError:
        bindings().cuModuleUnload(module)
        raise


def function(module: Any, name: str, shared_bytes: int) -> Any:
    """The kernel `name` of `module`, loaded and allowed `shared_bytes` of dynamic shared memory."""
    cuda = bindings()
    handle = checked(cuda.cuModuleGetFunction(module, name.encode("ascii")), "cuModuleGetFunction")
    kind = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    checked(cuda.cuFuncSetAttribute(handle, kind, shared_bytes), "cuFuncSetAttribute")
    # Modules load lazily: without this, the first launch would load the code, and fail if it is being captured.
    checked(cuda.cuFuncLoad(handle), "cuFuncLoad")
    return handle


def resident_clusters(handle: Any, threads: int, shared_bytes: int, cluster: int, sms: int) -> int:
    """
    How many clusters of `cluster` CTAs run at once on `sms` SMs.

    GPCs whose number of SMs the cluster does not divide leave some idle, so the driver is asked. The cluster's shape is
    compiled into the kernel. A lone CTA has an SM to itself.
    """
    if cluster == 1:
        return sms
    cuda = bindings()
    config = cuda.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = cluster * sms, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = shared_bytes
    count = int(checked(cuda.cuOccupancyMaxActiveClusters(handle, config), "cuOccupancyMaxActiveClusters"))
    if count > 0:
        return count
    raise DeviceError(
        "GMR-D002",
        f"no cluster of {cluster} CTAs with {shared_bytes} bytes of shared memory each fits this device of {sms} SMs",
        rule="the CTAs of a cluster run at once on neighbouring SMs",
        fix="use cluster = 1x1 and split_k = 1, fewer stages, or a whole GPU",
    )
