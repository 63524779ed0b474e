"""The watchdog: kernels that are compiled with it, what they report, and how the host says it."""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import gemmir
from gemmir.backends.cuda import driver, from_torch, watchdog
from gemmir.backends.cuda.audit import audit_source
from gemmir.backends.cuda.compiler_log import check_log
from gemmir.backends.cuda.launch import Launcher
from gemmir.backends.cuda.nvrtc import compile_cubin
from gemmir.backends.cuda.prelude import WATCHED, sections
from gemmir.backends.cuda.printer import print_kernel
from gemmir.bench.grouped import GroupedCase
from gemmir.cli.main import main
from gemmir.compiler import compile_call, lower
from gemmir.errors import DeviceLostError, InputError, SyncError
from gemmir.kernel import CompiledKernel
from gemmir.testing.strategies import split_in_two
from gemmir.watchdog_limit import MOST_MS, watchdog_limit
from tests.backends.cuda.cuda_doubles import MANIFEST, RecordingDriver, Status, tensors
from tests.backends.cuda.oldest_nvrtc import compile_by_oldest, needs_oldest_nvrtc
from tests.kernels import FP8_SCHEDULE, STREAM_SCHEDULE, Lowered, lowered
from tests.schedules import fp8_problem

LIMIT = 250
LOST = Status("CUDA_ERROR_LAUNCH_FAILED", 719)
GROUPS = GroupedCase("f8E4M3FN", "offs", 9, 333, 1536, 640)
"""Whose math warps have no register to spare."""


@cache
def dense() -> Lowered:
    return lowered(fp8_problem(None, 7168, 2048), FP8_SCHEDULE)


def small() -> gemmir.Program:
    program = gemmir.Program("small")
    a, b = program.input("a", (64, 256), "bf16"), program.input("b", (256, 64), "bf16")
    program.output(program.matmul(a, b).cast("bf16"))
    return program


@cache
def watched_sources() -> dict[str, str]:
    """A kernel of each kind, with a watchdog."""
    fp8 = fp8_problem(None, 7168, 2048)
    split = lowered(split_in_two(fp8), replace(FP8_SCHEDULE, cluster_m=1, num_stages=4))
    kernels = {"tiles": dense(), "stream": lowered(fp8, STREAM_SCHEDULE), "split": split}
    printed = {name: print_kernel(made.kernel, watchdog_ms=LIMIT).source for name, made in kernels.items()}
    return {**printed, "groups": lower(GROUPS.program(), watchdog_ms=LIMIT).source}


# ------------------------------------------------------------ what is printed and compiled


def test_without_it_no_byte_of_a_kernel_is_another(monkeypatch: pytest.MonkeyPatch):
    plain = lower(GROUPS.program()).source
    assert "watchdog" not in plain.lower()
    monkeypatch.setenv("GEMMIR_WATCHDOG_MS", "0")
    assert lower(GROUPS.program()).source == plain
    monkeypatch.setenv("GEMMIR_WATCHDOG_MS", str(LIMIT))
    assert lower(GROUPS.program(), watchdog_ms=0).source == plain
    assert lower(GROUPS.program()).source == watched_sources()["groups"] != plain


def test_what_was_proven_is_printed_the_same():
    """Only the prelude is another, and of that only the waits and one constant."""
    plain, watched = dense().source, watched_sources()["tiles"]
    assert plain.partition('\nextern "C"')[2] == watched.partition('\nextern "C"')[2]
    added = [sections()[name].text for name in ("watchdog", "watchdog_now", "watchdog_bark")]
    head = watched.replace(f"constexpr int WATCHDOG_MS = {LIMIT};\n\n", "")
    for text in added:
        head = head.replace(text + "\n\n", "")
    wait = sections()["mbarrier_wait"].text
    of_watchdog = sections()[WATCHED + "mbarrier_wait"].text
    assert head.replace(of_watchdog, "").split() == plain.replace(wait, "").split()


def test_it_is_compared_with_the_proven_kernel_all_the_same():
    kernel, source = dense().kernel, watched_sources()["tiles"]
    audit_source(kernel, source)
    wait = next(line for line in source.splitlines() if line.strip().startswith("mbarrier_wait(empty"))
    with pytest.raises(SyncError, match="GMR-Y001"):
        audit_source(kernel, source.replace(wait + "\n", "", 1))
    tried = "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;"
    with pytest.raises(SyncError, match="GMR-Y001"):
        audit_source(kernel, source.replace(tried, "setp.eq.u32 done, %1, %2;"))


def test_every_wait_that_goes_round_has_one():
    """The kernel can hang in no other loop of the prelude's."""
    rounds = {name for name, section in sections().items() if "try_wait" in section.text and WATCHED not in name}
    assert {WATCHED + name for name in rounds} == {name for name in sections() if name.startswith(WATCHED)}


@pytest.mark.parametrize("kind", ["tiles", "stream", "split", "groups"])
def test_nothing_is_spilled_or_serialised(kind: str):
    source = watched_sources()[kind]
    compiled = compile_cubin(source)
    check_log(compiled.log)
    assert "%globaltimer" in compiled.ptx
    assert "trap;" in compiled.ptx


