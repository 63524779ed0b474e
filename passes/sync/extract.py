"""
From the IR of a kernel to the events of each role: loops run, cursors move, addresses are computed.

Ops become `Step`s once; `roles` then runs the steps of every role for given trip counts. Where a step's event depends
only on the position in the ring, it is made once for each position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import lcm

from xdsl.ir import Block, Operation

from gemmir.dialects import hopper
from gemmir.dialects.hopper.barriers import OnBarrier
from gemmir.dialects.hopper.base import number
from gemmir.dialects.hopper.control import enclosing
from gemmir.passes.sync.events import OUTSIDE, Role, Trace, trip
from gemmir.passes.sync.memory_map import MemoryMap
from gemmir.passes.sync.program_steps import ANY_K_BLOCKS, Loop, Move, Step, Steps, Tiles
from gemmir.passes.sync.report import refuse
from gemmir.passes.sync.steps import StepMaker
from gemmir.passes.sync.storage import Storage
from gemmir.passes.sync.traces import Trips, default_traces
from gemmir.target import WARPS_PER_GROUP


@dataclass
class _Thread:
    """The code of one role in one CTA, as steps."""

    name: str
    warps: int
    elected: bool
    cursors: int
    steps: Steps
    by_rank: bool
    """What it does depends on the CTA's number in the cluster."""


@dataclass
class Program:
    """A kernel ready to be run: the code of every role in every CTA of a cluster."""

    kernel: hopper.KernelOp
    stages: int
    k_blocks: int
    chunk: int
    """Numbers of k-blocks that differ by this have the same remainder in every loop."""
    tile_slots: int
    memory: MemoryMap
    ctas: list[list[_Thread]] = field(default_factory=list[list[_Thread]])

    @property
    def traces(self) -> tuple[Trips, ...]:
        """The runs that stand for all."""
        exchanges = self.kernel.parts > 1
        return default_traces(self.stages, self.k_blocks, self.chunk, exchanges, self.tile_slots)

    def wide(self, trips: Trips) -> tuple[int, ...]:
        """How many of the tiles of a run may be as wide as `tile` says, before narrower ones."""
        return (len(trips),) if self.kernel.tail is None else tuple(range(len(trips), -1, -1))

    def roles(self, trips: Trips, wide: int | None = None) -> list[list[Role]]:
        """
        By CTA: the roles and what they do in a run with so many k-blocks in each tile.

        `wide`: how many tiles come before those of the tail (default: all).
        """
        different = {id(thread): thread for cta in self.ctas for thread in cta}
        wide = len(trips) if wide is None else wide
        roles = {key: _role(thread, trips, wide, self.k_blocks) for key, thread in different.items()}
        return [[roles[id(thread)] for thread in cta] for cta in self.ctas]


def program(kernel: hopper.KernelOp, split_warps: bool = False) -> Program:
    """
    Read a kernel; `Refusal` if it holds what this module does not know.

    The warps of a math warpgroup are one role, or two if `split_warps`: the first warp, and the rest.
    """
    storage, memory = Storage(kernel), MemoryMap()
    ranks = kernel.cluster_ctas
    rings = [op.result.type for op in kernel.body.block.ops if isinstance(op, hopper.RingOp)]
    stages = max((ring.stages for ring in rings), default=1)
    loops = [op for op in kernel.walk() if isinstance(op, hopper.KBlocksOp)]
    k_blocks = max((op.end(ANY_K_BLOCKS) for op in loops), default=1)
    made = Program(kernel, stages, k_blocks, lcm(*(op.blocks for op in loops)), _tile_slots(kernel), memory)
    for rank in range(ranks):
        same = made.ctas[0] if made.ctas else []
        made.ctas.append(_threads(kernel, storage, memory, rank, split_warps, same))
    storage.check_accesses(memory.spans)
    memory.cut()
    return made


def _tile_slots(kernel: hopper.KernelOp) -> int:
    """The most slots of a ring in which whole tiles, not k-blocks, take turns."""
    ops = [op for op in kernel.walk() if isinstance(op, OnBarrier)]
    of_k_blocks = {op.barriers for op in ops if enclosing(op, hopper.KBlocksOp) is not None}
    types = [op.barriers.type for op in ops if op.barriers not in of_k_blocks]
    return max((type_.dims[0] for type_ in types if isinstance(type_, hopper.BarriersType)), default=1)


def _threads(
    kernel: hopper.KernelOp, storage: Storage, memory: MemoryMap, rank: int, split_warps: bool, others: list[_Thread]
) -> list[_Thread]:
    """The roles of one CTA; those that do the same in every CTA are taken from the `others` of the first."""
    if others and not any(thread.by_rank for thread in others):
        return others
    makers = _makers(kernel, storage, memory, rank, split_warps)
    if not others:
        return [_thread(kernel, *code) for code in makers]
    return [_thread(kernel, *code) if other.by_rank else other for code, other in zip(makers, others, strict=True)]


_Code = tuple[str, StepMaker, tuple[Block, ...]]
"""Name of a role, what makes its steps, and the blocks that its warps run inside `hopper.roles`."""


