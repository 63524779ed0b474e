"""The kernels of `gemmir.quantize` without a GPU: what NVRTC makes of them, the cache, and what is launched."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from gemmir.backends.cuda import from_torch, quantize
from gemmir.backends.cuda.compiler_log import check_log
from gemmir.backends.cuda.nvrtc import Compiled, compile_cubin
from gemmir.backends.cuda.quantize import KINDS, Arguments, Kind, Launch
from gemmir.backends.cuda.sass import count_opcodes
from gemmir.cache import Cache
from gemmir.cache_files import Entry
from gemmir.dtypes import F8E4M3FN, F32
from gemmir.errors import CaptureError, CompileError, DeviceError, DeviceLostError, InputError, OutOfMemoryError
from gemmir.problem import Recipe
from gemmir.quantization import How, Plan
from gemmir.scale_blocks import scale_layout, tiling
from gemmir.scales import align_scales
from tests.backends.cuda.cuda_doubles import OK, RecordingDriver, Status, recorded
from tests.backends.cuda.disassembly import InBatches
from tests.backends.cuda.machine_code import NVRTCS
from tests.backends.cuda.oldest_nvrtc import compile_by_oldest

STREAM = 0x77
ROWS = Recipe.BLOCK_WISE_1X128
SQUARES = Recipe.BLOCK_WISE_128X128


@cache
def _by_oldest() -> dict[str, Compiled]:
    return compile_by_oldest(quantize.source(kind) for kind in KINDS)


@cache
def compiled(nvrtc: str, kind: Kind) -> Compiled:
    text = quantize.source(kind)
    return compile_cubin(text) if nvrtc == "installed" else _by_oldest()[text]


SASS = InBatches(lambda by: compiled(*by).cubin, [(nvrtc, kind) for nvrtc in NVRTCS for kind in KINDS])


@pytest.mark.parametrize("nvrtc", NVRTCS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.entry)
def test_the_machine_code(kind: Kind, nvrtc: str):
    """32 elements a thread: loaded by 16 bytes, converted in pairs, stored by 8 bytes; nothing in local memory."""
    made = compiled(nvrtc, kind)
    resources = check_log(made.log)
    resident = (8 if kind.recipe is ROWS else 2) // (kind.x.bytes // 2)
    assert resources.registers * quantize.SHAPES[kind.recipe].threads * resident <= 65536
    sass = SASS[nvrtc, kind]
    opcodes = count_opcodes(sass)
    assert len(re.findall(r"\bLDG\.E\.128\b", sass)) == 32 * kind.x.bytes // 16
    assert len(re.findall(r"\bSTG\.E\.64\b", sass)) == 32 // 8
    assert len(re.findall(rf"\bF2FP\.SATFINITE\.{kind.q.ptx.upper()}\.F32\.PACK", sass)) == 32 // 2
    assert not opcodes.keys() & {"LDL", "STL", "ATOM", "ATOMG", "RED"}
    assert opcodes["FFMA"] > 0  # correctly rounded divisions
    assert not re.search(r"\b(FMUL|FFMA)\.FTZ\b", sass)


def test_a_kernel_is_compiled_once(monkeypatch: pytest.MonkeyPatch):
    first = {kind: quantize.compiled(kind) for kind in KINDS[:2]}
    assert len(set(first.values())) == 2

    def refuse(source: str) -> Compiled:
        raise AssertionError("compiled again")

    monkeypatch.setattr(quantize, "compile_cubin", refuse)
    assert {kind: quantize.compiled(kind) for kind in first} == first
    with pytest.raises(AssertionError, match="compiled again"):
        quantize.compiled(KINDS[2])


@pytest.mark.parametrize("facts", [{"quantize": "another"}, {}, None])
def test_an_entry_with_other_facts_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, facts: object):
    """Even under the right key: should SHA-256 ever fail."""
    made = Compiled(b"cubin", "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nUsed 64 registers")
    monkeypatch.setattr(quantize, "compile_cubin", lambda source: made)
    assert quantize.compiled(KINDS[3]) == made.cubin
    cache = Cache()
    (stored,) = cache.entries()
    entry = cache.get(stored.key)
    assert entry is not None
    right = entry.header["facts"]
    assert isinstance(right, dict)
    entry.header["facts"] = {**right, **facts} if facts else facts  # type: ignore[dict-item]
    cache.put(stored.key, Entry(entry.header, b"not the machine code"))
    assert quantize.compiled(KINDS[3]) == made.cubin
    assert cache.get(stored.key) == Entry({**entry.header, "facts": right}, made.cubin)


def test_a_kernel_that_spills_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    log = "    8 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads\nUsed 64 registers"
    monkeypatch.setattr(quantize, "compile_cubin", lambda source: Compiled(b"cubin", log))
    for _ in range(2):
        with pytest.raises(CompileError, match="GMR-C002"):
            quantize.compiled(KINDS[0])


Launched = tuple[str, tuple[int, ...], int, int, dict[str, Any]]
"""Kernel, grid and threads, stream, context, arguments."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RecordingDriver, list[Launched]]]:
    """A machine of two GPUs, and what is launched on it; tensors on the CPU pass for ones on its first GPU."""
    launches: list[Launched] = []
    monkeypatch.setattr(quantize, "_loaded", quantize.Loaded())
    monkeypatch.setattr(from_torch, "raw_stream", lambda: lambda device: STREAM + device)
    monkeypatch.setattr(quantize, "compiled", lambda kind: b"cubin")
    with recorded(monkeypatch, STREAM) as driver:

        def launch(function: str, *rest: int) -> tuple[object, ...]:
            *shape, shared, stream, parameters, extra = rest
            assert (shared, extra) == (0, 0)
            (address,) = (ctypes.c_uint64 * 1).from_address(parameters)
            found = Arguments.from_address(address)
            arguments = {name: getattr(found, name) for name, *_ in Arguments._fields_}
            launches.append((function, tuple(shape), stream, driver.context, arguments))
            return (driver.fail.get("cuLaunchKernel", OK),)

        driver.cuLaunchKernel = launch  # type: ignore[method-assign]
        yield driver, launches


