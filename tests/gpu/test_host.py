"""What a call costs on the host, beside torch's own products and a bare launch, and what many calls leave behind."""

from __future__ import annotations

import ctypes
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gemmir
import gemmir.torch_ops
from gemmir import calls, ops
from gemmir.backends.cuda import driver
from gemmir.problem import Grouping
from gemmir.product_calls import Asked, call_of

pytestmark = pytest.mark.gpu

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
N, K, ROWS = 1024, 1024, 64

OF_SCALED_MM = 0.5
"""Of the host time of `torch._scaled_mm`, which checks and packs less: one scale per tensor. 0.39 to 0.45 were seen."""

OF_DISPATCHING_US = 3.0
"""What an op may add to the function that it stands for. 1.1 to 1.9 were seen; torch's dispatcher adds 8.7."""


def us(calls: dict[str, Callable[[], Any]], count: int = 100, rounds: int = 60) -> dict[str, float]:
    """Median host time of each call in microseconds, in turn; the queue of launches never fills."""
    times: dict[str, list[float]] = {what: [] for what in calls}
    for _ in range(rounds):
        for what, call in calls.items():
            call()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(count):
                call()
            times[what].append((time.perf_counter() - start) / count * 1e6)
            torch.cuda.synchronize()
    return {what: statistics.median(found) for what, found in times.items()}


def fp8(m: int, n: int = N, k: int = K) -> dict[str, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(m)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    return {
        "a": draw(m, k).to(FP8),
        "b": draw(n, k).to(FP8).t(),
        "scale_a": gemmir.align_scales(draw(m, k // 128).abs()),
        "scale_b": draw(k // 128, n // 128).abs(),
    }


def bare_launch() -> Callable[[], Any]:
    """The launch that a warm call makes, with nothing around it."""
    tensors, out = fp8(ROWS), torch.empty(ROWS, N, dtype=BF16, device="cuda")
    ops.forget()
    gemmir.matmul(**tensors, out=out)
    (ready,) = ops.CALLS[Grouping.NONE].ready.values()
    made: Any = ready
    plan, parameters = made.plan, made.parameters.address
    ((config, _),) = plan.configs.values()
    launch, function = driver.bindings().cuLaunchKernelEx, plan.kernel.function
    return lambda: launch(config, function, parameters, 0)


def test_a_warm_call_is_short(record_property: Callable[[str, object], None]) -> None:
    tensors, out = fp8(ROWS), torch.empty(ROWS, N, dtype=BF16, device="cuda")
    a, b, scale_a, scale_b = tensors.values()
    one, two = torch.ones((), device="cuda"), torch.ones((), device="cuda")
    x, w = torch.zeros(ROWS, K, dtype=BF16, device="cuda"), torch.zeros(N, K, dtype=BF16, device="cuda").t()
    asked = Asked(False, False, True, True, False, None, None)
    kernel = ops.kernel_of(call_of(Grouping.NONE, tensors, asked))
    moving = itertools.cycle([torch.empty_like(out) for _ in range(2 * calls.MAX_CALLS)])
    scales = {"scale_a": scale_a, "scale_b": scale_b}
    through_ops = torch.ops.gemmir.matmul_out
    found = us(
        {
            "bare launch": bare_launch(),
            "matmul": lambda: gemmir.matmul(a, b, scale_a=scale_a, scale_b=scale_b, out=out),
            "matmul, new result": lambda: gemmir.matmul(a, b, scale_a=scale_a, scale_b=scale_b),
            "matmul, new address": lambda: gemmir.matmul(a, b, **scales, out=next(moving)),
            "torch.ops": lambda: through_ops(a, b, scale_a=scale_a, scale_b=scale_b, out=out),
            "matmul, BF16": lambda: gemmir.matmul(x, w, out=out),
            "kernel": lambda: kernel(a, b, scale_a, scale_b, out=out),
            "torch._scaled_mm": lambda: torch._scaled_mm(a, b, one, two, out_dtype=BF16, out=out),
            "torch.mm": lambda: torch.mm(x, w, out=out),
        }
    )
    for what, time_us in found.items():
        record_property(what, time_us)
    text = ", ".join(f"{what} {time_us:.2f}" for what, time_us in found.items())
    sys.stderr.write(f"host time of a call in us: {text}\n")
    assert found["matmul"] <= OF_SCALED_MM * found["torch._scaled_mm"], text
    assert found["torch.ops"] <= found["matmul"] + OF_DISPATCHING_US, text


def test_a_prepared_product_can_be_captured_at_once() -> None:
    """No call was made before; replayed, it costs the host nothing and gives the same bits."""
    tensors, out = fp8(ROWS, 512, 640), torch.empty(ROWS, 512, dtype=BF16, device="cuda")
    (kernel,) = gemmir.prepare([(ROWS, 512, 640)], FP8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gemmir.matmul(**tensors, out=out)
    graph.replay()
    torch.cuda.synchronize()
    replayed = out.clone()
    assert torch.equal(gemmir.matmul(**tensors), replayed)
    assert torch.equal(kernel(*tensors.values()), replayed)


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def test_a_million_calls_leave_nothing_behind() -> None:
    """Over 200 shapes, into outputs that are given; then every result is what it was at first."""
    gc.collect()
    n = k = 256
    weight = fp8(1, n, k)
    cases = []
    for m in range(1, 201):
        given = fp8(m, n, k) | {"b": weight["b"], "scale_b": weight["scale_b"]}
        cases.append(given | {"out": torch.empty(m, n, dtype=BF16, device="cuda")})

    def launch_all(rounds: int) -> None:
        for _ in range(rounds):
            for case in cases:
                gemmir.matmul(**case)
            torch.cuda.synchronize()

    launch_all(250)
    first = [case["out"].view(torch.int16).clone() for case in cases]
    for case in cases:
        case["out"].fill_(float("nan"))
    libc = ctypes.CDLL(None)
    gc.collect()
    libc.malloc_trim(0)
    before = resident_bytes()
    launch_all(5000)
    gc.collect()
    libc.malloc_trim(0)
    grown = resident_bytes() - before
    assert all(torch.equal(case["out"].view(torch.int16), bits) for case, bits in zip(cases, first, strict=True))
    assert grown < 1 << 20, f"{grown} bytes"