@needs_oldest_nvrtc
def test_nor_by_the_oldest_compiler():
    sources = watched_sources()
    for compiled in compile_by_oldest([sources["groups"], sources["split"]]).values():
        check_log(compiled.log)


def test_it_is_another_kernel_in_the_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path))
    kernels = [gemmir.compile(small(), watchdog_ms=ms) for ms in (0, LIMIT, LIMIT, 2 * LIMIT)]
    assert len({kernel.key for kernel in kernels}) == 3
    assert [watchdog.watched(kernel.source) is not None for kernel in kernels] == [False, True, True, True]
    assert kernels[1].cubin == kernels[2].cubin
    assert kernels[0].manifest == kernels[1].manifest, "it is launched the same way"


def test_a_call_finds_the_kernel_that_the_environment_asks_for(monkeypatch: pytest.MonkeyPatch):
    call = ("a call of this test",)
    kernels: list[CompiledKernel] = []
    for limit in ("", "250", "250", "0"):
        monkeypatch.setenv("GEMMIR_WATCHDOG_MS", limit)
        kernels.append(compile_call(call, small))
    assert [watchdog.watched(kernel.source) is not None for kernel in kernels] == [False, True, True, False]
    assert kernels[0].key == kernels[3].key != kernels[1].key == kernels[2].key


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "layer.mlir").write_text(str(GROUPS.program().module))
    command = ["compile", str(tmp_path / "layer.mlir"), "--emit", "cuda"]
    assert main([*command, "--watchdog-ms", str(LIMIT)]) == 0
    assert watchdog.watched(capsys.readouterr().out) is not None
    assert main(command) == 0
    assert watchdog.watched(capsys.readouterr().out) is None
    assert main([*command, "--watchdog-ms", str(MOST_MS + 1)]) == 1
    assert "GMR-I009" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["soon", "-1", "1.5", "1e3", str(MOST_MS + 1), "9" * 50, "\u0663"])
def test_a_limit_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GEMMIR_WATCHDOG_MS", text)
    with pytest.raises(InputError, match=r"GMR-I009: GEMMIR_WATCHDOG_MS=") as error:
        gemmir.compile(GROUPS.program(), cache=False)
    assert str(MOST_MS) in (error.value.rule or "")
    assert watchdog_limit(7) == 7, "an argument counts"


@pytest.mark.parametrize("value", [-1, True, 1.5, "1", MOST_MS + 1])
def test_an_argument_that_is_none(value: Any):
    with pytest.raises(InputError, match=r"GMR-I009: watchdog_ms = "):
        gemmir.compile(GROUPS.program(), cache=False, watchdog_ms=value)


# ------------------------------------------------------------ what is reported


@pytest.mark.parametrize(
    ("kind", "roles"),
    [
        ("tiles", {0: "math warpgroups", 7: "math warpgroups", 8: "producer warp", 9: "store thread", 11: ""}),
        ("stream", {3: "math warpgroups", 4: "producer warp", 5: "store thread"}),
        ("split", {0: "math warpgroups", 8: "producer warp"}),
        ("groups", {7: "math warpgroups", 8: "producer warp", 9: "store warp"}),
    ],
)
def test_reports_are_read_by_the_source(kind: str, roles: dict[int, str]):
    source = watched_sources()[kind]
    found = watchdog.watched(source)
    assert found is not None
    assert found.limit_ms == LIMIT
    assert {warp: found.role(warp).strip(" ()") for warp in roles} == roles
    names = [array.name for array in found.barriers]
    assert {"full", "empty", "staged", "drained"} <= set(names)
    assert len(re.findall(r"\bmbarrier_init\(\w+ \+", source)) == len(names)
    for array in found.barriers:
        assert f"const u32 {array.name} = smem + {array.offset};" in source
        last = array.offset + 8 * (array.count - 1)
        assert found.barrier(array.offset) == f"{array.name}[0]"
        assert found.barrier(last) == f"{array.name}[{array.count - 1}]"
    assert found.barrier(0) == "shared memory + 0"


def test_a_source_without_one():
    assert watchdog.watched(dense().source) is None
    assert watchdog.watched("") is None


def test_the_record_has_the_shape_that_the_kernel_writes():
    text = sections()["watchdog"].text + sections()["watchdog_bark"].text
    assert f"WATCHDOG_REPORTS = {watchdog.REPORTS}," in text
    assert f"watchdog.record + report * {watchdog.WORDS};" in text
    assert [f"out[{i}]" in text for i in range(7)] == [True] * 6 + [False]


def record_of(reports: list[tuple[int, ...]]) -> watchdog.Record:
    memory = (ctypes.c_uint32 * (watchdog.REPORTS * watchdog.WORDS))()
    for i, words in enumerate(reports):
        memory[i * watchdog.WORDS : i * watchdog.WORDS + len(words)] = list(words)
    found = watchdog.watched(watched_sources()["tiles"])
    assert found is not None
    return watchdog.Record("layer (k)", found, memory)


def test_nothing_happened():
    assert record_of([]).lines() == []