def tensors(shape: tuple[int, ...], recipe: Recipe, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, ...]:
    extents, strides = scale_layout(recipe, shape)
    q = torch.empty(shape, dtype=torch.float8_e4m3fn)
    return torch.zeros(shape, dtype=dtype), q, torch.empty_strided(extents, strides)


def prepared(recipe: Recipe, made: tuple[torch.Tensor, ...], **options: bool) -> Launch:
    x, q, scale = made
    return quantize.prepare(
        recipe,
        x,
        q,
        scale,
        least=2.0**-100,
        power_of_two=options.get("power_of_two", False),
        saturate=options.get("saturate", False),
    )


@pytest.mark.parametrize(
    ("recipe", "shape", "grid", "threads", "scale_strides"),
    [
        (ROWS, (4096, 7168), (512, 14, 1), 128, (0, 1, 4096)),
        (ROWS, (1, 520), (1, 2, 1), 128, (0, 1, 4)),
        (ROWS, (3, 9, 512), (2, 1, 3), 128, (48, 1, 12)),
        (SQUARES, (129, 257), (2, 3, 1), 512, (0, 3, 1)),
        (SQUARES, (5, 128, 128), (1, 1, 5), 512, (1, 1, 1)),
    ],
)
def test_what_is_launched(
    gpu: tuple[RecordingDriver, list[Launched]],
    recipe: Recipe,
    shape: tuple[int, ...],
    grid: tuple[int, ...],
    threads: int,
    scale_strides: tuple[int, ...],
):
    made = tensors(shape, recipe)
    *groups, m, k = shape
    addresses = x, q, scale = [tensor.data_ptr() for tensor in made]
    prepared(recipe, made, power_of_two=bool(groups), saturate=not groups).run(*addresses)
    ((function, launched, stream, context, arguments),) = gpu[1]
    assert function.startswith(f"quantize_{recipe.value}_bf16_e4m3 ")
    assert (launched, stream, context) == ((*grid, threads, 1, 1), STREAM, 0x1000)
    names = ("scale_group", "scale_row", "scale_column")
    assert tuple(arguments.pop(name) for name in names) == scale_strides
    assert arguments == {
        "x": x,
        "q": q,
        "scale": scale,
        "rows": m,
        "columns": k,
        "x_group": m * k if groups else 0,
        "x_row": k if m > 1 else 0,
        "largest": 448.0,
        "least": 2.0**-100,
        "power_of_two": bool(groups),
        "saturate": not groups,
        "vector": k % 8 == 0,
    }


@pytest.mark.parametrize(
    ("columns", "x_offset", "q_offset", "vector"),
    [(64, 0, 0, 1), (64, 16, 8, 1), (64, 2, 0, 0), (64, 0, 4, 0), (68, 0, 0, 0), (72, 0, 0, 1)],
)
def test_which_tensors_are_read_by_16_bytes(
    gpu: tuple[RecordingDriver, list[Launched]], columns: int, x_offset: int, q_offset: int, vector: int
):
    made = tensors((4, columns), ROWS)
    prepared(ROWS, made).run(1 << 40 | x_offset, 1 << 41 | q_offset, 1 << 42)
    assert gpu[1][0][-1]["vector"] == vector


