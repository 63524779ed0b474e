"""Launching, as far as it can be seen without a GPU: what is asked of the driver, how often, and what is refused."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemmir.backends.cuda import driver
from gemmir.backends.cuda.launch import Launcher, grid_size
from gemmir.backends.cuda.plan import SumsOfNothing
from gemmir.bench.cases import Case
from gemmir.compiler import lower
from gemmir.errors import CaptureError, DeviceError, DeviceLostError, InputError, OutOfMemoryError, UnsupportedError
from gemmir.kernel import CompiledKernel
from gemmir.manifest import Manifest
from gemmir.sm_limit import limit_sms
from tests.backends.cuda.cuda_doubles import (
    MANIFEST,
    MIB,
    RESULT,
    STREAM,
    DeviceTensor,
    Launch,
    RecordingDriver,
    Status,
    tensors,
)

BF16 = torch.bfloat16


def launcher(manifest: Manifest = MANIFEST) -> Any:
    return Launcher(manifest, b"cubin")


@given(st.integers(1, 10**6), st.integers(1, 200), st.sampled_from([(1, 1), (2, 1), (1, 2)]), st.integers(1, 10**5))
def test_the_grid(m: int, resident: int, cluster: tuple[int, int], n: int):
    manifest = replace(MANIFEST, cluster_m=cluster[0], cluster_n=cluster[1], n=n)
    size = cluster[0] * cluster[1]
    tiles = -(-m // (128 * cluster[0])) * -(-n // (256 * cluster[1]))
    grid = grid_size(manifest, m, resident)
    assert grid % size == 0
    assert size <= grid <= resident * size
    assert grid == size * tiles or (grid == size * resident and tiles > resident)


def test_the_grid_of_tiles_that_two_ctas_compute():
    manifest = replace(MANIFEST, cluster_m=1, cluster_n=1, split_k=2, n=4096)
    assert manifest.cluster_ctas == 2
    assert [grid_size(manifest, m, 66) for m in (1, 512, 513, 4096)] == [2 * 16, 2 * 64, 2 * 66, 2 * 66]
    assert grid_size(replace(manifest, balanced=True), 700, 66) == 2 * 48  # 96 tiles, twice 48


def test_one_launch(gpu: RecordingDriver):
    arguments = tensors(100)
    out = launcher()(arguments)
    assert (tuple(out.shape), out.data_ptr()) == ((100, 7168), RESULT)
    ws, bias = arguments[3].data_ptr(), arguments[4].data_ptr()
    assert gpu.launches == [
        Launch(
            function="k_0123456789abcdef of module in 0x1000",
            grid=2 * 28,
            threads=384,
            shared=200_000,
            stream=STREAM,
            context=0x1000,
            scalars=[ws, 1, 16, bias, 100],
        )
    ]


def test_the_tensor_maps_of_a_launch(gpu: RecordingDriver):
    arguments = tensors(100)
    launcher()(arguments)
    asked = [(m[2], [int(v) for v in m[3]], [int(v) for v in m[4]], [int(v) for v in m[5]]) for m in gpu.maps]
    x, w, xs = (t.data_ptr() for t in arguments[:3])
    assert asked == [
        (x, [2048, 100], [2048], [128, 128]),
        (w, [2048, 7168], [2048], [128, 128]),
        (xs, [100, 16], [400], [128, 1]),
        (RESULT, [7168, 100], [14336], [64, 128]),
    ]


def test_a_balanced_grid_is_no_larger_than_its_rounds_need():
    """448 cluster tiles are 8 rounds of 60 clusters, the last one of 28; 56 clusters make 8 full ones."""
    assert grid_size(MANIFEST, 4096, 60) == 60 * 2
    assert grid_size(replace(MANIFEST, balanced=True), 4096, 60) == 56 * 2
    assert grid_size(replace(MANIFEST, balanced=True), 1, 60) == 28 * 2


def test_persistent_clusters(gpu: RecordingDriver):
    launcher()(tensors(4096))
    assert gpu.launches[0].grid == 60 * 2


def test_a_limit_of_sms_holds_for_the_next_call_and_asks_for_no_other_kernel(gpu: RecordingDriver):
    call, arguments = launcher(), tensors(4096)
    try:
        for sms, grid in ((None, 120), (50, 50), (51, 50), (1, 2), (500, 120), (None, 120)):
            limit_sms(sms)
            call(arguments)
            assert gpu.launches[-1].grid == grid, sms
    finally:
        limit_sms(None)
    assert gpu.calls.count("cuModuleLoadData") == 1


def test_a_second_call_only_launches(gpu: RecordingDriver):
    call, arguments = launcher(), tensors(100)
    call(arguments)
    gpu.calls.clear()
    call(arguments)
    assert gpu.calls == ["cuLaunchKernelEx"]
    assert gpu.launches[0] == gpu.launches[1]


def test_for_tensors_elsewhere_no_map_is_encoded_again(gpu: RecordingDriver):
    call, arguments = launcher(), tensors(100)
    call(arguments)
    gpu.maps.clear()
    moved = [DeviceTensor((100, 2048), torch.float8_e4m3fn, 1 << 42), *arguments[1:]]
    call(moved)
    assert gpu.maps == []
    assert gpu.moved == [1 << 42, arguments[1].data_ptr(), arguments[2].data_ptr(), RESULT]


def test_another_m_uses_the_same_kernel(gpu: RecordingDriver):
    call = launcher()
    for m in (100, 4096, 1, 100):
        call(tensors(m))
    assert [run.scalars[-1] for run in gpu.launches] == [100, 4096, 1, 100]
    assert gpu.calls.count("cuModuleLoadData") == 1


def test_an_output_of_the_callers(gpu: RecordingDriver):
    call, arguments = launcher(), tensors(100)
    out: Any = DeviceTensor((100, 7168), BF16, 1 << 46, (7200, 1))
    assert call(arguments, out=out) is out
    assert (gpu.maps[-1][2], [int(v) for v in gpu.maps[-1][4]]) == (1 << 46, [14400])
    gpu.calls.clear()
    call(arguments, out=out)
    assert gpu.calls == ["cuLaunchKernelEx"]


def test_outputs_of_the_callers_are_checked_every_time(gpu: RecordingDriver):
    call, arguments = launcher(), tensors(100)
    call(arguments)
    wrong = {
        "GMR-I001": DeviceTensor((100, 7168), torch.float32, RESULT),
        "GMR-I002": DeviceTensor((101, 7168), BF16, RESULT),
        "GMR-I003": DeviceTensor((100, 7168), BF16, RESULT + 2),
        "GMR-I004": DeviceTensor((100, 7168), BF16, RESULT, device="cuda:1"),
        "GMR-I005": 3,
        "GMR-I006": DeviceTensor((100, 7168), BF16, RESULT, (1, 104)),
        "GMR-I008": DeviceTensor((100, 7168), BF16, arguments[1].data_ptr() + MIB),
    }
    for code, out in wrong.items():
        for _ in range(2):
            with pytest.raises(InputError) as error:
                call(arguments, out=out)
            assert error.value.code == code
    assert len(gpu.launches) == 1


# ------------------------------------------------------------ nothing to compute


def test_no_rows(gpu: RecordingDriver):
    out = launcher()(tensors(0))
    assert tuple(out.shape) == (0, 7168)
    assert gpu.launches == []
    assert "cuModuleLoadData" not in gpu.calls


def test_no_products(gpu: RecordingDriver):
    specs = (replace(MANIFEST.inputs[0], shape=(None, 0)), replace(MANIFEST.inputs[1], shape=(0, 7168)))
    call = launcher(replace(MANIFEST, inputs=specs, params=(), k=0))
    fp8 = torch.float8_e4m3fn
    arguments = [DeviceTensor((5, 0), fp8, 0), DeviceTensor((0, 7168), fp8, 0, (1, 0))]
    out = call(arguments)
    assert (tuple(out.shape), out.filled) == ((5, 7168), 0)
    mine: Any = DeviceTensor((5, 7168), BF16, 1 << 46)
    assert call(arguments, out=mine) is mine
    assert mine.filled == 0
    with pytest.raises(InputError, match="GMR-I002"):
        call(arguments, out=DeviceTensor((6, 7168), BF16, 1 << 46))
    assert gpu.launches == []


# ------------------------------------------------------------ refusals


def test_bad_arguments_launch_nothing(gpu: RecordingDriver):
    call = launcher()
    good = tensors(100)
    cases: dict[str, list[Any]] = {
        "GMR-I001": [DeviceTensor((100, 2048), torch.bfloat16, 1 << 40), *good[1:]],
        "GMR-I002": [*good[:2], DeviceTensor((101, 16), torch.float32, 1 << 42, (1, 104)), *good[3:]],
        "GMR-I003": [DeviceTensor((100, 2048), torch.float8_e4m3fn, (1 << 40) + 8), *good[1:]],
        "GMR-I004": [*good[:4], DeviceTensor((7168,), BF16, 1 << 42, device="cuda:1")],
        "GMR-I005": good[:4],
        "GMR-I006": [good[0], DeviceTensor((2048, 7168), torch.float8_e4m3fn, 1 << 42), *good[2:]],
    }
    for code, arguments in cases.items():
        for _ in range(2):
            with pytest.raises(InputError) as error:
                call(arguments)
            assert error.value.code == code
    for strange in (None, 3, "x", [1.0]):
        with pytest.raises(InputError, match="GMR-I005: x: "):
            call([strange, *good[1:]])
    with pytest.raises(InputError, match=r"GMR-I006: x: layout is torch.sparse"):
        call([torch.eye(3).to_sparse(), *good[1:]])
    assert gpu.launches == []


def test_a_gradient_that_would_be_lost(gpu: RecordingDriver):
    call, arguments = launcher(), tensors(100)
    arguments[4] = DeviceTensor((7168,), BF16, 1 << 42, requires_grad=True)
    with torch.no_grad():
        call(arguments)
    with pytest.raises(InputError, match=r"GMR-I005: bias: requires a gradient(.|\n)*bias.detach\(\)"):
        call(arguments)
    assert len(gpu.launches) == 1


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch):
    """Tensors on the CPU are the only ones there can be: the missing driver is what to say."""
    monkeypatch.setattr(driver, "driver_problem", lambda: "libcuda.so.1 was not found")
    driver.bindings.cache_clear()
    m, fp8 = 8, torch.float8_e4m3fn
    arguments = [
        torch.zeros(m, 2048).to(fp8),
        torch.zeros(7168, 2048).to(fp8).t(),
        torch.zeros(16, m).t(),
        torch.zeros(16, 56),
        torch.zeros(7168, dtype=BF16),
    ]
    with pytest.raises(DeviceError, match=r"GMR-D001: libcuda.so.1 was not found"):
        launcher()(arguments)
    with pytest.raises(InputError, match="GMR-I001"):
        launcher()([arguments[0].bfloat16(), *arguments[1:]])
    with pytest.raises(DeviceError, match="GMR-D001"):
        launcher().prepare()


def test_tensors_on_the_cpu(gpu: RecordingDriver):
    arguments: list[Any] = tensors(8)
    arguments[4] = torch.zeros(7168, dtype=BF16)
    with pytest.raises(InputError, match="GMR-I004: tensors on cuda:0: x, w, xs, ws; cpu: bias"):
        launcher()(arguments)


def test_another_gpu(gpu: RecordingDriver):
    gpu.capability = (8, 0)
    with pytest.raises(DeviceError, match="GMR-D002: device 0 is NVIDIA H200, sm_80"):
        launcher()(tensors(8))


def test_a_slice_of_a_gpu(gpu: RecordingDriver):
    gpu.shared = 100_000
    with pytest.raises(DeviceError, match=r"GMR-D002: the kernel needs 200000 bytes of shared memory.*has 100000"):
        launcher()(tensors(8))


@pytest.mark.parametrize(("sms", "clusters"), [(16, 8), (16, 7), (132, 66), (1, 1)])
def test_fewer_sms_than_a_whole_gpu_has(gpu: RecordingDriver, sms: int, clusters: int):
    """The grid is as large as what runs at once there: for lone CTAs an SM each, for clusters what the driver says."""
    gpu.sms, gpu.clusters = sms, clusters
    launcher()(tensors(4096))
    launcher(replace(MANIFEST, cluster_m=1))(tensors(4096))
    assert [run.grid for run in gpu.launches] == [2 * clusters, sms]


def test_a_cluster_that_fits_nowhere_leaves_nothing_loaded(gpu: RecordingDriver):
    gpu.clusters = 0
    call = launcher()
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"GMR-D002: no cluster of 2 CTAs(.|\n)*cluster = 1x1"):
            call(tensors(8))
    assert gpu.calls.count("cuModuleLoadData") == gpu.calls.count("cuModuleUnload") == 2
    assert gpu.launches == []
    gpu.clusters = 60
    call(tensors(8))
    assert len(gpu.launches) == 1


def test_a_parameter_of_another_version(gpu: RecordingDriver):
    """Never guessed: the kernel would read it as something else."""

    class Strange:
        kind = "strange"

    with pytest.raises(UnsupportedError, match="GMR-U001: a kernel parameter of kind 'strange'"):
        launcher(replace(MANIFEST, params=(*MANIFEST.params, Strange())))(tensors(8))  # pyright: ignore
    assert gpu.launches == []


def test_a_first_call_during_capture(gpu: RecordingDriver):
    call = launcher()
    gpu.capturing = True
    with pytest.raises(CaptureError, match=r"GMR-D005(.|\n)*kernel\.prepare\(\), gemmir\.prepare\(...\)"):
        call(tensors(8))
    assert "cuModuleLoadData" not in gpu.calls
    gpu.capturing = False
    call(tensors(8))
    gpu.capturing = True
    call(tensors(16))
    assert [run.scalars[-1] for run in gpu.launches] == [8, 16]


def test_a_lost_device_is_said_once_and_then_refused(gpu: RecordingDriver):
    call = launcher()
    gpu.fail["cuLaunchKernelEx"] = Status("CUDA_ERROR_ILLEGAL_ADDRESS", 700)
    with pytest.raises(DeviceLostError, match=r"GMR-D004: cuLaunchKernelEx failed: CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
        call(tensors(8))
    asked = len(gpu.calls)
    with pytest.raises(DeviceLostError):
        call(tensors(8))
    with pytest.raises(DeviceLostError):
        call.prepare(0)
    assert len(gpu.calls) == asked


def test_a_lost_device_is_said_with_the_last_launches(gpu: RecordingDriver):
    """Whose kernels, with what shapes, where; the newest first, and no more than are kept."""
    call = Launcher(MANIFEST, b"cubin", key="0123456789abcdef" * 4)
    for m in range(1, 13):
        call(tensors(m, "cuda:0" if m % 2 else "cuda:1"))
    gpu.fail["cuLaunchKernelEx"] = Status("CUDA_ERROR_LAUNCH_FAILED", 719)
    with pytest.raises(DeviceLostError) as error:
        call(tensors(100))
    first, head, *lines = error.value.what.splitlines()
    assert first == "cuLaunchKernelEx failed: CUDA_ERROR_LAUNCH_FAILED (719)"
    assert head == "gemmir's last 8 launches, newest first:"
    assert [re.search(r"\bx (\d+)x2048 f8E4M3FN", line)[1] for line in lines] == [  # pyright: ignore
        "100",
        "12",
        "11",
        "10",
        "9",
        "8",
        "7",
        "6",
    ]
    assert lines[0] == (
        "  down_proj (k_0123456789abcdef, key 0123456789abcdef): x 100x2048 f8E4M3FN, w 2048x7168 f8E4M3FN, "
        "xs 100x16 f32, ws 16x56 f32, bias 7168 bf16, out 100x7168 bf16; device 0, stream 0x77, 56 CTAs"
    )
    assert "device 1, stream 0x78" in lines[1]


def test_a_device_that_is_lost_through_no_kernel(gpu: RecordingDriver):
    """ECC, a link, a context that somebody ended: another code, the same care, and no kernel is blamed."""
    call = launcher()
    call(tensors(8))
    gpu.fail["cuLaunchKernelEx"] = Status("CUDA_ERROR_ECC_UNCORRECTABLE", 214)
    with pytest.raises(DeviceLostError, match=r"GMR-D007(.|\n)*last 2 launches(.|\n)*Xid"):
        call(tensors(8))
    asked = len(gpu.calls)
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="GMR-D007"):
            call(tensors(8))
    assert len(gpu.calls) == asked


def test_no_memory_for_a_result(gpu: RecordingDriver, monkeypatch: pytest.MonkeyPatch):
    """The bytes are said, nothing is launched and nothing half made: kernels themselves need no memory."""
    call, arguments = launcher(), tensors(8)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 << 30)

    def empty(*_: object, **__: object) -> DeviceTensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_strided", empty)
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError) as caught:
                call(arguments)
            error = caught.value
            assert isinstance(error, OutOfMemoryError)
            assert error.code == "GMR-D009"
            assert f"out: {8 * 7168 * 2} bytes on cuda:0, where {5 << 30} of {80 << 30} bytes are free" in error.what
            assert f"torch holds {2 << 30} that no tensor uses" in error.what
            assert "pass out=" in (error.fix or "")
    assert gpu.launches == []
    call(arguments)
    assert len(gpu.launches) == 1


def test_no_memory_for_the_sum_of_c_and_nothing(gpu: RecordingDriver):
    class C:
        def float(self) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        def numel(self) -> int:
            return 100

    c: Any = C()
    with pytest.raises(OutOfMemoryError, match="GMR-D009: a float32 copy of c: 400 bytes on cuda:0"):
        SumsOfNothing(lambda *_: True, 0, None, torch.device("cuda", 0)).run([c, torch.ones(5, 20)])


def test_a_failed_launch_can_be_repeated(gpu: RecordingDriver):
    call = launcher()
    gpu.fail["cuLaunchKernelEx"] = Status("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", 701)
    with pytest.raises(DeviceError, match="GMR-D003: cuLaunchKernelEx failed"):
        call(tensors(8))
    gpu.fail.clear()
    call(tensors(8))
    assert len(gpu.launches) == 1


# ------------------------------------------------------------ overlap

WAITS = replace(MANIFEST, waits=True)


def test_a_kernel_that_waits_by_itself_may_start_while_the_one_before_ends(gpu: RecordingDriver):
    call, arguments = launcher(WAITS), tensors(100)
    out = DeviceTensor((100, 7168), BF16, RESULT)
    call(arguments, out)
    assert call(arguments, out, True) is out
    alone, overlapping = gpu.launches
    assert (alone.overlaps, overlapping.overlaps) == (False, True)
    assert replace(overlapping, overlaps=False) == alone, "the same kernel, grid, stream and parameters"
    gpu.calls.clear()
    call(arguments, out, True)
    assert gpu.calls == ["cuLaunchKernelEx"]


def test_a_kernel_that_does_not_wait_is_launched_after_the_one_before(gpu: RecordingDriver):
    assert not MANIFEST.waits
    launcher(MANIFEST)(tensors(100), overlap=True)
    assert [run.overlaps for run in gpu.launches] == [False]


def test_overlap_where_the_device_is_not_current(gpu: RecordingDriver):
    launcher(WAITS)(tensors(8, "cuda:1"), overlap=True)
    (run,) = gpu.launches
    assert (run.overlaps, run.context, run.stream, gpu.context) == (True, 0x1001, STREAM + 1, 0x1000)


def test_overlap_with_bad_arguments_launches_nothing(gpu: RecordingDriver):
    arguments = tensors(8)
    arguments[0] = DeviceTensor((8, 2048), BF16, 1 << 40)
    with pytest.raises(InputError, match="GMR-I001"):
        launcher(WAITS)(arguments, overlap=True)
    assert gpu.launches == []


def test_an_overlapping_launch_that_fails(gpu: RecordingDriver):
    call = launcher(WAITS)
    gpu.fail["cuLaunchKernelEx"] = Status("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", 701)
    with pytest.raises(DeviceError, match="GMR-D003: cuLaunchKernelEx failed"):
        call(tensors(8), overlap=True)
    gpu.fail.clear()
    call(tensors(8), overlap=True)
    assert [run.overlaps for run in gpu.launches] == [True]


def test_a_compiled_kernel_passes_it_on(gpu: RecordingDriver):
    for manifest, expected in ((WAITS, [False, True]), (MANIFEST, [False, False])):
        kernel, arguments = CompiledKernel(manifest, "", b"cubin", "", {}, None), tensors(8)
        kernel(*arguments)
        kernel(*arguments, overlap=True)
        assert [run.overlaps for run in gpu.launches[-2:]] == expected


@pytest.mark.parametrize(("m", "waits"), [(8, True), (4096, False)])
def test_which_kernels_wait(m: int, waits: bool):
    """Those for few rows, and their source has the instruction."""
    lowered = lower(Case("bf16", m, 512, 512).text, m=m)
    assert lowered.manifest is not None
    assert lowered.manifest.waits is waits
    assert ("griddepcontrol.wait" in lowered.source) is waits
