"""
Math warpgroups that promote: FP8 with block-wise scales.

A wave is 64 rows of one k-block. Its partial sum is multiplied into `partial`, then added to the wave's total on the
CUDA cores, scaled. A wave is always in flight: the next one is issued before the totals of this one are used, also
across tiles, so that the way out of a tile hides behind the first wave of the next. Only where K is split nothing is in
flight between tiles: what follows a tile's last k-block in the ring are the peer's sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.exchange import add_sums, exchange_cursor, send_sums
from gemmir.passes.lowering.math_slots import finish_wave, let_go_of_scales, multiply, read_scales
from gemmir.passes.lowering.math_staging import stage_slice
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage
from gemmir.passes.lowering.tiles import Tile, each_block, each_tile, has_blocks
from gemmir.target import SM_90A


@dataclass(frozen=True)
class _Registers:
    """What a math warpgroup keeps in registers. `scales` are those of the k-block in hand, if they are kept."""

    partial: SSAValue
    totals: list[SSAValue]
    scales: SSAValue | None
    next_scales: SSAValue | None
    at: SSAValue
    out: SSAValue


class _MathRole:
    """Builds the role; holds what all its parts refer to."""

    def __init__(self, plan: Plan, storage: Storage, group: SSAValue, registers: _Registers):
        self.plan = plan
        self.storage = storage
        self.group = group
        self.registers = registers

    @property
    def flows(self) -> bool:
        """Whether a wave of the next tile is in flight at the end of each."""
        return self.plan.parts == 1 and not self.plan.in_tail

    def issue(self, emit: Emitter, wave: int, at: SSAValue) -> None:
        """Start one wave: 64 rows x the warpgroup's columns x one k-block."""
        plan, turns = self.plan, bool(self.plan.schedule.turns)
        if turns:
            emit.op(hopper.TakeTurnOp, self.group, groups=plan.groups)
        emit.op(hopper.WgmmaFenceOp)
        multiply(emit, plan, self.storage, self.group, at, self.registers.partial, wave, fresh=True)
        emit.op(hopper.WgmmaCommitOp)
        if turns:
            emit.op(hopper.PassTurnOp, self.group, groups=plan.groups)

    def load_scales(self, emit: Emitter, at: SSAValue, scales: SSAValue | None) -> None:
        if scales is None:
            return
        read_scales(emit, self.plan, self.storage, self.group, at, scales)
        let_go_of_scales(emit, self.plan)

    def finish_wave(self, emit: Emitter, wave: int, release: bool) -> None:
        registers = self.registers
        sums = registers.partial, registers.totals[wave]
        finish_wave(
            emit, self.plan, self.storage, self.group, registers.at, sums, registers.scales, wave, release=release
        )

    def start_tile(self, emit: Emitter) -> None:
        """Start wave 0 of the k-block at the position."""
        registers = self.registers
        emit.op(hopper.WaitOp, self.storage.full, registers.at, [])
        self.load_scales(emit, registers.at, registers.scales)
        self.issue(emit, 0, registers.at)

    def k_block(self, emit: Emitter, stage: bool = False) -> None:
        """
        One k-block, of which wave 0 is in flight already; leaves wave 0 of the next one in flight.

        `stage`: it is a tile's last, so that each wave's total is final, and is staged while the next wave runs.
        """
        registers, last = self.registers, self.plan.tile.waves - 1
        for wave in range(last):
            self.finish_wave(emit, wave, release=False)
            self.issue(emit, wave + 1, registers.at)
            if stage:
                self.stage(emit, [wave])
        # While the last wave runs.
        ahead = emit.value(hopper.NextOp, registers.at.type, "ahead", registers.at)
        ends_tile = self.flows and (stage or self.plan.slices == 1)
        emit.op(hopper.WaitOp, self.storage.full, ahead, [], unless_last=ends_tile)
        self.load_scales(emit, ahead, registers.next_scales)
        self.finish_wave(emit, last, release=True)
        # After the very last k-block this reads a stale slot and its result is dropped: issuing under a condition
        # would make ptxas drain the pipe at every tile (C7517).
        self.issue(emit, 0, ahead)
        emit.op(hopper.AdvanceOp, registers.at)
        if registers.next_scales is not None and registers.scales is not None:
            emit.op(hopper.MoveScalesOp, registers.next_scales, registers.scales)
        if stage:
            self.stage(emit, [last])

    def last_k_block(self, emit: Emitter, sent: SSAValue) -> None:
        """
        The last k-block of a part of K, of which wave 0 is in flight already; leaves nothing in flight.

        Wave 0, which the peer finishes, is on its way while wave 1 runs.
        """
        registers = self.registers
        self.finish_wave(emit, 0, release=False)
        self.issue(emit, 1, registers.at)
        behind = emit.value(hopper.NextOp, registers.at.type, "ahead", registers.at)
        send_sums(emit, self.plan, self.storage, self.group, behind, sent, registers.totals[0])
        self.finish_wave(emit, 1, release=True)
        emit.op(hopper.AdvanceOp, registers.at)

    def split_tile(self, emit: Emitter, own: Tile, sent: SSAValue) -> None:
        """All k-blocks of this CTA's part of K, the exchange with the CTA that sums the other, and the way out."""
        plan, registers, (_, total) = self.plan, self.registers, self.registers.totals
        self.start_tile(emit)
        emit.op(hopper.ZeroOp, registers.totals)
        if has_blocks(plan, own, 1):
            with each_block(emit, plan, own, less=1) as (body, _):
                self.k_block(body)
        self.last_k_block(emit, sent)
        add_sums(emit, plan, self.storage, self.group, registers.at, total)
        stage_slice(emit, self.plan, self.storage, self.group, registers.out, [total])

    def lone_tile(self, emit: Emitter, own: Tile) -> None:
        """All k-blocks of a tile, with nothing in flight before and after, and its way out."""
        plan, registers, last = self.plan, self.registers, self.plan.tile.waves - 1
        self.start_tile(emit)
        emit.op(hopper.ZeroOp, registers.totals)
        if has_blocks(plan, own, 1):
            with each_block(emit, plan, own, less=1) as (body, _):
                self.k_block(body)
        for wave in range(last):
            self.finish_wave(emit, wave, release=False)
            self.issue(emit, wave + 1, registers.at)
            if plan.slices > 1:
                self.stage(emit, [wave])
        self.finish_wave(emit, last, release=True)
        emit.op(hopper.AdvanceOp, registers.at)
        self.stage(emit, [last] if plan.slices > 1 else range(plan.tile.waves))

    def stage(self, emit: Emitter, waves: Sequence[int]) -> None:
        registers = self.registers
        totals = [registers.totals[wave] for wave in waves]
        stage_slice(emit, self.plan, self.storage, self.group, registers.out, totals)

    def tile(self, emit: Emitter, own: Tile) -> None:
        """All k-blocks of a tile, and its way out: at once behind the last one, or wave by wave inside it."""
        plan, sliced = self.plan, self.plan.slices > 1
        emit.op(hopper.ZeroOp, self.registers.totals)
        if has_blocks(plan, own, int(sliced)):
            with each_block(emit, plan, own, less=int(sliced)) as (body, _):
                self.k_block(body)
        if sliced:
            self.k_block(emit, stage=True)
        else:
            self.stage(emit, range(plan.tile.waves))


