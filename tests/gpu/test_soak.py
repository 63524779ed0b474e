"""
Many launches, and plans, streams and graphs that come and go: nothing grows, and no bit changes.

GEMMIR_SOAK is how many launches (a million each night), GEMMIR_SOAK_SECONDS how long streams and graphs go on under
chaos (an hour).
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import gemmir
from gemmir.backends.cuda import driver
from gemmir.backends.cuda.launch import MAX_PLANS
from gemmir.backends.reference.data import random_inputs
from gemmir.bench.grouped import GroupedCase
from gemmir.bench.inputs import inputs_of
from gemmir.ir_text import parse_module
from tests.gpu.problems import Case

pytestmark = pytest.mark.gpu

LAUNCHES = int(os.environ.get("GEMMIR_SOAK", "20000"))
SECONDS = float(os.environ.get("GEMMIR_SOAK_SECONDS", "5"))
MIB = 1 << 20
PRODUCTS = [
    Case("f8E4M3FN", 260, 1024, 1024),
    Case("f8E4M3FN", 16, 1024, 2048),
    Case("bf16", 260, 1024, 512),
    Case("bf16", 32, 2048, 512),
]
HEIGHTS = 50
"""Numbers of rows of each product: 200 shapes."""
STREAMS = 4


@dataclass
class Made:
    """A product: what computes it, what of, and what it is."""

    run: Callable[[], torch.Tensor]
    out: torch.Tensor
    expected: torch.Tensor

    def wrong(self) -> torch.Tensor:
        """Elements that are not as they should be, on the device."""
        return (self.run() != self.expected).sum()


@dataclass(frozen=True)
class Held:
    """What this process holds: modules that it has loaded, file descriptors, threads, bytes of the device and here."""

    modules: int
    descriptors: int
    threads: int
    on_device: int
    resident: int


class Modules:
    """Counts what is loaded into devices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.loaded = 0
        self._load = driver.load
        monkeypatch.setattr(driver, "load", self._counted)

    def _counted(self, cubin: bytes) -> Any:
        self.loaded += 1
        return self._load(cubin)


def held(modules: Modules) -> Held:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = len(os.listdir("/proc/self/fd"))
    return Held(modules.loaded, descriptors, threading.active_count(), total - free, pages * os.sysconf("SC_PAGE_SIZE"))


def made(kernel: gemmir.CompiledKernel, tensors: tuple[torch.Tensor, ...]) -> Made:
    expected = kernel(*tensors)
    out = torch.empty_like(expected)
    return Made(lambda: kernel(*tensors, out=out), out, expected)


