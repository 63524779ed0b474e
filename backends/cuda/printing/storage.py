"""Prints what a kernel works on."""

from __future__ import annotations

from gemmir.backends.cuda.printing.base import Printing, plus
from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number


class PrintsStorage(Printing):
    """Shared memory, barriers, ring positions and registers."""

    def storage(self, op: hopper.RingOp | hopper.StagingOp | hopper.BarriersOp) -> None:
        self.out.line(f"const u32 {self.out.name(op.result)} = {plus('smem', number(op.offset))};")

    def cursor(self, op: hopper.CursorOp) -> None:
        stages = op.result.type.dims[0]
        self.out.line(f"{self.need('Cursor')}<{stages}> {self.out.name(op.result)};")

    def next(self, op: hopper.NextOp) -> None:
        cursor = self.out[op.cursor]
        self.out.line(f"const auto {self.out.name(op.result)} = {cursor}.next();")

    def fragment(self, op: hopper.FragmentOp) -> None:
        self.out.line(f"float {self.out.name(op.result)}[{op.result.type.dims[1] // 2}];")

    def scales(self, op: hopper.ScalesOp) -> None:
        waves, steps = op.result.type.dims
        self.out.line(f"{self.need('Scales')}<{waves}, {steps}> {self.out.name(op.result)};")
