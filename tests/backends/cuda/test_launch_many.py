"""Launching on several devices and streams and by several threads, as far as it can be seen without a GPU."""

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from gemmir.backends.cuda import from_torch
from gemmir.backends.cuda.launch import Launcher
from gemmir.errors import DeviceError, InputError
from gemmir.manifest import Manifest
from tests.backends.cuda.cuda_doubles import MANIFEST, RESULT, STREAM, DeviceTensor, RecordingDriver, tensors

BF16 = torch.bfloat16


def launcher(manifest: Manifest = MANIFEST) -> Any:
    return Launcher(manifest, b"cubin")


def test_a_device_that_is_not_current(gpu: RecordingDriver):
    call = launcher()
    call(tensors(8, "cuda:1"))
    assert (gpu.launches[0].context, gpu.launches[0].stream, gpu.context) == (0x1001, STREAM + 1, 0x1000)
    assert gpu.launches[0].function.endswith("module in 0x1001")
    call(tensors(8, "cuda:0"))
    assert (gpu.launches[1].context, gpu.launches[1].stream) == (0x1000, STREAM)
    assert gpu.calls.count("cuModuleLoadData") == 2


def test_a_thread_without_a_context(gpu: RecordingDriver):
    """The driver handles no tensor map there."""
    call = launcher()
    gpu.context = 0
    for first in (1 << 40, 1 << 41):
        call(tensors(8, first=first))
        assert (gpu.launches[-1].context, gpu.context) == (0x1000, 0)


def test_threads_load_a_kernel_once(gpu: RecordingDriver):
    call = launcher()
    threads = [threading.Thread(target=call, args=(tensors(8 + i % 4),)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert gpu.calls.count("cuModuleLoadData") == 1
    assert sorted(run.scalars[-1] for run in gpu.launches) == sorted([8, 9, 10, 11] * 4)


def test_threads_that_call_several_kernels_at_once_load_each_once(gpu: RecordingDriver):
    """Each thread all kernels, in an order of its own, with an M of its own."""
    calls = [launcher(replace(MANIFEST, entry=f"k_{number}")) for number in range(4)]
    start, done = threading.Barrier(12), []

    def work(first: int) -> None:
        start.wait(30)
        for turn in range(8):
            calls[(first + turn) % 4](tensors(1 + first))
        done.append(first)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(done) == [*range(12)]
    assert gpu.calls.count("cuModuleLoadData") == 4
    found = sorted((run.function.split()[0], run.scalars[-1]) for run in gpu.launches)
    assert found == sorted((f"k_{number}", 1 + first) for number in range(4) for first in range(12) for _ in range(2))


def test_each_call_is_on_the_stream_that_is_current_then_and_waits_for_nothing(
    gpu: RecordingDriver, monkeypatch: pytest.MonkeyPatch
):
    """Torch's default stream, which is the legacy one, and others: the first call of a kernel and later ones."""
    current: list[int] = [0]
    monkeypatch.setattr(from_torch, "raw_stream", lambda: lambda device: current[0] + device)
    call, out = launcher(), DeviceTensor((100, 7168), BF16, RESULT)
    streams = [0, 0x1000, 2, 0x1000, 0, 0x2000]
    for stream in streams:
        current[0] = stream
        call(tensors(100))
        call(tensors(100), out)
    assert [run.stream for run in gpu.launches] == [stream for stream in streams for _ in range(2)]
    assert set(gpu.calls) <= WITHOUT_WAITING


WITHOUT_WAITING = {
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuCtxGetCurrent",
    "cuStreamIsCapturing",
    "cuDriverGetVersion",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuFuncLoad",
    "cuOccupancyMaxActiveClusters",
    "cuTensorMapEncodeTiled",
    "cuTensorMapReplaceAddress",
    "cuLaunchKernelEx",
}
"""Calls that wait for no work of the device."""


def test_preparing(gpu: RecordingDriver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    call = launcher()
    for device in (None, "cuda", "cuda:0", 0, torch.device("cuda", 1)):
        call.prepare(device)
    assert list(call._kernels) == [1, 0]
    assert gpu.calls.count("cuModuleLoadData") == 2
    with pytest.raises(InputError, match="GMR-I004: device cpu"):
        call.prepare("cpu")
    assert gpu.launches == []


def test_preparing_with_a_torch_that_has_no_cuda(gpu: RecordingDriver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"GMR-D001: torch .* cannot use CUDA"):
        launcher().prepare()
