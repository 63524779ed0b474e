"""Prints how the CTAs of a cluster compute one tile together, each a part of K. `rank` is the number of the part."""

from __future__ import annotations

from gemmir.backends.cuda.printing.base import Printing
from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number


class PrintsSplitK(Printing):
    """How CTAs that sum a part of K each share a tile."""

    def part_block(self, op: hopper.PartBlockOp) -> None:
        name = self.out.name(op.result)
        self.out.line(f"const int {name} = rank * {number(op.blocks)} + {self.out[op.k]};")

    def first_block(self, op: hopper.FirstBlockOp) -> None:
        first = f"rank * {number(op.blocks)}" if self.kernel.parts > 1 else "0"
        self.out.line(f"const int {self.out.name(op.result)} = {first};")

    def grant(self, op: hopper.GrantOp) -> None:
        self.call("mbarrier_grant", self.barrier(op), "rank ^ 1" if op.part is None else str(number(op.part)))

    def place(self, op: hopper.SendSumsOp | hopper.AddSumsOp) -> str:
        """Where the sums of a warpgroup lie in the slot."""
        return self.slot(op.ring, op.cursor, f"{self.out[op.group]} * {number(op.registers) * 512}")

    def send_sums(self, op: hopper.SendSumsOp) -> None:
        if op.to_first is not None:
            return self.send_to_first(op)
        full = f"{self.out[op.full]} + {self.out[op.cursor]}.stage * 8"
        self.call(f"send_sums{_registers(op)}", self.out[op.sums], self.place(op), full, "rank ^ 1")

    def send_to_first(self, op: hopper.SendSumsOp) -> None:
        ring = op.ring.type
        assert isinstance(ring, hopper.RingType)
        group = f"{self.out[op.group]} * {number(op.registers) * 512}"
        slot = f"{self.out[op.ring]} + (rank - 1) * {ring.slot_bytes} + {group}"
        full = f"{self.out[op.full]} + (rank - 1) * 8"
        self.call(f"send_sums{_registers(op)}", self.out[op.sums], slot, full, "0")

    def add_sums(self, op: hopper.AddSumsOp) -> None:
        self.call(f"add_sums{_registers(op)}", self.out[op.sums], self.place(op))


def _registers(op: hopper.SendSumsOp | hopper.AddSumsOp) -> str:
    return f"<{number(op.first)}, {number(op.registers)}>"