def _registers(emit: Emitter, plan: Plan, at: SSAValue, out: SSAValue) -> _Registers:
    fragment = hopper.FragmentType(SM_90A.wgmma_m, plan.tile.wg_columns)
    scales, kept = hopper.ScalesType(plan.tile.waves, plan.tile.wg_steps), not plan.problem.column_scales
    tail = "tail_" if plan.in_tail else ""
    return _Registers(
        partial=emit.value(hopper.FragmentOp, fragment, f"{tail}partial"),
        totals=[emit.value(hopper.FragmentOp, fragment, f"{tail}total{w}") for w in range(plan.tile.waves)],
        scales=emit.value(hopper.ScalesOp, scales, f"{tail}scales") if kept else None,
        next_scales=emit.value(hopper.ScalesOp, scales, f"next_{tail}scales") if kept else None,
        at=at,
        out=out,
    )


def math_promoted(emit: Emitter, plan: Plan, storage: Storage, group: SSAValue) -> None:
    """The math role: first wave, then for each tile its k-blocks and its way out."""
    at = emit.value(hopper.CursorOp, hopper.CursorType(plan.stages), "at")
    out = emit.value(hopper.CursorOp, hopper.CursorType(1), "out")
    role, *others = [
        _MathRole(region, storage.of(region), group, _registers(emit, region, at, out)) for region in plan.regions
    ]
    registers = role.registers
    if (sent := exchange_cursor(emit, plan, "sent")) is not None:
        with each_tile(emit, plan, storage) as (tile, own):
            role.split_tile(tile, own, sent)
        return
    turns = bool(plan.schedule.turns)
    if turns:  # the last warpgroup lets the first one begin
        emit.op(hopper.PassTurnOp, group, groups=plan.groups, only=plan.groups - 1)
    role.start_tile(emit)
    with each_tile(emit, plan, storage) as (tile, own):
        role.tile(tile, own)
    emit.op(hopper.WgmmaWaitOp, [registers.partial], pending=0)
    for other in others:  # which begin anew with the slot that was read in vain
        with each_tile(emit, other.plan, storage) as (tile, own):
            other.lone_tile(tile, own)
    if turns:  # and takes the turn that is left over
        emit.op(hopper.TakeTurnOp, group, groups=plan.groups, only=0)
