"""The kernels that faults are planted in, and how to find one's way in their IR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.irdl import IRDLOperation
from xdsl.rewriter import InsertPoint, Rewriter

from gemmir.compiler import lower
from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import count

OpT = TypeVar("OpT", bound=Operation)

K_BLOCKS = 7


def _fp8(schedule: str, parts: int = 1, weights: str = "128x128", blocks: int = K_BLOCKS) -> str:
    blocks *= parts
    x, w, d = f"tensor<?x{128 * blocks}xf8E4M3FN>", f"tensor<{128 * blocks}x1024xf8E4M3FN>", "tensor<?x1024xbf16>"
    xs, ws = f"tensor<?x{blocks}xf32>", f"tensor<{blocks}x{1024 if weights == '1x128' else 8}xf32>"
    return f"""
func.func @k(%x: {x}, %xs: {xs}, %w: {w}, %ws: {ws}) -> {d} {{
  %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by {weights}) numerics <split_k = {parts}>
    schedule <{schedule}> : ({x}, {w}, {xs}, {ws}) -> {d}
  func.return %y : {d}
}}"""


def _bf16(schedule: str, parts: int = 1, result: str = "bf16", c: bool = False, layout: str = "") -> str:
    depth = 64 * K_BLOCKS * parts
    x, w, d = f"tensor<?x{depth}xbf16>", f"tensor<{depth}x1024xbf16>", f"tensor<?x1024x{result}>"
    operand, clause, type_ = (f", %c: {d}", "accumulate %c ", f", {d}") if c else ("", "", "")
    return f"""
func.func @k(%x: {x}, %w: {w}{operand}) -> {d} {{
  %y = gemm.matmul %x, %w {clause}{layout}numerics <split_k = {parts}> schedule <{schedule}> : ({x}, {w}{type_}) -> {d}
  func.return %y : {d}
}}"""


def _fp8_offs(schedule: str) -> str:
    depth = 128 * K_BLOCKS
    x, w, d = f"tensor<?x{depth}xf8E4M3FN>", f"tensor<3x{depth}x256xf8E4M3FN>", "tensor<?x256xbf16>"
    xs, ws = f"tensor<?x{K_BLOCKS}xf32>", f"tensor<3x{K_BLOCKS}x2xf32>"
    return f"""
func.func @k(%x: {x}, %w: {w}, %index: tensor<3xi32>, %xs: {xs}, %ws: {ws}) -> {d} {{
  %y = gemm.grouped_matmul %x, %w groups (%index by offs) scaled (%xs by 1x128, %ws by 128x128)
    schedule <{schedule}> : ({x}, {w}, tensor<3xi32>, {xs}, {ws}) -> {d}
  func.return %y : {d}
}}"""


def _bf16_offs_c(schedule: str) -> str:
    depth = 64 * K_BLOCKS
    x, w, d = f"tensor<?x{depth}xbf16>", f"tensor<3x{depth}x256xbf16>", "tensor<?x256xbf16>"
    return f"""
func.func @k(%x: {x}, %w: {w}, %index: tensor<3xi32>, %c: {d}) -> {d} {{
  %y = gemm.grouped_matmul %x, %w groups (%index by offs) accumulate %c
    schedule <{schedule}> : ({x}, {w}, tensor<3xi32>, {d}) -> {d}
  func.return %y : {d}
}}"""


def _bf16_counts(schedule: str) -> str:
    depth = 64 * K_BLOCKS
    x, w, d = f"tensor<3x?x{depth}xbf16>", f"tensor<3x{depth}x256xbf16>", "tensor<3x?x256xbf16>"
    return f"""
func.func @k(%x: {x}, %w: {w}, %index: tensor<3xi32>) -> {d} {{
  %y = gemm.grouped_matmul %x, %w groups (%index by counts)
    schedule <{schedule}> : ({x}, {w}, tensor<3xi32>) -> {d}
  func.return %y : {d}
}}"""


def _bf16_k_offs(schedule: str) -> str:
    depth = 64 * 2 * K_BLOCKS
    x, w, d = f"tensor<?x{depth}xbf16>", f"tensor<{depth}x256xbf16>", "tensor<3x?x256xbf16>"
    return f"""
