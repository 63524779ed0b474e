"""
One role of a CTA as it runs: its values, its place in loops, and what it has not yet published.

A role is a math warpgroup (four warps in step) or one warp of the service warpgroup.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from xdsl.ir import SSAValue

from gemmir.backends.simulator.barriers import Mbarrier, fault
from gemmir.backends.simulator.machine import Access, Cluster, Cta, Pending, StoreGroup, Wait
from gemmir.backends.simulator.memory import UNFENCED, VALID, Region
from gemmir.backends.simulator.registers import Fragment
from gemmir.dialects import hopper
from gemmir.segments import Segment


@dataclass(slots=True)
class Cursor:
    """A position in a ring."""

    stages: int
    stage: int = 0
    parity: int = 0

    def following(self) -> Cursor:
        if self.stage + 1 == self.stages:
            return Cursor(self.stages, 0, self.parity ^ 1)
        return Cursor(self.stages, self.stage + 1, self.parity)

    def advance(self) -> None:
        after = self.following()
        self.stage, self.parity = after.stage, after.parity


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a CTA stands: `index` of its cluster among `clusters`; and the rows that are to be computed."""

    index: int
    clusters: int
    segments: list[Segment]


@dataclass(slots=True, eq=False)
class WgmmaGroup(Pending):
    """WGMMAs that were committed together. Groups of one role complete in order."""

    agent: Agent
    multiplications: list[Any]
    done: bool = False

    @property
    def cta(self) -> Cta:
        return self.agent.cta

    @property
    def eligible(self) -> bool:
        first = next(group for group in self.agent.groups if not group.done)
        return first is self

    def complete(self) -> None:
        for multiplication in self.multiplications:
            multiplication.execute()
        self.done = True


@dataclass(slots=True, eq=False)
class Agent:
    """State of a role. `warps`: how many warps it stands for, `lanes`: how many lanes each has (1 if elected)."""

    name: str
    kernel: hopper.KernelOp
    cluster: Cluster
    cta: Cta
    grid: Grid
    warps: int
    warpgroup: int
    warp: int
    values: dict[SSAValue, Any]
    elected: bool = False
    last_tile: bool = False
    fragments: list[Fragment] = field(default_factory=list[Fragment])
    groups: deque[WgmmaGroup] = field(default_factory=deque[WgmmaGroup])
    """Committed and not waited for."""
    open_group: list[Any] = field(default_factory=list[Any])
    stores: deque[StoreGroup] = field(default_factory=deque[StoreGroup])
    open_stores: StoreGroup = field(default_factory=StoreGroup)
    stores_open: int = 0
    unsynced: list[Access] = field(default_factory=list[Access])
    """Ordinary accesses since the last meeting of the warp's lanes."""
    unpublished: list[Access] = field(default_factory=list[Access])
    registers: int = 0

    def __getitem__(self, value: SSAValue) -> Any:
        if value not in self.values:
            raise fault("a role uses a value that it has not made", "cursors and registers belong to one role")
        return self.values[value]

    @property
    def part(self) -> int:
        """Number of the part of K that its CTA sums."""
        return self.cta.rank % self.kernel.parts

    # Ordinary accesses to shared memory

    def wrote(self, region: Region) -> None:
        self.unsynced.append(Access(region, written=True))

    def read(self, region: Region) -> None:
        access = Access(region, written=False)
        self.unsynced.append(access)
        self.cta.reads.append(access)

    def fence(self) -> None:
        """
        Each thread orders its own accesses, and reads that it knows of, before what TMA and WGMMA do later.

        What another thread wrote would be ordered, too; here the one that writes is to fence, as kernels do.
        """
        for access in self.unsynced:
            access.fenced = True
        self.cta.reads[:] = [access for access in self.cta.reads if not access.published]

    def sync_warp(self) -> None:
        self.unpublished += self.unsynced
        self.unsynced = []

    def own_reads_are_over(self) -> None:
        """What the lanes of this warp have read, fenced and met after comes before what its first lane loads now."""
        over = [id(access) for access in self.unpublished if access.fenced and not access.written]
        self.cta.reads[:] = [access for access in self.cta.reads if id(access) not in over]
        self.unpublished = [access for access in self.unpublished if id(access) not in over]

    def publish(self) -> None:
        """A signal by lane 0 of each warp: whoever waits for it sees what the lanes did before they last met."""
        for access in self.unpublished:
            if access.written:
                self.cta.shared.mark(access.region, VALID if access.fenced else VALID | UNFENCED)
            elif access.fenced:
                self.cta.reads.remove(access)
            else:
                access.published = True
        self.unpublished = []

    # Barriers

    def barrier_address(self, barriers: SSAValue, cursor: SSAValue | None, group: SSAValue | None) -> int:
        type_ = barriers.type
        assert isinstance(type_, hopper.BarriersType)
        stages, groups = type_.dims
        stage = self[cursor].stage if cursor is not None and stages > 1 else 0
        number = 0 if group is None or groups == 1 else int(self[group])
        if number >= groups:
            raise fault(f"{self.name}: group {number} of {groups} barriers")
        return self[barriers] + 8 * (stage * groups + number)

    def wait_for(self, barrier: Mbarrier, parity: int, op: str) -> Wait:
        return Wait(lambda: barrier.passed(parity), lambda: f"{op}, parity {parity}, of {barrier}")

    def check_end(self) -> None:
        """What a role must have waited for before it ends."""
        if self.groups or self.open_group:
            raise fault(f"{self.name} ends with WGMMAs that it has not waited for")
        if self.stores or self.stores_open:
            raise fault(f"{self.name} ends with TMA stores that it has not waited for", "store_wait_read first")
