"""What roles wait at: mbarriers, named barriers, and the syncs of a CTA or cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from gemmir.errors import SyncError

MAX_BYTES = (1 << 20) - 1
"""A phase cannot count more bytes than this, in either direction."""


def fault(what: str, rule: str | None = None) -> SyncError:
    """An error for something that a correct kernel never does."""
    return SyncError("GMR-Y001", what, rule=rule)


@dataclass(slots=True)
class Mbarrier:
    """
    An mbarrier: `phase` counts completed phases, `pending` arrivals and `bytes` are still to come in this one.

    `bytes` is negative while data have arrived that nobody has announced.
    """

    name: str
    arrivals: int
    pending: int = field(init=False)
    bytes: int = 0
    phase: int = 0

    def __post_init__(self) -> None:
        self.pending = self.arrivals

    def arrive(self, count: int, bytes: int = 0) -> None:
        """`count` arrivals, the phase then also waits for `bytes`."""
        if count > self.pending:
            raise fault(
                f"{count} arrivals on {self}, which waits for {self.pending}",
                "a phase takes as many arrivals as its barrier was initialised with",
            )
        self.pending -= count
        self.count(bytes)

    def count(self, bytes: int) -> None:
        """Announce `bytes`, or (negative) say that they have arrived."""
        self.bytes += bytes
        if abs(self.bytes) > MAX_BYTES:
            raise fault(f"{self} counts {self.bytes} bytes", f"at most {MAX_BYTES}")
        if self.pending == 0 and self.bytes == 0:
            self.phase += 1
            self.pending = self.arrivals

    def passed(self, parity: int) -> bool:
        """Whether the phase of this parity has completed, as `mbarrier.try_wait.parity` sees it."""
        return self.phase % 2 != parity

    def __str__(self) -> str:
        missing = f"{self.pending} of {self.arrivals} arrivals and {self.bytes} bytes to come"
        return f"{self.name} (phase {self.phase}, {missing})"


@dataclass(slots=True)
class NamedBarrier:
    """A `bar.sync` / `bar.arrive` barrier: `generation` counts how often its threads were complete."""

    number: int
    threads: int
    arrived: int = 0
    generation: int = 0

    def arrive(self, threads: int, expected: int) -> None:
        if expected != self.threads:
            raise fault(f"named barrier {self.number} is used with {self.threads} and with {expected} threads")
        self.arrived += threads
        if self.arrived > self.threads:
            raise fault(f"{self.arrived} threads at named barrier {self.number} of {self.threads}")
        if self.arrived == self.threads:
            self.generation += 1
            self.arrived = 0


@dataclass(slots=True)
class Meeting:
    """`__syncthreads()` or a cluster sync: all `warps` meet."""

    warps: int
    arrived: int = 0
    generation: int = 0

    def arrive(self, warps: int) -> None:
        self.arrived += warps
        if self.arrived == self.warps:
            self.generation += 1
            self.arrived = 0
