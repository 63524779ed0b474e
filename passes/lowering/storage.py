"""
The shared memory of a kernel, and its barriers.

A ring of `num_stages` slots is filled by one producer warp and read by the math warpgroups; a store warp sends
finished tiles off. Barriers:

- `full[s]`: one arrival, the producer's, with the bytes to come; a second one of a warp that fills in scales.
- `empty[s]`: one arrival per math warp of each CTA that this slot's contents also went to.
- `staged[g]`: one arrival per warp of math warpgroup g, a slice of its tile lies in the staging area.
- `drained[g]`: one arrival, the store warp's, which has sent that slice. With an operand C, the arrival says how many
  bytes of C are on their way to where the slice was: the phase ends when they have arrived.
- `room`, where two CTAs sum a part of K each: one arrival, the peer's producer's; its slots for an exchange are free.
- `scaled[t]` and `unscaled[t]`, where the scales of a tile come apart from its operands: as `full` and `empty`.
- `summed[p]` and `unsummed[p]`, where one CTA gathers the sums of the other parts of K: as `full` and `empty`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from xdsl.dialects.builtin import Float32Type
from xdsl.ir import SSAValue

from gemmir.dialects import hopper
from gemmir.dialects.hopper.types import Element
from gemmir.layouts import Swizzle
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.plan import ELEMENTS, Plan
from gemmir.target import WARPS_PER_GROUP

MakeRing: TypeAlias = "Callable[[str, int, int, Element, int, Swizzle, int], SSAValue]"
MakeBarriers: TypeAlias = "Callable[[str, tuple[int, int], int, int], SSAValue]"


@dataclass(frozen=True)
class Storage:
    """
    Shared memory and barriers, and how many tiles there are where only the device knows.

    Scale rings are None where the operands have none, `room` where K is not split, `scaled` and `unscaled` where
    scales come with the operands, `sums` and its barriers where no CTA gathers those of other parts of K.
    """

    a: SSAValue
    b: SSAValue
    scale_a: SSAValue | None
    scale_b: SSAValue | None
    staging: SSAValue
    staging_tail: SSAValue | None
    """The same memory as narrower tiles lie in it, where the last columns have such."""
    full: SSAValue
    empty: SSAValue
    staged: SSAValue
    drained: SSAValue
    room: SSAValue | None
    scaled: SSAValue | None = None
    unscaled: SSAValue | None = None
    sums: SSAValue | None = None
    summed: SSAValue | None = None
    unsummed: SSAValue | None = None
    tile_count: SSAValue | None = None

    def of(self, plan: Plan) -> Storage:
        """What a loop over tiles uses."""
        tail = self.staging_tail
        return replace(self, staging=tail) if plan.in_tail and tail is not None else self

    @property
    def barriers(self) -> list[SSAValue]:
        found = (self.full, self.empty, self.staged, self.drained, self.room)
        found += (self.scaled, self.unscaled, self.summed, self.unsummed)
        return [barriers for barriers in found if barriers is not None]


def allocate(emit: Emitter, plan: Plan) -> Storage:
    """Shared memory and barriers at the offsets of the schedule's layout."""
    problem, layout, groups, stages = plan.problem, plan.layout, plan.groups, plan.stages
    a, b, d = ELEMENTS[problem.a.name], ELEMENTS[problem.b.name], ELEMENTS[problem.d.name]

    def ring(
        name: str, rows: int, columns: int, element: Element, offset: int, swizzle: Swizzle, slots: int = stages
    ) -> SSAValue:
        type_ = hopper.RingType((slots, rows, columns), element, swizzle)
        return emit.value(hopper.RingOp, type_, name, offset=offset)

    def barriers(name: str, count: tuple[int, int], offset: int, arrivals: int) -> SSAValue:
        return emit.value(hopper.BarriersOp, hopper.BarriersType(*count), name, offset=offset, arrivals=arrivals)

    def staging(region: Plan) -> SSAValue:
        type_ = hopper.StagingType((groups, region.slice_rows, region.slice_columns), d)
        name = "staging_tail" if region.in_tail else "staging"
        return emit.value(hopper.StagingOp, type_, name, offset=layout.staging_offset, pitch=layout.staging_bytes)

    def scale_ring(name: str, slot_bytes: int, offset: int) -> SSAValue | None:
        columns, slots = slot_bytes // (4 * plan.scale_rows), layout.scale_slots
        return ring(name, plan.scale_rows, columns, Float32Type(), offset, Swizzle.NONE, slots) if columns else None

    readers = WARPS_PER_GROUP * groups
    made = Storage(
        a=ring("ring_a", plan.block_m, problem.block_k, a, layout.a_offset, Swizzle.B128),
        b=ring("ring_b", plan.block_n, problem.block_k, b, layout.b_offset, Swizzle.B128),
        staging=staging(plan),
        staging_tail=None if plan.tail is None else staging(plan.tail),
        scale_a=scale_ring("ring_scale_a", layout.scale_a_bytes, layout.scale_a_offset),
        scale_b=scale_ring("ring_scale_b", layout.scale_b_bytes, layout.scale_b_offset),
        full=barriers("full", (stages, 1), layout.full_offset, 2 if plan.scale_slots else 1),
        empty=barriers("empty", (stages, 1), layout.empty_offset, readers * plan.peers),
        staged=barriers("staged", (1, groups), layout.staged_offset, WARPS_PER_GROUP),
        drained=barriers("drained", (1, groups), layout.drained_offset, 1),
        room=barriers("room", (1, 1), layout.room_offset, 1) if layout.room_barriers else None,
    )
    return replace(made, **_gathering(plan, ring, barriers, readers), **_scales(plan, barriers, readers))


def _gathering(plan: Plan, ring: MakeRing, barriers: MakeBarriers, readers: int) -> dict[str, SSAValue]:
    """Where one CTA gets the sums of the others."""
    layout = plan.layout
    if not (slots := layout.sum_slots):
        return {}
    sums = "sums", plan.block_n, plan.block_m, Float32Type(), layout.sums_offset, Swizzle.NONE, slots
    return {
        "sums": ring(*sums),
        "summed": barriers("summed", (slots, 1), layout.summed_offset, 1),
        "unsummed": barriers("unsummed", (slots, 1), layout.unsummed_offset, readers),
    }


def _scales(plan: Plan, barriers: MakeBarriers, readers: int) -> dict[str, SSAValue]:
    """Barriers of scales that come apart from the operands."""
    layout = plan.layout
    if not (slots := layout.scale_tiles):
        return {}
    return {
        "scaled": barriers("scaled", (slots, 1), layout.scaled_offset, 1),
        "unscaled": barriers("unscaled", (slots, 1), layout.unscaled_offset, readers),
    }