def _makers(
    kernel: hopper.KernelOp, storage: Storage, memory: MemoryMap, rank: int, split_warps: bool
) -> Iterator[_Code]:
    """Every role of a CTA. Thread 0 belongs to the first one."""
    first = True
    for op in kernel.body.block.ops:
        if not isinstance(op, hopper.RolesOp):
            continue
        for warpgroups in op.body.block.ops:
            assert isinstance(warpgroups, hopper.WarpgroupsOp)
            for group in range(number(warpgroups.number)):
                for name, first_warp, warps, elected, blocks in _warps(warpgroups, group, split_warps):
                    maker = StepMaker(storage, memory, rank, first_warp, warps, elected, first)
                    if warpgroups.body.block.args:
                        maker.indices[warpgroups.body.block.args[0]] = group
                    yield name, maker, blocks
                    first = False


def _warps(op: hopper.WarpgroupsOp, group: int, split: bool) -> Iterator[tuple[str, int, int, bool, tuple[Block, ...]]]:
    """Name, first warp, number of warps, whether one thread only, and code, for the roles in one warpgroup."""
    own = [child for child in op.body.block.ops if isinstance(child, hopper.WarpOp)]
    if not own:
        name = f"math warpgroup {group}" if _holds(op, hopper.WgmmaOp) else f"warpgroup {group}"
        parts = ((", warp 0", 0, 1), (", warps 1-3", 1, WARPS_PER_GROUP - 1)) if split else (("", 0, WARPS_PER_GROUP),)
        for suffix, first, warps in parts:
            yield name + suffix, first, warps, False, (op.body.block,)
        return
    if number(op.number) != 1:
        refuse("R0", "warps of their own in several warpgroups", "give them a warpgroup of their own", op)
    indices = [number(warp.index) for warp in own]
    if len(set(indices)) != len(indices) or max(indices) >= WARPS_PER_GROUP:
        refuse("R0", f"warps {indices} of one warpgroup", f"number them 0 to {WARPS_PER_GROUP - 1}, each once", op)
    for warp in own:
        yield _warp_name(warp), number(warp.index), 1, warp.elected is not None, (op.body.block, warp.body.block)


def _holds(op: Operation, kind: type[Operation]) -> bool:
    return any(isinstance(inner, kind) for inner in op.walk())


def _warp_name(warp: hopper.WarpOp) -> str:
    noun = "thread" if warp.elected is not None else "warp"
    if _holds(warp, hopper.TmaLoadOp):
        return f"producer {noun}"
    stores = _holds(warp, hopper.TmaStoreOp) or _holds(warp, hopper.StoreRowsOp)
    return f"store {noun}" if stores else f"{noun} {number(warp.index)}"


def _thread(kernel: hopper.KernelOp, name: str, maker: StepMaker, blocks: tuple[Block, ...]) -> _Thread:
    steps: Steps = []
    for op in kernel.body.block.ops:
        if not isinstance(op, hopper.RolesOp):
            steps += maker.steps(op)
            continue
        for child in blocks[0].ops:
            if isinstance(child, hopper.WarpOp):
                continue
            steps += maker.steps(child)
        for block in blocks[1:]:
            steps += maker.block(block)
    return _Thread(name, maker.warps, maker.elected, maker.cursors_made, steps, maker.by_rank)


def _role(thread: _Thread, trips: Trips, wide: int, k_blocks: int) -> Role:
    return Role(thread.name, thread.warps, thread.elected, _Run(thread, trips, wide, k_blocks).trace)


class _Run:
    """Runs the steps of a role for given trip counts of tiles, the first `wide` of them not in the tail."""

    def __init__(self, thread: _Thread, trips: Trips, wide: int, k_blocks: int):
        self.trips = trips
        self.wide = wide
        self.k_blocks = k_blocks
        self.positions = [0] * (thread.cursors + 1)
        self.trace = Trace()
        self.tile = -1
        self.last = False
        self.steps(thread.steps, OUTSIDE)

    def steps(self, steps: Sequence[Step | Move | Loop | Tiles], where: int) -> None:
        """Run `steps`; `last` says whether they stand in the last k-block of the last tile."""
        positions, add, note = self.positions, self.trace.events.append, self.trace.trips.append
        for step in steps:
            if type(step) is Step:
                if step.unless_last and self.last:
                    continue
                at = positions[step.cursor] % step.period
                add(step.made[at] or step.make(at))
                note(where)
            elif type(step) is Move:
                positions[step.target] = positions[step.source] + step.by
            else:
                self.loop(step)

    def loop(self, loop: Step | Move | Loop | Tiles) -> None:
        if isinstance(loop, Tiles):
            for tile in range(self.wide, len(self.trips)) if loop.tail else range(self.wide):
                self.tile, self.last = tile, tile + 1 == len(self.trips)
                self.steps(loop.body, trip(tile, -1))
            self.last = False
            return
        assert isinstance(loop, Loop)
        if self.tile < 0:
            refuse("R0", "a loop over k-blocks outside the loop over tiles", "put it inside", loop.op)
        # The trace stands for a kernel with another K: a loop that is off by one stays off by one.
        last = self.trips[self.tile] + loop.last - self.k_blocks
        for k_block in range(loop.first, last, loop.step):
            self.last = k_block + loop.step >= last and self.tile + 1 == len(self.trips)
            self.steps(loop.body, trip(self.tile, k_block))
        self.last = self.tile + 1 == len(self.trips)
