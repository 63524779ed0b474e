"""How L2 is emptied, as far as it can be seen without a GPU: what is read or written, and how the profiler names it."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from gemmir.bench import flush, timing
from gemmir.bench.flush import FLUSH_BYTES, FLUSHES, flusher, is_flush
from gemmir.bench.timing import GpuEvent, group_launches, kernel_us

SUM = "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<int, at::native::func_wrapper_t<int, sum_functor>>>"
NAMES = {"zero": "Memset (Device)", "read": SUM}


@pytest.fixture
def buffer(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.Tensor]:
    """Four numbers a row, on the CPU, instead of 512 MB; one of them is 9."""
    made = torch.ones(4 * 2048, dtype=torch.int32)
    made[-1] = 9
    caches: list[Any] = [flush._zeroing, flush._reading]  # type: ignore[attr-defined]
    monkeypatch.setattr(flush, "_written_once", lambda: made)
    for cached in caches:
        cached.cache_clear()
    yield made
    for cached in caches:
        cached.cache_clear()


def test_reading_adds_up_all_of_the_buffer_and_writes_nothing_to_it(buffer: torch.Tensor):
    version = buffer._version
    sums = flusher("read")()
    assert isinstance(sums, torch.Tensor)
    assert sums.tolist() == [4] * 2047 + [12]
    assert buffer._version == version
    assert FLUSH_BYTES % (4 * len(sums)) == 0, "rows are whole"


def test_the_buffer_is_read_once_before_the_first_flush(buffer: torch.Tensor, monkeypatch: pytest.MonkeyPatch):
    add_up, read = torch.sum, list[int]()

    def counted(rows: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        read.append(rows.numel())
        return add_up(rows, *rest, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "sum", counted)
    found = flusher("read")
    assert read == [buffer.numel()], "what making it left dirty is written back before anything is timed"
    found()
    assert flusher("read") is found
    assert read == [buffer.numel()] * 2


def test_zeroing_writes_all_of_the_buffer(buffer: torch.Tensor):
    flusher("zero")()
    assert not buffer.any()


def test_a_flush_is_known_by_its_name():
    assert FLUSHES == ("zero", "read")
    assert [kind for kind in FLUSHES if is_flush(kind, "Memset (Device)")] == ["zero"]
    assert [kind for kind in FLUSHES if is_flush(kind, "vectorized_elementwise_kernel<4, FillFunctor<int>>")] == [
        "zero"
    ]
    assert [kind for kind in FLUSHES if is_flush(kind, SUM)] == ["read"]
    assert not any(is_flush(kind, "cublasLt::splitKreduce_kernel<32, 16, int>") for kind in FLUSHES)


def test_a_launch_may_fill_and_add_up_beside_reading_flushes():
    events = [
        GpuEvent(SUM, 0.0, 120.0),
        GpuEvent("Memset (Device)", 121.0, 3.0),
        GpuEvent("gemm", 125.0, 10.0),
        GpuEvent(SUM, 136.0, 2.0),
        GpuEvent(SUM, 140.0, 121.0),
        GpuEvent("gemm", 262.0, 11.0),
    ]
    groups = group_launches(events, 2, "read")
    assert [sum(event.duration_us for event in group) for group in groups] == [15.0, 11.0]


@pytest.mark.parametrize("kind", FLUSHES)
def test_each_launch_has_a_flush_of_that_kind_before_it(kind: str, monkeypatch: pytest.MonkeyPatch):
    """A profiler that saw what was launched, 130 us of flush and 10, 11, ... us of kernel."""
    events: list[GpuEvent] = []

    def launched(name: str, duration: float) -> None:
        events.append(GpuEvent(name, 1000.0 * len(events), duration))

    def launch() -> None:
        launched("gemm", 10.0 + sum(event.name == "gemm" for event in events))

    def profile(**_: object) -> object:
        events.clear()
        return nullcontext()

    monkeypatch.setattr(timing, "flusher", lambda kind: lambda: launched(NAMES[kind], 130.0))
    monkeypatch.setattr(timing, "_gpu_events", lambda _: events)
    monkeypatch.setattr(torch.profiler, "profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert kernel_us(launch, 3, 0.0, kind) == [10.0, 11.0, 12.0]
    assert [event.name for event in events] == [NAMES[kind], "gemm"] * 3
