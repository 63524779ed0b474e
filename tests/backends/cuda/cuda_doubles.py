"""
Stand-ins for a GPU: a driver that records what it is asked, and tensors that claim to lie on a device.

Constants and tensor-map arguments are those of the real bindings, which need no driver.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from cuda.bindings import driver as real

from gemmir.backends.cuda import driver, from_torch, recent, tensor_map, watchdog
from gemmir.manifest import Manifest, PointerParam, RowsParam, StrideParam, TensorMapParam, TensorSpec

MANIFEST = Manifest(
    name="down_proj",
    entry="k_0123456789abcdef",
    target="sm_90a",
    inputs=(
        TensorSpec("x", "f8E4M3FN", (None, 2048), (0, 1)),
        TensorSpec("w", "f8E4M3FN", (2048, 7168), (1, 0)),
        TensorSpec("xs", "f32", (None, 16), (1, 0)),
        TensorSpec("ws", "f32", (16, 56), (0, 1), free_strides=True),
        TensorSpec("bias", "bf16", (7168,), (0,)),
    ),
    output=TensorSpec("out", "bf16", (None, 7168), (0, 1)),
    params=(
        TensorMapParam(0, (128, 128), 128),
        TensorMapParam(1, (128, 128), 128),
        TensorMapParam(2, (128, 1), 16),
        PointerParam(3),
        StrideParam(3, 0),
        StrideParam(3, 1),
        PointerParam(4),
        TensorMapParam(-1, (64, 128), 128),
        RowsParam(),
    ),
    n=7168,
    k=2048,
    block_m=128,
    block_n=256,
    cluster_m=2,
    cluster_n=1,
    threads=384,
    shared_bytes=200_000,
    balanced=False,
    schedule="block = 128x256x128",
)
"""A kernel with every kind of parameter."""


@dataclass(frozen=True)
class Status:
    name: str
    value: int

    def __int__(self) -> int:
        return self.value


OK = Status("CUDA_SUCCESS", 0)
NO_CONTEXT = Status("CUDA_ERROR_INVALID_CONTEXT", 201)
OTHER_CONTEXT = Status("CUDA_ERROR_INVALID_HANDLE", 400)


@dataclass
class Launch:
    """What one launch asked for; parameters as read from the memory that was handed over."""

    function: str
    grid: int
    threads: int
    shared: int
    stream: int
    context: int
    scalars: list[int]
    overlaps: bool = False
    """Whether it may start while the kernel before it on the stream ends."""


@dataclass
class RecordingDriver:
    """`cuda.bindings.driver` as far as gemmir calls it, for one H200-like machine of `devices` GPUs."""

    devices: int = 2
    capability: tuple[int, int] = (9, 0)
    shared: int = 232_448
    sms: int = 132
    clusters: int = 60
    version: int = 13_000
    """Of CUDA, that the driver is for: 13.0."""
    free: tuple[int, int] = (5 << 30, 80 << 30)
    """Bytes of memory that are free, and all there are."""
    context: int = 0
    capturing: bool = False
    fail: dict[str, Status] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    maps: list[tuple[Any, ...]] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    """Addresses that tensor maps were given after they were encoded."""
    manifest: Manifest = MANIFEST
    """Of the kernel that is launched."""
    host: list[ctypes.Array[ctypes.c_char]] = field(default_factory=list)
    """Memory of the host that the device can write."""
    copied: list[bytes] = field(default_factory=list)
    """What was copied to the device."""

    def _done(self, call: str, *values: object) -> tuple[object, ...]:
        self.calls.append(call)
        return (self.fail.get(call, OK), *values)

    def __getattr__(self, name: str) -> object:
        if name.startswith(("CU", "cuuint")):
            return getattr(real, name)
        raise AttributeError(name)

    def cuDeviceGet(self, number: int) -> tuple[object, ...]:
        if number >= self.devices:
            return (Status("CUDA_ERROR_INVALID_DEVICE", 101), None)
        return self._done("cuDeviceGet", number)

    def cuDeviceGetName(self, length: int, device: int) -> tuple[object, ...]:
        return self._done("cuDeviceGetName", b"NVIDIA H200\0\0")

    def cuDeviceGetAttribute(self, kind: Any, device: int) -> tuple[object, ...]:
        kinds = real.CUdevice_attribute
        values = {
            kinds.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: self.sms,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: self.capability[0],
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: self.capability[1],
            kinds.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: self.shared,
        }
        return self._done("cuDeviceGetAttribute", values[kind])

    def cuDriverGetVersion(self) -> tuple[object, ...]:
        return self._done("cuDriverGetVersion", self.version)

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[object, ...]:
        return self._done("cuDevicePrimaryCtxRetain", real.CUcontext(0x1000 + device))

    def cuCtxGetCurrent(self) -> tuple[object, ...]:
        return self._done("cuCtxGetCurrent", real.CUcontext(self.context))

    def cuCtxPushCurrent(self, context: int) -> tuple[object, ...]:
        self.contexts.append(self.context)
        self.context = context
        return self._done("cuCtxPushCurrent")

    def cuCtxPopCurrent(self) -> tuple[object, ...]:
        popped, self.context = self.context, self.contexts.pop()
        return self._done("cuCtxPopCurrent", real.CUcontext(popped))

    def cuStreamIsCapturing(self, stream: int) -> tuple[object, ...]:
        status = real.CUstreamCaptureStatus
        active, none = status.CU_STREAM_CAPTURE_STATUS_ACTIVE, status.CU_STREAM_CAPTURE_STATUS_NONE
        return self._done("cuStreamIsCapturing", active if self.capturing else none)

    def cuModuleLoadData(self, cubin: bytes) -> tuple[object, ...]:
        return self._done("cuModuleLoadData", f"module in {self.context:#x}")

    def cuModuleUnload(self, module: str) -> tuple[object, ...]:
        return self._done("cuModuleUnload")

    def cuMemGetInfo(self) -> tuple[object, ...]:
        return self._done("cuMemGetInfo", *self.free) if self.context else (NO_CONTEXT, 0, 0)

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[object, ...]:
        return self._done("cuModuleGetFunction", f"{name.decode()} of {module}")

    def cuFuncSetAttribute(self, function: str, kind: Any, value: int) -> tuple[object, ...]:
        return self._done("cuFuncSetAttribute")

    def cuFuncLoad(self, function: str) -> tuple[object, ...]:
        return self._done("cuFuncLoad")

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[object, ...]:
        assert flags == real.CU_MEMHOSTALLOC_PORTABLE | real.CU_MEMHOSTALLOC_DEVICEMAP
        self.host.append(ctypes.create_string_buffer(b"\xff" * size, size))  # what was in it before is still there
        return self._done("cuMemHostAlloc", ctypes.addressof(self.host[-1]))

    def cuMemHostGetDevicePointer(self, address: int, flags: int) -> tuple[object, ...]:
        return self._done("cuMemHostGetDevicePointer", real.CUdeviceptr(address + 1))

    def cuModuleGetGlobal(self, module: str, name: bytes) -> tuple[object, ...]:
        return self._done("cuModuleGetGlobal", f"{name.decode()} of {module}", 16)

    def cuMemcpyHtoD(self, variable: str, data: bytes, size: int) -> tuple[object, ...]:
        assert len(data) == size
        self.copied.append(data)
        return self._done("cuMemcpyHtoD")

    def cuCtxSynchronize(self) -> tuple[object, ...]:
        return self._done("cuCtxSynchronize")

    def cuOccupancyMaxActiveClusters(self, function: str, config: Any) -> tuple[object, ...]:
        return self._done("cuOccupancyMaxActiveClusters", self.clusters)

    def cuTensorMapEncodeTiled(self, *arguments: Any) -> tuple[object, ...]:
        if not self.context:
            return (NO_CONTEXT, None)
        self.maps.append(arguments)
        return self._done("cuTensorMapEncodeTiled", real.CUtensorMap())

    def cuTensorMapReplaceAddress(self, packed: Any, address: int) -> tuple[object, ...]:
        if not self.context:
            return (NO_CONTEXT,)
        self.moved.append(address)
        return self._done("cuTensorMapReplaceAddress")

    def cuLaunchKernelEx(self, config: Any, function: str, parameters: int, extra: int) -> tuple[object, ...]:
        assert (config.gridDimY, config.gridDimZ, config.blockDimY, config.blockDimZ, extra) == (1, 1, 1, 1, 0)
        assert len(config.attrs) == config.numAttrs
        serialization = real.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        allowed = [a.value.programmaticStreamSerializationAllowed for a in config.attrs if a.id == serialization]
        shape = config.gridDimX, config.blockDimX, config.sharedMemBytes, int(config.hStream)
        if not function.endswith(f"{self.context:#x}"):
            self.calls.append("cuLaunchKernelEx")
            return (OTHER_CONTEXT if self.context else NO_CONTEXT,)
        launch = Launch(function, *shape, self.context, self._scalars(parameters), allowed == [1])
        return self._launched("cuLaunchKernelEx", launch)

    def _scalars(self, parameters: int) -> list[int]:
        """The parameters that are numbers, from the memory that was handed over."""
        addresses = (ctypes.c_uint64 * len(self.manifest.params)).from_address(parameters)
        return [
            (ctypes.c_int32 if isinstance(param, RowsParam) else ctypes.c_int64).from_address(address).value
            for param, address in zip(self.manifest.params, addresses, strict=True)
            if not isinstance(param, TensorMapParam)
        ]

    def _launched(self, call: str, launch: Launch) -> tuple[object, ...]:
        result = self._done(call)
        if result[0] is OK:
            self.launches.append(launch)
        return result


class DeviceTensor:
    """A tensor without data that says it lies at `address` on a device."""

    layout = torch.strided

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        address: int,
        strides: tuple[int, ...] | None = None,
        device: str = "cuda:0",
        requires_grad: bool = False,
    ):
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.device = torch.device(device)
        self.requires_grad = requires_grad
        self.filled: int | None = None
        self._address = address
        self._strides = torch.empty(shape, dtype=dtype, device="meta").stride() if strides is None else strides

    def stride(self) -> tuple[int, ...]:
        return self._strides

    def data_ptr(self) -> int:
        return self._address

    def element_size(self) -> int:
        return self.dtype.itemsize

    def zero_(self) -> "DeviceTensor":
        self.filled = 0
        return self


MIB = 1 << 20
STREAM = 0x77
RESULT = 1 << 45
"""Where new results lie, again and again."""


def tensors(m: int, device: str = "cuda:0", first: int = 1 << 40) -> list[Any]:
    """Arguments that fit `MANIFEST`, 64 MiB apart."""
    pitch = -(-m // 4) * 4
    at = [first + 64 * MIB * i for i in range(5)]
    fp8, f32 = torch.float8_e4m3fn, torch.float32
    return [
        DeviceTensor((m, 2048), fp8, at[0], device=device),
        DeviceTensor((2048, 7168), fp8, at[1], (1, 2048), device),
        DeviceTensor((m, 16), f32, at[2], (1, pitch), device),
        DeviceTensor((16, 56), f32, at[3], (1, 16), device),
        DeviceTensor((7168,), torch.bfloat16, at[4], device=device),
    ]


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch, stream: int) -> Iterator[RecordingDriver]:
    """A machine of two GPUs, with nothing known of them before; torch's current stream is `stream` and the device."""
    recording = RecordingDriver(context=0x1000)
    monkeypatch.setattr(driver, "bindings", lambda: recording)
    monkeypatch.setattr(tensor_map, "bindings", lambda: recording)
    monkeypatch.setattr(driver.fate, "refusal", None)
    monkeypatch.setattr(watchdog, "records", [])
    recent.launched.clear()
    monkeypatch.setattr(from_torch, "raw_stream", lambda: lambda device: stream + device)
    for cached in (driver.device_info, driver.primary_context):
        cached.cache_clear()
    yield recording
    for cached in (driver.device_info, driver.primary_context):
        cached.cache_clear()
