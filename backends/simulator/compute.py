"""What math warpgroups do: WGMMA, scales, promotion, and staging of a finished tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemmir.backends.simulator.agent import Agent, WgmmaGroup
from gemmir.backends.simulator.barriers import fault
from gemmir.backends.simulator.machine import Cta, Wait
from gemmir.backends.simulator.memory import VALID, Bytes, Region, load_words, slot_chunks, slot_panels
from gemmir.backends.simulator.registers import (
    Fragment,
    ScaleRegisters,
    fragment_map,
    promote,
    staging_offsets,
    transposed_offsets,
)
from gemmir.dialects import hopper
from gemmir.dtypes import DTYPES, DType
from gemmir.tensor_core import add, addend_values, fma, round_to, wgmma_chain
from gemmir.tensor_core import multiply as product

ROWS = 64
ROW_BYTES = 128
THREADS = 128


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of an operand in a slot: raw bits (rows, K), and which rows hold a byte that is not valid."""

    bits: NDArray[np.uint8 | np.uint16]
    garbage: NDArray[np.bool_]


@dataclass(slots=True)
class Multiplication:
    """Four WGMMAs over one slot. The operands are read when it is issued or when it completes."""

    cta: Cta
    addresses: tuple[int, int]
    types: tuple[DType, DType]
    fragment: Fragment
    fresh: bool
    panels: tuple[bool, bool] = (False, False)
    operands: tuple[Rows, Rows] | None = None

    def read(self) -> tuple[Rows, Rows]:
        return (
            self._rows(self.addresses[0], ROWS, self.types[0], self.panels[0]),
            self._rows(self.addresses[1], self.fragment.columns, self.types[1], self.panels[1]),
        )

    def _rows(self, address: int, rows: int, dtype: DType, panels: bool) -> Rows:
        if panels:
            offsets = slot_panels(address, rows) // 2
            states = self.cta.shared.state.view(np.uint16)[offsets]
            return Rows(self.cta.shared.data.view(np.uint16)[offsets], (states != VALID * 0x0101).any(axis=1))
        data, state = self.cta.shared.chunks(slot_chunks(address, rows))
        garbage = (state != VALID).reshape(rows, ROW_BYTES).any(axis=1)
        bits: Bytes = data.reshape(rows, ROW_BYTES)
        return Rows(bits if dtype.bytes == 1 else bits.view(np.uint16), garbage)

    def execute(self) -> None:
        a, b = self.operands or self.read()
        start = None if self.fresh else self.fragment.matrix()
        result = wgmma_chain(a.bits, b.bits, *self.types, start)
        self.fragment.accumulate(result, a.garbage[:, None] | b.garbage[None, :], self.fresh)


def multiply(agent: Agent, op: hopper.WgmmaOp) -> None:
    fragment, group, stage = agent[op.fragment], int(agent[op.group]), agent[op.cursor].stage
    assert isinstance(fragment, Fragment)
    a, b = op.a.type, op.b.type
    assert isinstance(a, hopper.RingType) and isinstance(b, hopper.RingType)
    if fragment.touched:
        raise fault(f"{agent.name}: {fragment.name} goes into a WGMMA without wgmma_fence after its last use")
    a_row = op.a_row.value.data if op.by_part is None else op.a_row.value.data ^ agent.part * ROWS
    first_row = group * op.a_group_rows.value.data + a_row
    addresses = (
        agent[op.a] + stage * a.slot_bytes + first_row * ROW_BYTES,
        agent[op.b] + stage * b.slot_bytes + group * op.b_group_rows.value.data * ROW_BYTES,
    )
    types = (DTYPES[str(a.element)], DTYPES[str(b.element)])
    panels = op.a_panels is not None, op.b_panels is not None
    made = Multiplication(agent.cta, addresses, types, fragment, op.fresh is not None, panels)
    if agent.cluster.chance.random() < agent.cluster.reads_at_issue:
        made.operands = made.read()
    fragment.in_flight += 1
    fragment.settled = False
    agent.open_group.append(made)


def wgmma_fence(agent: Agent, op: hopper.WgmmaFenceOp) -> None:
    for fragment in agent.fragments:
        fragment.touched = False


def wgmma_commit(agent: Agent, op: hopper.WgmmaCommitOp) -> None:
    group = WgmmaGroup(agent, agent.open_group)
    agent.open_group = []
    agent.groups.append(group)
    agent.cluster.start(group)


def wgmma_wait(agent: Agent, op: hopper.WgmmaWaitOp) -> Wait:
    allowed = op.pending.value.data

    def ready() -> bool:
        return sum(not group.done for group in agent.groups) <= allowed

    return Wait(ready, lambda: f"{op.name} {allowed}")


def wgmma_done(agent: Agent, op: hopper.WgmmaWaitOp) -> None:
    """The wait covers all but the last groups; of their fragments, those that it names may be used."""
    while len(agent.groups) > op.pending.value.data:
        for multiplication in agent.groups.popleft().multiplications:
            multiplication.fragment.in_flight -= 1
    for value in op.fragments:
        fragment = agent[value]
        fragment.settled = fragment.in_flight == 0


def zero(agent: Agent, op: hopper.ZeroOp) -> None:
    for value in op.fragments:
        fragment = agent[value]
        fragment.write(np.zeros_like(fragment.values), np.zeros_like(fragment.garbage))


