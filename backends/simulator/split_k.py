"""How two CTAs that sum a part of K each swap halves of a tile."""

from __future__ import annotations

import numpy as np

from gemmir.backends.simulator.agent import Agent
from gemmir.backends.simulator.barriers import fault
from gemmir.backends.simulator.machine import Arriving, Cta, Signal
from gemmir.backends.simulator.memory import CHUNK, Index, Region
from gemmir.backends.simulator.registers import THREADS, Fragment
from gemmir.dialects import hopper
from gemmir.dialects.hopper.split_k import QUAD
from gemmir.target import BARRIER_BYTES, WARP_LANES
from gemmir.tensor_core import add


class Sending(Arriving):
    """Sums of one warp on their way to the peer."""


def _peer(agent: Agent) -> Cta:
    return _of_part(agent, agent.cta.rank ^ 1)


def _of_part(agent: Agent, part: int) -> Cta:
    ctas = agent.cluster.ctas
    if part >= len(ctas):
        raise fault(f"{agent.name}: a signal to CTA {part} of {len(ctas)}", "peers that exist")
    return ctas[part]


def part_block(agent: Agent, op: hopper.PartBlockOp) -> None:
    agent.values[op.result] = agent.part * op.blocks.value.data + agent[op.k]


def first_block(agent: Agent, op: hopper.FirstBlockOp) -> None:
    agent.values[op.result] = agent.part * op.blocks.value.data


def grant(agent: Agent, op: hopper.GrantOp) -> None:
    agent.publish()
    address = agent.barrier_address(op.barriers, op.cursor, op.group)
    receiver = _peer(agent) if op.part is None else _of_part(agent, op.part.value.data)
    for _ in range(agent.warps):
        agent.cluster.start(Signal(receiver, address, 1))


def _chunks(agent: Agent, op: hopper.SendSumsOp | hopper.AddSumsOp) -> Index:
    """Numbers of the 16-byte chunks of each thread's quads, (threads, quads), in whichever CTA."""
    ring, registers = op.ring.type, op.registers.value.data
    assert isinstance(ring, hopper.RingType)
    to_first = isinstance(op, hopper.SendSumsOp) and op.to_first is not None
    slot = agent[op.ring] + (agent.part - 1 if to_first else agent[op.cursor].stage) * ring.slot_bytes
    first = slot + int(agent[op.group]) * THREADS * registers * 4
    quad = np.arange(registers // QUAD, dtype=np.int64)
    return first // CHUNK + quad * THREADS + np.arange(THREADS, dtype=np.int64)[:, None]


def _registers(op: hopper.SendSumsOp | hopper.AddSumsOp) -> slice:
    first = op.first.value.data
    return slice(first, first + op.registers.value.data)


def send_sums(agent: Agent, op: hopper.SendSumsOp) -> None:
    """Start the stores, warp by warp: each one's sums arrive at a time of their own."""
    fragment, to_first = agent[op.sums], op.to_first is not None
    peer = _of_part(agent, 0) if to_first else _peer(agent)
    assert isinstance(fragment, Fragment)
    values, garbage = (of_all[:, _registers(op)] for of_all in fragment.read())
    if garbage.any():
        raise fault(f"{agent.name}: sums of {fragment.name} are sent that are garbage", "only finished sums are sent")
    chunks, full = _chunks(agent, op), agent.barrier_address(op.full, op.cursor, None)
    if to_first:
        full = agent[op.full] + (agent.part - 1) * BARRIER_BYTES
    peer.barrier(full)  # must exist before anything is sent
    for first in range(0, THREADS, WARP_LANES):
        warp = slice(first, first + WARP_LANES)
        data = np.ascontiguousarray(values[warp]).view(np.uint8).reshape(-1, CHUNK)
        peer.expect_load(chunks[warp].reshape(-1))
        agent.cluster.start(Sending(peer, chunks[warp].reshape(-1), data, full))


def add_sums(agent: Agent, op: hopper.AddSumsOp) -> None:
    """Each thread's ordinary loads, and the sums of both parts of K."""
    fragment, registers = agent[op.sums], _registers(op)
    assert isinstance(fragment, Fragment)
    words = _chunks(agent, op)[:, :, None] * CHUNK + 4 * np.arange(QUAD)
    offsets = words.reshape(THREADS, -1)
    sent, never_sent = agent.cta.shared.load_f32(offsets)
    agent.read(Region(offsets.reshape(-1), 4))
    values, garbage = (of_all.copy() for of_all in fragment.read())
    values[:, registers] = add(values[:, registers], sent)
    garbage[:, registers] |= never_sent
    fragment.write(values, garbage)
