"""
Math warpgroups that promote k-blocks in chunks: FP8 with block-wise scales, one wave of 64 rows a warpgroup.

The k-blocks of a chunk are issued in a straight line into two partial sums in turn, so that a wave runs while the one
before is promoted and even one warpgroup keeps the tensor cores busy. Nothing is in flight where the loop goes round:
ptxas drains the pipe at every wave if it is (C7514). So the way out of a tile hides behind the other warpgroups only.
Scales come slot by slot with the operands, or those of a whole tile apart from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import Emitter, number
from gemmir.passes.lowering.math_slots import (
    finish_wave,
    give_back_scales,
    let_go_of_scales,
    multiply,
    read_scales,
)
from gemmir.passes.lowering.math_staging import stage_slice
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage
from gemmir.passes.lowering.tiles import each_block, each_tile
from gemmir.target import SM_90A

IN_FLIGHT = 2
"""Waves that run at the same time."""


@dataclass(frozen=True)
class _Registers:
    """What a math warpgroup keeps in registers: k-blocks take the partial sums, and the scales, in turn."""

    partials: Sequence[SSAValue]
    scales: Sequence[SSAValue | None]
    total: SSAValue
    at: SSAValue
    of_tile: SSAValue | None
    """Where the scales of a tile are, if they lie apart."""


@dataclass(frozen=True)
class _Chunks:
    """Builds chunks of k-blocks; holds what they all refer to."""

    plan: Plan
    storage: Storage
    group: SSAValue
    registers: _Registers

    def chunk(self, emit: Emitter, first: SSAValue | None, blocks: int) -> None:
        """
        So many k-blocks from the position on, with nothing in flight before and after.

        `first`: the number of the first one, by which scales of a whole tile are found.
        """
        at, last = self.registers.at, blocks - 1
        self.start(emit, 0, at)
        for block in range(1, blocks):
            ahead = emit.value(hopper.NextOp, at.type, "ahead", at)
            self.start(emit, block, ahead)
            # While both waves run.
            if block == 1:
                self.load_scales(emit, first, 0, at)
            self.load_scales(emit, first, block, ahead)
            # Once for two k-blocks: a fence costs a barrier in memory, and the first one's slot is released after the
            # second one's scales are read.
            if block % 2 or block == last:
                self.let_go_of_scales(emit)
            self.finish(emit, block - 1, pending=1)
        if last == 0:
            self.load_scales(emit, first, 0, at)
            self.let_go_of_scales(emit)
        self.finish(emit, last, pending=0)

    def start(self, emit: Emitter, block: int, at: SSAValue) -> None:
        """Wait for a slot and issue its wave: 64 rows x the warpgroup's columns x one k-block."""
        plan, storage = self.plan, self.storage
        emit.op(hopper.WaitOp, storage.full, at, [])
        emit.op(hopper.WgmmaFenceOp)
        multiply(emit, plan, storage, self.group, at, self.registers.partials[block % IN_FLIGHT], wave=0, fresh=True)
        emit.op(hopper.WgmmaCommitOp)

    def load_scales(self, emit: Emitter, first: SSAValue | None, block: int, at: SSAValue) -> None:
        of_tile = self.registers.of_tile
        if (scales := self.registers.scales[block % IN_FLIGHT]) is None:
            return
        if of_tile is None:
            return read_scales(emit, self.plan, self.storage, self.group, at, scales)
        assert first is not None
        return read_scales(emit, self.plan, self.storage, self.group, of_tile, scales, (first, block))

    def let_go_of_scales(self, emit: Emitter) -> None:
        """Of those of the slot that are kept in registers."""
        if not self.plan.problem.column_scales and self.registers.of_tile is None:
            let_go_of_scales(emit, self.plan)

    def finish(self, emit: Emitter, block: int, pending: int) -> None:
        """Wait for the oldest wave, give its slot back and promote its sum."""
        registers, number = self.registers, block % IN_FLIGHT
        sums, scales = (registers.partials[number], registers.total), registers.scales[number]
        finish_wave(emit, self.plan, self.storage, self.group, registers.at, sums, scales, pending=pending)
        emit.op(hopper.AdvanceOp, registers.at)


def math_chunked(emit: Emitter, plan: Plan, storage: Storage, group: SSAValue) -> None:
    """The math role: for each tile its chunks, the k-blocks that are left over, and its way out."""
    at = emit.value(hopper.CursorOp, hopper.CursorType(plan.stages), "at")
    tiles, of_tile = plan.layout.scale_tiles, None
    if tiles:
        of_tile = emit.value(hopper.CursorOp, hopper.CursorType(tiles), "scales")
    out = emit.value(hopper.CursorOp, hopper.CursorType(1), "out")
    registers = [_registers(emit, region, at, of_tile) for region in plan.regions]
    for region, own in zip(plan.regions, registers, strict=True):
        _multiply_tiles(emit, region, storage.of(region), group, own, out)


def _registers(emit: Emitter, plan: Plan, at: SSAValue, of_tile: SSAValue | None) -> _Registers:
    fragment = hopper.FragmentType(SM_90A.wgmma_m, plan.tile.wg_columns)
    scales, kept = hopper.ScalesType(1, plan.tile.wg_steps), not plan.problem.column_scales
    tail = "tail_" if plan.in_tail else ""
    return _Registers(
        partials=[emit.value(hopper.FragmentOp, fragment, f"{tail}partial{i}") for i in range(IN_FLIGHT)],
        scales=[emit.value(hopper.ScalesOp, scales, f"{tail}scales{i}") if kept else None for i in range(IN_FLIGHT)],
        total=emit.value(hopper.FragmentOp, fragment, f"{tail}total0"),
        at=at,
        of_tile=of_tile,
    )


def _multiply_tiles(
    emit: Emitter, plan: Plan, storage: Storage, group: SSAValue, registers: _Registers, out: SSAValue
) -> None:
    """The tiles of one loop."""
    chunks, k_blocks = _Chunks(plan, storage, group, registers), plan.k_blocks
    blocks = min(plan.chunk, k_blocks)
    left, step = k_blocks % blocks, None if blocks == 1 else blocks
    of_tile = registers.of_tile
    rest = number(emit, "rest", k_blocks - left) if left and of_tile is not None else None
    with each_tile(emit, plan, storage) as (tile, own):
        tile.op(hopper.ZeroOp, [registers.total])
        if of_tile is not None and storage.scaled is not None:
            tile.op(hopper.WaitOp, storage.scaled, of_tile, [])
        with each_block(tile, plan, own, less=left, step=step) as (body, k):
            chunks.chunk(body, k, blocks)
        if left:
            chunks.chunk(tile, rest, left)
        if of_tile is not None and storage.unscaled is not None:
            give_back_scales(tile, storage.unscaled, of_tile)
        stage_slice(tile, plan, storage, group, out, [registers.total])