def of_all_heights(case: Case) -> list[Made]:
    """A kernel with fewer and fewer rows."""
    kernel = gemmir.compile(case.text, m=case.m, cache=False)
    first, *rest = random_inputs(parse_module(case.text), case.m, 5, "cuda").values()
    heights = [1 + i * (case.m - 1) // (HEIGHTS - 1) for i in range(HEIGHTS)]
    scales, rest = (rest[:1], rest[1:]) if case.dtype.startswith("f8") else ([], rest)
    return [made(kernel, (first[:m], *(scale[:m] for scale in scales), *rest)) for m in heights]


def of_groups() -> Made:
    case = GroupedCase("bf16", "offs", 9, 333, 1536, 640)
    return made(gemmir.compile(case.program(), cache=False), tuple(inputs_of(case, 5, "cuda").values()))


def test_many_launches_leave_nothing_behind_and_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = Modules(monkeypatch)
    products = [*(made for case in PRODUCTS for made in of_all_heights(case)), of_groups()]
    assert modules.loaded == len(PRODUCTS) + 1
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for i in range(2000 + LAUNCHES):
        if i == 2000:
            before = held(modules)
        wrong += products[i * 7 % len(products)].wrong()
    after = held(modules)
    assert int(wrong) == 0
    assert after.resident - before.resident < MIB
    assert (after.modules, after.descriptors, after.threads) == (before.modules, before.descriptors, before.threads)
    assert after.on_device <= before.on_device


def test_plans_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """More shapes than are remembered, again and again: a kernel is loaded once, and of its plans as many are kept."""
    modules = Modules(monkeypatch)
    case = Case("bf16", 3 * MAX_PLANS, 512, 512)
    kernel = gemmir.compile(case.text, m=64, cache=False)
    x, w = random_inputs(parse_module(case.text), case.m, 6, "cuda").values()
    expected = kernel(x, w)
    out = torch.empty_like(expected)
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for turn in range(12):
        if turn == 8:
            before = held(modules)
        for m in range(1, case.m + 1):
            wrong += (kernel(x[:m], w, out=out[:m]) != expected[:m]).sum()
    after = held(modules)
    assert int(wrong) == 0
    assert len(kernel.launcher()._plans) == MAX_PLANS
    assert after.modules == 1
    assert after.on_device <= before.on_device
    assert after.resident - before.resident < MIB


def test_launchers_that_are_dropped_free_what_is_not_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded stays loaded, since a graph may hold it: less than a MiB for each, and nothing else."""
    modules = Modules(monkeypatch)
    case = Case("bf16", 32, 512, 512)
    shared = gemmir.compile(case.text, m=case.m, cache=False)
    inputs = tuple(random_inputs(parse_module(case.text), case.m, 7, "cuda").values())
    out = torch.empty_like(shared(*inputs))

    def use_a_fresh_one() -> None:
        fresh = gemmir.CompiledKernel(shared.manifest, shared.source, shared.cubin, shared.log, shared.texts, None)
        fresh(*inputs, out=out)

    for _ in range(20):
        use_a_fresh_one()
    before = held(modules)
    for _ in range(100):
        use_a_fresh_one()
    after = held(modules)
    assert after.modules - before.modules == 100
    assert (after.descriptors, after.threads) == (before.descriptors, before.threads)
    assert after.on_device - before.on_device <= 100 * MIB
    assert after.resident - before.resident < 100 * MIB


def test_streams_and_graphs_go_on_under_chaos() -> None:
    """Four streams, each with launches and a graph that is replayed; a watchdog looks on, and nothing hangs."""
    kernels = [gemmir.compile(c.text, m=c.m, cache=False, chaos=True, watchdog_ms=10_000) for c in PRODUCTS]
    inputs = [tuple(random_inputs(parse_module(c.text), c.m, 8, "cuda").values()) for c in PRODUCTS]
    expected = [kernel(*given) for kernel, given in zip(kernels, inputs, strict=True)]
    gemmir.synchronize()
    streams = [torch.cuda.Stream() for _ in range(STREAMS)]
    outs = [torch.empty_like(result) for result in expected]
    replayed = [torch.empty_like(result) for result in expected]
    wrong = [torch.zeros((), dtype=torch.int64, device="cuda") for _ in range(STREAMS)]
    graphs = [torch.cuda.CUDAGraph() for _ in range(STREAMS)]
    for i, graph in enumerate(graphs):
        with torch.cuda.graph(graph, stream=streams[i]):
            kernels[i](*inputs[i], out=replayed[i])
    deadline, rounds = time.monotonic() + SECONDS, 0
    while time.monotonic() < deadline:
        for i, stream in enumerate(streams):
            kernels[i].reseed(rounds)
            with torch.cuda.stream(stream):
                kernels[i](*inputs[i], out=outs[i].fill_(float("nan")))
                replayed[i].fill_(float("nan"))
                graphs[i].replay()
                wrong[i] += (outs[i] != expected[i]).sum() + (replayed[i] != expected[i]).sum()
        rounds += 1
        if rounds % 64 == 0:
            gemmir.synchronize()
    gemmir.synchronize()
    assert [int(count) for count in wrong] == [0] * STREAMS
    assert rounds > 10 * SECONDS
