"""
One cluster at work: its CTAs, the roles in them as coroutines, and what TMA and WGMMA have yet to do.

At each step either a role goes on to its next op or something asynchronous completes, whichever the seed says. Seeds
differ in how late things complete, in who is preferred and in who is held back, so that early and late are both met.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from xdsl.ir import Block, Operation

from gemmir.backends.simulator.barriers import Mbarrier, Meeting, NamedBarrier, fault
from gemmir.backends.simulator.memory import IN_FLIGHT, VALID, Bytes, Index, Region, SharedMemory

if TYPE_CHECKING:
    from gemmir.backends.simulator.tensors import Matrix

HURRY = (0.0, 0.03, 0.3, 0.7, 1.0)
"""How likely something asynchronous completes before any role goes on; 0: only when no role can."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a role is blocked on."""

    ready: Callable[[], bool]
    what: Callable[[], str]


Steps: TypeAlias = Generator[Wait | None, None, None]
"""A role: yields None where others may go first, or what it waits for."""


@dataclass(slots=True, eq=False)
class Access:
    """
    Ordinary accesses of a role to shared memory.

    `fenced` by the role itself; `published` by a signal, so that a fence of whoever has waited for it will do.
    """

    region: Region
    written: bool
    fenced: bool = False
    published: bool = False


@dataclass(slots=True)
class Cta:
    """One CTA: shared memory, barriers by address, and who meets where."""

    rank: int
    shared: SharedMemory
    meeting: Meeting
    free_registers: int = 0
    barriers: dict[int, Mbarrier] = field(default_factory=dict[int, Mbarrier])
    named: dict[int, NamedBarrier] = field(default_factory=dict[int, NamedBarrier])
    reads: list[Access] = field(default_factory=list[Access])
    """Ordinary reads that TMA must not overwrite yet."""
    running: int = 0
    """Roles that have not ended."""

    def barrier(self, address: int) -> Mbarrier:
        if self.running == 0:
            raise fault(
                f"CTA {self.rank} of the cluster is signalled after it has ended", "sync the cluster at the end"
            )
        if (found := self.barriers.get(address)) is None:
            raise fault(f"CTA {self.rank}: the barrier at shared address {address} is used before it is initialised")
        return found

    def expect_load(self, chunks: Index) -> None:
        """TMA may now write these chunks at any moment: what is there means nothing until it has."""
        first, last = int(chunks.min()) * 16, int(chunks.max()) * 16 + 15
        for access in self.reads:
            touched = access.region.offsets
            if ((touched >= first) & (touched <= last)).any():
                raise fault(
                    f"CTA {self.rank}: TMA overwrites shared bytes {first}..{last} that a role has read and not let go",
                    "after ordinary loads: fence_proxy_async, sync_warp, then the signal that frees the slot",
                )
        self.shared.mark_chunks(chunks, IN_FLIGHT)


class Pending(ABC):
    """Something asynchronous that has been started."""

    @abstractmethod
    def complete(self) -> None: ...

    @property
    def eligible(self) -> bool:
        return True


@dataclass(slots=True, eq=False)
class Arriving(Pending):
    """A TMA box on its way to a CTA."""

    cta: Cta
    chunks: Index
    data: Bytes
    barrier: int

    def complete(self) -> None:
        barrier = self.cta.barrier(self.barrier)
        self.cta.shared.put_chunks(self.chunks, self.data)
        barrier.count(-self.data.size)


@dataclass(slots=True, eq=False)
class Signal(Pending):
    """An arrival on its way to another CTA."""

    cta: Cta
    barrier: int
    count: int

    def complete(self) -> None:
        self.cta.barrier(self.barrier).arrive(self.count)


@dataclass(slots=True, eq=False)
class StoreGroup:
    """TMA stores of one thread that were committed together; `unread`: of those, how many have yet to read."""

    unread: int = 0


@dataclass(slots=True, eq=False)
class Storing(Pending):
    """A TMA store that has yet to read shared memory: `rows` x `columns` elements of `chunks`."""

    cta: Cta
    chunks: Index
    matrix: Matrix
    place: tuple[int, int]
    shape: tuple[int, int]
    group: StoreGroup

    def complete(self) -> None:
        data, state = self.cta.shared.chunks(self.chunks)
        rows, columns = self.shape
        word = self.matrix.bits.dtype
        sound = (state == VALID).reshape(rows, columns, word.itemsize).all(axis=2)
        self.matrix.store(*self.place, data.reshape(-1).view(word).reshape(rows, columns), sound)
        self.group.unread -= 1


