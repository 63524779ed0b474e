"""How data move in: TMA loads and weight scales; and out: TMA stores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.ir import SSAValue

from gemmir.backends.simulator.agent import Agent
from gemmir.backends.simulator.barriers import fault
from gemmir.backends.simulator.machine import Arriving, StoreGroup, Storing, Wait
from gemmir.backends.simulator.memory import CHUNK, UNFENCED, VALID, Region, box_chunks
from gemmir.backends.simulator.tensors import Matrix, Pointer
from gemmir.dialects import hopper
from gemmir.dialects.hopper.control import enclosing, tile_arguments
from gemmir.dialects.hopper.types import AxisName
from gemmir.errors import UnsupportedError

LANES = 32
SCALE_COLUMNS = 128
"""Columns that one weight scale covers."""


def tma_load(agent: Agent, op: hopper.TmaLoadOp) -> None:
    """Start the load; it arrives in each destination CTA at a time of its own."""
    box, ring = op.map.type, op.ring.type
    assert isinstance(box, hopper.TensorMapType) and isinstance(ring, hopper.RingType)
    matrix, cursor = _matrix(agent, op.map, op.group), agent[op.cursor]
    rows, columns = box.dims
    size = rows * columns * box.element_bytes
    part, destinations = _destinations(agent, op)
    part = op.first_box(part, len(destinations))
    row = agent[op.row] * op.row_step.value.data
    column = agent[op.column] * op.column_step.value.data
    if op.panel is None:
        row += part * rows
    else:
        column += part * columns
    if column * box.element_bytes % CHUNK:
        raise fault(
            f"TMA loads from {matrix.name}[{row}, {column}]", "a box starts at a multiple of 16 bytes of its row"
        )
    data = np.ascontiguousarray(matrix.load(row, column, rows, columns)).view(np.uint8).reshape(-1, 16)
    slot = agent[op.ring] + cursor.stage * ring.slot_bytes + part * size
    chunks = box_chunks(slot, rows, columns * box.element_bytes, box.swizzle_mode)
    full = agent.barrier_address(op.full, op.cursor, None)
    for rank in destinations:
        cta = agent.cluster.ctas[rank]
        cta.barrier(full)  # must exist before anything is sent
        cta.expect_load(chunks)
        agent.cluster.start(Arriving(cta, chunks, data, full))


def _matrix(agent: Agent, map_: SSAValue, group: SSAValue | None) -> Matrix:
    matrix = agent[map_]
    assert isinstance(matrix, Matrix)
    return matrix if group is None else matrix.of_group(agent[group])


def tma_fill(agent: Agent, op: hopper.TmaFillOp) -> None:
    """Start to load a box of C into the staging area."""
    box, matrix = op.map.type, _matrix(agent, op.map, op.tile_group)
    assert isinstance(box, hopper.TensorMapType)
    rows, columns = box.dims
    row, column = agent[op.row] + op.row_offset.value.data, agent[op.column] + op.column_offset.value.data
    begin, end = _own_rows(agent, op)
    matrix.check_unstored((max(row, begin), min(row + rows, end)), (column, column + columns))
    data = np.ascontiguousarray(matrix.load(row, column, rows, columns)).view(np.uint8).reshape(-1, 16)
    start = agent[op.staging] + op.offset.value.data
    chunks = box_chunks(start, rows, columns * box.element_bytes, box.swizzle_mode)
    full = agent.barrier_address(op.full, op.cursor, op.group)
    agent.cta.barrier(full)  # must exist before anything is sent
    agent.own_reads_are_over()
    agent.cta.expect_load(chunks)
    agent.cluster.start(Arriving(agent.cta, chunks, data, full))


def _own_rows(agent: Agent, op: hopper.TmaFillOp) -> tuple[int, int]:
    """Rows of the tile that are stored: others belong to other groups, and what is read there is not used."""
    tiles, first = enclosing(op, hopper.TilesOp), agent[op.row]
    assert tiles is not None
    names = tile_arguments(agent.kernel.grouping, tiles.count is not None)
    own = dict(zip(names, tiles.body.block.args, strict=True))
    if "end" not in own:
        return first, first + agent.kernel.tile.m.data
    return first + agent[own["begin"]], first + agent[own["end"]]


def _destinations(agent: Agent, op: hopper.TmaLoadOp) -> tuple[int, list[int]]:
    """Which part of the slot this CTA loads, and the ranks that it goes to."""
    rank = agent.cta.rank
    if op.multicast is None:
        return 0, [rank]
    cluster_m, cluster_n = agent.kernel.cluster.m.data, agent.kernel.cluster.n.data
    if op.multicast.data is AxisName.M:
        return rank // cluster_n, [rank % cluster_n + i * cluster_n for i in range(cluster_m)]
    return rank % cluster_n, [rank // cluster_n * cluster_n + i for i in range(cluster_n)]


def block_ahead(agent: Agent, op: hopper.BlockAheadOp) -> None:
    agent.values[op.result] = agent[op.k] + op.ahead.value.data


def group_block(agent: Agent, op: hopper.GroupBlockOp) -> None:
    agent.values[op.result] = agent[op.k] + agent[op.first]


def group_pointer(agent: Agent, op: hopper.GroupPointerOp) -> None:
    pointer = agent[op.pointer]
    assert isinstance(pointer, Pointer)
    agent.values[op.result] = pointer.after(agent[op.group] * agent[op.stride])


def fetch_scales(agent: Agent, op: hopper.FetchScalesOp) -> None:
    """The scale of each lane, (32,)."""
    steps = min(op.steps.value.data, LANES)
    agent.values[op.result] = _weight_scales(agent, op, agent[op.k], steps)


@dataclass(slots=True)
class ScaleBatch:
    """Scales of a batch of k-blocks, (32,), and those of the batch after it: `following` is loaded ahead."""

    now: np.ndarray
    following: np.ndarray


def start_scales(agent: Agent, op: hopper.StartScalesOp) -> None:
    agent.values[op.result] = ScaleBatch(np.zeros(LANES, np.float32), _batch(agent, op, 0))


def _batch(agent: Agent, op: hopper.StartScalesOp, first: int) -> np.ndarray:
    """The scales of the k-blocks from `first` on that there are, block by block, zeros for the rest, (32,)."""
    blocks, lanes = op.result.type.dims
    scales = np.zeros((blocks, lanes), np.float32)
    before = 0 if op.in_part is None else agent.part * op.blocks.value.data
    for row in range(min(blocks, op.blocks.value.data - first)):
        scales[row] = _weight_scales(agent, op, before + first + row, lanes)[:lanes]
    return scales.reshape(LANES)


def _weight_scales(agent: Agent, op: hopper.FetchScalesOp | hopper.StartScalesOp, k: int, steps: int) -> np.ndarray:
    """Scales of k-block `k` for `steps` lanes, zeros for the others and outside the matrix, (32,)."""
    pointer, step = agent[op.pointer], op.step.value.data
    assert isinstance(pointer, Pointer)
    columns = agent.kernel.columns.value.data
    lanes = np.zeros(LANES, np.float32)
    for lane in range(steps):
        column = agent[op.column] + lane * step
        if column < columns:
            index = k * agent[op.stride_k] + column // SCALE_COLUMNS * agent[op.stride_n]
            lanes[lane] = pointer.load(index)
    return lanes


def next_scales(agent: Agent, op: hopper.NextScalesOp) -> None:
    """The scales of one k-block of the batch in hand; where a batch begins, the one that was loaded ahead is it."""
    start, batch = op.batch.owner, agent[op.batch]
    assert isinstance(start, hopper.StartScalesOp) and isinstance(batch, ScaleBatch)
    blocks, lanes = start.result.type.dims
    k = agent[op.k]
    if k % blocks == 0:
        batch.now, batch.following = batch.following, _batch(agent, start, k + blocks)
    agent.values[op.result] = np.tile(batch.now.reshape(blocks, lanes)[k % blocks], blocks)


def copy_scales(agent: Agent, op: hopper.CopyScalesOp) -> None:
    """Each lane's loads and stores, row by row of the slot."""
    ring, pointer, columns = op.ring.type, agent[op.pointer], agent.kernel.columns.value.data
    assert isinstance(ring, hopper.RingType) and isinstance(pointer, Pointer)
    _, rows, steps = ring.dims
    values = np.zeros((rows, steps), np.float32)
    existing = max(0, min(rows, op.blocks.value.data - agent[op.first]))
    for row in range(existing):
        of_row = (agent[op.first] + row) * agent[op.stride_k]
        for step in range(steps):
            column = agent[op.column] + step * op.step.value.data
            if column < columns:
                values[row, step] = pointer.load(of_row + column // SCALE_COLUMNS * agent[op.stride_n])
    slot = agent[op.ring] + agent[op.cursor].stage * ring.slot_bytes
    region = Region(slot + 4 * np.arange(rows * steps, dtype=np.int64), 4)
    agent.cta.shared.write(region, values.reshape(-1).view(np.uint32))
    agent.wrote(region)


def put_scales(agent: Agent, op: hopper.PutScalesOp) -> None:
    ring, steps = op.ring.type, op.steps.value.data
    assert isinstance(ring, hopper.RingType)
    if steps > LANES:
        raise UnsupportedError("GMR-U001", f"{steps} scales from a warp", rule="one per lane")
    slot = agent[op.ring] + agent[op.cursor].stage * ring.slot_bytes
    region = Region(slot + 4 * np.arange(steps, dtype=np.int64), 4)
    agent.cta.shared.write(region, agent[op.value][:steps].view(np.uint32))
    agent.wrote(region)


def tma_store(agent: Agent, op: hopper.TmaStoreOp) -> None:
    """Start the store, unless its columns lie outside D; it reads shared memory at a time of its own."""
    down = 0 if op.part_rows is None else (agent.part ^ 1) * op.part_rows.value.data
    _start_store(agent, op, _matrix(agent, op.map, op.group), down)


def store_rows(agent: Agent, op: hopper.StoreRowsOp) -> None:
    """A whole box leaves as by `tma_store`; of another one, the lanes copy the rows that may be written now."""
    box, matrix = op.map.type, _matrix(agent, op.map, op.group)
    assert isinstance(box, hopper.TensorMapType)
    begin = max(agent[op.begin] - op.row_offset.value.data, 0)
    end = min(agent[op.end] - op.row_offset.value.data, box.dims[0])
    if (begin, end) == (0, box.dims[0]):
        _start_store(agent, op, matrix, 0)
        return
    row, column = agent[op.row] + op.row_offset.value.data, agent[op.column] + op.column_offset.value.data
    if begin >= end or column >= agent.kernel.columns.value.data:
        return
    source = agent[op.staging] + op.offset.value.data
    chunks = box_chunks(source, box.dims[0], box.dims[1] * box.element_bytes, box.swizzle_mode)
    chunks = chunks.reshape(box.dims[0], -1)[begin:end]
    agent.read(Region(chunks.reshape(-1) * CHUNK, CHUNK))
    data, states = agent.cta.shared.chunks(chunks)
    sound = (states & ~np.uint8(UNFENCED) == VALID).reshape(end - begin, -1, box.element_bytes).all(axis=2)
    matrix.store(
        row + begin, column, np.ascontiguousarray(data).reshape(end - begin, -1).view(matrix.bits.dtype), sound
    )


def _start_store(agent: Agent, op: hopper.TmaStoreOp | hopper.StoreRowsOp, matrix: Matrix, down: int) -> None:
    box = op.map.type
    assert isinstance(box, hopper.TensorMapType)
    row, column = agent[op.row] + down + op.row_offset.value.data, agent[op.column] + op.column_offset.value.data
    if column >= agent.kernel.columns.value.data:
        return
    if matrix.written is None:
        raise fault(f"a TMA store into {matrix.name}, which is an input")
    rows, columns = box.dims
    source = agent[op.staging] + op.offset.value.data
    chunks = box_chunks(source, rows, columns * box.element_bytes, box.swizzle_mode)
    group = agent.open_stores
    group.unread += 1
    agent.stores_open += 1
    agent.cluster.start(Storing(agent.cta, chunks, matrix, (row, column), (rows, columns), group))


def store_commit(agent: Agent, op: hopper.StoreCommitOp) -> None:
    agent.stores.append(agent.open_stores)
    agent.open_stores, agent.stores_open = StoreGroup(), 0


def store_wait_read(agent: Agent, op: hopper.StoreWaitReadOp) -> Wait:
    allowed = op.pending.value.data

    def ready() -> bool:
        return all(group.unread == 0 for group in list(agent.stores)[: max(0, len(agent.stores) - allowed)])

    return Wait(ready, lambda: f"{op.name} {allowed}")


def store_wait_done(agent: Agent, op: hopper.StoreWaitReadOp) -> None:
    while len(agent.stores) > op.pending.value.data:
        agent.stores.popleft()
