"""Where a kernel's rings, staging areas and barriers lie, read off its IR once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from xdsl.ir import Operation, SSAValue

from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number
from gemmir.layouts import StoreChunk, store_chunks
from gemmir.passes.sync.events import Span
from gemmir.passes.sync.memory_map import joined, overlapping
from gemmir.passes.sync.report import refuse
from gemmir.target import BARRIER_BYTES

CHUNK_BYTES = 16
"""What a swizzle moves as a whole."""


@dataclass(frozen=True, slots=True)
class Ring:
    offset: int
    slot_bytes: int
    row_bytes: int

    def rows(self, stage: int, first: int, count: int) -> Span:
        """Bytes of `count` rows of a slot."""
        start = self.offset + stage * self.slot_bytes + first * self.row_bytes
        return start, start + count * self.row_bytes

    def bytes(self, stage: int, first: int, count: int) -> Span:
        start = self.offset + stage * self.slot_bytes + first
        return start, start + count


@dataclass(frozen=True, slots=True)
class Staging:
    offset: int
    pitch: int
    rows: int
    element_bytes: int
    chunks: tuple[StoreChunk, ...]


@dataclass(frozen=True, slots=True)
class Barriers:
    offset: int
    stages: int
    groups: int
    arrivals: int

    def address(self, stage: int, group: int) -> int:
        """As it is printed: an array of one stage is not indexed by the cursor."""
        index = (stage if self.stages > 1 else 0) * self.groups + (group if self.groups > 1 else 0)
        return self.offset + BARRIER_BYTES * index

    def addresses(self) -> list[int]:
        return [self.offset + BARRIER_BYTES * i for i in range(self.stages * self.groups)]


def transposed_spans(staging: Staging, base: int, first: int, count: int) -> list[Span]:
    """Where columns `first` to `first` + `count` of one box lie, in all of its rows; `base`: of the staging area."""
    chunk = next(c for c in staging.chunks if c.first <= first < c.first + c.columns)
    row_bytes = chunk.columns * staging.element_bytes
    start = base + chunk.offset
    if count == chunk.columns:
        return [(start, start + staging.rows * row_bytes)]
    low = (first - chunk.first) * staging.element_bytes // CHUNK_BYTES
    places = range(low, low + count * staging.element_bytes // CHUNK_BYTES)
    shift, mask = chunk.swizzle.row_shift, chunk.swizzle.row_mask
    starts = [
        start + row * row_bytes + (p ^ (row >> shift & mask)) * CHUNK_BYTES
        for row in range(staging.rows)
        for p in places
    ]
    return [(at, at + CHUNK_BYTES) for at in starts]


class Storage:
    """All storage of a kernel, by SSA value."""

    def __init__(self, kernel: hopper.KernelOp):
        self.kernel = kernel
        self.rings: dict[SSAValue, Ring] = {}
        self.stagings: dict[SSAValue, Staging] = {}
        self.barriers: dict[SSAValue, Barriers] = {}
        for op in kernel.body.block.ops:
            self._read(op)
        self._check_layout()

    def _read(self, op: Operation) -> None:
        if isinstance(op, hopper.RingOp):
            type_ = op.result.type
            row_bytes = type_.dims[2] * type_.element_bytes
            self.rings[op.result] = Ring(number(op.offset), type_.slot_bytes, row_bytes)
        elif isinstance(op, hopper.StagingOp):
            type_ = op.result.type
            _, rows, columns = type_.dims
            chunks = store_chunks(columns, rows, type_.element_bytes)
            self.stagings[op.result] = Staging(number(op.offset), number(op.pitch), rows, type_.element_bytes, chunks)
        elif isinstance(op, hopper.BarriersOp):
            stages, groups = op.result.type.dims
            self.barriers[op.result] = Barriers(number(op.offset), stages, groups, number(op.arrivals))

    def ring(self, value: SSAValue) -> Ring:
        return _known(self.rings, value, "ring")

    def staging(self, value: SSAValue) -> Staging:
        return _known(self.stagings, value, "staging area")

    def barrier(self, value: SSAValue) -> Barriers:
        return _known(self.barriers, value, "array of barriers")

    def check_accesses(self, spans: Iterable[Span]) -> None:
        """The same of what ops touch: a cursor of more stages than its ring leads out of it."""
        self._check_places([(span, "what is accessed") for span in joined(spans)])

    def _check_layout(self) -> None:
        self._check_places(self._buffers_as_one())

    def _check_places(self, places: list[tuple[Span, str]]) -> None:
        """Nothing reaches past the end of shared memory, and barriers share their bytes with nothing."""
        named: list[tuple[Span, str]] = []
        for value in self.barriers:
            for address in self.barriers[value].addresses():
                named.append(((address, address + BARRIER_BYTES), f"barrier {value.name_hint or 'array'}"))
        if (pair := overlapping(named + places)) is not None:
            (one, one_name), (other, other_name) = pair
            refuse(
                "R7",
                f"{one_name} at bytes {one[0]}..{one[1]} overlaps {other_name} at bytes {other[0]}..{other[1]}",
                "barriers share their bytes with nothing",
                self.kernel,
            )
        end = max((span[1] for span, _ in named + places), default=0)
        if end > number(self.kernel.shared):
            refuse(
                "R7",
                f"storage ends at byte {end}, the kernel has {number(self.kernel.shared)} bytes of shared memory",
                "storage lies within the kernel's shared memory",
                self.kernel,
            )

    def _buffers(self) -> list[tuple[Span, str]]:
        found: list[tuple[Span, str]] = []
        for op in self.kernel.body.block.ops:
            if isinstance(op, hopper.RingOp):
                start, size = number(op.offset), op.result.type.stages * op.result.type.slot_bytes
                found.append(((start, start + size), f"ring {op.result.name_hint or ''}"))
            elif isinstance(op, hopper.StagingOp):
                start, size = number(op.offset), op.result.type.dims[0] * number(op.pitch)
                found.append(((start, start + size), f"staging area {op.result.name_hint or ''}"))
        return found

    def _buffers_as_one(self) -> list[tuple[Span, str]]:
        """Buffers, those that overlap one another joined: that is for the race rules to judge."""
        joined: list[tuple[Span, str]] = []
        for (low, high), name in sorted(self._buffers()):
            if joined and low < joined[-1][0][1]:
                (first, last), other = joined.pop()
                joined.append(((first, max(last, high)), f"{other} and {name}"))
            else:
                joined.append(((low, high), name))
        return joined


def _known(found: dict[SSAValue, Any], value: SSAValue, kind: str) -> Any:
    if value not in found:
        op = value.owner if isinstance(value.owner, Operation) else None
        refuse("R7", f"a {kind} that is not allocated at the top of the kernel", "storage has a fixed place", op)
    return found[value]
