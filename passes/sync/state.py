"""What `execute` keeps of agents, barriers and accesses while a kernel runs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from gemmir.passes.sync.events import Event, Role, trip_text
from gemmir.passes.sync.report import place_text

NEVER = -1
BY_TMA = -1
"""Instead of an agent: who makes a TMA access done."""


@dataclass(slots=True, eq=False)
class Access:
    """
    An access to shared memory, from the event that began it to the node at which it is done.

    Ordinary accesses of a whole warp are done, for others to rely on, where the warp's lanes meet next. `fenced` is the
    node from which a `fence_proxy_async` after it can be relied on.
    """

    agent: Agent
    at: int
    writes: bool
    ordinary: bool
    done_by: int = BY_TMA
    done: int = NEVER
    fenced: int = NEVER


@dataclass(slots=True, eq=False)
class Pending:
    """A wait that passed at `first`: `node` is where all its lanes are known to be through, `NEVER` until then."""

    agent: Agent
    at: int
    first: int
    node: int


@dataclass(slots=True, eq=False)
class Agent:
    """One role of one CTA at work. `node` is where it is in the graph; a `closed` node takes no more events."""

    number: int
    cta: int
    role: Role
    node: int
    events: list[Event]
    trips: list[int]
    at: int = 0
    closed: bool = False
    met: int = -1
    """Round of the named barrier at which it is blocked."""

    initialised: set[Barrier] = field(default_factory=set["Barrier"])
    """Barriers that it is known to use after their initialisation."""

    polling: list[Pending] = field(default_factory=list[Pending])
    """Waits of which some lanes may not be through."""

    private: list[Access] = field(default_factory=list[Access])
    """Ordinary accesses since the lanes last met."""

    unfenced: list[Access] = field(default_factory=list[Access])
    fenced: list[Access] = field(default_factory=list[Access])
    """Fenced since the lanes last met."""

    fence: int = NEVER
    """Node of its last `fence_proxy_async`."""

    open_wgmmas: list[tuple[Access, int]] = field(default_factory=list[tuple[Access, int]])
    wgmma_groups: deque[list[tuple[Access, int]]] = field(default_factory=deque[list[tuple[Access, int]]])
    in_flight: dict[int, int] = field(default_factory=dict[int, int])
    """How many WGMMAs write each fragment."""

    unsettled: set[int] = field(default_factory=set[int])
    """Fragments that WGMMAs wrote and no wait has named since."""

    touched: set[int] = field(default_factory=set[int])
    """Fragments that ordinary instructions used since the last `wgmma_fence`."""

    wgmma_fenced: bool = False
    open_stores: list[Access] = field(default_factory=list[Access])
    store_groups: deque[list[Access]] = field(default_factory=deque[list[Access]])

    def text(self, at: int | None = None) -> str:
        """Who does what, where: `CTA 0, producer warp: hopper.expect of stage 2 (tile 0, k-block 5)`."""
        index = self.at if at is None else at
        if index >= len(self.events):
            return f"CTA {self.cta}, {self.role.name}: at its end"
        event = self.events[index]
        stage = f" of stage {event.stage}" if event.stage >= 0 else ""
        return f"CTA {self.cta}, {self.role.name}: {place_text(event.op)}{stage} ({trip_text(self.trips[index])})"


@dataclass(slots=True, eq=False)
class Barrier:
    """An mbarrier: what its phase in progress still waits for, and the nodes of those that completed."""

    cta: int
    address: int
    arrivals: int
    initialised: int
    pending: int
    nbytes: int = 0
    """Bytes expected in this phase and not loaded."""

    past: int = 0
    """What this phase comes after, as a set of nodes."""

    touched: bool = False
    phases: list[int] = field(default_factory=list[int])
    waits: list[Pending] = field(default_factory=list[Pending])
    """Waits that passed since the last phase completed."""

    of_peer: bool = False
    """Another CTA's ordinary accesses rely on the phase in progress."""

    last_of_peer: bool = False
    """The same of the last one that completed."""

    loads: list[Access] = field(default_factory=list[Access])
    """TMA loads of the phase in progress."""

    last_load: Access | None = None
    last: tuple[Agent, int] | None = None
    """Who last contributed to a phase, and when."""

    def text(self) -> str:
        phase = f"phase {len(self.phases)} of the barrier at byte {self.address} of CTA {self.cta}"
        found = [f"{self.pending} of {self.arrivals} arrivals are missing"]
        if self.pending < 0:
            found = [f"{-self.pending} arrivals more than {self.arrivals}"]
        if self.nbytes > 0:
            found.append(f"{self.nbytes} expected bytes are never loaded")
        if self.nbytes < 0:
            found.append(f"{-self.nbytes} bytes are loaded that nobody expects")
        return f"{phase}: {', '.join(found)}"


@dataclass(slots=True, eq=False)
class Meeting:
    """A named barrier, or all threads of a CTA or cluster: threads that came in this round, and rounds past."""

    threads: int
    came: int = 0
    past: int = 0
    rounds: list[int] = field(default_factory=list[int])
    last: Agent | None = None


@dataclass(slots=True, eq=False)
class Part:
    """A part of a CTA's shared memory: its last write, and the last read of each agent since."""

    number: int
    write: Access | None = None
    reads: dict[int, Access] = field(default_factory=dict[int, Access])
