"""Rules on single accesses (R5, R6), on registers (R5a), and on how a run ends (R0, R3, R4, R8)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from gemmir.passes.sync.state import BY_TMA, NEVER, Access, Agent, Part

if TYPE_CHECKING:
    from gemmir.passes.sync.execute import Machine


class Report(Protocol):
    def __call__(self, rule: str, what: str, missing: str, *who: tuple[Agent, int]) -> None: ...


class SharedMemory:
    """
    What was last done to every part of shared memory.

    A new access is compared with the last write of its bytes, and a write with each agent's last read since, too. That
    is enough: older accesses come before those, or were reported.
    """

    def __init__(self, ctas: int, parts: int, before: list[int], report: Report):
        self.before = before
        self.report = report
        self.ctas = [[Part(number) for number in range(parts)] for _ in range(ctas)]

    def read(self, cta: int, parts: Iterable[int], access: Access, node: int) -> None:
        held, key = self.ctas[cta], access.agent.number * 2 + access.ordinary
        past = self.before[node]
        for number in parts:
            part = held[number]
            write = part.write
            if write is not None and (
                write.done == NEVER
                or (write.done_by != access.agent.number and not past >> write.done & 1)
                or (write.ordinary and not access.ordinary)
            ):
                self.compare(write, access, past, cta)
            part.reads[key] = access

    def write(self, cta: int, parts: Iterable[int], access: Access, node: int) -> None:
        held, past = self.ctas[cta], self.before[node]
        for number in parts:
            part = held[number]
            if part.write is not None:
                self.compare(part.write, access, past, cta)
            for read in part.reads.values():
                self.compare(read, access, past, cta)
            part.write = access
            if part.reads:
                part.reads = {}

    def compare(self, first: Access, second: Access, past: int, cta: int) -> None:
        """R5 and R6 for two accesses to the same bytes of a CTA, one of them a write."""
        same = first.agent is second.agent
        if same and first.ordinary and second.ordinary:
            return  # each lane in its own order, to its own bytes
        if same and first.agent.role.warps > 1 and first.done_by != BY_TMA:
            return self.race(first, second)  # of different warps, which nothing orders
        if first.done == NEVER or (first.done_by != second.agent.number and not past >> first.done & 1):
            self.race(first, second)
        elif first.ordinary and not second.ordinary and not self.fenced(first, second, past, cta):
            kind = "written" if first.writes else "read"
            self.report(
                "R6",
                f"bytes are {kind} by ordinary instructions, then used by TMA or WGMMA with no fence in between",
                "hopper.fence_proxy_async after the first, before it is published, or before the second",
                *self.both(first, second),
            )

    def fenced(self, first: Access, second: Access, past: int, cta: int) -> bool:
        """Whether a proxy fence lies between the two: the first agent's, or the second's own in the same CTA."""
        if first.fenced != NEVER and (first.agent is second.agent or past >> first.fenced & 1):
            return True
        by_second = second.agent.fence
        return by_second != NEVER and second.agent.cta == cta and bool(self.before[by_second] >> first.done & 1)

    def race(self, first: Access, second: Access) -> None:
        words = {(True, True): "two writes", (True, False): "a write and a read", (False, True): "a read and a write"}
        missing = "an order between them: wait for what the first one signals when it is done"
        if first.ordinary and first.done == NEVER and not first.agent.role.elected:
            missing = "hopper.sync_warp after the first, before one lane signals for all"
        elif first.done == NEVER and first.done_by != BY_TMA:
            missing = "a wait for the first to finish, before it is signalled"
        self.report(
            "R5",
            f"{words[first.writes, second.writes]} of the same bytes can overlap",
            missing,
            *self.both(first, second),
        )

    def both(self, first: Access, second: Access) -> tuple[tuple[Agent, int], tuple[Agent, int]]:
        return (first.agent, first.at), (second.agent, second.at)


class Registers:
    """What WGMMAs in flight do to the fragments of an agent."""

    def __init__(self, report: Report):
        self.report = report

    def issue(self, agent: Agent, fragment: int) -> None:
        if not agent.wgmma_fenced or fragment in agent.touched:
            agent.wgmma_fenced = True
            self.report(
                "R5a",
                "a WGMMA is given registers that ordinary instructions used",
                "hopper.wgmma_fence between them",
                (agent, agent.at),
            )
        agent.in_flight[fragment] = agent.in_flight.get(fragment, 0) + 1
        agent.unsettled.add(fragment)

    def settle(self, agent: Agent, fragments: tuple[int, ...]) -> None:
        for fragment in fragments:
            if agent.in_flight.get(fragment):
                self.report(
                    "R5a",
                    "a wait names a fragment that a WGMMA may still write",
                    "wait for all groups that write it, and commit them before",
                    (agent, agent.at),
                )
            agent.unsettled.discard(fragment)

    def use(self, agent: Agent, fragments: tuple[int, ...]) -> None:
        agent.touched.update(fragments)
        for fragment in fragments:
            if agent.in_flight.get(fragment):
                self.report(
                    "R5a",
                    "registers are used while a WGMMA may still write them",
                    "hopper.wgmma_wait before",
                    (agent, agent.at),
                )
            elif fragment in agent.unsettled:
                self.report(
                    "R5a",
                    "registers are used after a wait that does not name them: the compiler may move the use above it",
                    "name the fragment in hopper.wgmma_wait",
                    (agent, agent.at),
                )


def check_end(machine: Machine, finished: bool) -> None:
    """How the run ended. After a hang only the hang is told: what was not reached proves nothing."""
    if not finished:
        _hang(machine)
        return
    for check in (_phases_end, _meetings_end, _agents_end, _peers_end):
        check(machine)


def _hang(machine: Machine) -> None:
    blocked = [agent for agent in machine.agents if agent.at < len(agent.events)]
    if not blocked:
        return
    states = dict.fromkeys(
        barrier.text()
        for agent in blocked
        if (barrier := machine.barriers[agent.cta].get(agent.events[agent.at].barrier)) is not None
    )
    what = "every agent that is left waits for another" if len(blocked) > 1 else "an agent waits for what never comes"
    machine.fault("R0", what, "; ".join(states) or "somebody must come to the barrier", *((a, a.at) for a in blocked))


def _phases_end(machine: Machine) -> None:
    for barriers in machine.barriers:
        for barrier in barriers.values():
            if barrier.touched and barrier.last is not None:
                what = f"a phase is begun and not completed: {barrier.text()}"
                machine.fault("R3", what, "complete it, or do not begin it", barrier.last)


def _meetings_end(machine: Machine) -> None:
    for (_, number), meeting in machine.meetings.items():
        if meeting.came and meeting.last is not None:
            machine.fault(
                "R4",
                f"named barrier {number} is left with {meeting.came} of {meeting.threads} threads waiting",
                "take the turn that is left over",
                (meeting.last, len(meeting.last.events)),
            )


def _agents_end(machine: Machine) -> None:
    for agent in machine.agents:
        groups = [*agent.wgmma_groups, agent.open_wgmmas]
        left = [access for group in groups for access, _ in group]
        left += [access for group in [*agent.store_groups, agent.open_stores] for access in group]
        for access in left[:1]:
            machine.fault(
                "R8", "a CTA may end while this still reads its shared memory", "wait for it", (agent, access.at)
            )


def _peers_end(machine: Machine) -> None:
    ends = [0] * machine.ctas
    for agent in machine.agents:
        ends[agent.cta] |= machine.before[agent.node]
    for (agent, cta), (node, at) in machine.remote.items():
        if not ends[cta] >> node & 1:
            machine.fault(
                "R8", f"CTA {cta} may have ended when a peer signals it", "hopper.cluster_sync at the end", (agent, at)
            )
    for cta, barriers in enumerate(machine.barriers):
        for barrier in barriers.values():
            load = barrier.last_load
            if load is not None and (load.done == NEVER or not ends[cta] >> load.done & 1):
                machine.fault(
                    "R8",
                    f"CTA {cta} may end while TMA still writes its shared memory",
                    "wait for it",
                    (load.agent, load.at),
                )
