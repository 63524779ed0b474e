"""What a user can do wrong, each with the error that says so. Nothing here needs a GPU."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gemmir
from gemmir.backends import reference
from gemmir.backends.cuda import nvrtc
from gemmir.backends.cuda.arguments import TensorInfo, check_arguments, check_output
from gemmir.cache import Cache
from gemmir.compiler import lower
from gemmir.errors import (
    CacheError,
    GemmirError,
    InputError,
    IRError,
    ScheduleError,
    ToolMissingError,
    UnsupportedError,
)
from gemmir.ir_text import parse_module
from gemmir.manifest import Manifest

M, N, K = 64, 256, 512


def bf16(n: int, k: int, m: str = "?", clause: str = "") -> str:
    a, b, d = f"tensor<{m}x{k}xbf16>", f"tensor<{k}x{n}xbf16>", f"tensor<{m}x{n}xbf16>"
    product = f"  %d = gemm.matmul %a, %b {clause} : ({a}, {b}) -> {d}"
    return f"func.func @f(%a: {a}, %b: {b}) -> {d} {{\n{product}\n  func.return %d : {d}\n}}\n"


def fp8(n: int, k: int, recipe: str = "1x128, 128x128", scales: tuple[str, str] | None = None) -> str:
    sa, sb = scales or (f"tensor<?x{-(-k // 128)}xf32>", f"tensor<{-(-k // 128)}x{-(-n // 128)}xf32>")
    a, b, d = f"tensor<?x{k}xf8E4M3FN>", f"tensor<{k}x{n}xf8E4M3FN>", f"tensor<?x{n}xbf16>"
    left, right = recipe.split(", ")
    product = f"  %d = gemm.matmul %a, %b scaled (%sa by {left}, %sb by {right}) : ({a}, {b}, {sa}, {sb}) -> {d}"
    head = f"func.func @f(%a: {a}, %sa: {sa}, %b: {b}, %sb: {sb}) -> {d} {{"
    return f"{head}\n{product}\n  func.return %d : {d}\n}}\n"


def caught(kind: type[GemmirError], code: str, call: Callable[[], object]) -> GemmirError:
    """The error that `call` raises: of this kind, with this code."""
    with pytest.raises(kind) as error:
        call()
    assert error.value.code == code, str(error.value)
    return error.value


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Of an FP8 layer N = 256, K = 512."""
    lowered = lower(fp8(N, K))
    assert lowered.manifest is not None
    return lowered.manifest


