"""
Math warpgroups of the `stream` family that promote: FP8 with block-wise scales, 64 weights a warpgroup.

The k-blocks of a chunk are issued in a straight line into two partial sums in turn, so that a wave runs while the one
before is promoted. A slot is given back as soon as its wave has finished: the scales of the tile lie elsewhere. Nothing
is in flight where the loop goes round: ptxas drains the pipe at every wave if it is (C7514).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.passes.lowering.emitter import Emitter, number
from gemmir.passes.lowering.gather import finishing, gathering
from gemmir.passes.lowering.math_slots import give_back_scales, multiply
from gemmir.passes.lowering.math_staging import stage_slice
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.storage import Storage
from gemmir.passes.lowering.tiles import each_block, each_tile
from gemmir.target import SM_90A

IN_FLIGHT = 2
"""Waves that run at the same time."""


@dataclass(frozen=True)
class _Chunks:
    """Builds chunks of k-blocks; holds what they all refer to: k-blocks take the partial sums in turn."""

    plan: Plan
    storage: Storage
    group: SSAValue
    partials: Sequence[SSAValue]
    total: SSAValue
    at: SSAValue
    scales: SSAValue

    def chunk(self, emit: Emitter, first: SSAValue, blocks: int) -> None:
        """So many k-blocks from number `first` on, with nothing in flight before and after."""
        self.start(emit, 0, self.at)
        for block in range(1, blocks):
            ahead = emit.value(hopper.NextOp, self.at.type, "ahead", self.at)
            self.start(emit, block, ahead)
            self.finish(emit, first, block - 1, pending=1)
        self.finish(emit, first, blocks - 1, pending=0)

    def start(self, emit: Emitter, block: int, at: SSAValue) -> None:
        """Wait for a slot and issue its wave: 64 weights x the rows of the tile x one k-block."""
        emit.op(hopper.WaitOp, self.storage.full, at, [])
        emit.op(hopper.WgmmaFenceOp)
        partial = self.partials[block % len(self.partials)]
        multiply(emit, self.plan, self.storage, self.group, at, partial, wave=0, fresh=True)
        emit.op(hopper.WgmmaCommitOp)

    def finish(self, emit: Emitter, first: SSAValue, block: int, pending: int) -> None:
        """Wait for the oldest wave, give its slot back and promote its sum."""
        partial, storage = self.partials[block % len(self.partials)], self.storage
        assert storage.scale_a is not None and storage.scale_b is not None
        emit.op(hopper.WgmmaWaitOp, [partial], pending=pending)
        emit.op(hopper.ReleaseOp, storage.empty, self.at, [], peers=self.plan.peers)
        rings = storage.scale_b, storage.scale_a
        emit.op(hopper.PromoteBlockOp, partial, self.total, *rings, self.scales, first, self.group, ahead=block)
        emit.op(hopper.AdvanceOp, self.at)


def math_stream(emit: Emitter, plan: Plan, storage: Storage, group: SSAValue) -> None:
    """The math role: for each tile its scales, its chunks, the k-blocks that are left over, and its way out."""
    assert storage.scaled is not None and storage.unscaled is not None
    fragment = hopper.FragmentType(SM_90A.wgmma_m, plan.tile.wg_columns)
    k_blocks = plan.k_blocks
    blocks = min(plan.chunk, k_blocks)
    left, step = k_blocks % blocks, None if blocks == 1 else blocks
    partials = [emit.value(hopper.FragmentOp, fragment, f"partial{i}") for i in range(min(blocks, IN_FLIGHT))]
    total = emit.value(hopper.FragmentOp, fragment, "total0")
    at = emit.value(hopper.CursorOp, hopper.CursorType(plan.stages), "at")
    scales = emit.value(hopper.CursorOp, hopper.CursorType(plan.layout.scale_tiles), "scales")
    out = emit.value(hopper.CursorOp, hopper.CursorType(1), "out")
    rest = number(emit, "rest", k_blocks - left)
    cursors = gathering(emit, plan)
    chunks = _Chunks(plan, storage, group, partials, total, at, scales)
    with each_tile(emit, plan, storage) as (tile, own):
        tile.op(hopper.ZeroOp, [total])
        tile.op(hopper.WaitOp, storage.scaled, scales, [])
        with each_block(tile, plan, own, less=left, step=step) as (body, k):
            chunks.chunk(body, k, blocks)
        if left:
            chunks.chunk(tile, rest, left)
        give_back_scales(tile, storage.unscaled, scales)
        with finishing(tile, plan, storage, group, cursors, total) as finish:
            stage_slice(finish, plan, storage, group, out, [total])
