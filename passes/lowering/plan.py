"""The decisions behind a kernel, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xdsl.dialects.builtin import BFloat16Type, Float8E4M3FNType, Float8E5M2Type, Float16Type, Float32Type
from xdsl.ir import Attribute

from gemmir.dialects import hopper
from gemmir.dialects.hopper.types import Element
from gemmir.layouts import StoreChunk, store_chunks
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Schedule
from gemmir.tile import (
    STAGE_ROW_BYTES,
    Exchange,
    SharedLayout,
    TileGeometry,
    exchange,
    scale_rows,
    shared_layout,
    tail_schedule,
    tile_geometry,
)

ELEMENTS: dict[str, Element] = {
    "f8E4M3FN": Float8E4M3FNType(),
    "f8E5M2": Float8E5M2Type(),
    "bf16": BFloat16Type(),
    "f16": Float16Type(),
    "f32": Float32Type(),
}


@dataclass(frozen=True)
class Plan:
    """The decisions, and what follows from them; `in_tail`: for the narrower tiles of the last columns."""

    problem: GemmProblem
    schedule: Schedule
    tile: TileGeometry
    layout: SharedLayout
    in_tail: bool = False

    @staticmethod
    def of(problem: GemmProblem, schedule: Schedule) -> Plan:
        return Plan(problem, schedule, tile_geometry(schedule), shared_layout(problem, schedule))

    @property
    def tail(self) -> Plan | None:
        """The plan of the narrower tiles of the last columns, in the same shared memory."""
        if not self.schedule.tail_n:
            return None
        schedule = tail_schedule(self.problem, self.schedule)
        return replace(self, schedule=schedule, tile=tile_geometry(schedule), in_tail=True)

    @property
    def regions(self) -> tuple[Plan, ...]:
        """The plans of the kernel's loops over tiles, in order."""
        return (self,) if (tail := self.tail) is None else (self, tail)

    @property
    def groups(self) -> int:
        return _chosen(self.schedule.math_warpgroups)

    @property
    def grouped(self) -> bool:
        """Whether it computes the products of several groups."""
        return self.problem.grouping is not Grouping.NONE

    @property
    def stages(self) -> int:
        return _chosen(self.schedule.num_stages)

    @property
    def block_m(self) -> int:
        return _chosen(self.schedule.block_m)

    @property
    def block_n(self) -> int:
        return _chosen(self.schedule.block_n)

    @property
    def cluster_m(self) -> int:
        return _chosen(self.schedule.cluster_m)

    @property
    def cluster_n(self) -> int:
        return _chosen(self.schedule.cluster_n)

    @property
    def chunk(self) -> int:
        return _chosen(self.schedule.promote_chunk)

    @property
    def peers(self) -> int:
        """CTAs that write into a slot of this CTA, itself included: those of its cluster row and column."""
        return self.cluster_m + self.cluster_n - 1

    @property
    def shares_loads(self) -> bool:
        """Whether CTAs of a cluster load for each other."""
        return self.cluster_m * self.cluster_n > 1

    @property
    def parts(self) -> int:
        """Parts of K, each summed by a CTA of its own."""
        return self.problem.numerics.split_k

    @property
    def k_blocks(self) -> int:
        """k-blocks that a CTA sums for a tile: all parts have the same number."""
        return self.problem.part_k_blocks

    @property
    def exchange(self) -> Exchange:
        """How CTAs that sum a part of K each swap halves of a tile."""
        return exchange(self.schedule)

    @property
    def column_steps(self) -> int:
        return self.block_n // self.tile.column_step

    @property
    def fence_where_read(self) -> bool:
        """
        Whether the warps that read scales fence them against TMA, or the producer warp does so before it loads.

        One warp's fence is cheaper than that of all math warps. It orders for the loads of its own warp only: in a
        cluster, where peers load into this CTA's shared memory, every reader fences, whoever loads.
        """
        return self.cluster_m * self.cluster_n > 1

    @property
    def scale_batch(self) -> int:
        """k-blocks whose weight scales the producer fetches at a time."""
        return _chosen(self.schedule.scale_batch)

    @property
    def scale_slots(self) -> int:
        """Slots that a warp of its own fills with scales at a time; 0 where the producer does, or slots have none."""
        return max(0, _chosen(self.schedule.scale_slots))

    @property
    def slices(self) -> int:
        """Parts in which what a CTA finishes of a warpgroup's tile is staged and leaves."""
        return _chosen(self.schedule.store_slices)

    @property
    def slice_rows(self) -> int:
        return self.tile.slice_shape(self.slices)[0] // self.halves

    @property
    def slice_columns(self) -> int:
        return self.tile.slice_shape(self.slices)[1]

    def slice_place(self, slice_: int) -> tuple[int, int]:
        """The first row and column of a slice in a warpgroup's tile."""
        by_columns = self.tile.sliced_by_columns
        return (0, slice_ * self.slice_columns) if by_columns else (slice_ * self.slice_rows, 0)

    def box_place(self, group: int, slice_: int, chunk: StoreChunk) -> dict[str, int]:
        """Where a box of a warpgroup's slice is staged, and where it lies in the tile."""
        first_row, first_column = self.slice_place(slice_)
        return {
            "offset": group * self.layout.staging_bytes + chunk.offset,
            "row_offset": group * self.group_rows + first_row,
            "column_offset": group * self.group_columns + first_column + chunk.first,
        }

    @property
    def halves(self) -> int:
        """CTAs that finish a part of each wave group's rows: two where they swap sums."""
        return 1 if self.swapped else self.parts

    @property
    def slice_chunks(self) -> tuple[StoreChunk, ...]:
        """The boxes of one slice."""
        return store_chunks(self.slice_columns, self.slice_rows, self.problem.d.bytes)

    @property
    def operand_bytes(self) -> int:
        """Bytes of A and B that TMA brings into one stage."""
        return (self.block_m + self.block_n) * STAGE_ROW_BYTES

    @property
    def scale_bytes(self) -> int:
        """Bytes of scales that TMA brings into one stage."""
        if self.scales_of_tiles:
            return 0
        return self.layout.scale_a_bytes + (self.layout.scale_b_bytes if self.problem.column_scales else 0)

    @property
    def swapped(self) -> bool:
        """Whether columns of D are the 64-row side of WGMMA."""
        return self.tile.swapped

    @property
    def group_rows(self) -> int:
        """Rows of D between the parts of neighbouring warpgroups."""
        return 0 if self.tile.out_rows == self.block_m else self.tile.out_rows

    @property
    def group_columns(self) -> int:
        return 0 if self.tile.out_columns == self.block_n else self.tile.out_columns

    @property
    def wgmma_group_rows(self) -> int:
        """Rows of WGMMA between the parts of neighbouring warpgroups."""
        return self.group_columns if self.swapped else self.group_rows

    @property
    def wgmma_group_columns(self) -> int:
        return self.group_rows if self.swapped else self.group_columns

    @property
    def prefetches(self) -> bool:
        """Whether it asks L2 for weights before it waits for the kernel before: where the first tile is known early."""
        return self.swapped and not self.grouped

    @property
    def scales_of_tiles(self) -> bool:
        """Whether the scales of all k-blocks of a tile lie in one slot, apart from the operands' ring."""
        return self.layout.scale_tiles > 0

    @property
    def scales_apart(self) -> bool:
        """Whether a warp of their own loads scales: those of whole tiles, or slot by slot."""
        return self.scales_of_tiles or self.scale_slots > 0

    @property
    def scale_rows(self) -> int:
        """k-blocks whose scales a slot holds."""
        return scale_rows(self.problem) if self.scales_of_tiles else 1

    @property
    def raster(self) -> dict[str, Attribute | int | bool]:
        """Which tiles a loop goes through, and in which order."""
        axis, group = self.schedule.raster_axis, self.schedule.raster_group
        assert axis is not None and group is not None
        return {"raster": hopper.RasterAttr(hopper.types.RasterName(axis.value)), "group": group, "tail": self.in_tail}


def _chosen(value: int | None) -> int:
    assert value is not None, "lowering needs a complete schedule"
    return value
