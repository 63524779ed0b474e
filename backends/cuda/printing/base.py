"""What the methods that print ops share: lines, names, addresses, and which wrappers are used."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from gemmir.backends.cuda.writer import Writer
from gemmir.dialects import hopper
from gemmir.dtypes import DTYPES, DType


def dtype_of(storage: SSAValue) -> DType:
    """The element type of a ring, staging area or pointer."""
    type_ = storage.type
    assert isinstance(type_, hopper.RingType | hopper.StagingType | hopper.PointerType)
    return DTYPES[str(type_.element)]


def plus(value: str, offset: int) -> str:
    return f"{value} + {offset}" if offset else value


def minus(value: str, offset: int) -> str:
    return f"{value} - {offset}" if offset else value


class Printing:
    """The state of printing one kernel. `cluster` is its extent along M and N."""

    def __init__(self, kernel: hopper.KernelOp, chaos: bool):
        self.kernel = kernel
        self.chaos = chaos
        self.out = Writer()
        self.used: set[str] = {"types", "TensorMap", "smem_address", "warp_uniform"}
        self.wgmmas: list[tuple[DType, DType, int, bool, bool]] = []
        """What is multiplied by what, the number of columns, and whether each lies in panels."""
        self.cluster = (kernel.cluster.m.data, kernel.cluster.n.data)

    def need(self, name: str) -> str:
        self.used.add(name)
        return name

    def call(self, function: str, *arguments: str) -> None:
        self.used.add(function.split("<")[0])
        self.out.line(f"{function}({', '.join(arguments)});")

    def slot(self, ring: SSAValue, cursor: SSAValue, *more: str) -> str:
        """Address of the slot at a cursor, plus byte offsets."""
        type_ = ring.type
        assert isinstance(type_, hopper.RingType)
        return " + ".join([self.out[ring], f"{self.out[cursor]}.stage * {type_.slot_bytes}", *(m for m in more if m)])

    def barrier(self, op: Any) -> str:
        """Address of the barrier that an op acts on."""
        return self.barrier_of(op.barriers, op.cursor, op.group)

    def barrier_of(self, barriers: SSAValue, cursor: SSAValue, group: SSAValue | None) -> str:
        type_ = barriers.type
        assert isinstance(type_, hopper.BarriersType)
        stages, groups = type_.dims
        parts = [self.out[barriers]]
        if stages > 1:
            parts.append(f"{self.out[cursor]}.stage * {8 * groups}")
        if group is not None and groups > 1:
            name = self.out[group]
            parts.append(str(int(name) * 8) if name.isdigit() else f"{name} * 8")
        return " + ".join(part for part in parts if part != "0")

    def end_of(self, op: hopper.KBlocksOp) -> str:
        """The number of the block at which a loop ends."""
        if op.count is None:
            return str(op.end(0))
        return minus(self.out[op.count], -op.end(0))
