"""
The C header asks the driver for what the Python launcher asks it for: maps, grid, shared memory, every parameter byte.

Both run against a driver that writes down what it is asked: C against a libcuda of the tests, Python against a double.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gemmir.backends.cuda.arguments import OUTPUT, check_arguments, check_output, describe
from gemmir.backends.cuda.c_header import c_name, print_header
from gemmir.backends.cuda.launch import Launcher
from gemmir.compiler import lower
from gemmir.dtypes import BF16, DTYPES, F32
from gemmir.errors import InputError
from gemmir.manifest import Manifest, OverlapsParam, RowsParam, SeedParam, TensorMapParam
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Family, Schedule
from gemmir.testing.strategies import columns_problem, fp8_problem, half_problem, program_text
from tests.backends.cuda.cuda_doubles import DeviceTensor, RecordingDriver, recorded
from tests.bundle.host_compiler import build

torch = pytest.importorskip("torch")
HERE = Path(__file__).parent
STREAM = 0x4321
GAP = 1 << 32
FP8, HALF = fp8_problem(None, 520, 1024), half_problem(None, 520, 1000)
SPLIT = fp8_problem(None, 512, 4096, expected_m=8)
CLUSTER = Schedule(block_m=128, block_n=128, cluster_m=2, cluster_n=1)


def grouped(problem: GemmProblem, grouping: Grouping) -> GemmProblem:
    return replace(problem, grouping=grouping, groups=4)


PROBLEMS: dict[str, tuple[GemmProblem, Schedule]] = {
    "bf16": (HALF, Schedule()),
    "bf16-mn-c": (replace(HALF, a_major="m", b_major="n", has_c=True), Schedule()),
    "fp8": (FP8, Schedule()),
    "fp8-f32-c": (replace(FP8, d=F32, has_c=True), Schedule()),
    "fp8-columns": (columns_problem(None, 520, 1024), Schedule()),
    "cluster-2x1": (FP8, CLUSTER),
    "cluster-1x2": (HALF, replace(CLUSTER, cluster_m=1, cluster_n=2)),
    "few-rows": (SPLIT, Schedule(family=Family.STREAM)),
    "few-rows-split": (replace(SPLIT, numerics=replace(SPLIT.numerics, split_k=2)), Schedule(family=Family.STREAM)),
    "split": (replace(SPLIT, numerics=replace(SPLIT.numerics, split_k=2)), Schedule(family=Family.TILES)),
    "few-rows-bf16": (half_problem(None, 512, 2048, expected_m=4), Schedule(family=Family.STREAM)),
    **{f"fp8-{g.value}": (grouped(FP8, g), Schedule()) for g in Grouping if g not in (Grouping.NONE, Grouping.K_OFFS)},
    "bf16-offs": (grouped(replace(HALF, n=512, k=1024), Grouping.OFFS), Schedule()),
    "bf16-balanced": (HALF, Schedule()),
    "fp8-offs-balanced": (grouped(FP8, Grouping.OFFS), Schedule()),
    "bf16-k_offs": (grouped(half_problem(256, 512, 1024, BF16, F32), Grouping.K_OFFS), Schedule()),
}
SIZES = (1, 7, 8, 128, 1000, 4096, 40_000)


class Tensor(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint64), ("shape", ctypes.c_int64 * 3), ("strides", ctypes.c_int64 * 3)]


class Result(ctypes.Structure):
    _fields_ = [
        ("status", ctypes.c_int),
        ("cuda", ctypes.c_int),
        ("argument", ctypes.c_int),
        ("message", ctypes.c_char_p),
    ]


@dataclass(frozen=True)
class Native:
    """A kernel's header, compiled, and the libcuda that it is linked with."""

    manifest: Manifest
    library: Any
    fake: Any

    def run(self, function: str, *arguments: Any, clusters: int = 60, major: int = 9, shared: int = 232_448) -> Any:
        """The result of one call, and what it asked of the driver."""
        sizes = [_param_bytes(param) for param in self.manifest.params]
        self.fake.fake_reset((ctypes.c_int * len(sizes))(*sizes), len(sizes), clusters, major, shared)
        call = getattr(self.library, function)
        call.restype = Result
        result = call(*arguments)
        return result, [json.loads(line) for line in self.fake.fake_log().decode().splitlines()]


def _param_bytes(param: Any) -> int:
    if isinstance(param, TensorMapParam):
        return 128
    return 4 if isinstance(param, RowsParam | OverlapsParam | SeedParam) else 8