@pytest.mark.parametrize(("pitch", "vector"), [(72, 1), (68, 0), (65, 0)])
def test_rows_far_apart(gpu: tuple[RecordingDriver, list[Launched]], pitch: int, vector: int):
    x = torch.zeros(2, 4, pitch, dtype=torch.bfloat16)[..., :64]
    prepared(ROWS, (x, *tensors((2, 4, 64), ROWS)[1:])).run(1 << 40, 1 << 41, 1 << 42)
    arguments = gpu[1][0][-1]
    assert (arguments["x_group"], arguments["x_row"], arguments["vector"]) == (4 * pitch, pitch, vector)


def test_a_kernel_is_loaded_once_and_never_during_capture(gpu: tuple[RecordingDriver, list[Launched]]):
    driver, launches = gpu
    driver.capturing = True
    with pytest.raises(CaptureError, match=r"GMR-D005(.|\n)*call gemmir\.quantize once"):
        prepared(ROWS, tensors((4, 64), ROWS))
    assert "cuModuleLoadData" not in driver.calls
    driver.capturing = False
    prepared(ROWS, tensors((4, 64), ROWS))
    driver.capturing = True
    prepared(ROWS, tensors((5, 72), ROWS)).run(1 << 40, 1 << 41, 1 << 42)
    assert driver.calls.count("cuModuleLoadData") == 1
    assert len(launches) == 1


def test_a_thread_without_a_context_gets_that_of_the_device(gpu: tuple[RecordingDriver, list[Launched]]):
    driver, launches = gpu
    launch = prepared(ROWS, tensors((4, 64), ROWS))
    driver.context = 0
    launch.run(1 << 40, 1 << 41, 1 << 42)
    assert (launches[0][3], driver.context) == (0x1000, 0)


def test_what_a_gpu_refuses(gpu: tuple[RecordingDriver, list[Launched]]):
    driver, _ = gpu
    wide = torch.zeros(1, 1).expand(65536, 1)[:, None].expand(65536, 1, 1)
    with pytest.raises(InputError, match="GMR-I007"):
        prepared(ROWS, (wide, *tensors((65536, 1, 1), ROWS)[1:]))
    assert driver.calls == []
    launch = prepared(ROWS, tensors((4, 64), ROWS, torch.float32))
    driver.fail["cuLaunchKernel"] = Status("CUDA_ERROR_INVALID_VALUE", 1)
    with pytest.raises(DeviceError, match="GMR-D003"):
        launch.run(1 << 40, 1 << 41, 1 << 42)


def test_no_memory(gpu: tuple[RecordingDriver, list[Launched]], monkeypatch: pytest.MonkeyPatch):
    """For q and scales, and for scales that are laid out anew: the bytes that were wanted and those that are free."""

    def nothing(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    device, how = torch.device("cuda", 0), How(power_of_two=False, saturate=False)
    layout = scale_layout(ROWS, (4, 256))
    plan = Plan((4, 256), torch.float8_e4m3fn, device, layout, (0, 0, 0), tiling(ROWS, (4, 256)), how, None)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", nothing)
        with pytest.raises(
            OutOfMemoryError, match=rf"GMR-D009: q and scale: {4 * 256 + 8 * 4} bytes on cuda:0, where 5"
        ):
            plan.new()
        patch.setattr(torch.Tensor, "new_zeros", nothing)
        with pytest.raises(torch.OutOfMemoryError, match=rf"GMR-D009: scales: {4 * 2 * 8} bytes"):
            align_scales(torch.ones(5, 2))
    assert gpu[1] == []


def test_a_lost_device_is_said_with_what_was_quantised(gpu: tuple[RecordingDriver, list[Launched]]):
    driver, _ = gpu
    launch = prepared(ROWS, tensors((4, 64), ROWS, torch.float32))
    driver.fail["cuLaunchKernel"] = Status("CUDA_ERROR_ILLEGAL_ADDRESS", 700)
    with pytest.raises(
        DeviceLostError, match=r"GMR-D004(.|\n)*last 1 launches(.|\n)*quantize_\w+_f32_e4m3: 4x64; device 0"
    ):
        launch.run(1 << 40, 1 << 41, 1 << 42)


def test_another_gpu_is_refused(gpu: tuple[RecordingDriver, list[Launched]]):
    gpu[0].capability = (8, 0)
    with pytest.raises(DeviceError, match="GMR-D002"):
        prepared(ROWS, tensors((4, 64), ROWS))


def test_no_string_of_a_user_reaches_the_source():
    kind = Kind(ROWS, F32, F8E4M3FN)
    head, tail = quantize.source(kind).rsplit("\nstatic_assert(sizeof", 1)
    assert all(quantize.source(other).startswith(head) for other in KINDS)
    assert tail.rstrip().endswith("ENTRY(1x128, f32, e4m3)")
