"""What each op of the hopper dialect means for synchronisation, for one role of one CTA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IntegerAttr
from xdsl.ir import Block, Operation, SSAValue

from gemmir.dialects import hopper
from gemmir.dialects.hopper.barriers import TURN_THREADS, writers
from gemmir.dialects.hopper.base import number
from gemmir.dialects.hopper.types import AxisName
from gemmir.layouts import STMATRIX_BYTES
from gemmir.passes.sync.events import OWN, Event, Kind, Span
from gemmir.passes.sync.memory_map import MemoryMap
from gemmir.passes.sync.program_steps import ANY_K_BLOCKS, STEADY, Loop, Move, Step, Steps, Tiles
from gemmir.passes.sync.report import refuse
from gemmir.passes.sync.split_k_steps import peer_of, slot_of_part, sums_bytes, sums_spans
from gemmir.passes.sync.storage import Storage, transposed_spans
from gemmir.tile import WAVE_ROWS

WARP_ROWS = 16
F32_BYTES = 4
FIRST_TURN_BARRIER = 1


class StepMaker:
    """Turns ops into steps for `warps` warps from `first_warp` on of a warpgroup, in the CTA of number `rank`."""

    def __init__(
        self,
        storage: Storage,
        memory: MemoryMap,
        rank: int,
        first_warp: int,
        warps: int,
        elected: bool,
        holds_thread_0: bool,
    ):
        self.storage = storage
        self.memory = memory
        self.rank = rank
        self.first_warp = first_warp
        self.warps = warps
        self.elected = elected
        self.holds_thread_0 = holds_thread_0
        self.cluster = (storage.kernel.cluster.m.data, storage.kernel.cluster.n.data)
        self.indices: dict[SSAValue, int] = {}
        self.cursors: dict[SSAValue, tuple[int, int]] = {}
        """Number and stages of each cursor."""
        self.cursors_made = 0
        self.by_rank = False
        """What the role does depends on `rank`."""
        self.fragments: dict[SSAValue, int] = {}
        self.methods = self.of_all() | self.of_split_k()

    def of_all(self) -> dict[type[Operation], Callable[[Any], Steps]]:
        """Ops that kernels of every kind may hold."""
        return {
            hopper.AcquireOp: lambda op: self.wait(op, 1),
            hopper.AdvanceOp: self.advance,
            hopper.ArriveOp: lambda op: self.arrive(op, OWN),
            hopper.ClusterSyncOp: lambda op: self.plain(op, Kind.MEET_CLUSTER),
            hopper.CopyScalesOp: lambda op: self.on_whole_slot(op, Kind.WRITE, op.ring),
            hopper.CtaSyncOp: lambda op: self.plain(op, Kind.MEET_CTA),
            hopper.CursorOp: self.cursor,
            hopper.ExpectOp: self.expect,
            hopper.FenceProxyAsyncOp: lambda op: self.plain(op, Kind.FENCE_PROXY),
            hopper.InitBarriersOp: self.init_barriers,
            hopper.KBlocksOp: self.k_blocks,
            hopper.LoadScalesOp: self.load_scales,
            hopper.NextOp: self.next,
            hopper.PassTurnOp: lambda op: self.turn(op, Kind.BAR_ARRIVE, 1),
            hopper.PromoteBlockOp: self.promote_block,
            hopper.PromoteColumnsOp: self.promote_columns,
            hopper.PromoteOp: lambda op: self.registers(op, (op.partial, op.total)),
            hopper.PutScalesOp: self.put_scales,
            hopper.ReleaseOp: self.release,
            hopper.StageFragmentOp: self.stage_fragment,
            hopper.StoreCommitOp: lambda op: self.plain(op, Kind.STORE_COMMIT),
            hopper.StoreRowsOp: self.store_rows,
            hopper.StoreWaitReadOp: lambda op: self.plain(op, Kind.STORE_WAIT, amount=number(op.pending)),
            hopper.SyncWarpOp: lambda op: self.plain(op, Kind.SYNC_WARP),
            hopper.TakeTurnOp: lambda op: self.turn(op, Kind.BAR_SYNC, 0),
            hopper.TilesOp: lambda op: [Tiles(self.block(op.body.block), op.tail is not None)],
            hopper.TmaFillOp: self.tma_fill,
            hopper.TmaLoadOp: self.tma_load,
            hopper.TmaStoreOp: self.tma_store,
            hopper.WaitOp: lambda op: self.wait(op, 0),
            hopper.WgmmaCommitOp: lambda op: self.plain(op, Kind.WGMMA_COMMIT),
            hopper.WgmmaFenceOp: lambda op: self.plain(op, Kind.WGMMA_FENCE),
            hopper.WgmmaOp: self.wgmma,
            hopper.WgmmaWaitOp: self.wgmma_wait,
            hopper.ZeroOp: lambda op: self.registers(op, tuple(op.fragments)),
            ConstantOp: self.constant,
        }

    def of_split_k(self) -> dict[type[Operation], Callable[[Any], Steps]]:
        """Ops of kernels in which the CTAs of a cluster sum a part of K each."""
        return {
            hopper.AddSumsOp: self.add_sums,
            hopper.GrantOp: self.grant,
            hopper.InPartOp: self.in_part,
            hopper.SendSumsOp: self.send_sums,
        }

    def block(self, block: Block) -> Steps:
        return [step for op in block.ops for step in self.steps(op)]

    def steps(self, op: Operation) -> Steps:
        """The steps of one op; `Refusal` for an op of which nothing is known."""
        if (method := self.methods.get(type(op))) is not None:
            return method(op)
        if not isinstance(op, SILENT):
            refuse("R0", f"{op.name[:60]} in a hopper kernel", "use ops whose synchronisation is known", op)
        return []

    # Cursors and loops

    def constant(self, op: ConstantOp) -> Steps:
        if isinstance(op.value, IntegerAttr):
            self.indices[op.result] = op.value.value.data
        return []

    def index(self, value: SSAValue | None, op: Operation) -> int:
        if value is None:
            return 0
        if value not in self.indices:
            refuse("R0", f"{op.name} with a number that is not known here", "use the warpgroup or a constant", op)
        return self.indices[value]

    def new_cursor(self, value: SSAValue) -> int:
        type_ = value.type
        assert isinstance(type_, hopper.CursorType)
        self.cursors_made += 1
        self.cursors[value] = self.cursors_made, type_.dims[0]
        return self.cursors_made

    def cursor(self, op: hopper.CursorOp) -> Steps:
        return [Move(self.new_cursor(op.result), STEADY, 0)]

    def at(self, value: SSAValue, op: Operation) -> tuple[int, int]:
        if value not in self.cursors:
            refuse("R0", f"{op.name} with a cursor of another role", "give every role cursors of its own", op)
        return self.cursors[value]

    def next(self, op: hopper.NextOp) -> Steps:
        source, _ = self.at(op.cursor, op)
        return [Move(self.new_cursor(op.result), source, 1)]

    def advance(self, op: hopper.AdvanceOp) -> Steps:
        cursor, _ = self.at(op.cursor, op)
        return [Move(cursor, cursor, 1)]

    def k_blocks(self, op: hopper.KBlocksOp) -> Steps:
        return [Loop(op, number(op.first), op.end(ANY_K_BLOCKS), op.blocks, self.block(op.body.block))]

    # Events

    def plain(self, op: Operation, kind: Kind, amount: int = 1) -> Steps:
        event = Event(kind, op, amount=amount)
        return [Step(STEADY, 1, lambda at: event)]

    def on_ring(self, op: Any, build: Callable[[int, int], Event], unless_last: bool = False) -> Steps:
        """A step made from stage and parity of the op's cursor."""
        cursor, stages = self.at(op.cursor, op)
        return [Step(cursor, 2 * stages, lambda at: build(at % stages, at // stages), unless_last)]

    def init_barriers(self, op: hopper.InitBarriersOp) -> Steps:
        if not self.holds_thread_0:
            return []
        made = [self.storage.barrier(value) for value in op.barriers]
        event = Event(Kind.INIT, op, barriers=tuple((a, b.arrivals) for b in made for a in b.addresses()))
        return [Step(STEADY, 1, lambda at: event)]

    def wait(self, op: hopper.WaitOp | hopper.AcquireOp, flip: int) -> Steps:
        barriers, group = self.storage.barrier(op.barriers), self.index(op.group, op)
        unless_last = isinstance(op, hopper.WaitOp) and op.unless_last is not None
        of_peer = isinstance(op, hopper.WaitOp) and op.of_peer is not None

        def build(stage: int, parity: int) -> Event:
            return Event(Kind.WAIT, op, stage, barriers.address(stage, group), parity ^ flip, of_peer=of_peer)

        return self.on_ring(op, build, unless_last)

    def arrive(self, op: Any, ranks: tuple[int, ...], nbytes: int = 0, of_peer: bool = False) -> Steps:
        barriers, group = self.storage.barrier(op.barriers), self.index(op.group, op)

        def build(stage: int, parity: int) -> Event:
            address = barriers.address(stage, group)
            return Event(Kind.ARRIVE, op, stage, address, nbytes=nbytes, ranks=ranks, of_peer=of_peer)

        return self.on_ring(op, build)

    def expect(self, op: hopper.ExpectOp) -> Steps:
        return self.arrive(op, OWN, number(op.bytes))

    def release(self, op: hopper.ReleaseOp) -> Steps:
        peers = number(op.peers)
        if peers > self.cluster[0] * self.cluster[1]:
            refuse("R8", f"a release to {peers} CTAs in a cluster of {self.cluster}", "release to peers that exist", op)
        if peers == 1:  # the CTA itself, whatever its rank
            return self.arrive(op, OWN)
        all_writers = writers(self.rank, *self.cluster)
        if peers != len(all_writers):
            what = f"a release to {peers} of the {len(all_writers)} CTAs that write a slot"
            refuse("R8", what, "release to all of them, or to the CTA itself", op)
        self.by_rank |= min(self.cluster) > 1
        return self.arrive(op, all_writers)

    def in_part(self, op: hopper.InPartOp) -> Steps:
        self.by_rank = True
        return self.block(op.body.block) if op.holds(self.rank) else []

    def grant(self, op: hopper.GrantOp) -> Steps:
        self.by_rank = True
        receiver = peer_of(self.rank) if op.part is None else number(op.part)
        return self.arrive(op, (self.existing(receiver, op),), of_peer=True)

    def existing(self, rank: int, op: Operation) -> int:
        """The number of a CTA that the cluster has."""
        if rank >= self.storage.kernel.cluster_ctas:
            refuse("R8", f"{op.name} to a CTA that the cluster does not have", "signal to CTAs that exist", op)
        return rank

    def send_sums(self, op: hopper.SendSumsOp) -> Steps:
        self.by_rank = True
        first = op.to_first is not None
        full, nbytes = self.storage.barrier(op.full), sums_bytes(op, self.warps)
        ranks = (0 if first else self.existing(peer_of(self.rank), op),)

        def build(stage: int, parity: int) -> Event:
            slot = slot_of_part(self.rank) if first else stage
            parts = self.memory.parts(self.sums(op, slot))
            address = full.address(slot, 0)
            return Event(Kind.SEND, op, stage, address, nbytes=nbytes, parts=parts, ranks=ranks, of_peer=True)

        for stage in (slot_of_part(self.rank),) if first else range(self.at(op.cursor, op)[1]):
            self.memory.add(self.sums(op, stage))
        return [*self.registers(op, (op.sums,)), *self.on_ring(op, build)]

    def add_sums(self, op: hopper.AddSumsOp) -> Steps:
        read = self.memory_step(op, Kind.READ, lambda stage: list(self.sums(op, stage)))
        return [*read, *self.registers(op, (op.sums,))]

    def sums(self, op: hopper.SendSumsOp | hopper.AddSumsOp, stage: int) -> Sequence[Span]:
        ring, group = self.storage.ring(op.ring), self.index(op.group, op)
        return sums_spans(op, ring, stage, group, self.first_warp, self.warps)

    def turn(self, op: hopper.TakeTurnOp | hopper.PassTurnOp, kind: Kind, after: int) -> Steps:
        group, groups = self.index(op.group, op), number(op.groups)
        if op.only is not None and number(op.only) != group:
            return []
        barrier = FIRST_TURN_BARRIER + (group + after) % groups if after else FIRST_TURN_BARRIER + group
        event = Event(kind, op, barrier=barrier, amount=TURN_THREADS)
        return [Step(STEADY, 1, lambda at: event)]

    def memory_step(self, op: Any, kind: Kind, spans: Callable[[int], list[Span]], **fields: Any) -> Steps:
        """An access to `spans` of each stage."""
        _, stages = self.at(op.cursor, op)
        for stage in range(stages):
            self.memory.add(spans(stage))
        return self.on_ring(
            op, lambda stage, _: Event(kind, op, stage, parts=self.memory.parts(spans(stage)), **fields)
        )

    def tma_load(self, op: hopper.TmaLoadOp) -> Steps:
        box, ring, full = op.map.type, self.storage.ring(op.ring), self.storage.barrier(op.full)
        assert isinstance(box, hopper.TensorMapType)
        part, ranks = self.shared_with(op)
        part = op.first_box(part, len(ranks))
        nbytes = box.dims[0] * box.dims[1] * box.element_bytes

        def build(stage: int, parity: int) -> Event:
            parts = self.memory.parts([ring.bytes(stage, part * nbytes, nbytes)])
            return Event(Kind.TMA_LOAD, op, stage, full.address(stage, 0), nbytes=nbytes, parts=parts, ranks=ranks)

        for stage in range(self.at(op.cursor, op)[1]):
            self.memory.add([ring.bytes(stage, part * nbytes, nbytes)])
        return self.on_ring(op, build)

    def tma_fill(self, op: hopper.TmaFillOp) -> Steps:
        staging, full, box = self.storage.staging(op.staging), self.storage.barrier(op.full), op.map.type
        assert isinstance(box, hopper.TensorMapType)
        start, group = staging.offset + number(op.offset), self.index(op.group, op)
        nbytes = box.dims[0] * box.dims[1] * box.element_bytes
        spans = [(start, start + nbytes)]
        self.memory.add(spans)

        def build(stage: int, parity: int) -> Event:
            barrier = full.address(stage, group)
            parts = self.memory.parts(spans)
            return Event(Kind.TMA_LOAD, op, stage, barrier, nbytes=nbytes, parts=parts, ranks=OWN)

        return self.on_ring(op, build)

    def shared_with(self, op: hopper.TmaLoadOp) -> tuple[int, tuple[int, ...]]:
        """Which part of a slot this CTA loads, and the CTAs that receive it."""
        if op.multicast is None:
            return 0, OWN
        self.by_rank = True
        cluster_m, cluster_n = self.cluster
        row, column = divmod(self.rank, cluster_n)
        if op.multicast.data is AxisName.M:
            return row, tuple(i * cluster_n + column for i in range(cluster_m))
        return column, tuple(row * cluster_n + j for j in range(cluster_n))

    def put_scales(self, op: hopper.PutScalesOp) -> Steps:
        ring, steps = self.storage.ring(op.ring), number(op.steps)
        return self.memory_step(op, Kind.WRITE, lambda stage: [ring.bytes(stage, 0, steps * F32_BYTES)])

    def load_scales(self, op: hopper.LoadScalesOp) -> Steps:
        if op.k is not None:  # which row it is depends on a loop's number
            return self.on_whole_slot(op, Kind.READ, op.rows, op.steps)
        rows, steps, group = self.storage.ring(op.rows), self.storage.ring(op.steps), self.index(op.group, op)
        type_ = op.scales.type
        assert isinstance(type_, hopper.ScalesType)
        waves, columns = type_.dims
        first_row, first_step = group * number(op.group_rows), group * number(op.group_steps)

        def spans(stage: int) -> list[Span]:
            return [
                rows.bytes(stage, first_row * F32_BYTES, waves * WAVE_ROWS * F32_BYTES),
                steps.bytes(stage, first_step * F32_BYTES, columns * F32_BYTES),
            ]

        return self.memory_step(op, Kind.READ, spans)

    def on_whole_slot(self, op: Any, kind: Kind, *rings: SSAValue) -> Steps:
        """An access to anything in a slot of each ring."""
        found = [self.storage.ring(ring) for ring in rings]
        return self.memory_step(op, kind, lambda stage: [ring.bytes(stage, 0, ring.slot_bytes) for ring in found])

    def promote_block(self, op: hopper.PromoteBlockOp) -> Steps:
        read = self.on_whole_slot(op, Kind.READ, op.shared, op.columns)
        return [*self.registers(op, (op.partial, op.total)), *read]

    def promote_columns(self, op: hopper.PromoteColumnsOp) -> Steps:
        rows, columns, group = self.storage.ring(op.rows), self.storage.ring(op.columns), self.index(op.group, op)
        fragment = op.partial.type
        assert isinstance(fragment, hopper.FragmentType)
        first_row = group * number(op.group_rows) + number(op.wave) * WAVE_ROWS
        first_column = group * number(op.group_columns)

        def spans(stage: int) -> list[Span]:
            return [
                rows.bytes(stage, first_row * F32_BYTES, WAVE_ROWS * F32_BYTES),
                columns.bytes(stage, first_column * F32_BYTES, fragment.dims[1] * F32_BYTES),
            ]

        return [*self.registers(op, (op.partial, op.total)), *self.memory_step(op, Kind.READ, spans)]

    def wgmma(self, op: hopper.WgmmaOp) -> Steps:
        a, b, group = self.storage.ring(op.a), self.storage.ring(op.b), self.index(op.group, op)
        fragment = op.fragment.type
        assert isinstance(fragment, hopper.FragmentType)
        columns = fragment.dims[1]
        a_row, first_b = number(op.a_row), group * number(op.b_group_rows)
        if op.by_part is not None:
            self.by_rank, a_row = True, a_row ^ self.rank * WAVE_ROWS
        first_a = group * number(op.a_group_rows) + a_row

        def spans(stage: int) -> list[Span]:
            return [a.rows(stage, first_a, WAVE_ROWS), b.rows(stage, first_b, columns)]

        return self.memory_step(op, Kind.WGMMA, spans, fragments=(self.fragment(op.fragment),))

    def fragment(self, value: SSAValue) -> int:
        return self.fragments.setdefault(value, len(self.fragments))

    def wgmma_wait(self, op: hopper.WgmmaWaitOp) -> Steps:
        named = tuple(self.fragment(value) for value in op.fragments)
        event = Event(Kind.WGMMA_WAIT, op, amount=number(op.pending), fragments=named)
        return [Step(STEADY, 1, lambda at: event)]

    def registers(self, op: Operation, values: tuple[SSAValue, ...]) -> Steps:
        event = Event(Kind.REGISTERS, op, fragments=tuple(self.fragment(value) for value in values))
        return [Step(STEADY, 1, lambda at: event)]

    def staged_spans(self, op: hopper.StageFragmentOp) -> list[Span]:
        """Where these warps' rows of a fragment lie in the boxes of the staging area."""
        staging, first = self.storage.staging(op.staging), number(op.row) + self.first_warp * WARP_ROWS
        base = staging.offset + self.index(op.group, op) * staging.pitch
        if op.transposed is not None:
            return transposed_spans(staging, base, first, self.warps * WARP_ROWS)
        spans: list[Span] = []
        for chunk in staging.chunks:
            row_bytes = chunk.columns * staging.element_bytes
            start = base + chunk.offset + first * row_bytes
            spans.append((start, start + self.warps * WARP_ROWS * row_bytes))
        return spans

    def stage_fragment(self, op: hopper.StageFragmentOp) -> Steps:
        staging, spans = self.storage.staging(op.staging), self.staged_spans(op)
        self.memory.add(spans)
        # stmatrix takes all lanes of a warp at once; wider elements are stored lane by lane.
        fragments = (self.fragment(op.fragment),) if staging.element_bytes == STMATRIX_BYTES else ()
        made = self.registers(op, (op.fragment,))
        if op.accumulate is not None:  # each lane reads what it then overwrites, or its warp does in one stmatrix
            made.append(Step(STEADY, 1, lambda at: Event(Kind.READ, op, parts=self.memory.parts(spans))))
        return [
            *made,
            Step(STEADY, 1, lambda at: Event(Kind.WRITE, op, parts=self.memory.parts(spans), fragments=fragments)),
        ]

    def tma_store(self, op: hopper.TmaStoreOp) -> Steps:
        return self.reads_box(op, Kind.TMA_STORE)

    def store_rows(self, op: hopper.StoreRowsOp) -> Steps:
        """By TMA or by the lanes, as the device's data say: both may be, and both must be in order."""
        return [*self.reads_box(op, Kind.READ), *self.reads_box(op, Kind.TMA_STORE)]

    def reads_box(self, op: hopper.TmaStoreOp | hopper.StoreRowsOp, kind: Kind) -> Steps:
        staging, box = self.storage.staging(op.staging), op.map.type
        assert isinstance(box, hopper.TensorMapType)
        start = staging.offset + number(op.offset)
        spans = [(start, start + box.dims[0] * box.dims[1] * box.element_bytes)]
        self.memory.add(spans)
        return [Step(STEADY, 1, lambda at: Event(kind, op, parts=self.memory.parts(spans)))]


SILENT = (
    hopper.BarriersOp,
    hopper.BlockAheadOp,
    hopper.CountTilesOp,
    hopper.FetchScalesOp,
    hopper.FirstBlockOp,
    hopper.FirstTileOp,
    hopper.FragmentOp,
    hopper.GroupBlockOp,
    hopper.GroupPointerOp,
    hopper.LaunchDependentsOp,
    hopper.MoveScalesOp,
    hopper.NextScalesOp,
    hopper.PartBlockOp,
    hopper.PrefetchMapsOp,
    hopper.RingOp,
    hopper.ScalesOp,
    hopper.SetMaxRegistersOp,
    hopper.StagingOp,
    hopper.StartScalesOp,
    hopper.WaitForGridOp,
)
"""Ops that order nothing and touch no shared memory."""
