"""Launching products of several groups, as far as it can be seen without a GPU; manifests are those of real kernels."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemmir.backends.cuda import tensor_map
from gemmir.backends.cuda.arguments import TensorInfo, check_arguments, check_output, describe, uses
from gemmir.backends.cuda.launch import Launcher, grid_size
from gemmir.compiler import lower
from gemmir.errors import InputError
from gemmir.groups import Extent, spans
from gemmir.manifest import Manifest
from gemmir.problem import Grouping
from gemmir.schedule import Family, Schedule
from gemmir.segments import TILE_ALIGNMENT
from gemmir.testing.groups import any_indices, indices
from gemmir.testing.strategies import fp8_problem, half_problem, program_text
from tests.backends.cuda.cuda_doubles import MIB, DeviceTensor, RecordingDriver, recorded

GROUPS, N, K = 4, 256, 512
ROW_FORMS = (Grouping.OFFS, Grouping.GROUP_IDS, Grouping.COUNTS, Grouping.BATCH)
STREAM = 0x55


@cache
def manifest_of(grouping: Grouping, m: int | None = None, fp8: bool = True) -> Manifest:
    problem = (fp8_problem if fp8 else half_problem)(m, N, K)
    found = lower(program_text(replace(problem, grouping=grouping, groups=GROUPS))).manifest
    assert found is not None
    return found


def tensors(manifest: Manifest, m: int) -> list[Any]:
    """Arguments that fit, 64 MiB apart, in the memory order that the manifest asks for."""
    return [
        device_tensor(spec.shape, spec.dtype, spec.order, m, (1 << 40) + 64 * MIB * i, pad=spec.name == "xs")
        for i, spec in enumerate(manifest.inputs)
    ]


def device_tensor(
    shape: tuple[int | None, ...], dtype: str, order: tuple[int, ...], m: int, address: int, pad: bool = False
) -> DeviceTensor:
    sizes = tuple(m if extent is None else extent for extent in shape)
    names = {"f8E4M3FN": torch.float8_e4m3fn, "bf16": torch.bfloat16, "f32": torch.float32, "i32": torch.int32}
    strides, step = [0] * len(sizes), 1
    for place, dimension in enumerate(reversed(order)):
        strides[dimension] = step
        step *= -(-sizes[dimension] // 4) * 4 if pad and place == 0 else sizes[dimension]
    return DeviceTensor(sizes, names[dtype], address, tuple(strides))


def infos(manifest: Manifest, m: int) -> list[TensorInfo]:
    return [describe(t, spec.name) for t, spec in zip(tensors(manifest, m), manifest.inputs, strict=True)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDriver]:
    with recorded(monkeypatch, STREAM) as recording:
        yield recording


def output(manifest: Manifest, m: int) -> Any:
    return device_tensor(manifest.output.shape, manifest.output.dtype, manifest.output.order, m, 1 << 45)


# ------------------------------------------------------------ what fits, and what does not


@pytest.mark.parametrize("grouping", ROW_FORMS)
@pytest.mark.parametrize("m", [0, 1, 3, 130])
def test_tensors_that_fit(grouping: Grouping, m: int):
    """M is that of one matrix where there is one for each group, also where the program fixes it."""
    for manifest in (manifest_of(grouping), manifest_of(grouping, m or 5)):
        rows = m if manifest is manifest_of(grouping) else m or 5
        given_ = infos(manifest, rows)
        assert check_arguments(manifest, given_) == rows
        check_output(manifest, describe(output(manifest, rows), "out"), rows, given_)


def test_how_a_kernel_reaches_its_tensors():
    manifest = manifest_of(Grouping.COUNTS)
    names = [spec.name for spec in manifest.inputs]
    found = {(["out", *names])[number + 1]: use for number, use in uses(manifest).items()}
    assert {name for name, use in found.items() if use.tma} == {"x", "w", "xs", "out"}
    assert {name for name, use in found.items() if use.pointer} == {"index", "ws", "out"}
    assert found["ws"].strided == {0, 1, 2}
    assert found["out"].strided == {0, 1}


def refused(grouping: Grouping, name: str, **changes: Any) -> InputError:
    manifest = manifest_of(grouping)
    given_ = [replace(info, **changes) if info.name == name else info for info in infos(manifest, 100)]
    with pytest.raises(InputError) as caught:
        check_arguments(manifest, given_)
    return caught.value


@pytest.mark.parametrize(
    ("grouping", "name", "changes", "code", "what"),
    [
        (Grouping.OFFS, "index", {"dtype": "int64"}, "GMR-I001", "compiled for i32 (torch.int32)"),
        (Grouping.OFFS, "index", {"shape": (5,)}, "GMR-I002", "dimension 0 is 5, not 4"),
        (Grouping.GROUP_IDS, "index", {"shape": (99,)}, "GMR-I002", "M is 99 in dimension 0, but 100 in x"),
        (Grouping.COUNTS, "x", {"shape": (3, 100, K)}, "GMR-I002", "dimension 0 is 3, not 4"),
        (Grouping.COUNTS, "xs", {"shape": (GROUPS, 9, 4)}, "GMR-I002", "M is 9 in dimension 1, but 100 in x"),
        (Grouping.OFFS, "w", {"shape": (GROUPS, N, K)}, "GMR-I002", "pass w.mT"),
        (Grouping.OFFS, "index", {"strides": (2,)}, "GMR-I006", "the last dimension is contiguous"),
        (Grouping.OFFS, "index", {"address": 4 * 1000 + 2}, "GMR-I003", "2 bytes past a multiple of 4"),
        (Grouping.OFFS, "w", {"strides": (K * N, N, 1)}, "GMR-I006", "pass w.mT of a contiguous (4, 256, 512)"),
        (Grouping.OFFS, "w", {"strides": (0, 1, K)}, "GMR-I006", "w: strides are"),
        (Grouping.OFFS, "w", {"strides": (K * N - 16, 1, K)}, "GMR-I006", "w: strides are"),
        (Grouping.OFFS, "w", {"strides": (K * N + 8, 1, K)}, "GMR-I003", "stride of dimension 0 is 131080 bytes"),
        (Grouping.OFFS, "w", {"strides": (1 << 40, 1, K)}, "GMR-I007", "TMA strides are below 2^40"),
        (Grouping.COUNTS, "x", {"strides": (100 * K, K + 8, 1)}, "GMR-I006", "x: strides are"),
        (Grouping.COUNTS, "x", {"strides": (K - 16, GROUPS * K, 1)}, "GMR-I006", "x: strides are"),
        (Grouping.COUNTS, "x", {"strides": (K, GROUPS * K - 16, 1)}, "GMR-I006", "x: strides are"),
        (
            Grouping.COUNTS,
            "x",
            {"strides": (K + 8, GROUPS * K + 64, 1)},
            "GMR-I003",
            "stride of dimension 0 is 520 bytes",
        ),
        (Grouping.COUNTS, "xs", {"strides": (400, 4, 1)}, "GMR-I006", "pass gemmir.align_scales(xs)"),
        (Grouping.COUNTS, "xs", {"strides": (404, 1, 101)}, "GMR-I003", "pass gemmir.align_scales(xs)"),
    ],
)
def test_what_does_not_fit(grouping: Grouping, name: str, changes: dict[str, Any], code: str, what: str):
    error = refused(grouping, name, **changes)
    assert error.code == code
    assert what in str(error)


@pytest.mark.parametrize(
    ("grouping", "changes", "code"),
    [
        (Grouping.COUNTS, {"shape": (GROUPS, 99, N)}, "GMR-I002"),
        (Grouping.COUNTS, {"strides": (100 * N + 4, N, 1)}, "GMR-I003"),
        (Grouping.COUNTS, {"strides": (N, (GROUPS - 1) * N, 1)}, "GMR-I006"),
        (Grouping.COUNTS, {"strides": (N - 8, GROUPS * N, 1)}, "GMR-I006"),
    ],
)
def test_outputs(grouping: Grouping, changes: dict[str, Any], code: str):
    manifest = manifest_of(grouping)
    given_ = infos(manifest, 100)
    out = replace(describe(output(manifest, 100), "out"), **changes)
    with pytest.raises(InputError) as caught:
        check_output(manifest, out, 100, given_)
    assert caught.value.code == code


def test_so_many_tiles_that_they_cannot_be_counted():
    manifest = replace(manifest_of(Grouping.BATCH), groups=1 << 20)
    with pytest.raises(InputError, match="tiles") as caught:
        check_arguments(manifest, infos(manifest, 1 << 20))
    assert caught.value.code == "GMR-I007"


# ------------------------------------------------------------ the grid


@given(
    data=st.data(),
    grouping=st.sampled_from(ROW_FORMS),
    m=st.integers(1, 700),
    valid=st.booleans(),
    block=st.sampled_from((64, 128, 192, 256)),
    cluster=st.sampled_from((1, 2)),
)
def test_the_grid_has_room_for_all_tiles(
    data: st.DataObject, grouping: Grouping, m: int, valid: bool, block: int, cluster: int
):
    manifest = replace(manifest_of(grouping), block_m=block, block_n=N, cluster_m=cluster, cluster_n=1, balanced=False)
    extent = Extent(GROUPS, m, K, 128)
    index: list[int] = []
    if grouping is not Grouping.BATCH:
        index = data.draw((indices if valid else any_indices)(grouping, extent))
    found = [(span.first // TILE_ALIGNMENT * TILE_ALIGNMENT, span.last) for span in spans(grouping, index, extent)]
    tiles = sum(-(-(last - start) // (block * cluster)) for start, last in found)
    most = manifest.most_cluster_tiles(m)
    assert tiles <= most
    assert grid_size(manifest, m, 1000) == most * cluster
    assert grid_size(manifest, m, 3) == min(3, most) * cluster


@pytest.mark.parametrize("grouping", ROW_FORMS)
@pytest.mark.parametrize("cluster", [(2, 1), (1, 2)], ids=["2x1", "1x2"])
def test_a_grid_of_clusters_is_whole_clusters(grouping: Grouping, cluster: tuple[int, int]):
    fixed = Schedule(family=Family.TILES, block_m=64, block_n=128, cluster_m=cluster[0], cluster_n=cluster[1])
    problem = replace(half_problem(None, 3 * 128, K), grouping=grouping, groups=GROUPS)
    manifest = lower(program_text(problem, fixed)).manifest
    assert manifest is not None
    assert manifest.cluster_ctas == 2
    for m in (1, 65, 129, 1000):
        most = manifest.most_cluster_tiles(m)
        assert most % (3 if cluster == (2, 1) else 2) == 0, "columns of cluster tiles"
        for resident in (1, 66):
            assert grid_size(manifest, m, resident) == 2 * min(resident, most)


def test_most_tiles():
    offs, ids, counts = (manifest_of(g) for g in (Grouping.OFFS, Grouping.GROUP_IDS, Grouping.COUNTS))
    small = {"block_m": 64, "block_n": 128, "cluster_m": 1, "cluster_n": 1}
    assert replace(offs, **small).most_cluster_tiles(1000) == (16 + 8) * 2
    assert replace(offs, **small).most_cluster_tiles(1) == 2
    assert replace(ids, **small).most_cluster_tiles(1000) == 8 * 2 * 2
    assert replace(counts, **small).most_cluster_tiles(1000) == 4 * 16 * 2


# ------------------------------------------------------------ launches


@pytest.mark.parametrize("grouping", ROW_FORMS)
def test_the_parameters_of_a_launch(gpu: RecordingDriver, grouping: Grouping):
    manifest = gpu.manifest = manifest_of(grouping)
    arguments, out = tensors(manifest, 100), output(manifest, 100)
    call: Any = Launcher(manifest, b"cubin")
    assert call(arguments, out=out) is out
    by_name = {spec.name: t for spec, t in zip(manifest.inputs, arguments, strict=True)}
    ws = by_name["ws"]
    index = [by_name["index"].data_ptr()] if "index" in by_name else []
    own = [] if grouping.contiguous else [100 * N]
    scalars = [ws.data_ptr(), 2, 1, 8, *index, out.data_ptr(), N, *own, 100]
    assert [run.scalars for run in gpu.launches] == [scalars]
    assert gpu.launches[0].grid == manifest.most_cluster_tiles(100) * manifest.cluster_m * manifest.cluster_n
    gpu.calls.clear()
    call(arguments, out=out)
    assert gpu.calls == ["cuLaunchKernelEx"]


def encoded(recording: RecordingDriver) -> list[tuple[int, int, list[int], list[int], list[int], int]]:
    """(rank, address, extents, pitches in bytes, box, element strides) of each tensor map."""
    return [
        (m[1], m[2], [int(v) for v in m[3]], [int(v) for v in m[4]], [int(v) for v in m[5]], len(m[6]))
        for m in recording.maps
    ]


def test_tensor_maps_of_matrices_of_each_group(gpu: RecordingDriver):
    manifest = gpu.manifest = manifest_of(Grouping.COUNTS)
    arguments, out = tensors(manifest, 101), output(manifest, 101)
    call: Any = Launcher(manifest, b"cubin")
    call(arguments, out=out)
    x, w, _, xs, _ = (t.data_ptr() for t in arguments)
    boxes = [p.box for p in manifest.params if p.kind == "tensor_map"]  # type: ignore[union-attr]
    asked = encoded(gpu)
    assert [ask[:4] for ask in asked] == [
        (3, x, [K, 101, GROUPS], [K, 101 * K]),
        (3, w, [K, N, GROUPS], [K, N * K]),
        (3, xs, [101, 4, GROUPS], [416, 4 * 416]),
        (3, out.data_ptr(), [N, 101, GROUPS], [2 * N, 2 * N * 101]),
    ]
    assert [ask[4:] for ask in asked] == [([*box, 1], 3) for box in boxes]


@pytest.mark.parametrize("grouping", [Grouping.COUNTS, Grouping.BATCH])
def test_tensor_maps_of_matrices_that_lie_side_by_side(gpu: RecordingDriver, grouping: Grouping):
    """`transpose(0, 1)` of rows that hold a part for each group, as attention has for its heads."""
    manifest = gpu.manifest = manifest_of(grouping, fp8=False)
    x, *others = tensors(manifest, 101)
    x = DeviceTensor(x.shape, x.dtype, x.data_ptr(), (K, GROUPS * K, 1))
    out = DeviceTensor((GROUPS, 101, N), torch.bfloat16, 1 << 45, (N, GROUPS * N, 1))
    call: Any = Launcher(manifest, b"cubin")
    call([x, *others], out=out)
    first, weights, last = [ask[:4] for ask in encoded(gpu)]
    assert first == (3, x.data_ptr(), [K, 101, GROUPS], [2 * GROUPS * K, 2 * K])
    assert weights == (3, others[0].data_ptr(), [K, N, GROUPS], [2 * K, 2 * N * K])
    assert last == (3, out.data_ptr(), [N, 101, GROUPS], [2 * GROUPS * N, 2 * N])
    (launch,) = gpu.launches
    assert launch.scalars[-4:] == [out.data_ptr(), GROUPS * N, N, 101]


def test_tensor_maps_of_rows_of_all_groups(gpu: RecordingDriver):
    manifest = gpu.manifest = manifest_of(Grouping.OFFS, fp8=False)
    arguments, out = tensors(manifest, 101), output(manifest, 101)
    call: Any = Launcher(manifest, b"cubin")
    call(arguments, out=out)
    assert [ask[:4] for ask in encoded(gpu)] == [
        (2, arguments[0].data_ptr(), [K, 101], [2 * K]),
        (3, arguments[1].data_ptr(), [K, N, GROUPS], [2 * K, 2 * N * K]),
        (2, out.data_ptr(), [N, 101], [2 * N]),
    ]


def test_one_group_has_any_pitch():
    spec = replace(manifest_of(Grouping.COUNTS).inputs[0], shape=(1, None, K))
    fields = tensor_map.tensor_map_fields(
        0,
        spec,
        manifest_of(Grouping.COUNTS).params[0],
        (1, 100, K),
        (7, K, 1),  # type: ignore[arg-type]
    )
    assert (fields.groups, fields.group_pitch) == (1, 100 * K)


def test_without_rows_nothing_is_launched(gpu: RecordingDriver):
    manifest = gpu.manifest = manifest_of(Grouping.COUNTS)
    out = output(manifest, 0)
    call: Any = Launcher(manifest, b"cubin")
    assert call(tensors(manifest, 0), out=out) is out
    assert (gpu.launches, prod(out.shape)) == ([], 0)


def test_a_new_result_has_a_matrix_for_each_group(gpu: RecordingDriver, monkeypatch: pytest.MonkeyPatch):
    manifest = gpu.manifest = manifest_of(Grouping.BATCH)
    asked: list[Any] = []

    def empty(shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any, device: Any) -> DeviceTensor:
        asked.append((shape, strides, dtype, str(device)))
        return DeviceTensor(shape, dtype, 1 << 45, strides)

    monkeypatch.setattr(torch, "empty_strided", empty)
    call: Any = Launcher(manifest, b"cubin")
    call(tensors(manifest, 7))
    assert asked == [((GROUPS, 7, N), (7 * N, N, 1), torch.bfloat16, "cuda:0")]


def test_a_manifest_survives_as_json():
    for grouping in ROW_FORMS:
        manifest = manifest_of(grouping)
        assert Manifest.from_json(manifest.to_json()) == manifest
        assert (manifest.grouping, manifest.groups) == (grouping.value, GROUPS)