@dataclass(slots=True, eq=False)
class Role:
    """One agent of a CTA: a math warpgroup, or a warp of the service warpgroup."""

    name: str
    cta: Cta
    warps: int
    steps: Steps | None = None
    wait: Wait | None = None


class Cluster:
    """The CTAs of a cluster, and a scheduler that runs them in an order drawn from `chance`."""

    def __init__(self, ctas: list[Cta], meeting: Meeting, chance: random.Random, kinds: tuple[type[Pending], ...] = ()):
        self.ctas = ctas
        self.kinds = kinds
        self.meeting = meeting
        self.chance = chance
        self.pending: list[Pending] = []
        self.hurry = chance.choice(HURRY)
        self.reads_at_issue = chance.choice((0.0, 0.5, 1.0))
        self.fair = chance.random() < 0.5
        self.slow: type[Pending] | Role | None = None

        self._ops: dict[Block, tuple[Operation, ...]] = {}

    def ops_of(self, block: Block) -> tuple[Operation, ...]:
        """Those of a block, which loops come by again and again: xDSL keeps them as a list of links."""
        if (found := self._ops.get(block)) is None:
            found = self._ops[block] = tuple(block.ops)
        return found

    def start(self, pending: Pending) -> None:
        self.pending.append(pending)

    @property
    def signals_under_way(self) -> bool:
        return any(isinstance(pending, Signal) for pending in self.pending)

    def run(self, roles: list[Role]) -> None:
        """Run all roles to their end; `SyncError` (GMR-Y001) if they block for ever or end too early."""
        for role in roles:
            role.cta.running += 1
        self._choose_slow(roles)
        left = list(roles)
        while left:
            ready = [role for role in left if (wait := role.wait) is None or wait.ready()]
            possible = [p for p in self.pending if p.eligible]
            if not ready and not possible:
                raise _deadlock(left)
            if self.slow is not None:
                ready, possible = self._quick(ready, possible)
            if possible and (not ready or self.chance.random() < self.hurry):
                self._complete(possible)
            else:
                self._step(ready, left)
        self._end()

    def _quick(self, ready: list[Role], possible: list[Pending]) -> tuple[list[Role], list[Pending]]:
        """What is not held back; all if nothing else can go on."""
        roles = [role for role in ready if role is not self.slow]
        others = [p for p in possible if type(p) is not self.slow]
        return (roles, others) if roles or others else (ready, possible)

    def _choose_slow(self, roles: list[Role]) -> None:
        """Half of the seeds hold one role or one kind of asynchronous work back while anything else can go on."""
        kinds: list[type[Pending] | Role] = [Arriving, Signal, Storing, *self.kinds]
        self.slow = self.chance.choice([*kinds, *roles, *[None] * (len(kinds) + len(roles))])

    def _complete(self, possible: list[Pending]) -> None:
        pending = self.chance.choice(possible)
        self.pending.remove(pending)
        pending.complete()

    def _step(self, ready: list[Role], left: list[Role]) -> None:
        if not self.fair and self.chance.random() < 0.02:
            self.chance.shuffle(left)  # a new order of preference
        role = self.chance.choice(ready) if self.fair else next(role for role in left if role in ready)
        assert role.steps is not None
        try:
            role.wait = next(role.steps)
        except StopIteration:
            left.remove(role)
            role.cta.running -= 1
            self._check_exit(role.cta)

    def _check_exit(self, cta: Cta) -> None:
        if cta.running:
            return
        for pending in self.pending:
            if getattr(pending, "cta", None) is cta:
                raise fault(f"CTA {cta.rank} of the cluster ends while {_kind(pending)} is under way to or from it")

    def _end(self) -> None:
        for pending in self.pending:
            raise fault(f"the cluster ends while {_kind(pending)} is under way")
        for cta in self.ctas:
            for barrier in cta.named.values():
                if barrier.arrived:
                    raise fault(f"{barrier.arrived} threads are left at named barrier {barrier.number}")
            for barrier in cta.barriers.values():
                if barrier.bytes:
                    raise fault(f"CTA {cta.rank} ends with {barrier}", "every byte is announced and waited for")


def _kind(pending: Pending) -> str:
    match pending:
        case Arriving():
            return "a TMA load" if type(pending) is Arriving else "a store to a peer"
        case Signal():
            return "an arrival"
        case Storing():
            return "a TMA store"
        case _:
            return "a group of WGMMAs"


def _deadlock(left: list[Role]) -> Exception:
    lines = [f"  {role.name}: {role.wait.what() if role.wait is not None else 'ready'}" for role in left]
    return fault("the kernel is stuck: no role can go on and nothing is under way\n" + "\n".join(lines))
