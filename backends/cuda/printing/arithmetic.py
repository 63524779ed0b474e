"""Prints WGMMA, scales and promotion."""

from __future__ import annotations

from xdsl.ir import SSAValue

from gemmir.backends.cuda.printing.base import Printing, dtype_of, plus
from gemmir.backends.cuda.wgmma import multiply_name
from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number
from gemmir.errors import UnsupportedError
from gemmir.target import WARPS_PER_GROUP
from gemmir.tile import WAVE_ROWS


class PrintsArithmetic(Printing):
    """WGMMA, scales and promotion."""

    def zero(self, op: hopper.ZeroOp) -> None:
        for fragment in op.fragments:
            self.call("zero", self.out[fragment])

    def load_scales(self, op: hopper.LoadScalesOp) -> None:
        group = self.out[op.group]
        first = f"{group} * {number(op.group_rows)} + " if number(op.group_rows) else ""
        own = f"({first}warp % {WARPS_PER_GROUP} * 16 + lane / 4) * 4"
        rows = self.slot(op.rows, op.cursor, self.of_block(op, op.rows), own)
        own = f"{group} * {number(op.group_steps) * 4}" if number(op.group_steps) else ""
        steps = self.slot(op.steps, op.cursor, self.of_block(op, op.steps), own)
        swap = "" if op.by_part is None else ", rank"
        self.out.line(f"{self.out[op.scales]}.load({rows}, {steps}{swap});")

    def of_block(self, op: hopper.LoadScalesOp, ring: SSAValue) -> str:
        """Where in a slot for a whole tile the scales of one k-block lie; "" where a slot has no others."""
        if op.k is None or op.ahead is None:
            return ""
        assert isinstance(ring.type, hopper.RingType)
        return f"{self.block_ahead_of(op.k, number(op.ahead))} * {ring.type.dims[2] * ring.type.element_bytes}"

    def block_ahead_of(self, k: SSAValue, ahead: int) -> str:
        """The number of a k-block so far ahead of another one, as a factor."""
        return f"({plus(self.out[k], ahead)})" if ahead else self.out[k]

    def multiply(self, op: hopper.WgmmaOp) -> None:
        fragment = op.fragment.type
        assert isinstance(fragment, hopper.FragmentType)
        panels = op.a_panels is not None, op.b_panels is not None
        wanted = (dtype_of(op.a), dtype_of(op.b), fragment.dims[1], *panels)
        if wanted not in self.wgmmas:
            if any(columns == wanted[2] for _, _, columns, *_ in self.wgmmas):
                raise UnsupportedError("GMR-U001", "WGMMAs of one width with operands of two kinds in one kernel")
            self.wgmmas.append(wanted)
        multiply = multiply_name(fragment.dims[1], wanted == self.wgmmas[0])
        for name, used in (("wgmma_descriptor", not all(panels)), ("wgmma_panel_descriptor", any(panels))):
            if used:
                self.need(name)
        group, row_bytes = self.out[op.group], 128

        def rows(first: int, per_group: int) -> list[str]:
            parts = [f"{group} * {per_group * row_bytes}"] if per_group else []
            return parts + ([str(first * row_bytes)] if first else [])

        a = self.slot(op.a, op.cursor, *rows(number(op.a_row), number(op.a_group_rows)))
        if op.by_part is not None:
            wave = "(rank ^ 1)" if number(op.a_row) else "rank"
            a = self.slot(op.a, op.cursor, *rows(0, number(op.a_group_rows)), f"{wave} * {WAVE_ROWS * row_bytes}")
        b = self.slot(op.b, op.cursor, *rows(0, number(op.b_group_rows)))
        fresh = "false" if op.fresh is None else "true"
        self.out.line(f"{multiply}<{fresh}>({self.out[op.fragment]}, {a}, {b});")

    def wgmma_wait(self, op: hopper.WgmmaWaitOp) -> None:
        self.call(f"wgmma_wait<{number(op.pending)}>")
        for fragment in op.fragments:
            self.call("settled", self.out[fragment])

    def promote(self, op: hopper.PromoteOp) -> None:
        scales = self.out[op.scales]
        self.call(
            f"promote<{number(op.step)}>",
            *(self.out[op.total], self.out[op.partial], f"{scales}.row[{number(op.wave)}]", f"{scales}.step"),
        )

    def promote_block(self, op: hopper.PromoteBlockOp) -> None:
        shared, columns = op.shared.type, op.columns.type
        assert isinstance(shared, hopper.RingType) and isinstance(columns, hopper.RingType)
        row, group = self.block_ahead_of(op.k, number(op.ahead)), self.out[op.group]
        steps = shared.dims[2]
        of_all = self.slot(op.shared, op.cursor, f"({row} * {steps} + {group}) * 4" if steps > 1 else f"{row} * 4")
        of_columns = self.slot(op.columns, op.cursor, f"{row} * {columns.dims[2] * 4}")
        self.call("promote_wave", self.out[op.total], self.out[op.partial], of_all, of_columns)

    def promote_columns(self, op: hopper.PromoteColumnsOp) -> None:
        group = self.out[op.group]
        first = f"{group} * {number(op.group_rows)} + " if number(op.group_rows) else ""
        wave = f"{number(op.wave) * WAVE_ROWS} + " if number(op.wave) else ""
        rows = self.slot(op.rows, op.cursor, f"({first}{wave}warp % {WARPS_PER_GROUP} * 16 + lane / 4) * 4")
        further = f"{group} * {number(op.group_columns) * 4}" if number(op.group_columns) else ""
        columns = self.slot(op.columns, op.cursor, further)
        self.call("promote_columns", self.out[op.total], self.out[op.partial], rows, columns)
