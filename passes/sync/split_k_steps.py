"""What the ops of kernels that split K mean for synchronisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number
from gemmir.dialects.hopper.split_k import QUAD
from gemmir.passes.sync.events import Span
from gemmir.passes.sync.storage import Ring
from gemmir.target import SM_90A, WARP_LANES

QUAD_BYTES = 4 * QUAD


def peer_of(rank: int) -> int:
    """The CTA that sums the other part of K."""
    return rank ^ 1


def slot_of_part(rank: int) -> int:
    """The slot of the first part's CTA that the sums of another part go to."""
    return rank - 1


def sums_bytes(op: hopper.SendSumsOp | hopper.AddSumsOp, warps: int) -> int:
    """Bytes of the sums of so many warps."""
    return number(op.registers) * 4 * warps * WARP_LANES


def sums_spans(op: Any, ring: Ring, stage: int, group: int, first_warp: int, warps: int) -> Sequence[Span]:
    """Where those of `warps` warps from `first_warp` on lie: a stretch for each quad of registers."""
    quad_bytes = SM_90A.warpgroup_threads * QUAD_BYTES
    first = group * number(op.registers) // QUAD * quad_bytes + first_warp * WARP_LANES * QUAD_BYTES
    size = warps * WARP_LANES * QUAD_BYTES
    return [ring.bytes(stage, first + quad * quad_bytes, size) for quad in range(number(op.registers) // QUAD)]
