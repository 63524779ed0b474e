"""What the profiler saw, put back into launches; medians and their spread. No GPU: events are given."""

import pytest

from gemmir.bench.timing import GpuEvent, Timing, group_launches
from gemmir.errors import ToolMissingError

FLUSH = 130.0


def timeline(*launches: list[tuple[str, float]], flush: str = "Memset (Device)") -> list[GpuEvent]:
    """The events of launches, one after the other, each after a flush that takes now more, now less."""
    events: list[GpuEvent] = []
    now = 1000.0
    for number, launch in enumerate(launches):
        for name, duration in ((flush, FLUSH + number % 3), *launch):
            events.append(GpuEvent(name, now, duration))
            now += duration + 2.0
    return events


def sums(events: list[GpuEvent], launches: int) -> list[float]:
    return [sum(event.duration_us for event in group) for group in group_launches(events, launches)]


@pytest.mark.parametrize(
    "flush", ["Memset (Device)", "void at::native::vectorized_elementwise_kernel<4, FillFunctor<int>>"]
)
def test_one_kernel_a_launch(flush: str):
    assert sums(timeline([("gemm", 10.0)], [("gemm", 11.0)], [("gemm", 12.0)], flush=flush), 3) == [10.0, 11.0, 12.0]


def test_the_order_in_which_events_are_told_does_not_matter():
    events = timeline([("gemm", 10.0)], [("gemm", 11.0)], [("gemm", 12.0)])
    assert sums(events[::-1], 3) == [10.0, 11.0, 12.0]


def test_two_kernels_a_launch_are_added_up():
    launch = [("split_k_gemm", 10.0), ("reduce", 2.5)]
    groups = group_launches(timeline(launch, launch), 2)
    assert [[event.name for event in group] for group in groups] == [["split_k_gemm", "reduce"]] * 2
    assert sums(timeline(launch, launch), 2) == [12.5, 12.5]


def test_a_launch_may_have_fills_of_its_own():
    launch = [("Memset (Device)", 3.0), ("split_k_gemm", 10.0), ("FillFunctor<float>", 1.0)]
    assert sums(timeline(launch, launch, launch), 3) == [14.0, 14.0, 14.0]


def test_launches_may_differ_in_their_number_of_kernels():
    assert sums(timeline([("a", 1.0)], [("a", 1.0), ("b", 2.0)]), 2) == [1.0, 3.0]


def test_a_kernel_longer_than_a_flush_is_no_flush():
    assert sums(timeline([("gemm", 900.0)], [("gemm", 901.0)]), 2) == [900.0, 901.0]


def test_what_comes_before_the_first_flush_belongs_to_no_launch():
    early = GpuEvent("gemm", 0.0, 50.0)
    assert sums([early, *timeline([("gemm", 10.0)])], 1) == [10.0]


@pytest.mark.parametrize(
    "events",
    [
        [],
        timeline([("gemm", 10.0)]),
        timeline([("gemm", 10.0)], []),
        [event for event in timeline([("gemm", 10.0)], [("gemm", 10.0)]) if event.name == "gemm"],
    ],
    ids=["nothing", "a launch too few", "a launch without a kernel", "no flush"],
)
def test_events_that_are_missing_are_an_error_and_no_time(events: list[GpuEvent]):
    with pytest.raises(ToolMissingError, match="CUPTI") as error:
        group_launches(events, 2)
    assert (error.value.code, error.value.exit_code) == ("GMR-C004", 3)


def test_a_timing_is_the_median_of_all_samples():
    timing = Timing(((5.0, 1.0, 3.0), (4.0, 6.0, 2.0)))
    assert timing.us == 3.5
    assert timing.spread == pytest.approx(4 / 3 - 1)
    assert Timing(((2.0, 9.0, 3.0),)).spread == 0.0