def test_who_waits_where():
    """Of the CTA that reported first everybody, each once; a report that is half written is none."""
    found = watchdog.watched(watched_sources()["tiles"])
    assert found is not None
    full, empty = (next(a for a in found.barriers if a.name == name) for name in ("full", "empty"))
    record = record_of(
        [
            (1, 5, 0, full.offset + 8, 1, 239),
            (1, 5, 8, empty.offset, 0, 239),
            (1, 6, 0, full.offset, 1, 239),
            (1, 5, 0, full.offset + 8, 1, 239),
            (0, 5, 1, full.offset, 1, 239),
        ]
    )
    assert record.lines() == [
        "the watchdog ended layer (k), which waited for more than 250 ms in CTA 5:",
        "  warp 0 (math warpgroups) waits at full[1], whose phase of parity 1 does not end: 250 ms",
        "  warp 8 (producer warp) waits at empty[0], whose phase of parity 0 does not end: 250 ms",
        "  so do warps of 1 other CTAs",
    ]


def test_a_record_that_is_full():
    lines = record_of([(1, cta, 0, 0, 0, 239) for cta in range(watchdog.REPORTS)]).lines()
    assert lines[2:] == [f"  so do warps of {watchdog.REPORTS - 1} or more other CTAs"]


# ------------------------------------------------------------ the host


def watched_kernel() -> CompiledKernel:
    return CompiledKernel(MANIFEST, watched_sources()["tiles"], b"cubin", "", {}, None)


def words_of(gpu: RecordingDriver) -> Any:
    """What the device sees of the host's memory."""
    return (ctypes.c_uint32 * (watchdog.REPORTS * watchdog.WORDS)).from_buffer(gpu.host[0])


def test_a_kernel_is_told_once_where_to_report(gpu: RecordingDriver):
    kernel = watched_kernel()
    for _ in range(2):
        kernel(*tensors(8))
    (memory,) = gpu.host
    assert gpu.copied == [(ctypes.addressof(memory) + 1).to_bytes(8, "little")], "its address on the device"
    assert gpu.calls.index("cuModuleGetGlobal") < gpu.calls.index("cuLaunchKernelEx")
    assert watchdog.barks() == [], "whatever was in that memory before"


def test_a_kernel_without_one_is_told_nothing(gpu: RecordingDriver):
    Launcher(MANIFEST, b"cubin", dense().source)(tensors(8))
    assert gpu.host == []


def hang(gpu: RecordingDriver) -> None:
    """What a kernel does that hangs."""
    found = watchdog.watched(watched_sources()["tiles"])
    assert found is not None
    words_of(gpu)[:6] = [1, 3, 9, found.barriers[2].offset, 0, 239]


def test_the_next_call_says_who_waited(gpu: RecordingDriver):
    kernel = watched_kernel()
    kernel(*tensors(8))
    hang(gpu)
    gpu.fail["cuLaunchKernelEx"] = LOST
    for _ in range(2):
        with pytest.raises(DeviceLostError) as error:
            kernel(*tensors(8))
        assert error.value.code == "GMR-D010"
        assert "the watchdog ended down_proj (k_0123456789abcdef)" in error.value.what
        assert "warp 9 (store thread) waits at staged[0], whose phase of parity 0 does not end" in error.value.what
        assert "gemmir's last 2 launches" in error.value.what


def test_waiting_says_it_too(gpu: RecordingDriver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(from_torch, "device_index", lambda device: 1 if device is None else device)
    gemmir.synchronize()
    assert gpu.context == 0x1000, "restored"
    watched_kernel()(*tensors(8))
    hang(gpu)
    gpu.fail["cuCtxSynchronize"] = LOST
    with pytest.raises(DeviceLostError, match=r"GMR-D010: cuCtxSynchronize failed: CUDA_ERROR_LAUNCH_FAILED \(719\)"):
        gemmir.synchronize(0)
    asked = len(gpu.calls)
    with pytest.raises(DeviceLostError, match="GMR-D010"):
        gemmir.synchronize(0)
    assert len(gpu.calls) == asked, "refused without asking again"


def test_another_fault_is_no_hang(gpu: RecordingDriver):
    kernel = watched_kernel()
    kernel(*tensors(8))
    with pytest.raises(DeviceLostError, match="GMR-D004"):
        driver.checked((LOST,), "cuLaunchKernelEx")


def test_memory_that_there_is_not(gpu: RecordingDriver):
    gpu.fail["cuMemHostAlloc"] = Status("CUDA_ERROR_OUT_OF_MEMORY", 2)
    with pytest.raises(gemmir.errors.DeviceError, match="GMR-D009: cuMemHostAlloc failed"):
        watched_kernel()(*tensors(8))
    gpu.fail.clear()
    watched_kernel()(*tensors(8))
    assert len(gpu.launches) == 1


def test_the_machine_code_knows_where_the_host_finds_its_variable():
    compiled = compile_cubin(watched_sources()["stream"])
    assert ".global .align 8 .b8 watchdog[16];" in compiled.ptx
    assert b"\0watchdog\0" in compiled.cubin
