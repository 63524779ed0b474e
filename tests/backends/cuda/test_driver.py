"""What is said without a driver, about other GPUs, and after errors."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmir.backends.cuda import driver
from gemmir.errors import DeviceError, DeviceLostError, ForkError, OutOfMemoryError
from tests.backends.cuda.cuda_doubles import OK, RecordingDriver, Status

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what was asked of the driver, before and after."""
    forget()
    monkeypatch.setattr(driver.fate, "refusal", None)
    yield
    forget()


def forget() -> None:
    for cached in (driver.device_info, driver.primary_context):
        cached.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> RecordingDriver:
    recording = RecordingDriver()
    monkeypatch.setattr(driver, "bindings", lambda: recording)
    return recording


class Library:
    """libcuda as far as `driver_problem` calls it."""

    def __init__(self, status: int):
        self.status = status

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self.status


def problem_with(monkeypatch: pytest.MonkeyPatch, library: object) -> str | None:
    def load(name: str) -> object:
        assert name == "libcuda.so.1"
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(driver.ctypes, "CDLL", load)
    monkeypatch.setattr(driver.os, "register_at_fork", lambda after_in_child: None)
    return driver.driver_problem.__wrapped__()


def test_there_is_no_driver(monkeypatch: pytest.MonkeyPatch):
    assert problem_with(monkeypatch, OSError("not found")) == (
        "libcuda.so.1 was not found: no NVIDIA driver is installed"
    )


def test_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch):
    assert problem_with(monkeypatch, Library(100)) == "the driver is installed, but cuInit returned 100 (no GPU)"
    assert problem_with(monkeypatch, Library(803)) == "the driver is installed, but cuInit returned 803"


def test_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch):
    assert problem_with(monkeypatch, Library(0)) is None


def test_the_error_without_a_driver(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver, "driver_problem", lambda: "libcuda.so.1 was not found")
    driver.bindings.cache_clear()
    assert driver.driver_available() is False
    for call in (driver.bindings, lambda: driver.require_hopper(0), lambda: driver.load(b"")):
        with pytest.raises(DeviceError) as error:
            call()
        assert error.value.code == "GMR-D001"
        assert error.value.what == "libcuda.so.1 was not found"
        assert "nvidia-smi" in (error.value.fix or "")