@cache
def manifest_of(name: str) -> Manifest:
    problem, schedule = PROBLEMS[name]
    found = lower(program_text(problem, schedule, "layer")).manifest
    assert found is not None
    return replace(found, balanced=found.balanced or name.endswith("-balanced"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a libcuda of our own, of which a process can have but one: by its name a second one would be the first."""
    folder = tmp_path_factory.mktemp("native")
    options = ("-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    build("c", HERE / "fake_cuda.c", folder / "libcuda.so.1", *options)
    return folder


@pytest.fixture(scope="module", params=PROBLEMS)
def native(request: pytest.FixtureRequest, folder: Path) -> Native:
    return compiled(request.param, folder)


@cache
def compiled(problem: str, libraries: Path) -> Native:
    """Once a process, in whatever order its tests come: what was loaded must not be written again."""
    return built(manifest_of(problem), libraries / problem)


def built(manifest: Manifest, folder: Path) -> Native:
    """Two functions over the header: load, and launch with the tensors as an array."""
    folder.mkdir()
    (folder / "layer.h").write_text(print_header(manifest))
    name = f"gemmir_{c_name(manifest)}"
    numbers = ", ".join(f"&t[{i}]" for i in range(len(manifest.inputs) + 1))
    source = folder / "calls.c"
    source.write_text(f"""#include "layer.h"
static gemmir_kernel kernel;
gemmir_result load(const char *cubin);
gemmir_result launch(const gemmir_tensor *t, int overlap, unsigned long long stream);
gemmir_result load(const char *cubin) {{ return {name}_load(&kernel, cubin); }}
gemmir_result launch(const gemmir_tensor *t, int overlap, unsigned long long stream) {{
    return {name}_launch(&kernel, {numbers}, overlap, (CUstream)(uintptr_t)stream);
}}
""")
    cuda = folder.parent / "libcuda.so.1"
    options = ("-shared", "-fPIC", f"-Wl,-rpath,{folder.parent}", str(cuda))
    build("c", source, folder / "calls.so", *options)
    build("c++", _renamed(source), folder / "calls.o", "-c")
    fake = ctypes.CDLL(str(cuda))
    fake.fake_log.restype = ctypes.c_char_p
    return Native(manifest, ctypes.CDLL(str(folder / "calls.so")), fake)


def _renamed(source: Path) -> Path:
    other = source.with_suffix(".cpp")
    other.write_text(source.read_text())
    return other


def tensors(manifest: Manifest, m: int) -> list[DeviceTensor]:
    """Arguments that fit, then the output, each row (or column) padded to whole 16 bytes."""
    made: list[DeviceTensor] = []
    tma = {p.tensor for p in manifest.params if isinstance(p, TensorMapParam)}
    for number, spec in enumerate((*manifest.inputs, manifest.output)):
        shape = tuple(m if extent is None else extent for extent in spec.shape)
        strides, step = [0] * len(shape), 1
        is_padded = (OUTPUT if number == len(manifest.inputs) else number) in tma
        unit = 16 // DTYPES[spec.dtype].bytes if is_padded else 1
        for place, dimension in enumerate(reversed(spec.order)):
            strides[dimension] = step
            step *= -(-shape[dimension] // unit) * unit if place == 0 else shape[dimension]
        dtype = getattr(torch, DTYPES[spec.dtype].torch_name)
        made.append(DeviceTensor(shape, dtype, (1 << 40) + GAP * number, tuple(strides)))
    return made


def as_c(given: list[DeviceTensor]) -> Any:
    array = (Tensor * len(given))()
    for item, tensor in zip(array, given, strict=True):
        pad = [0] * (3 - len(tensor.shape))
        item.address = tensor.data_ptr()
        item.shape[:] = [*tensor.shape, *pad]
        item.strides[:] = [*tensor.stride(), *pad]
    return array


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDriver]:
    with recorded(monkeypatch, STREAM) as recording:
        yield recording


def python_maps(gpu: RecordingDriver) -> list[list[Any]]:
    """Each call of cuTensorMapEncodeTiled in the form of the log of `fake_cuda.c`."""
    found = []
    for kind, rank, address, extents, pitches, box, steps, *modes in gpu.maps:
        lists = [[int(value) for value in values] for values in (extents, pitches, box, steps)]
        found.append(["map", int(kind), rank, address, *lists, *map(int, modes)])
    return found


@pytest.mark.parametrize("clusters", [60, 3])
@pytest.mark.parametrize("overlap", [False, True])
def test_c_asks_for_what_python_asks_for(native: Native, gpu: RecordingDriver, overlap: bool, clusters: int):
    gpu.clusters, gpu.manifest = clusters, native.manifest
    result, loading = native.run("load", b"\x7fELF", clusters=clusters)
    assert result.status == 0
    for m in SIZES:
        given = tensors(native.manifest, m)
        gpu.launches.clear()
        gpu.maps.clear()
        Launcher(native.manifest, b"\x7fELF")(given[:-1], given[-1], overlap)  # pyright: ignore[reportArgumentType]
        result, asked = native.run("launch", as_c(given), int(overlap), STREAM)
        assert (result.status, result.message) == (0, b"ok")
        *maps, launch = asked
        assert maps == python_maps(gpu)
        (wanted,) = gpu.launches
        assert launch[2:6] == [[wanted.grid, 1, 1], [wanted.threads, 1, 1], wanted.shared, wanted.stream]
        assert launch[7] == ([[6, 1]] if wanted.overlaps else [])
        assert parameters(native.manifest, launch[8]) == [*python_parameters(native.manifest, wanted.scalars)]
    assert ["function", native.manifest.entry] in loading
    assert ["attribute", 8, native.manifest.shared_bytes] in loading


def test_the_kernels_are_of_every_kind():
    manifests = [manifest_of(name) for name in PROBLEMS]
    assert {m.grouping for m in manifests} == {g.value for g in Grouping}
    assert {m.waits for m in manifests} == {False, True}
    assert {(m.balanced, m.grid_rule.balanced) for m in manifests} == {(False, False), (True, True), (True, False)}
    assert {m.split_k for m in manifests} == {1, 2}
    assert {(m.cluster_m, m.cluster_n) for m in manifests} >= {(1, 1), (2, 1), (1, 2)}


def parameters(manifest: Manifest, launched: list[str]) -> list[int]:
    """Numbers among the packed parameters; of a map, which call encoded it."""
    found, maps = [], 0
    for param, text in zip(manifest.params, launched, strict=True):
        data = bytes.fromhex(text)
        if isinstance(param, TensorMapParam):
            maps += 1
            assert data == bytes([maps]) * 128
        else:
            found.append(int.from_bytes(data, "little", signed=True))
    return found


def python_parameters(manifest: Manifest, scalars: list[int]) -> Iterator[int]:
    others = [param for param in manifest.params if not isinstance(param, TensorMapParam)]
    for param, value in zip(others, scalars, strict=True):
        yield value & 0xFFFFFFFF if _param_bytes(param) == 4 else value


CHANGES = (
    "address+1",
    "address+8",
    "stride+1",
    "stride-double",
    "stride-zero",
    "beside",
    "extent+1",
    "on-output",
    "at-output",
)


def beside(shape: list[int], strides: list[int]) -> list[int]:
    """Of matrices of groups: first all first rows, then all second ones; strides of anything else as they are."""
    if len(shape) < 3:
        return strides
    fast = strides.index(1)
    return [1 if d == fast else shape[fast] * (shape[0] if d else 1) for d in range(3)]


def changed(given: list[DeviceTensor], number: int, dimension: int, change: str) -> list[DeviceTensor]:
    tensor = given[number]
    address, shape, strides = tensor.data_ptr(), list(tensor.shape), list(tensor.stride())
    if change.startswith("address"):
        address += int(change[-1])
    elif change == "on-output":
        address = given[-1].data_ptr() + 16
    elif change == "at-output":
        address = given[-1].data_ptr()
    elif change == "beside":
        strides = beside(shape, strides)
    elif change == "extent+1":
        shape[dimension] += 1
    else:
        old = strides[dimension]
        strides[dimension] = {"stride+1": old + 1, "stride-double": 2 * old, "stride-zero": 0}[change]
    made = DeviceTensor(tuple(shape), tensor.dtype, address, tuple(strides))
    return [*given[:number], made, *given[number + 1 :]]


def refused(manifest: Manifest, given: list[DeviceTensor]) -> bool:
    infos = [describe(tensor, f"t{i}") for i, tensor in enumerate(given)]
    try:
        m = check_arguments(manifest, infos[:-1])
        check_output(manifest, infos[-1], m, infos[:-1])
    except InputError:
        return True
    return False


@pytest.mark.parametrize("m", [1, 100])
def test_c_refuses_what_python_refuses(native: Native, m: int):
    native.run("load", b"\x7fELF")
    answers: set[bool] = set()
    fitting = tensors(native.manifest, m)
    for number, tensor in enumerate(fitting):
        for change in CHANGES:
            for dimension in range(len(tensor.shape)):
                given = changed(fitting, number, dimension, change)
                result, asked = native.run("launch", as_c(given), 0, STREAM)
                wanted = refused(native.manifest, given)
                assert (result.status != 0) == wanted, (number, dimension, change, result.message)
                assert not (wanted and asked)
                answers.add(wanted)
    assert answers == {False, True}


def test_no_rows_launch_nothing(native: Native):
    if native.manifest.output.shape[-2] is not None:
        return
    native.run("load", b"\x7fELF")
    result, asked = native.run("launch", as_c(tensors(native.manifest, 0)), 0, STREAM)
    assert (result.status, asked) == (0, [])


@pytest.mark.parametrize(("machine", "status"), [({"major": 8}, 6), ({"shared": 16 << 10}, 6), ({}, 0)])
def test_only_a_device_that_fits_is_loaded(native: Native, machine: dict[str, int], status: int):
    result, asked = native.run("load", b"\x7fELF", **machine)
    assert result.status == status
    assert bool(asked) == (status == 0)
