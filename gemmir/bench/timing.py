"""
Clocks for work on the GPU.

`kernel_us`: the GPU time of the kernels alone, one launch at a time with a cold L2. `hot_us`: launches back to back, as
fast as the GPU takes them, with whatever is left in L2 and the clock that it settles at. Both take anything that
launches work on torch's current stream.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemmir.bench.flush import FLUSHES, flusher, is_flush
from gemmir.errors import ToolMissingError

if TYPE_CHECKING:
    import torch

Launch = Callable[[], object]

LAUNCHES = 20
REST_SECONDS = 0.25
WARM_LAUNCHES = 3

HOT_SECONDS = 0.1
HOT_LAUNCHES = (50, 500)
"""Fewest and most launches of a hot series; the most keeps them all in the driver's queue."""
SLEEP_CLOCK_HZ = 2e9
"""No Hopper GPU clocks higher: a sleep of so many cycles a second is long enough."""


@dataclass(frozen=True, slots=True)
class GpuEvent:
    """Something that the profiler saw on the GPU, a kernel, copy or fill; microseconds."""

    name: str
    start_us: float
    duration_us: float


@dataclass(frozen=True, slots=True)
class Timing:
    """
    Times in microseconds: `series` of launches with a cold L2, and `hot_us`, one launch of many back to back.

    `us` is the median of all samples, `spread` how far the medians of the series are apart, as a share of the smallest.
    """

    series: tuple[tuple[float, ...], ...]
    hot_us: float | None = None

    @property
    def us(self) -> float:
        return statistics.median(sample for samples in self.series for sample in samples)

    @property
    def spread(self) -> float:
        medians = [statistics.median(samples) for samples in self.series]
        return max(medians) / min(medians) - 1


def measure_kernel(
    launch: Launch,
    launches: int = LAUNCHES,
    rest: float = REST_SECONDS,
    hot: bool = False,
    flush: str = FLUSHES[0],
) -> Timing:
    """One series with a cold L2 and, if `hot`, one without rest or flush."""
    samples = tuple(kernel_us(launch, launches, rest, flush))
    return Timing((samples,), hot_us(launch) if hot else None)


def kernel_us(
    launch: Launch, launches: int = LAUNCHES, rest: float = REST_SECONDS, flush: str = FLUSHES[0]
) -> list[float]:
    """
    GPU time of each of `launches` calls of `launch`, in microseconds.

    By torch's profiler; L2 is flushed before each launch as `gemmir.bench.flush` says, and the GPU rests for `rest`
    seconds before the first. What one call puts on the GPU is added up: kernels, fills and copies, not the gaps between
    them.
    `ToolMissingError` (GMR-C004) if the profiler does not see it all.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    for _ in range(WARM_LAUNCHES):
        launch()
    empty_l2 = flusher(flush)
    torch.cuda.synchronize()
    time.sleep(rest)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(launches):
            empty_l2()
            launch()
        torch.cuda.synchronize()
    groups = group_launches(_gpu_events(profiler), launches, flush)
    return [sum(event.duration_us for event in group) for group in groups]


def hot_us(launch: Launch, seconds: float = HOT_SECONDS) -> float:
    """
    Microseconds of one launch of many back to back, by CUDA events: over `seconds`, at least 50 and at most 500.

    The GPU sleeps until the launches are queued, so that short kernels do not wait for the host. The same number of
    launches goes before, so that the clock has settled.
    """
    import torch

    fewest, most = HOT_LAUNCHES
    _, once = _back_to_back(launch, fewest, 0.0)
    count = min(most, max(fewest, math.ceil(seconds / once)))
    host, _ = _back_to_back(launch, count, 0.0)
    _, once = _back_to_back(launch, count, 1.5 * host * count)
    torch.cuda.synchronize()
    return once * 1e6


def _back_to_back(launch: Launch, count: int, sleep: float) -> tuple[float, float]:
    """Seconds per launch of (the host's calls, the GPU's work), after the GPU has slept for `sleep` seconds."""
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    keep_busy(sleep)
    start.record()
    began = time.perf_counter()
    for _ in range(count):
        launch()
    host = time.perf_counter() - began
    end.record()
    end.synchronize()
    return host / count, start.elapsed_time(end) / 1e3 / count


def keep_busy(seconds: float) -> None:
    """Let the GPU sleep for at least so many seconds, in the order of the stream; the host does not wait."""
    import torch

    if seconds:
        torch.cuda._sleep(int(seconds * SLEEP_CLOCK_HZ))  # pyright: ignore[reportPrivateUsage]


def group_launches(events: Sequence[GpuEvent], launches: int, flush: str = FLUSHES[0]) -> list[list[GpuEvent]]:
    """
    What each of `launches` launches did: the events between its flush of L2 and the next one's.

    The flushes are the longest fills, or sums, there are; a launch may have some of its own, as of a workspace.
    `ToolMissingError` (GMR-C004) if there are fewer flushes than launches, or a launch without anything.
    """
    ordered = sorted(events, key=lambda event: event.start_us)
    alike = [event for event in ordered if is_flush(flush, event.name)]
    longest = sorted(alike, key=lambda event: event.duration_us, reverse=True)[:launches]
    groups: list[list[GpuEvent]] = []
    for event in ordered:
        if event in longest:
            groups.append([])
        elif groups:
            groups[-1].append(event)
    if len(groups) == launches and all(groups):
        return groups
    raise ToolMissingError(
        "GMR-C004",
        f"torch's profiler saw {len(events)} events on the GPU, {len(groups)} flushes of L2 and "
        f"{sum(map(bool, groups))} of {launches} launches",
        rule="times of kernels come from torch's profiler, which needs CUPTI and a GPU that no other tool profiles",
        fix="end other profilers, and check that torch.profiler shows CUDA kernels here",
    )


def _gpu_events(profiler: torch.profiler.profile) -> list[GpuEvent]:
    from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]

    return [
        GpuEvent(event.name, event.time_range.start, event.time_range.elapsed_us())
        for event in profiler.events() or ()
        if event.device_type == DeviceType.CUDA
    ]
