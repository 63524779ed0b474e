"""Phases of barriers, as PTX defines them."""

import pytest

from gemmir.backends.simulator.barriers import MAX_BYTES, Mbarrier, Meeting, NamedBarrier
from gemmir.errors import SyncError


def test_a_phase_completes_with_its_last_arrival():
    barrier = Mbarrier("empty", 2)
    assert barrier.passed(1)
    assert not barrier.passed(0)
    barrier.arrive(1)
    assert not barrier.passed(0)
    barrier.arrive(1)
    assert barrier.passed(0)
    assert not barrier.passed(1)
    assert (barrier.phase, barrier.pending) == (1, 2)


def test_a_phase_also_waits_for_its_bytes():
    barrier = Mbarrier("full", 1)
    barrier.arrive(1, 4096)
    barrier.count(-1024)
    assert not barrier.passed(0)
    barrier.count(-3072)
    assert barrier.passed(0)


def test_bytes_may_come_before_they_are_announced():
    barrier = Mbarrier("full", 1)
    barrier.count(-4096)
    assert barrier.bytes == -4096
    barrier.arrive(1, 4096)
    assert barrier.passed(0)


def test_one_arrival_too_many_is_a_fault():
    barrier = Mbarrier("full", 1)
    barrier.arrive(1, 16)
    with pytest.raises(
        SyncError, match=r"GMR-Y001: 1 arrivals on full \(phase 0, 0 of 1 arrivals and 16 bytes to come"
    ):
        barrier.arrive(1)


def test_a_phase_counts_a_megabyte_at_most():
    with pytest.raises(SyncError, match=f"at most {MAX_BYTES}"):
        Mbarrier("full", 1).count(-(MAX_BYTES + 1))


def test_named_barriers_turn_over_when_all_threads_are_there():
    barrier = NamedBarrier(1, 256)
    barrier.arrive(128, 256)
    assert barrier.generation == 0
    barrier.arrive(128, 256)
    assert (barrier.generation, barrier.arrived) == (1, 0)
    with pytest.raises(SyncError, match="with 256 and with 128 threads"):
        barrier.arrive(128, 128)
    with pytest.raises(SyncError, match="384 threads at named barrier 1 of 256"):
        barrier.arrive(384, 256)


def test_a_meeting_takes_all_warps():
    meeting = Meeting(8)
    meeting.arrive(4)
    assert meeting.generation == 0
    meeting.arrive(4)
    assert (meeting.generation, meeting.arrived) == (1, 0)