def test_importing_touches_nothing():
    program = (
        "import sys\nfrom gemmir.backends.cuda import driver, launch, arguments, tensor_map, compiler_log, sass\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('cuda', 'torch', 'numpy', 'xdsl')))\n"
        "print(any('libcuda' in line for line in open('/proc/self/maps')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]


# ------------------------------------------------------------ devices


def test_a_hopper_gpu(gpu: RecordingDriver):
    info = driver.require_hopper(0)
    assert info == driver.DeviceInfo("NVIDIA H200", 132, (9, 0), 232_448)
    assert driver.require_hopper(0) is info
    assert gpu.calls.count("cuDeviceGetName") == 1


def test_another_gpu(gpu: RecordingDriver):
    gpu.capability = (8, 0)
    with pytest.raises(DeviceError) as error:
        driver.require_hopper(1)
    assert (error.value.code, error.value.what) == ("GMR-D002", "device 1 is NVIDIA H200, sm_80")
    assert "compute capability 9.0" in (error.value.rule or "")


def test_a_device_that_does_not_exist(gpu: RecordingDriver):
    with pytest.raises(DeviceError, match=r"GMR-D003: cuDeviceGet failed: CUDA_ERROR_INVALID_DEVICE \(101\)"):
        driver.require_hopper(7)


# ------------------------------------------------------------ results


def test_results():
    assert driver.checked((OK,), "f") == ()
    assert driver.checked((OK, 3), "f") == 3
    assert driver.checked((OK, 3, 4), "f") == (3, 4)


def test_an_error_that_passes():
    with pytest.raises(DeviceError, match=r"GMR-D003: cuLaunchKernel failed: CUDA_ERROR_INVALID_VALUE \(1\)"):
        driver.checked((Status("CUDA_ERROR_INVALID_VALUE", 1), None), "cuLaunchKernel")
    driver.refuse_if_unusable()


@pytest.mark.parametrize("value", sorted(driver.STICKY))
def test_an_error_that_stays(value: int):
    code = "GMR-D007" if value in (214, 220, 226, 709, 810, 911) else "GMR-D004"
    with pytest.raises(DeviceLostError, match=rf"{code}: cuLaunchKernel failed: CUDA_ERROR \({value}\)") as error:
        driver.checked((Status("CUDA_ERROR", value),), "cuLaunchKernel")
    assert ("compute-sanitizer" in str(error.value)) == (code == "GMR-D004")
    for _ in range(2):
        with pytest.raises(DeviceLostError, match=code):
            driver.refuse_if_unusable()


def test_which_errors_stay():
    """Those after which, as CUDA documents it, the process must be restarted, and faults of memory and links."""
    from cuda.bindings.driver import CUresult

    documented = {int(e) for e in CUresult if "terminated and relaunched" in " ".join((e.__doc__ or "").split())}
    assert documented <= driver.STICKY
    assert {CUresult(value).name for value in driver.STICKY - documented} == {
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        "CUDA_ERROR_CONTEXT_IS_DESTROYED",
        "CUDA_ERROR_ASSERT",
    }


def test_cuda_that_the_parent_used_without_gemmir(monkeypatch: pytest.MonkeyPatch):
    """`cuInit` answers so in a forked process; the hook was never registered."""
    assert problem_with(monkeypatch, Library(3)) == "the driver is installed, but cuInit returned 3"
    monkeypatch.setattr(driver, "driver_problem", lambda: "cuInit returned 3")
    driver.bindings.cache_clear()
    for _ in range(2):
        with pytest.raises(ForkError, match=r"GMR-D006.*forked"):
            driver.bindings()


def test_after_a_fork(monkeypatch: pytest.MonkeyPatch):
    hooks: list[object] = []
    monkeypatch.setattr(driver.ctypes, "CDLL", lambda name: Library(0))
    monkeypatch.setattr(os, "register_at_fork", lambda after_in_child: hooks.append(after_in_child))
    driver.driver_problem.__wrapped__()
    (hook,) = hooks
    assert callable(hook)
    hook()
    with pytest.raises(ForkError, match=r"GMR-D006.*forked"):
        driver.refuse_if_unusable()


# ------------------------------------------------------------ contexts, modules, functions


def test_contexts_are_restored(gpu: RecordingDriver):
    gpu.context = 0x5
    context = driver.primary_context(1)
    assert context == 0x1001
    with driver.in_context(context):
        assert driver.current_context() == 0x1001
        with driver.in_context(context):
            assert gpu.contexts == [0x5]
    assert gpu.context == 0x5
    with pytest.raises(KeyError), driver.in_context(context):
        raise KeyError
    assert (gpu.context, gpu.contexts) == (0x5, [])


def test_the_primary_context_is_retained_once(gpu: RecordingDriver):
    assert [driver.primary_context(d) for d in (0, 1, 0)] == [0x1000, 0x1001, 0x1000]
    assert gpu.calls.count("cuDevicePrimaryCtxRetain") == 2


def test_loading(gpu: RecordingDriver):
    module = driver.load(b"cubin")
    assert driver.function(module, "k_0", 1000) == "k_0 of module in 0x0"
    asked = ["cuDriverGetVersion", "cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuFuncLoad"]
    assert gpu.calls == asked


def cubin_of(release: str) -> bytes:
    return b"\x7fELF" + f"Cuda compilation tools, release {release}, V{release}.88".encode() + b"\0.text"


def test_a_cubin_that_the_driver_does_not_take(gpu: RecordingDriver):
    gpu.fail["cuModuleLoadData"] = Status("CUDA_ERROR_INVALID_IMAGE", 200)
    what = r"GMR-D003: cuModuleLoadData failed: CUDA_ERROR_INVALID_IMAGE \(200\); the driver is for CUDA 13\.0, the "
    with pytest.raises(DeviceError, match=what + r"kernel was compiled by NVRTC 13\.5"):
        driver.load(cubin_of("13.5"))


@pytest.mark.parametrize(
    ("version", "release", "takes"),
    [
        (12_080, "13.0", False),
        (12_090, "13.5", False),
        (13_000, "13.5", True),  # minor versions of one major one are compatible
        (13_020, "13.0", True),
        (14_000, "13.5", True),
        (13_030, "14.1", False),
        (12_090, "", False),  # a cubin that does not say: none is older than 13.0
        (13_000, "", True),
    ],
)
def test_a_driver_that_is_too_old(gpu: RecordingDriver, version: int, release: str, takes: bool):
    """Said with both versions, and before the driver is given anything."""
    gpu.version = version
    cubin = cubin_of(release) if release else b"cubin"
    if takes:
        driver.load(cubin)
        return
    both = f"the driver is for CUDA {version // 1000}.{version % 1000 // 10}, the kernel was compiled by NVRTC "
    with pytest.raises(DeviceError, match=re.escape(f"GMR-D008: {both}{release or '13.0'}\n")) as error:
        driver.load(cubin)
    assert "update the NVIDIA driver" in (error.value.fix or "")
    assert gpu.calls == ["cuDriverGetVersion"]


@pytest.mark.parametrize("call", ["cuModuleLoadData", "cuFuncLoad", "cuDevicePrimaryCtxRetain"])
def test_no_memory_in_the_driver(gpu: RecordingDriver, call: str):
    gpu.context = 0x1000
    gpu.fail[call] = Status("CUDA_ERROR_OUT_OF_MEMORY", 2)
    with pytest.raises(OutOfMemoryError, match=rf"GMR-D009: {call}.* failed.*; {5 << 30} of {80 << 30} bytes are free"):
        driver.function(driver.load(b"cubin"), "k_0", 1000), driver.primary_context(0)
    driver.refuse_if_unusable()
    gpu.fail = {"cuMemGetInfo": Status("CUDA_ERROR_INVALID_CONTEXT", 201)}
    assert driver.free_memory() == "nobody knows how many are free"
    gpu.fail = {"cuMemGetInfo": Status("CUDA_ERROR_ILLEGAL_ADDRESS", 700)}
    with pytest.raises(DeviceLostError, match="GMR-D004: cuMemGetInfo"):
        driver.free_memory()


@pytest.mark.parametrize("call", ["cuModuleGetFunction", "cuFuncSetAttribute", "cuFuncLoad"])
def test_a_function_that_cannot_be_loaded(gpu: RecordingDriver, call: str):
    gpu.fail[call] = Status("CUDA_ERROR_NOT_FOUND", 500)
    with pytest.raises(DeviceError, match=f"GMR-D003: {call} failed"):
        driver.function("module", "k_0", 1000)


def test_capture(gpu: RecordingDriver):
    assert driver.is_capturing(0) is False
    gpu.capturing = True
    assert driver.is_capturing(0) is True
    gpu.capturing = False
    gpu.fail["cuStreamIsCapturing"] = Status("CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", 906)
    assert driver.is_capturing(0) is True
    gpu.fail["cuStreamIsCapturing"] = Status("CUDA_ERROR_INVALID_HANDLE", 400)
    with pytest.raises(DeviceError, match="GMR-D003: cuStreamIsCapturing failed"):
        driver.is_capturing(0)


def test_clusters_that_run_at_once(gpu: RecordingDriver):
    assert driver.resident_clusters("k", 384, 200_000, 1, 132) == 132
    assert gpu.calls == []
    assert driver.resident_clusters("k", 384, 200_000, 2, 132) == 60
    gpu.clusters = 0
    with pytest.raises(DeviceError, match=r"GMR-D002: no cluster of 2 CTAs with 200000 bytes .* of 132 SMs"):
        driver.resident_clusters("k", 384, 200_000, 2, 132)