func.func @k(%x: {x}, %w: {w}, %index: tensor<3xi32>) -> {d} {{
  %y = gemm.grouped_matmul %x, %w groups (%index by k_offs)
    schedule <{schedule}> : ({x}, {w}, tensor<3xi32>) -> {d}
  func.return %y : {d}
}}"""


TEXTS: dict[str, str] = {
    "fp8": _fp8(
        "block = 128x256x128, warpgroups = 2 along n, turns = false, chunk = 1, cluster = 1x1, slices = 2, stages = 3"
    ),
    "fp8-whole": _fp8(
        "block = 128x256x128, warpgroups = 2 along n, turns = false, chunk = 1, cluster = 1x1, slices = 1, stages = 3"
    ),
    "fp8-waves-2x1": _fp8(
        "block = 192x64x128, warpgroups = 1 along m, turns = false, chunk = 1, cluster = 2x1, slices = 3, stages = 2"
    ),
    "fp8-turns": _fp8(
        "block = 128x128x128, warpgroups = 2 along m, turns = true, chunk = 1, cluster = 1x1, stages = 4"
    ),
    "fp8-2x1": _fp8("block = 128x128x128, warpgroups = 2 along m, turns = false, chunk = 1, cluster = 2x1, stages = 3"),
    "fp8-1x2": _fp8("block = 64x128x128, warpgroups = 1 along m, turns = false, chunk = 1, cluster = 1x2, stages = 2"),
    "fp8-2x2": _fp8("block = 64x128x128, warpgroups = 1 along m, turns = false, chunk = 1, cluster = 2x2, stages = 2"),
    "bf16-4x1": _bf16("block = 64x128x64, warpgroups = 1 along m, chunk = 1, cluster = 4x1, stages = 3"),
    "fp8-chunk": _fp8(
        "block = 128x128x128, warpgroups = 2 along m, chunk = 2, cluster = 1x1, scale_slots = 0, stages = 3"
    ),
    "fp8-chunk-2x1": _fp8(
        "block = 64x128x128, warpgroups = 1 along m, chunk = 4, cluster = 2x1, scale_slots = 0, stages = 2"
    ),
    "fp8-batch": _fp8(
        "block = 64x112x128, warpgroups = 1 along m, turns = false, chunk = 1, scale_batch = 4, cluster = 1x1, "
        "stages = 2"
    ),
    "fp8-scales": _fp8(
        "block = 128x128x128, warpgroups = 2 along m, turns = true, chunk = 1, cluster = 1x1, scale_slots = 1, "
        "stages = 4"
    ),
    "fp8-scales-4": _fp8(
        "block = 64x64x128, warpgroups = 1 along m, chunk = 2, cluster = 1x1, scale_batch = 32, scale_slots = 4, "
        "stages = 7",
        blocks=8,
    ),
    "fp8-at-once": _fp8(
        "block = 64x64x128, warpgroups = 1 along m, chunk = 4, cluster = 1x1, scale_slots = tile, stages = 4"
    ),
    "fp8-at-once-2x1": _fp8(
        "block = 128x64x128, warpgroups = 2 along m, chunk = 2, cluster = 2x1, scale_slots = tile, stages = 3"
    ),
    "fp8-columns": _fp8(
        "block = 128x256x128, warpgroups = 2 along n, turns = false, chunk = 1, cluster = 1x1, slices = 2, stages = 3",
        weights="1x128",
    ),
    "fp8-columns-2x1": _fp8(
        "block = 64x128x128, warpgroups = 1 along m, chunk = 1, cluster = 2x1, stages = 2", weights="1x128"
    ),
    "fp8-columns-chunk": _fp8(
        "block = 128x64x128, warpgroups = 2 along m, chunk = 2, cluster = 1x1, stages = 3", weights="1x128"
    ),
    "bf16": _bf16("block = 128x256x64, warpgroups = 2 along m, turns = false, chunk = 1, cluster = 1x1, stages = 3"),
    "bf16-2x1": _bf16(
        "block = 128x128x64, warpgroups = 2 along n, turns = false, chunk = 1, cluster = 2x1, stages = 4"
    ),
    "bf16-1x2": _bf16("block = 64x128x64, warpgroups = 1 along m, turns = false, chunk = 1, cluster = 1x2, stages = 2"),
    "bf16-f32": _bf16(
        "block = 128x128x64, warpgroups = 2 along n, turns = false, chunk = 1, cluster = 1x1, slices = 2, stages = 3",
        result="f32",
    ),
    "bf16-columns": _bf16(
        "block = 128x128x64, warpgroups = 2 along m, turns = false, chunk = 1, cluster = 1x1, slices = 2, stages = 3"
    ),
    "bf16-mn": _bf16(
        "block = 128x128x64, warpgroups = 2 along n, turns = false, chunk = 1, cluster = 2x1, stages = 3",
        layout="layout <a = m, b = n> ",
    ),
    "bf16-c": _bf16(
        "block = 128x128x64, warpgroups = 2 along m, turns = false, chunk = 1, cluster = 1x1, stages = 3", c=True
    ),
    "f32-c": _bf16(
        "block = 128x128x64, warpgroups = 2 along n, turns = false, chunk = 1, cluster = 2x1, slices = 2, stages = 2",
        result="f32",
        c=True,
    ),
    "fp8-split": _fp8("block = 128x256x128, warpgroups = 2 along n, chunk = 1, cluster = 1x1, stages = 4", 2),
    "fp8-split-tall": _fp8(
        "block = 256x64x128, warpgroups = 2 along m, chunk = 1, scale_batch = 32, cluster = 1x1, stages = 4", 2
    ),
    "fp8-offs": _fp8_offs(
        "block = 128x128x128, warpgroups = 2 along m, turns = false, chunk = 1, cluster = 1x1, slices = 1, stages = 3"
    ),
    "bf16-offs-c": _bf16_offs_c("block = 128x128x64, warpgroups = 2 along m, chunk = 1, cluster = 1x1, stages = 3"),
    "bf16-k-offs": _bf16_k_offs("block = 128x128x64, warpgroups = 2 along n, chunk = 1, cluster = 1x1, stages = 3"),
    "fp8-offs-2x1": _fp8_offs(
        "block = 64x128x128, warpgroups = 1 along m, turns = false, chunk = 1, cluster = 2x1, slices = 1, stages = 3"
    ),
    "bf16-counts-1x2": _bf16_counts("block = 64x96x64, warpgroups = 1 along m, chunk = 1, cluster = 1x2, stages = 3"),
    "bf16-k-offs-2x1": _bf16_k_offs("block = 64x128x64, warpgroups = 1 along m, chunk = 1, cluster = 2x1, stages = 3"),
    "bf16-split": _bf16("block = 128x128x64, warpgroups = 2 along n, chunk = 1, cluster = 1x1, stages = 5", 2),
    "fp8-tail": _fp8(
        "block = 128x256x128, warpgroups = 2 along n, turns = false, chunk = 1, cluster = 1x1, tail = 128 after 3, "
        "slices = 2, stages = 3"
    ),
    "fp8-tail-turns": _fp8(
        "block = 128x192x128, warpgroups = 2 along m, turns = true, chunk = 1, cluster = 1x1, tail = 80 after 4, "
        "stages = 3"
    ),
    "bf16-tail": _bf16(
        "block = 128x192x64, warpgroups = 2 along m, chunk = 1, cluster = 1x1, tail = 64 after 5, stages = 3"
    ),
    "fp8-stream": _fp8("family = stream, block = 16x64x128, warpgroups = 1 along n, chunk = 2, stages = 4"),
    "fp8-stream-3": _fp8("family = stream, block = 24x128x128, warpgroups = 2 along n, chunk = 2, stages = 3", 3),
    "bf16-stream": _bf16("family = stream, block = 32x128x64, warpgroups = 1 along n, chunk = 1, stages = 3"),
    "bf16-counts-stream": _bf16_counts("family = stream, block = 16x128x64, warpgroups = 2 along n, stages = 3"),
    "bf16-stream-2": _bf16("family = stream, block = 16x128x64, warpgroups = 2 along n, chunk = 1, stages = 4", 2),
}
"""
Promoted with and without turns, and in chunks with k-blocks left over; with scales that have a warp of their own, slot
by slot, four slots at a time, and those of a whole tile at once; in place; one and two warpgroups; every cluster; tiles
that leave whole and wave by wave, in 16 bits and in f32, alone and added to a C; operands that are not k-major; weight
scales k-block by k-block, one a column, and in batches that begin inside a tile; K in two parts, whose sums are swapped
in one slot and in two; groups of rows, and of K, alone and in clusters; narrower tiles for the last columns; few rows,
alone, of groups, and with K in parts that one CTA gathers.
"""


@cache
def _module(name: str) -> ModuleOp:
    return lower(TEXTS[name], m=4096, until="hopper").module


def module_of(name: str) -> ModuleOp:
    """A fresh copy of the module that holds a kernel."""
    return _module(name).clone()


def kernel_in(module: ModuleOp) -> hopper.KernelOp:
    return next(op for op in module.body.block.ops if isinstance(op, hopper.KernelOp))


@dataclass(frozen=True)
class Ir:
    """A kernel that may be changed, by role."""

    kernel: hopper.KernelOp

    @property
    def frame(self) -> Block:
        return self.kernel.body.block

    @property
    def math(self) -> Block:
        return self._role(hopper.WarpgroupsOp, hopper.WgmmaOp)

    @property
    def producer(self) -> Block:
        return self._role(hopper.WarpOp, hopper.TmaLoadOp)

    @property
    def scales(self) -> Block:
        return self._role(hopper.WarpOp, hopper.CopyScalesOp)

    @property
    def slot_scales(self) -> Block:
        """The warp that fills slots of the ring with scales, where the producer does not."""
        return self._role(hopper.WarpOp, hopper.PutScalesOp)

    @property
    def store(self) -> Block:
        return self._role(hopper.WarpOp, hopper.StoreCommitOp)

    def _role(self, kind: type[Operation], holds: type[Operation]) -> Block:
        role = next(op for op in self.kernel.walk() if isinstance(op, kind) and all_of(op, holds))
        return role.regions[0].block

    def storage(self, name: str) -> SSAValue:
        """A ring, barrier array or staging area by name."""
        return next(v for op in self.frame.ops for v in op.results if v.name_hint == name)


def all_of(where: Block | Operation, kind: type[OpT]) -> list[OpT]:
    """Every op of a kind, in order."""
    return [op for op in where.walk() if isinstance(op, kind)]


def one(where: Block | Operation, kind: type[OpT], number: int = 0, on: SSAValue | None = None) -> OpT:
    """Op number `number` of a kind, among those that use `on` if given."""
    return [op for op in all_of(where, kind) if on is None or on in op.operands][number]


def erase(op: Operation) -> None:
    Rewriter.erase_op(op)


def put(op: IRDLOperation, name: str, value: int) -> None:
    """Set an integer property."""
    assert name in op.properties, f"{op.name} has no {name}"
    op.properties[name] = count(value)


def get(op: IRDLOperation, name: str) -> int:
    return op.properties[name].value.data  # type: ignore[attr-defined]


def change(op: Operation, old: SSAValue, new: SSAValue) -> None:
    """Use another value as an operand."""
    assert old in op.operands
    op.operands = [new if operand is old else operand for operand in op.operands]


def before(anchor: Operation, new: Operation) -> None:
    Rewriter.insert_op(new, InsertPoint.before(anchor))


def after(anchor: Operation, new: Operation) -> None:
    Rewriter.insert_op(new, InsertPoint.after(anchor))


def move_before(op: Operation, anchor: Operation) -> None:
    op.detach()
    before(anchor, op)


def move_after(op: Operation, anchor: Operation) -> None:
    op.detach()
    after(anchor, op)


def turned(op: hopper.WaitOp | hopper.AcquireOp) -> None:
    """A wait becomes an acquire, and the other way round: the other parity."""
    kind = hopper.AcquireOp if isinstance(op, hopper.WaitOp) else hopper.WaitOp
    group = [op.group] if op.group is not None else []
    Rewriter.replace_op(op, kind.build(operands=[op.barriers, op.cursor, group]), [])


def again(op: Operation) -> None:
    """Do it twice."""
    after(op, op.clone())


def loop(where: Block) -> hopper.KBlocksOp:
    return one(where, hopper.KBlocksOp)


def peeled(where: Block) -> list[Operation]:
    """What stands behind the loop over k-blocks: the last one of a tile that leaves wave by wave."""
    of_the_loop = loop(where)
    block = of_the_loop.parent_block()
    assert block is not None
    ops = list(block.ops)
    return ops[ops.index(of_the_loop) + 1 :]


def in_peeled(where: Block, kind: type[OpT], number: int = 0) -> OpT:
    """Op number `number` of a kind there."""
    return [op for op in peeled(where) if isinstance(op, kind)][number]


def first_slice(where: Block) -> list[hopper.StageFragmentOp]:
    """What is staged before anything is reported as staged."""
    ops = list(where.walk())
    reported = next(i for i, op in enumerate(ops) if isinstance(op, hopper.ArriveOp))
    return [op for op in ops[:reported] if isinstance(op, hopper.StageFragmentOp)]


def resized(ir: Ir, name: str, stages: int) -> None:
    """A ring with another number of slots, at the same place."""
    ring = ir.storage(name).owner
    assert isinstance(ring, hopper.RingOp)
    type_ = ring.result.type
    new = hopper.RingOp.build(
        properties=dict(ring.properties),
        result_types=[hopper.RingType((stages, *type_.dims[1:]), type_.element, type_.swizzle_mode)],
    )
    Rewriter.replace_op(ring, new, new.results)


Change = Callable[[Ir], None]
