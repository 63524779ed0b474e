"""
Compares what was printed with the IR that was proven: the same synchronisation, in the same order, in the same roles.

The proof is about hopper IR; the compiler sees CUDA. `audit_source` reads the CUDA again, down to the PTX inside its
wrappers, and compares it with what the IR asks for, which is written down here without looking at the printer.
`audit_sass` counts in machine code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from xdsl.dialects.builtin import IntegerAttr
from xdsl.ir import Operation, SSAValue

from gemmir.backends.cuda.audit_source import EXIT, Call, calls_of
from gemmir.backends.cuda.printing.loads import EVICT
from gemmir.backends.cuda.sass import count_opcodes
from gemmir.dialects import hopper
from gemmir.dialects.hopper.barriers import TURN_THREADS
from gemmir.dialects.hopper.base import number
from gemmir.dialects.hopper.control import enclosing
from gemmir.dialects.hopper.split_k import QUAD
from gemmir.dialects.hopper.types import AxisName
from gemmir.dtypes import DTYPES
from gemmir.errors import SyncError
from gemmir.layouts import STMATRIX_BYTES, store_chunks
from gemmir.target import BARRIER_BYTES, WARPS_PER_GROUP

WGMMAS_PER_SLOT = 4
"""Instructions for the 128 bytes of K in a slot."""

_LOAD = "shared::cluster.global.mbarrier::complete_tx::bytes"
_STORE = "global.shared::cta.bulk_group"

Found = tuple[str, tuple[str, ...], str]
"""An instruction, its details, its guard (see `Call`)."""


def audit_source(kernel: hopper.KernelOp, source: str) -> None:
    """Raise `SyncError` (GMR-Y001) if `source` does not synchronise as `kernel` does."""
    wanted, found = list(_Expected(kernel).all()), calls_of(source)
    if wanted == found:
        return
    pairs = zip([*wanted, None], [*found, None], strict=False)
    one, other = next((one, other) for one, other in pairs if one != other)
    raise _mismatch(kernel, f"the IR asks for {one or 'nothing more'}, the CUDA source has {other or 'nothing more'}")


def audit_sass(kernel: hopper.KernelOp, sass: str) -> None:
    """
    Raise `SyncError` (GMR-Y001) if machine code does not synchronise as `kernel` does.

    `sass` is what `gemmir.backends.cuda.sass.disassemble` returns. Counted are the instructions that the compiler
    neither removes nor repeats: TMA loads and stores, stores to a peer, setmaxnreg, WGMMAs in whole slots.
    """
    count = count_opcodes(sass)
    ops = list(kernel.walk())
    wanted = {
        "UTMALDG": _number_of(ops, hopper.TmaLoadOp, hopper.TmaFillOp),
        "UTMASTG": _number_of(ops, hopper.TmaStoreOp, hopper.StoreRowsOp),
        "USETMAXREG": _number_of(ops, hopper.SetMaxRegistersOp),
        "UTMACMDFLUSH": _number_of(ops, hopper.StoreCommitOp),
        "STAS": sum(number(op.registers) // QUAD for op in ops if isinstance(op, hopper.SendSumsOp)),
    }
    for opcode, calls in wanted.items():
        if count[opcode] != calls:
            raise _mismatch(kernel, f"the IR asks for {calls} {opcode}, the machine code has {count[opcode]}")
    wgmmas, asked = count["QGMMA"] + count["HGMMA"], WGMMAS_PER_SLOT * _number_of(ops, hopper.WgmmaOp)
    if wgmmas < asked or wgmmas % WGMMAS_PER_SLOT:
        raise _mismatch(kernel, f"the IR asks for {asked} WGMMAs, the machine code has {wgmmas}")
    on_barriers = (hopper.WaitOp, hopper.AcquireOp, hopper.ArriveOp, hopper.ReleaseOp, hopper.ExpectOp, hopper.GrantOp)
    if count["SYNCS"] < (asked := _number_of(ops, *on_barriers)):
        raise _mismatch(kernel, f"the IR asks for {asked} mbarrier operations, the machine code has {count['SYNCS']}")


def _number_of(ops: Iterable[Operation], *kinds: type[Operation]) -> int:
    return sum(isinstance(op, kinds) for op in ops)


def _mismatch(kernel: hopper.KernelOp, what: str) -> SyncError:
    return SyncError(
        "GMR-Y001",
        f"@{kernel.sym_name.data[:60]}: {what}",
        rule="what is compiled synchronises as what was proven",
        fix="this is a fault of gemmir, not of the program: report it with the IR",
    )


class _Expected:
    """The calls that a kernel must lead to, in order."""

    def __init__(self, kernel: hopper.KernelOp):
        self.kernel = kernel
        self.elected = False
        self.offsets: dict[SSAValue, int] = {}
        self.methods: dict[type[Operation], Callable[[Any], Iterable[Found]]] = {
            hopper.AcquireOp: lambda op: self.wait(op, "parity^1", ""),
            hopper.ArriveOp: lambda op: self.on_barrier(op, "mbarrier.arrive.shared::cta.b64", self.lane_0()),
            hopper.ClusterSyncOp: self.cluster_sync,
            hopper.CountTilesOp: self.count_tiles,
            hopper.CtaSyncOp: lambda op: [("bar.sync 0", (), "")],
            hopper.ExpectOp: self.expect,
            hopper.FenceProxyAsyncOp: lambda op: [("fence.proxy.async.shared::cta", (), "")],
            hopper.GrantOp: self.grant,
            hopper.InitBarriersOp: self.init_barriers,
            hopper.LaunchDependentsOp: lambda op: [("griddepcontrol.launch_dependents", (), "")],
            hopper.PassTurnOp: lambda op: self.turn(op, "bar.arrive"),
            hopper.PromoteBlockOp: self.promote_block,
            hopper.PromoteColumnsOp: self.promote_columns,
            hopper.ReleaseOp: self.release,
            hopper.SendSumsOp: self.send_sums,
            hopper.SetMaxRegistersOp: self.set_max_registers,
            hopper.StageFragmentOp: self.stage_fragment,
            hopper.StoreCommitOp: lambda op: [("cp.async.bulk.commit_group", (), "")],
            hopper.StoreRowsOp: self.store_rows,
            hopper.StoreWaitReadOp: lambda op: [("cp.async.bulk.wait_group.read", (f"<{number(op.pending)}>",), "")],
            hopper.SyncWarpOp: lambda op: [("warp.sync", (), "")],
            hopper.TakeTurnOp: lambda op: self.turn(op, "bar.sync"),
            hopper.TmaFillOp: self.tma_fill,
            hopper.TmaLoadOp: self.tma_load,
            hopper.TmaPrefetchOp: lambda op: [("cp.async.bulk.prefetch.tensor.2d.L2.global", (), "")],
            hopper.TmaStoreOp: self.tma_store,
            hopper.WaitForGridOp: lambda op: [("griddepcontrol.wait", (), "")],
            hopper.WaitOp: self.plain_wait,
            hopper.WgmmaCommitOp: lambda op: [("wgmma.commit_group.sync.aligned", (), "")],
            hopper.WgmmaFenceOp: lambda op: [("wgmma.fence.sync.aligned", (), "")],
            hopper.WgmmaOp: self.wgmma,
            hopper.WgmmaWaitOp: lambda op: [("wgmma.wait_group.sync.aligned", (f"<{number(op.pending)}>",), "")],
        }

    def all(self) -> Iterator[Call]:
        return self.ops(self.kernel.body.block.ops, ())

    def ops(self, ops: Iterable[Operation], where: tuple[str, ...]) -> Iterator[Call]:
        for op in ops:
            if isinstance(op, hopper.RingOp | hopper.StagingOp | hopper.BarriersOp):
                self.offsets[op.result] = number(op.offset)
            elif isinstance(op, hopper.RolesOp):
                yield from self.roles(op, where)
            elif isinstance(op, hopper.TilesOp):
                yield from self.ops(op.body.block.ops, (*where, "tiles" if op.tail is None else "tail tiles"))
            elif isinstance(op, hopper.KBlocksOp):
                yield from self.ops(op.body.block.ops, (*where, _loop(op)))
            elif isinstance(op, hopper.FirstTileOp):
                warp = f"warp == {number(self.kernel.threads) // 32 - 1}, up to {number(op.ctas)} CTAs, first tile"
                yield from self.ops(op.body.block.ops, (*where, warp, "first row of tiles"))
            elif isinstance(op, hopper.InPartOp):
                yield from self.ops(op.body.block.ops, (*where, f"rank {'==' if op.others is None else '!='} 0"))
            elif (method := self.methods.get(type(op))) is not None:
                for ptx, details, guard in method(op):
                    yield Call(where, guard, ptx, details)

    def roles(self, op: hopper.RolesOp, where: tuple[str, ...]) -> Iterator[Call]:
        first, total = 0, number(self.kernel.threads) // 32
        for role in op.body.block.ops:
            assert isinstance(role, hopper.WarpgroupsOp)
            end = first + number(role.number) * WARPS_PER_GROUP
            inside = (*where, f"warp < {end}" if end < total else "else")
            for child in role.body.block.ops:
                if not isinstance(child, hopper.WarpOp):
                    yield from self.ops((child,), inside)
                    continue
                self.elected = child.elected is not None
                warp = f"warp == {first + number(child.index)}{' && lane == 0' if self.elected else ''}"
                yield from self.ops(child.body.block.ops, (*inside, warp))
                self.elected = False
            first = end

    # One op each

    def at(self, storage: SSAValue, more: int = 0, cursor: SSAValue | None = None) -> str:
        """Where storage lies: its slot or barrier at `cursor`, if that matters."""
        return f"@{self.offsets[storage] + more}{_ahead(cursor)}"

    def lane_0(self) -> str:
        return "" if self.elected else "lane == 0"

    def barrier(self, op: Any) -> str:
        return self.barrier_of(op.barriers, op)

    def barrier_of(self, barriers: Any, op: Any) -> str:
        """The array of barriers; and which one, where that is a constant."""
        owner = op.group.owner if op.group is not None else None
        value = getattr(owner, "value", None)
        groups = barriers.type.dims[1]
        index = number(value) if isinstance(value, IntegerAttr) and groups > 1 else 0
        cursor = op.cursor if barriers.type.dims[0] > 1 else None
        return self.at(barriers, index * BARRIER_BYTES, cursor)

    def on_barrier(self, op: Any, ptx: str, guard: str, *details: str) -> list[Found]:
        return [(ptx, (self.barrier(op), *details), guard)]

    def wait(self, op: Any, parity: str, guard: str, scope: str = "") -> list[Found]:
        return self.on_barrier(
            op, f"mbarrier.try_wait.parity{scope}.shared::cta.b64", guard, parity + _ahead(op.cursor)
        )

    def plain_wait(self, op: hopper.WaitOp) -> list[Found]:
        guard, loop = "", enclosing(op, hopper.KBlocksOp)
        if op.unless_last is not None:
            inside = "" if loop is None else f" {loop.blocks} of {_end(loop)}"
            guard = f"not the last{inside}"
        return self.wait(op, "parity", guard, "" if op.of_peer is None else ".acquire.cluster")

    def grant(self, op: hopper.GrantOp) -> list[Found]:
        part = () if op.part is None else (str(number(op.part)),)
        return self.on_barrier(op, "mbarrier.arrive.release.cluster.shared::cluster.b64", self.lane_0(), *part)

    def send_sums(self, op: hopper.SendSumsOp) -> list[Found]:
        registers = f"<{number(op.first)}, {number(op.registers)}>"
        details = (registers, self.at(op.ring, 0, op.cursor), self.at(op.full, 0, op.cursor))
        if op.to_first is not None:
            details = (registers, f"{self.at(op.ring)} rank", f"{self.at(op.full)} rank", "0")
        return [("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32", details, "")]

    def expect(self, op: hopper.ExpectOp) -> list[Found]:
        return self.on_barrier(op, "mbarrier.arrive.expect_tx.shared::cta.b64", self.lane_0(), str(number(op.bytes)))

    def release(self, op: hopper.ReleaseOp) -> list[Found]:
        if (peers := number(op.peers)) == 1:
            return self.on_barrier(op, "mbarrier.arrive.shared::cta.b64", "lane == 0")
        cluster = self.kernel.cluster.m.data, self.kernel.cluster.n.data
        mapping = ["lane < 2 ? rank / 2 * 2 + lane : rank ^ 2"] if cluster == (2, 2) else []
        return self.on_barrier(op, "mbarrier.arrive.shared::cluster.b64", f"lane < {peers}", *mapping)

    def init_barriers(self, op: hopper.InitBarriersOp) -> Iterator[Found]:
        for value in op.barriers:
            owner = value.owner
            assert isinstance(owner, hopper.BarriersOp)
            stages, groups = owner.result.type.dims
            details = (self.at(value), str(number(owner.arrivals)), f"x{stages * groups}")
            yield "mbarrier.init.shared::cta.b64", details, "threadIdx.x == 0"
        yield "fence.mbarrier_init.release.cluster", (), "threadIdx.x == 0"

    def count_tiles(self, op: hopper.CountTilesOp) -> list[Found]:
        """A CTA without a tile ends, with its cluster where that is what tiles are dealt out to."""
        cluster = self.kernel.cluster
        return [(EXIT, ("1x1 tiles" if op.per_cluster is None else f"{cluster.m.data}x{cluster.n.data} tiles",), "")]

    def cluster_sync(self, op: hopper.ClusterSyncOp) -> Iterator[Found]:
        yield f"barrier.cluster.arrive.{'relaxed' if op.release is None else 'release'}", (), ""
        yield "barrier.cluster.wait.acquire", (), ""

    def set_max_registers(self, op: hopper.SetMaxRegistersOp) -> list[Found]:
        action = "dec" if op.grow is None else "inc"
        return [(f"setmaxnreg.{action}.sync.aligned.u32", (f"<{number(op.registers)}>",), "")]

    def turn(self, op: hopper.TakeTurnOp | hopper.PassTurnOp, ptx: str) -> list[Found]:
        return [(ptx, (str(TURN_THREADS),), "" if op.only is None else f"warpgroup {number(op.only)}")]

    def tma_load(self, op: hopper.TmaLoadOp) -> list[Found]:
        multicast = "" if op.multicast is None else ".multicast::cluster"
        mask = () if op.multicast is None else (self.mask(op),)
        box = op.map.type
        assert isinstance(box, hopper.TensorMapType)
        panel = 0 if op.panel is None else number(op.panel) * box.dims[0] * box.dims[1] * box.element_bytes
        slot = self.at(op.ring, panel, op.cursor) + self.part(op)
        hint = () if op.evict is None else (f"<{EVICT[op.evict.data]}>",)
        details = (*hint, slot, self.at(op.full, 0, op.cursor), *mask)
        hinted = "" if op.evict is None else ".L2::cache_hint"
        return [(_tma(_LOAD, op.group) + multicast + hinted, details, self.lane_0())]

    def part(self, op: hopper.TmaLoadOp) -> str:
        """Which part of a slot a CTA loads for those that share it; how far apart these are, but for a lone column."""
        cluster_m, cluster_n = self.kernel.cluster.m.data, self.kernel.cluster.n.data
        if op.multicast is None:
            return ""
        ring = op.ring.type
        assert isinstance(ring, hopper.RingType)
        apart = ring.slot_bytes // op.sharing(cluster_m, cluster_n)
        if op.multicast.data is AxisName.N:
            return f" rank % {cluster_n}) * {apart}"
        return f" rank / {cluster_n}) * {apart}" if cluster_n > 1 else " rank"

    def mask(self, op: hopper.TmaLoadOp) -> str:
        """The CTAs that receive a box: those of the sender's row, or of its column."""
        cluster_m, cluster_n = self.kernel.cluster.m.data, self.kernel.cluster.n.data
        assert op.multicast is not None
        if op.multicast.data is AxisName.N:
            return f"{(1 << cluster_n) - 1}" + (f" << rank / {cluster_n} * {cluster_n}" if cluster_m > 1 else "")
        column = sum(1 << i * cluster_n for i in range(cluster_m))
        return f"{column}" + (f" << rank % {cluster_n}" if cluster_n > 1 else "")

    def tma_fill(self, op: hopper.TmaFillOp) -> list[Found]:
        details = (self.at(op.staging, number(op.offset)), self.barrier_of(op.full, op))
        return [(_tma(_LOAD, op.tile_group), details, self.lane_0())]

    def tma_store(self, op: hopper.TmaStoreOp) -> list[Found]:
        return [(_tma(_STORE, op.group), (self.at(op.staging, number(op.offset)),), self.lane_0())]

    def store_rows(self, op: hopper.StoreRowsOp) -> list[Found]:
        box = op.map.type
        assert isinstance(box, hopper.TensorMapType)
        rows, columns = box.dims
        swizzle = f"{box.swizzle_mode.row_shift}, {box.swizzle_mode.row_mask}"
        shape = f"<{rows}, {columns * box.element_bytes}, {swizzle}>"
        return [(_tma(_STORE, op.group), (shape, self.at(op.staging, number(op.offset))), "")]

    def wgmma(self, op: hopper.WgmmaOp) -> list[Found]:
        a, b, fragment = op.a.type, op.b.type, op.fragment.type
        assert isinstance(a, hopper.RingType)
        assert isinstance(b, hopper.RingType)
        assert isinstance(fragment, hopper.FragmentType)
        shape = f"m64n{fragment.dims[1]}k{32 // a.element_bytes}"
        types = f"{DTYPES[str(a.element)].ptx}.{DTYPES[str(b.element)].ptx}"
        ptx = f"wgmma.mma_async.sync.aligned.{shape}.f32.{types} x{WGMMAS_PER_SLOT}"
        fresh = "<false>" if op.fresh is None else "<true>"
        a = self.at(op.a, self.wave_bytes(op), op.cursor)
        if op.by_part is not None:
            a = self.at(op.a, 0, op.cursor) + (" rank ^ 1" if number(op.a_row) else " rank")
        return [(ptx, (fresh, a, self.at(op.b, 0, op.cursor)), "")]

    def wave_bytes(self, op: hopper.WgmmaOp) -> int:
        """How far into its part of the slot a wave begins."""
        a = op.a.type
        assert isinstance(a, hopper.RingType)
        return number(op.a_row) * a.dims[2] * a.element_bytes

    def promote_block(self, op: hopper.PromoteBlockOp) -> list[Found]:
        shared, columns = self.at(op.shared, 0, op.cursor), self.at(op.columns, 0, op.cursor)
        return [("ld.shared.v2.f32 x4", (shared, columns), "")]

    def promote_columns(self, op: hopper.PromoteColumnsOp) -> list[Found]:
        rows, columns = self.at(op.rows, 0, op.cursor), self.at(op.columns, 0, op.cursor)
        return [("ld.shared.v2.f32 x4", (rows, columns), "")]

    def stage_fragment(self, op: hopper.StageFragmentOp) -> Iterator[Found]:
        staging = op.staging.type
        assert isinstance(staging, hopper.StagingType)
        _, rows, columns = staging.dims
        if op.transposed is not None:
            yield from self.stage_transposed(op, staging)
            return
        wide = staging.element_bytes > STMATRIX_BYTES
        loads = ["ld.shared.v2.f32 x2"] * 2 if wide else ["ld.shared.b32 x2"]  # f32: two groups of columns at a time
        store = "st.shared.v2.f32 x2" if wide else "stmatrix.sync.aligned.m8n8.x4.shared.b16"
        for chunk in store_chunks(columns, rows, staging.element_bytes):
            swizzle = f"{chunk.swizzle.row_shift}, {chunk.swizzle.row_mask}"
            shape = f"<{(number(op.column) + chunk.first) // 2}, {chunk.columns}, {swizzle}>"
            for ptx in [*(loads if op.accumulate is not None else ()), store]:
                yield ptx, (shape, self.at(op.staging, chunk.offset)), ""

    def stage_transposed(self, op: hopper.StageFragmentOp, staging: hopper.StagingType) -> Iterator[Found]:
        """In the text of a wrapper both widths, of which the number of rows picks what is compiled."""
        _, rows, columns = staging.dims
        chunks = store_chunks(columns, rows, staging.element_bytes)
        chunk = next(c for c in chunks if c.first == number(op.row))
        shape = f"<{chunk.columns}, {chunk.swizzle.row_shift}, {chunk.swizzle.row_mask}>"
        for width in ("x4", "x2"):
            ptx = f"stmatrix.sync.aligned.m8n8.{width}.trans.shared.b16"
            yield ptx, (shape, self.at(op.staging, chunk.offset)), ""


def _tma(what: str, group: SSAValue | None) -> str:
    """A copy by TMA, of a matrix or of one group's."""
    return f"cp.async.bulk.tensor.{2 if group is None else 3}d.{what}"


def _loop(op: hopper.KBlocksOp) -> str:
    return f"k {number(op.first)} to {_end(op)} step {op.blocks}"


def _end(op: hopper.KBlocksOp) -> str:
    """Where a loop over k-blocks ends."""
    if op.count is None:
        return str(op.end(0))
    return "count" if op.end(0) == 0 else f"count - {-op.end(0)}"


def _ahead(cursor: SSAValue | None) -> str:
    """`+1` for a position after another one."""
    return "+1" if cursor is not None and isinstance(cursor.owner, hopper.NextOp) else ""
