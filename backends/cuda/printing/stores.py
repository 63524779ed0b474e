"""Prints how a result leaves the CTA."""

from __future__ import annotations

from gemmir.backends.cuda.printing.base import Printing, minus, plus
from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number
from gemmir.errors import UnsupportedError
from gemmir.layouts import STMATRIX_BYTES, store_chunks
from gemmir.target import WARPS_PER_GROUP


class PrintsStores(Printing):
    """How a result leaves the CTA."""

    def stage_fragment(self, op: hopper.StageFragmentOp) -> None:
        staging, owner = op.staging.type, op.staging.owner
        assert isinstance(staging, hopper.StagingType)
        if not isinstance(owner, hopper.StagingOp):
            raise UnsupportedError("GMR-U001", "a staging area that hopper.staging did not make")
        suffix = "_f32" if staging.element_bytes > STMATRIX_BYTES else ""
        if not suffix:
            self.need(f"pack_{staging.element}")
        if not suffix and op.accumulate is not None:
            self.need(f"unpack_{staging.element}")
        if op.transposed is not None:
            return self.stage_transposed(op, staging, number(owner.pitch))
        row = " + ".join(
            filter(None, [str(number(op.row)) if number(op.row) else "", f"warp % {WARPS_PER_GROUP} * 16"])
        )
        _, rows, columns = staging.dims
        base = f"{self.out[op.staging]} + {self.out[op.group]} * {number(owner.pitch)}"
        for chunk in store_chunks(columns, rows, staging.element_bytes):
            register, swizzle = (number(op.column) + chunk.first) // 2, chunk.swizzle
            shape = f"{register}, {chunk.columns}, {swizzle.row_shift}, {swizzle.row_mask}"
            for what in ("add", "stage") if op.accumulate is not None else ("stage",):
                self.call(f"{what}_columns{suffix}<{shape}>", self.out[op.fragment], plus(base, chunk.offset), row)

    def stage_transposed(self, op: hopper.StageFragmentOp, staging: hopper.StagingType, pitch: int) -> None:
        """64 rows of a fragment, as the columns of one box."""
        _, rows, columns = staging.dims
        chunks = store_chunks(columns, rows, staging.element_bytes)
        chunk = next(c for c in chunks if c.first == number(op.row))
        box = plus(f"{self.out[op.staging]} + {self.out[op.group]} * {pitch}", chunk.offset)
        shape = f"{chunk.columns}, {chunk.swizzle.row_shift}, {chunk.swizzle.row_mask}"
        self.call(f"stage_rows<{shape}>", self.out[op.fragment], box)

    def tma_fill(self, op: hopper.TmaFillOp) -> None:
        row, column = plus(self.out[op.row], number(op.row_offset)), plus(self.out[op.column], number(op.column_offset))
        target, barrier = plus(self.out[op.staging], number(op.offset)), self.barrier_of(op.full, op.cursor, op.group)
        if op.tile_group is None:
            return self.call("tma_load", target, self.out[op.map], column, row, barrier)
        self.call("tma_load_of_group", target, self.out[op.map], column, row, self.out[op.tile_group], barrier)

    def tma_store(self, op: hopper.TmaStoreOp) -> None:
        row = self.out[op.row] if op.part_rows is None else f"{self.out[op.row]} + (rank ^ 1) * {number(op.part_rows)}"
        row, column = plus(row, number(op.row_offset)), plus(self.out[op.column], number(op.column_offset))
        source = plus(self.out[op.staging], number(op.offset))
        where = (f"{column} < N", self.out[op.map], column, row)
        if op.group is None:
            return self.call("tma_store_if", *where, source)
        self.call("tma_store_of_group_if", *where, self.out[op.group], source)

    def store_rows(self, op: hopper.StoreRowsOp) -> None:
        box = op.map.type
        assert isinstance(box, hopper.TensorMapType)
        rows, columns = box.dims
        row, column = plus(self.out[op.row], number(op.row_offset)), plus(self.out[op.column], number(op.column_offset))
        begin, end = (minus(self.out[value], number(op.row_offset)) for value in (op.begin, op.end))
        swizzle = box.swizzle_mode
        shape = f"{rows}, {columns * box.element_bytes}, {swizzle.row_shift}, {swizzle.row_mask}"
        group = [] if op.group is None else [self.out[op.group]]
        self.call(
            f"{'store_rows' if op.group is None else 'store_rows_of_group'}<{shape}>",
            *(begin, end, self.out[op.map], column, row, *group),
            *(plus(self.out[op.staging], number(op.offset)), self.out[op.pointer], self.out[op.stride], "N"),
        )