def load_scales(agent: Agent, op: hopper.LoadScalesOp) -> None:
    """Each thread's ordinary loads from the slot, as `Scales::load` does them."""
    scales, group, stage = agent[op.scales], int(agent[op.group]), agent[op.cursor].stage
    assert isinstance(scales, ScaleRegisters)
    rows, steps = op.rows.type, op.steps.type
    assert isinstance(rows, hopper.RingType) and isinstance(steps, hopper.RingType)
    thread = np.arange(THREADS, dtype=np.int64)
    row = group * op.group_rows.value.data + thread // 32 * 16 + thread % 32 // 4
    swap = 0 if op.by_part is None else agent.part
    wave, half = (np.arange(scales.waves)[None, :, None] ^ swap) * ROWS, np.array([0, 8])
    k = 0 if op.k is None or op.ahead is None else agent[op.k] + op.ahead.value.data
    at_rows = agent[op.rows] + stage * rows.slot_bytes + (k * rows.dims[2] + row[:, None, None] + wave + half) * 4
    step = k * steps.dims[2] + group * op.group_steps.value.data + np.arange(scales.steps, dtype=np.int64)
    at_steps = agent[op.steps] + stage * steps.slot_bytes + step * 4
    shared = agent.cta.shared
    scales.rows, scales.garbage_rows = shared.load_f32(at_rows)
    scales.columns, scales.garbage_columns = shared.load_f32(at_steps)
    agent.read(Region(at_rows.reshape(-1), 4))
    agent.read(Region(at_steps, 4))


def move_scales(agent: Agent, op: hopper.MoveScalesOp) -> None:
    agent[op.target].copy_from(agent[op.source])


def promote_wave(agent: Agent, op: hopper.PromoteOp) -> None:
    partial, total, scales = agent[op.partial], agent[op.total], agent[op.scales]
    promote(partial, total, scales, op.wave.value.data, op.step.value.data)


def promote_block(agent: Agent, op: hopper.PromoteBlockOp) -> None:
    """Each thread's ordinary loads from a row of the slot, as `promote_wave` does them, and the promotion."""
    partial, total = agent[op.partial], agent[op.total]
    shared, columns, stage = op.shared.type, op.columns.type, agent[op.cursor].stage
    assert isinstance(shared, hopper.RingType) and isinstance(columns, hopper.RingType)
    k, (_, column) = agent[op.k] + op.ahead.value.data, fragment_map(partial.columns)
    at_shared = agent[op.shared] + stage * shared.slot_bytes + (k * shared.dims[2] + int(agent[op.group])) * 4
    at_columns = agent[op.columns] + stage * columns.slot_bytes + (k * columns.dims[2] + column) * 4
    memory, of_all = agent.cta.shared, np.array([at_shared], np.int64)
    (scale, one), (column_scales, other) = memory.load_f32(of_all), memory.load_f32(at_columns)
    agent.read(Region(of_all, 4))
    agent.read(Region(np.unique(at_columns), 4))
    values, garbage = partial.read()
    sums, garbage_sums = total.read()
    scales = product(np.broadcast_to(scale, column_scales.shape), column_scales)
    total.write(fma(values, scales, sums), garbage | garbage_sums | one | other)


def promote_columns(agent: Agent, op: hopper.PromoteColumnsOp) -> None:
    """Each thread's ordinary loads from the slot, as `promote_columns` does them, and the promotion."""
    partial, total = agent[op.partial], agent[op.total]
    rows, columns, stage, group = op.rows.type, op.columns.type, agent[op.cursor].stage, int(agent[op.group])
    assert isinstance(rows, hopper.RingType) and isinstance(columns, hopper.RingType)
    row, column = fragment_map(partial.columns)
    row = row + group * op.group_rows.value.data + op.wave.value.data * ROWS
    column = column + group * op.group_columns.value.data
    at_rows = agent[op.rows] + stage * rows.slot_bytes + row * 4
    at_columns = agent[op.columns] + stage * columns.slot_bytes + column * 4
    shared = agent.cta.shared
    (row_scales, one), (column_scales, other) = shared.load_f32(at_rows), shared.load_f32(at_columns)
    agent.read(Region(np.unique(at_rows), 4))
    agent.read(Region(np.unique(at_columns), 4))
    values, garbage = partial.read()
    sums, garbage_sums = total.read()
    total.write(fma(values, product(row_scales, column_scales), sums), garbage | garbage_sums | one | other)


def stage_fragment(agent: Agent, op: hopper.StageFragmentOp) -> None:
    """Round 64 rows and put them into the staging area of the role's warpgroup; before that, add what lies there."""
    staging, owner, fragment = op.staging.type, op.staging.owner, agent[op.fragment]
    assert isinstance(staging, hopper.StagingType) and isinstance(owner, hopper.StagingOp)
    _, rows, columns = staging.dims
    size, dtype = staging.element_bytes, DTYPES[str(staging.element)]
    base = agent[op.staging] + int(agent[op.group]) * owner.pitch.value.data
    offsets = transposed_offsets if op.transposed is not None else staging_offsets
    region = Region(base + offsets(columns, rows, size, op.row.value.data), size)
    first = op.column.value.data // 2
    taken = slice(None) if op.transposed is not None else slice(first, first + columns // 2)
    values, garbage = (part[:, taken] for part in fragment.read())
    if op.accumulate is not None:
        bits, unsound = load_words(agent.cta.shared, region.offsets, size)
        agent.read(Region(region.offsets.reshape(-1), size))
        values, garbage = add(values, addend_values(bits, dtype)), garbage | unsound
    if garbage.any():
        thread, register = np.argwhere(garbage)[0]
        raise fault(
            f"{agent.name}: register {register} of thread {thread} of {fragment.name} is staged, but it is garbage",
            "sums are made of data that have arrived, and are used after the wait that names them",
        )
    agent.cta.shared.write(region, round_to(values, dtype))
    agent.wrote(region)