def tensors(m: int = M) -> list[TensorInfo]:
    """What a right call passes: a, sa (row index fastest, padded), b (as w.t()), sb."""

    def on_gpu(name: str, dtype: str, shape: tuple[int, int], strides: tuple[int, int], address: int) -> TensorInfo:
        item = 1 if dtype == "f8E4M3FN" else 4
        return TensorInfo(name, dtype, shape, strides, "cuda", 0, address << 20, item)

    pitch = -(-m // 4) * 4
    return [
        on_gpu("a", "f8E4M3FN", (m, K), (K, 1), 1),
        on_gpu("sa", "f32", (m, K // 128), (1, pitch), 2),
        on_gpu("b", "f8E4M3FN", (K, N), (1, K), 3),
        on_gpu("sb", "f32", (K // 128, N // 128), (N // 128, 1), 4),
    ]


def with_change(position: int, **changes: object) -> list[TensorInfo]:
    """The right call with one tensor made wrong."""
    infos = tensors()
    infos[position] = dataclasses.replace(infos[position], **changes)  # type: ignore[arg-type]
    return infos


def test_the_right_call_is_accepted(manifest: Manifest):
    assert check_arguments(manifest, tensors()) == M


WRONG_CALLS = {
    "wrong dtype": ("GMR-I001", with_change(0, dtype="f8E5M2")),
    "shapes that disagree on K": ("GMR-I002", with_change(0, shape=(M, K - 128))),
    "shapes that disagree on M": ("GMR-I002", with_change(1, shape=(M + 1, K // 128))),
    "misaligned base": ("GMR-I003", with_change(0, address=(1 << 20) + 8)),
    "misaligned stride": ("GMR-I003", with_change(0, strides=(K + 8, 1))),
    "a tensor on the CPU": ("GMR-I004", with_change(2, device_type="cpu")),
    "two GPUs": ("GMR-I004", with_change(3, device_index=1)),
    "a tensor too few": ("GMR-I005", tensors()[:3]),
    "a weight that is not k-major": ("GMR-I006", with_change(2, strides=(N, 1))),
    "scales that were not laid out": ("GMR-I006", with_change(1, strides=(K // 128, 1))),
    "more rows than coordinates": ("GMR-I007", tensors(2**31)),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_is_refused_before_the_gpu_is_touched(name: str, manifest: Manifest):
    code, infos = WRONG_CALLS[name]
    caught(InputError, code, lambda: check_arguments(manifest, infos))


def test_an_output_that_overlaps_an_input_is_refused(manifest: Manifest):
    infos = tensors()
    out = TensorInfo("out", "bf16", (M, N), (N, 1), "cuda", 0, infos[0].address + 1024, 2)
    error = caught(InputError, "GMR-I008", lambda: check_output(manifest, out, M, infos))
    assert "overlaps a" in error.what


@pytest.mark.gpu
def test_cpu_and_gpu_tensors_mixed_are_refused_by_a_kernel():
    kernel = gemmir.compile(bf16(64, 64))
    a, w = torch.zeros(8, 64, dtype=torch.bfloat16), torch.zeros(64, 64, dtype=torch.bfloat16, device="cuda")
    error = caught(InputError, "GMR-I004", lambda: kernel(a, w.t()))
    assert "a" in error.what


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        (bf16(12, 64), "N = 12"),
        (bf16(64, 12), "K = 12"),
        (fp8(64, 24), "K = 24"),
    ],
)
def test_sizes_that_tma_cannot_address_are_refused_with_the_nearest_that_it_can(text: str, dimension: str):
    error = caught(UnsupportedError, "GMR-U001", lambda: gemmir.compile(text))
    assert dimension in error.what
    assert "multiples of 16 bytes" in (error.rule or "")
    assert "pad" in (error.fix or "")


def test_empty_m_is_an_empty_result(manifest: Manifest):
    assert check_arguments(manifest, tensors(0)) == 0
    result = reference.run(parse_module(bf16(N, K)), [torch.empty(0, K).bfloat16(), torch.empty(K, N).bfloat16()])
    assert isinstance(result, torch.Tensor)
    assert (result.shape, result.dtype) == ((0, N), torch.bfloat16)


def test_k_of_zero_is_zeros():
    text = bf16(N, 0)
    assert gemmir.compile(text).manifest.k == 0
    result = reference.run(parse_module(text), [torch.empty(M, 0).bfloat16(), torch.empty(0, N).bfloat16()])
    assert isinstance(result, torch.Tensor)
    assert torch.equal(result, torch.zeros(M, N, dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize(("m", "k"), [(0, K), (M, 0), (0, 0)])
def test_nothing_to_add_up_on_the_gpu(m: int, k: int):
    kernel = gemmir.compile(bf16(N, k))
    a = torch.empty(m, k, dtype=torch.bfloat16, device="cuda")
    w = torch.empty(N, k, dtype=torch.bfloat16, device="cuda")
    assert torch.equal(kernel(a, w.t()), torch.zeros(m, N, dtype=torch.bfloat16, device="cuda"))


def test_a_recipe_that_no_kernel_computes_yet_is_refused_by_name():
    text = fp8(N, K, "row, row", ("tensor<?x1xf32>", f"tensor<1x{N}xf32>"))
    parse_module(text)
    error = caught(UnsupportedError, "GMR-U001", lambda: gemmir.compile(text))
    assert "row x row" in error.what
    assert "--backend reference" in (error.fix or "")


def test_a_recipe_that_does_not_exist_is_shown_where_it_stands():
    error = caught(IRError, "GMR-R001", lambda: gemmir.compile(fp8(N, K, "1x16, 128x128")))
    assert error.location is not None
    assert error.location.text[error.location.column - 1 :].startswith("1x16")


def test_a_recipe_that_torch_has_and_gemmir_has_not_is_refused_by_the_builder():
    p = gemmir.Program("layer")
    a, b = p.input("a", (None, 128), "f8E4M3FN"), p.input("b", (128, 64), "f8E4M3FN")
    sa, sb = p.input("sa", (None, 8), "f32"), p.input("sb", (8, 64), "f32")
    with pytest.raises(GemmirError) as error:
        p.matmul(a, b, scale_a=sa, scale_b=sb, recipe=("block_wise_1x16", "block_wise_1x16"))
    assert error.value.code in ("GMR-I009", "GMR-U001")
    assert "1x16" in error.value.what


@pytest.mark.parametrize("target", ["sm_90", "sm_80", "sm_100a", "", "sm_90a; rm"])
def test_another_target_is_refused(target: str):
    error = caught(UnsupportedError, "GMR-U002", lambda: gemmir.compile(bf16(64, 64), target=target))
    assert "sm_90a" in (error.fix or "")


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("func.func @f() {\n  gemm.matmul 7\n}\n", 2, 15),
        ("func.func @f(%a: tensor<2x3xf32) {}\n", 1, 32),
        (bf16(64, 64, clause="fly"), 2, 27),
    ],
)
def test_malformed_ir_is_shown_with_line_and_column(text: str, line: int, column: int):
    error = caught(IRError, "GMR-R001", lambda: gemmir.compile(text))
    assert error.location is not None
    assert (error.location.line, error.location.column) == (line, column)


def test_shapes_that_disagree_in_the_ir_are_named():
    text = bf16(64, 64).replace("tensor<64x64xbf16>", "tensor<32x64xbf16>")
    error = caught(IRError, "GMR-R002", lambda: gemmir.compile(text))
    assert "K is 64 in A" in error.what
    assert "32 in B" in error.what
    assert error.location is not None
    assert error.location.line == 2


def test_a_schedule_that_does_not_fit_is_refused_with_the_arithmetic():
    clause = "schedule <block = 128x256x64, warpgroups = 2 along n, cluster = 1x1, stages = 8>"
    error = caught(ScheduleError, "GMR-S001", lambda: gemmir.compile(bf16(256, 512, clause=clause)))
    assert "8 stages x" in error.what
    assert "232448" in (error.rule or "")
    assert "num_stages" in (error.fix or "")


@pytest.mark.parametrize("pipeline", ["gemm-fly", "gemm-rasterize{", "gemm-rasterize{fly=1}"])
def test_a_pipeline_that_does_not_apply_is_refused(pipeline: str):
    caught(IRError, "GMR-R004", lambda: gemmir.compile(bf16(64, 64), pipeline=pipeline))


@pytest.mark.parametrize("source", [None, 7, b"func.func", [1]])
def test_a_source_of_another_kind_is_refused(source: object):
    caught(InputError, "GMR-I005", lambda: gemmir.compile(source))  # type: ignore[arg-type]


@pytest.mark.parametrize("m", [0, -3, 3.5])
def test_an_m_that_is_no_size_is_refused(m: object):
    caught(InputError, "GMR-I009", lambda: gemmir.compile(bf16(64, 64), m=m))  # type: ignore[arg-type]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    caught(InputError, "GMR-I005", lambda: gemmir.compile(tmp_path / "no.mlir"))


def test_without_a_driver_compiling_works_and_loading_says_what_is_missing():
    code = f"import gemmir; k = gemmir.compile({bf16(64, 64)!r}); assert k.cubin; k.prepare()"
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "DeviceError: GMR-D001" in done.stderr, done.stderr


def test_a_missing_nvrtc_names_the_package(monkeypatch: pytest.MonkeyPatch):
    def gone() -> Path:
        raise nvrtc._missing("NVRTC is not installed")  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(nvrtc, "library_path", gone)
    error = caught(ToolMissingError, "GMR-C003", lambda: gemmir.compile(bf16(64, 64)))
    assert "nvidia-cuda-nvrtc" in (error.fix or "")
    assert error.exit_code == 3


@pytest.fixture
def unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory that cannot be made: a file stands in its way (root may write anywhere else)."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    return tmp_path / "file" / "cache"


def test_an_unwritable_cache_does_not_stop_a_compile(unwritable: Path):
    kernel = gemmir.compile(bf16(64, 64))
    assert kernel.cubin.startswith(b"\x7fELF")
    assert kernel.source_path is None


def test_an_unwritable_cache_is_an_error_for_those_who_ask_for_it(unwritable: Path):
    error = caught(CacheError, "GMR-K001", lambda: Cache(required=True))
    assert "GEMMIR_CACHE_DIR" in (error.fix or "")
