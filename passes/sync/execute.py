"""
Runs the agents of a cluster once and builds the graph of what happens before what.

A node is a stretch of one agent's events into which orders lead only at the beginning and out of which they lead only
at the end, or a phase that completes. `before[n]` is the set of nodes that are n or happen before it, as the bits of
one integer. Rules that look at one event in its order are checked on the way, in `Machine` and `rules.Memory`.
"""

from __future__ import annotations

from collections.abc import Callable

from gemmir.passes.sync.events import Event, Kind, Role
from gemmir.passes.sync.report import Fault
from gemmir.passes.sync.rules import Registers, SharedMemory
from gemmir.passes.sync.state import NEVER, Access, Agent, Barrier, Meeting, Pending

MAX_BYTES = (1 << 20) - 1
"""An mbarrier counts bytes up to this."""

WARP_THREADS = 32
MAX_FAULTS = 8
"""Enough to understand a kernel that is wrong."""

Handler = Callable[[Agent, Event], bool]
"""Does one event; False: the agent is blocked."""


class Machine:
    """One run of one cluster. `run` fills `faults`."""

    def __init__(self, ctas: list[list[Role]], parts: int):
        self.before: list[int] = [1]
        self.faults: list[Fault] = []
        self.agents: list[Agent] = []
        for cta, roles in enumerate(ctas):
            for role in roles:
                node = len(self.before)
                self.before.append(1 | 1 << node)
                self.agents.append(Agent(len(self.agents), cta, role, node, role.trace.events, role.trace.trips))
        self.ctas = len(ctas)
        self.cta_size = [len(roles) for roles in ctas]
        self.barriers: list[dict[int, Barrier]] = [{} for _ in ctas]
        self.meetings: dict[tuple[int, int], Meeting] = {}
        self.remote: dict[tuple[Agent, int], tuple[int, int]] = {}
        """Agent, CTA that it signals: node and event of the last time."""

        self.memory = SharedMemory(self.ctas, parts, self.before, self.fault)
        self.registers = Registers(self.fault)
        self.handlers: list[Handler] = [
            self.init,
            self.wait,
            self.arrive,
            self.tma_load,
            self.read,
            self.write,
            self.fence_proxy,
            self.sync_warp,
            self.wgmma_fence,
            self.wgmma,
            self.wgmma_commit,
            self.wgmma_wait,
            self.use_registers,
            self.tma_store,
            self.store_commit,
            self.store_wait,
            self.bar_sync,
            self.bar_arrive,
            self.meet_cta,
            self.meet_cluster,
            self.send,
        ]

    def fault(self, rule: str, what: str, missing: str, *who: tuple[Agent, int]) -> None:
        if len(self.faults) < MAX_FAULTS:
            op = who[0][0].events[who[0][1]].op if who and who[0][1] < len(who[0][0].events) else None
            self.faults.append(Fault(rule, what, missing, tuple(agent.text(at) for agent, at in who), op))

    def run(self) -> bool:
        """Run every agent to its end; False if they block one another for ever."""
        live = [agent for agent in self.agents if agent.events]
        while live and len(self.faults) < MAX_FAULTS:
            if not any([self.advance(agent) for agent in live]):
                return False
            live = [agent for agent in live if agent.at < len(agent.events)]
        return not live

    def advance(self, agent: Agent) -> bool:
        """Run one agent until it blocks; whether it did anything."""
        start, events, handlers, count = agent.at, agent.events, self.handlers, len(agent.events)
        while agent.at < count:
            event = events[agent.at]
            if not handlers[event.kind](agent, event):
                break
            agent.at += 1
        return agent.at > start

    # Nodes

    def here(self, agent: Agent) -> int:
        """The node for an event into which no order leads."""
        if agent.closed:
            return self.join(agent, 0)
        return agent.node

    def join(self, agent: Agent, others: int) -> int:
        """A new node, after the agent's last one and all nodes in `others`."""
        node = len(self.before)
        self.before.append(self.before[agent.node] | others | 1 << node)
        agent.node, agent.closed = node, False
        return node

    def leave(self, agent: Agent) -> int:
        """The node of an event out of which an order leads."""
        node = self.here(agent)
        agent.closed = True
        return node

    def ordered(self, first: int, second: int) -> int:
        return self.before[second] >> first & 1

    # Barriers

    def init(self, agent: Agent, event: Event) -> bool:
        node = self.leave(agent)
        for address, arrivals in event.barriers:
            if address in self.barriers[agent.cta]:
                what = f"the barrier at byte {address} is initialised twice"
                self.fault("R7", what, "initialise it once", (agent, agent.at))
            self.barriers[agent.cta][address] = Barrier(agent.cta, address, arrivals, node, arrivals)
        return True

    def barrier(self, agent: Agent, cta: int, address: int, node: int) -> Barrier | None:
        """The barrier that an agent uses, R7 checked."""
        found = self.barriers[cta].get(address)
        if found is None:
            self.fault(
                "R7",
                f"the barrier at byte {address} of CTA {cta} is used, but not initialised before",
                "add it to hopper.init_barriers, and meet after that",
                (agent, agent.at),
            )
            return None
        if found in agent.initialised:
            return found
        agent.initialised.add(found)
        if not self.ordered(found.initialised, node):
            self.fault(
                "R7",
                f"the barrier at byte {address} of CTA {cta} may be used before it is initialised",
                "all threads of the cluster meet after hopper.init_barriers",
                (agent, agent.at),
            )
        return found

    def wait(self, agent: Agent, event: Event) -> bool:
        barrier = self.barriers[agent.cta].get(event.barrier)
        if barrier is None or barrier not in agent.initialised:
            barrier = self.barrier(agent, agent.cta, event.barrier, self.here(agent))
            if barrier is None:
                return False
        phases = barrier.phases
        count = len(phases)
        if count & 1 == event.parity:
            return False
        if count >= 2 and not self.before[agent.node] >> phases[count - 2] & 1:
            self.fault(
                "R1a",
                f"a wait that is meant for phase {count - 1} may see phase {count - 3} and pass two phases early",
                "wait for every phase in turn",
                (agent, agent.at),
            )
        if barrier.last_of_peer and not event.of_peer:
            self.fault(
                "R5",
                "what a peer has written, or done reading, may not be seen: the wait is not for signals of peers",
                "hopper.wait of_peer, which acquires at the scope of the cluster",
                (agent, agent.at),
            )
        node = self.join(agent, self.before[phases[-1]]) if count else self.here(agent)
        pending = Pending(agent, agent.at, node, node if agent.role.elected else NEVER)
        if not agent.role.elected:
            agent.polling.append(pending)
        barrier.waits.append(pending)
        return True

    def converge(self, agent: Agent) -> None:
        """The lanes of each warp are at the same place: their waits are all through."""
        if agent.polling:
            node = self.here(agent)
            for pending in agent.polling:
                pending.node = node
            agent.polling.clear()

    def arrive(self, agent: Agent, event: Event) -> bool:
        node = self.leave(agent)
        for rank in event.ranks:
            cta = agent.cta if rank < 0 else rank
            barrier = self.barrier(agent, cta, event.barrier, node)
            if barrier is None:
                return False
            if cta != agent.cta:
                self.remote[agent, cta] = node, agent.at
            self.contribute(agent, barrier, node)
            barrier.of_peer |= event.of_peer
            barrier.pending -= agent.role.warps
            if event.nbytes:
                barrier.nbytes += event.nbytes * agent.role.warps
            if barrier.pending < 0:
                self.fault(
                    "R3",
                    f"one arrival too many: {barrier.text()}",
                    f"give the barrier the right number of arrivals (it has {barrier.arrivals}), or arrive less often",
                    (agent, agent.at),
                )
                return False
            self.complete(barrier)
        return True

    def contribute(self, agent: Agent, barrier: Barrier, node: int) -> None:
        """An arrival, or bytes, of the phase in progress; R2."""
        if barrier.phases and not self.ordered(barrier.phases[-1], node):
            self.fault(
                "R2",
                f"what belongs to phase {len(barrier.phases)} may count for phase {len(barrier.phases) - 1} "
                f"of the barrier at byte {barrier.address} of CTA {barrier.cta}",
                "wait for the phase before",
                (agent, agent.at),
            )
        barrier.past |= self.before[node]
        barrier.touched = True
        barrier.last = agent, agent.at

    def complete(self, barrier: Barrier) -> None:
        """Complete the phase if nothing is missing; R1 for the waits that passed before."""
        if barrier.pending or barrier.nbytes or not barrier.touched:
            return
        node, count = len(self.before), len(barrier.phases)
        past = barrier.past | 1 << node
        if count:
            past |= self.before[barrier.phases[-1]]
        self.before.append(past)
        for pending in barrier.waits:
            if pending.node == NEVER or not past >> pending.node & 1:
                self.late(pending, count, past)
        barrier.waits.clear()
        for access in barrier.loads:
            access.done = node
        barrier.loads.clear()
        barrier.phases.append(node)
        barrier.pending, barrier.past, barrier.touched = barrier.arrivals, 0, False
        barrier.last_of_peer, barrier.of_peer = barrier.of_peer, False

    def late(self, pending: Pending, count: int, past: int) -> None:
        """R1: a phase completes before all who wait for the one before are through."""
        if past >> pending.first & 1:
            what = f"other lanes of the warp may still poll when phase {count} completes, and then wait for ever"
            missing = "hopper.sync_warp after the wait, before one lane signals for all"
        else:
            what = f"phase {count} of the barrier can complete before this wait is through"
            missing = "what completes the phase must come after the wait"
        self.fault("R1", what, missing, (pending.agent, pending.at))

    # Memory

    def tma_load(self, agent: Agent, event: Event) -> bool:
        node = self.leave(agent)
        for rank in event.ranks:
            cta = agent.cta if rank < 0 else rank
            barrier = self.barrier(agent, cta, event.barrier, node)
            if barrier is None:
                return False
            if cta != agent.cta:
                self.remote[agent, cta] = node, agent.at
            access = Access(agent, agent.at, True, False)
            self.memory.write(cta, event.parts, access, node)
            barrier.loads.append(access)
            barrier.last_load = access
            self.contribute(agent, barrier, node)
            barrier.of_peer |= event.of_peer
            barrier.nbytes -= event.nbytes
            if abs(barrier.nbytes) > MAX_BYTES:
                self.fault("R3", f"more bytes than a barrier counts: {barrier.text()}", "load less", (agent, agent.at))
            self.complete(barrier)
        return True

    def send(self, agent: Agent, event: Event) -> bool:
        """Stores of all lanes to a peer: it has their bytes once every lane was here, and so through its waits."""
        self.converge(agent)
        return self.tma_load(agent, event)

    def ordinary(self, agent: Agent, writes: bool) -> tuple[Access, int]:
        """An access by ordinary instructions of all lanes, or of one thread."""
        node = self.here(agent)
        access = Access(agent, agent.at, writes, True, agent.number)
        if agent.role.elected:
            access.done = node
        else:
            agent.private.append(access)
        agent.unfenced.append(access)
        return access, node

    def read(self, agent: Agent, event: Event) -> bool:
        access, node = self.ordinary(agent, False)
        self.memory.read(agent.cta, event.parts, access, node)
        return True

    def write(self, agent: Agent, event: Event) -> bool:
        if event.fragments:  # stmatrix: the lanes act together
            self.converge(agent)
        access, node = self.ordinary(agent, True)
        self.memory.write(agent.cta, event.parts, access, node)
        return True

    def fence_proxy(self, agent: Agent, event: Event) -> bool:
        node = agent.fence = self.here(agent)
        if agent.role.elected:
            for access in agent.unfenced:
                access.fenced = node
        else:
            agent.fenced += agent.unfenced
        agent.unfenced.clear()
        return True

    def sync_warp(self, agent: Agent, event: Event) -> bool:
        node = self.here(agent)
        self.converge(agent)
        for access in agent.private:
            access.done = node
        for access in agent.fenced:
            access.fenced = node
        agent.private.clear()
        agent.fenced.clear()
        return True

    # WGMMA

    def wgmma_fence(self, agent: Agent, event: Event) -> bool:
        self.converge(agent)
        agent.wgmma_fenced = True
        agent.touched.clear()
        return True

    def wgmma(self, agent: Agent, event: Event) -> bool:
        self.converge(agent)
        node, fragment = self.here(agent), event.fragments[0]
        access = Access(agent, agent.at, False, False, agent.number)
        self.memory.read(agent.cta, event.parts, access, node)
        self.registers.issue(agent, fragment)
        agent.open_wgmmas.append((access, fragment))
        return True

    def wgmma_commit(self, agent: Agent, event: Event) -> bool:
        agent.wgmma_groups.append(agent.open_wgmmas)
        agent.open_wgmmas = []
        return True

    def wgmma_wait(self, agent: Agent, event: Event) -> bool:
        self.converge(agent)
        node = self.here(agent)
        while len(agent.wgmma_groups) > event.amount:
            for access, fragment in agent.wgmma_groups.popleft():
                access.done = node
                agent.in_flight[fragment] -= 1
        self.registers.settle(agent, event.fragments)
        return True

    def use_registers(self, agent: Agent, event: Event) -> bool:
        self.registers.use(agent, event.fragments)
        return True

    # The way out

    def tma_store(self, agent: Agent, event: Event) -> bool:
        access = Access(agent, agent.at, False, False, agent.number)
        self.memory.read(agent.cta, event.parts, access, self.here(agent))
        agent.open_stores.append(access)
        return True

    def store_commit(self, agent: Agent, event: Event) -> bool:
        agent.store_groups.append(agent.open_stores)
        agent.open_stores = []
        return True

    def store_wait(self, agent: Agent, event: Event) -> bool:
        node = self.here(agent)
        while len(agent.store_groups) > event.amount:
            for access in agent.store_groups.popleft():
                access.done = node
        return True

    # Meetings

    def come(self, agent: Agent, key: tuple[int, int], threads: int, mine: int) -> Meeting:
        """Arrive at a named barrier or the like; R4."""
        meeting = self.meetings.get(key)
        if meeting is None:
            meeting = self.meetings[key] = Meeting(threads)
        node = self.leave(agent)
        if meeting.threads != threads:
            self.fault(
                "R4",
                f"named barrier {key[1]} for {threads} and for {meeting.threads} threads",
                "say the same number wherever it is used",
                (agent, agent.at),
            )
        if meeting.rounds and not self.ordered(meeting.rounds[-1], node):
            self.fault(
                "R4",
                f"an arrival for round {len(meeting.rounds)} of named barrier {key[1]} may count for the round before",
                "wait for that round first",
                (agent, agent.at),
            )
        meeting.came += mine
        meeting.past |= self.before[node]
        meeting.last = agent
        if meeting.came > meeting.threads:
            self.fault(
                "R4",
                f"{meeting.came} threads come to named barrier {key[1]} for {meeting.threads}",
                "give each pair of warpgroups a barrier of its own",
                (agent, agent.at),
            )
        if meeting.came >= meeting.threads:
            meeting.rounds.append(len(self.before))
            self.before.append(meeting.past | 1 << len(self.before))
            meeting.came, meeting.past = 0, 0
        return meeting

    def meet(self, agent: Agent, key: tuple[int, int], threads: int, mine: int) -> bool:
        """Come, and stay until the round is complete."""
        if agent.met < 0:
            self.converge(agent)
            came_in = self.meetings.get(key)
            agent.met = len(came_in.rounds) if came_in is not None else 0
            self.come(agent, key, threads, mine)
        rounds = self.meetings[key].rounds
        if len(rounds) <= agent.met:
            return False
        self.join(agent, self.before[rounds[agent.met]])
        agent.met = -1
        return True

    def bar_sync(self, agent: Agent, event: Event) -> bool:
        return self.meet(agent, (agent.cta, event.barrier), event.amount, agent.role.warps * WARP_THREADS)

    def bar_arrive(self, agent: Agent, event: Event) -> bool:
        self.converge(agent)
        self.come(agent, (agent.cta, event.barrier), event.amount, agent.role.warps * WARP_THREADS)
        return True

    def meet_cta(self, agent: Agent, event: Event) -> bool:
        return self.meet(agent, (agent.cta, Kind.MEET_CTA - 100), self.cta_size[agent.cta], 1)

    def meet_cluster(self, agent: Agent, event: Event) -> bool:
        return self.meet(agent, (0, Kind.MEET_CLUSTER - 100), len(self.agents), 1)
