"""
Prints a hopper kernel as CUDA C++ for NVRTC: one method per op, in order, deciding nothing.

The source includes no header. Identifiers come from a fixed list or are numbered; numbers are printed as numbers; no
string out of the IR gets in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import FloatAttr, IntegerAttr
from xdsl.ir import Block, BlockArgument, Operation, SSAValue

from gemmir.backends.cuda.comments import Comments
from gemmir.backends.cuda.prelude import prelude
from gemmir.backends.cuda.printing.arithmetic import PrintsArithmetic
from gemmir.backends.cuda.printing.barriers import PrintsBarriers
from gemmir.backends.cuda.printing.base import dtype_of
from gemmir.backends.cuda.printing.loads import PrintsLoads
from gemmir.backends.cuda.printing.split_k import PrintsSplitK
from gemmir.backends.cuda.printing.storage import PrintsStorage
from gemmir.backends.cuda.printing.stores import PrintsStores
from gemmir.backends.cuda.wgmma import multiply_name, wgmma_wrapper
from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number
from gemmir.dialects.hopper.control import tile_arguments
from gemmir.dialects.hopper.types import RasterName
from gemmir.dtypes import DTYPES
from gemmir.errors import IRError, UnsupportedError
from gemmir.problem import Grouping
from gemmir.target import WARPS_PER_GROUP, columns_of_tiles

GROUPINGS = {
    Grouping.OFFS: "Offs",
    Grouping.GROUP_IDS: "GroupIds",
    Grouping.COUNTS: "Counts",
    Grouping.BATCH: "Batch",
    Grouping.K_OFFS: "KOffs",
}
"""Types of the prelude that say which rows belong to which group."""

TILE = {
    "row": "m0",
    "column": "n0",
    "group": "group",
    "begin": "begin()",
    "end": "end()",
    "first_block": "first_block()",
    "blocks": "blocks()",
}
"""How `GroupTiles` of the prelude calls what it knows of a tile that it has found."""


@dataclass(frozen=True, slots=True)
class PrintedKernel:
    """CUDA source and the name of its entry point."""

    source: str
    entry: str


SYNCHRONISING = (
    hopper.AcquireOp,
    hopper.ArriveOp,
    hopper.ClusterSyncOp,
    hopper.CopyScalesOp,
    hopper.ExpectOp,
    hopper.FenceProxyAsyncOp,
    hopper.GrantOp,
    hopper.PassTurnOp,
    hopper.PutScalesOp,
    hopper.ReleaseOp,
    hopper.SendSumsOp,
    hopper.StageFragmentOp,
    hopper.StoreCommitOp,
    hopper.StoreRowsOp,
    hopper.StoreWaitReadOp,
    hopper.TakeTurnOp,
    hopper.TmaFillOp,
    hopper.TmaLoadOp,
    hopper.TmaStoreOp,
    hopper.WaitOp,
    hopper.WgmmaFenceOp,
    hopper.WgmmaWaitOp,
)
"""Before these a kernel under chaos sleeps."""


def print_kernel(kernel: hopper.KernelOp, chaos: bool = False, watchdog_ms: int | None = None) -> PrintedKernel:
    """
    CUDA source of a verified kernel; `UnsupportedError` (GMR-U001) for an op that does not belong in one.

    With `chaos` the kernel takes a seed after its other parameters, and each warp sleeps for a pseudo-random time
    before everything that synchronises: results must not change. For tests only.

    With `watchdog_ms` whoever waits at an mbarrier for longer reports it and ends the kernel (see
    `gemmir.backends.cuda.watchdog`). The kernel's own text is the same: only the waits of its prelude are others.
    """
    return _Printer(kernel, chaos, watchdog_ms).print()


class _Printer(PrintsStorage, PrintsBarriers, PrintsLoads, PrintsArithmetic, PrintsSplitK, PrintsStores):
    """Dispatches ops to the methods that print them; prints the kernel, its roles and loops itself."""

    def __init__(self, kernel: hopper.KernelOp, chaos: bool, watchdog_ms: int | None):
        super().__init__(kernel, chaos)
        self.watchdog_ms = watchdog_ms
        self.comments = Comments()
        self.first_warp = 0
        self.elected = False
        self.methods = self.all_methods()

    def all_methods(self) -> dict[type[Operation], Callable[[Any], None]]:
        """What prints each op."""
        return self.of_frame() | self.of_overlap() | self.of_scales() | self.of_split_k()

    def of_frame(self) -> dict[type[Operation], Callable[[Any], None]]:
        """What all kernels are made of."""
        return {
            hopper.AcquireOp: self.acquire,
            hopper.AdvanceOp: lambda op: self.out.line(f"{self.out[op.cursor]}.advance();"),
            hopper.ArriveOp: self.arrive,
            hopper.BarriersOp: self.storage,
            hopper.BlockAheadOp: self.block_ahead,
            hopper.ClusterSyncOp: lambda op: self.call(
                "cluster_sync" if op.release is None else "cluster_sync_release"
            ),
            hopper.CountTilesOp: self.count_tiles,
            hopper.CtaSyncOp: lambda op: self.out.line("__syncthreads();"),
            hopper.CursorOp: self.cursor,
            hopper.ExpectOp: self.expect,
            hopper.FenceProxyAsyncOp: lambda op: self.call("fence_proxy_async"),
            hopper.FragmentOp: self.fragment,
            hopper.GroupBlockOp: self.group_block,
            hopper.GroupPointerOp: self.group_pointer,
            hopper.InitBarriersOp: self.init_barriers,
            hopper.KBlocksOp: self.k_blocks,
            hopper.NextOp: self.next,
            hopper.PassTurnOp: self.pass_turn,
            hopper.PrefetchMapsOp: self.prefetch_maps,
            hopper.PromoteBlockOp: self.promote_block,
            hopper.PromoteColumnsOp: self.promote_columns,
            hopper.PromoteOp: self.promote,
            hopper.ReleaseOp: self.release,
            hopper.RingOp: self.storage,
            hopper.RolesOp: self.roles,
            hopper.SetMaxRegistersOp: self.setmaxnreg,
            hopper.StageFragmentOp: self.stage_fragment,
            hopper.StagingOp: self.storage,
            hopper.StoreCommitOp: lambda op: self.call("tma_store_commit"),
            hopper.StoreRowsOp: self.store_rows,
            hopper.StoreWaitReadOp: lambda op: self.call(f"tma_store_wait_read<{number(op.pending)}>"),
            hopper.SyncWarpOp: lambda op: self.out.line("__syncwarp();"),
            hopper.TakeTurnOp: self.take_turn,
            hopper.TilesOp: self.tiles,
            hopper.TmaFillOp: self.tma_fill,
            hopper.TmaLoadOp: self.tma_load,
            hopper.TmaStoreOp: self.tma_store,
            hopper.WaitOp: self.wait,
            hopper.WarpOp: self.warp,
            hopper.WgmmaCommitOp: lambda op: self.call("wgmma_commit"),
            hopper.WgmmaFenceOp: lambda op: self.call("wgmma_fence"),
            hopper.WgmmaOp: self.multiply,
            hopper.WgmmaWaitOp: self.wgmma_wait,
            hopper.ZeroOp: self.zero,
            ConstantOp: self.constant,
        }

    def of_scales(self) -> dict[type[Operation], Callable[[Any], None]]:
        return {
            hopper.CopyScalesOp: self.copy_scales,
            hopper.FetchScalesOp: self.fetch_scales,
            hopper.LoadScalesOp: self.load_scales,
            hopper.MoveScalesOp: lambda op: self.out.line(f"{self.out[op.target]} = {self.out[op.source]};"),
            hopper.NextScalesOp: self.next_scales,
            hopper.PutScalesOp: self.put_scales,
            hopper.ScalesOp: self.scales,
            hopper.StartScalesOp: self.start_scales,
        }

    def of_overlap(self) -> dict[type[Operation], Callable[[Any], None]]:
        return {
            hopper.FirstTileOp: self.first_tile,
            hopper.LaunchDependentsOp: lambda op: self.call("launch_dependents"),
            hopper.TmaPrefetchOp: self.tma_prefetch,
            hopper.WaitForGridOp: lambda op: self.call("wait_for_grid"),
        }

    def of_split_k(self) -> dict[type[Operation], Callable[[Any], None]]:
        return {
            hopper.AddSumsOp: self.add_sums,
            hopper.FirstBlockOp: self.first_block,
            hopper.GrantOp: self.grant,
            hopper.InPartOp: self.in_part,
            hopper.PartBlockOp: self.part_block,
            hopper.SendSumsOp: self.send_sums,
        }

    # The kernel and its blocks

    def print(self) -> PrintedKernel:
        kernel, out = self.kernel, self.out
        parameters = ",\n    ".join([*(self.parameter(a) for a in kernel.body.block.args), *["u32 seed"] * self.chaos])
        cluster = kernel.cluster_ctas
        dims = f"__cluster_dims__({cluster}, 1, 1) " if cluster > 1 else ""
        out.line(f"constexpr int N = {number(kernel.columns)};")
        out.line()
        out.line(f'extern "C" __global__ void {dims}__launch_bounds__({number(kernel.threads)}, 1)')
        entry = self.entry()
        with out.block(f"{entry}(\n    {parameters})"):
            out.line("extern __shared__ __align__(1024) u8 shared[];")
            out.line("const u32 smem = smem_address(shared);")
            out.line("const int warp = warp_uniform(threadIdx.x / 32), lane = threadIdx.x % 32;")
            if cluster > 1:
                out.line(f"const int rank = {self.need('cluster_rank')}();")
            if self.chaos:
                out.line(f"u32 chaos = {self.need('chaos_start')}(seed);")
            self.block(kernel.body.block)
        pieces = [self.header(), prelude(self.used)]
        if self.watchdog_ms is not None:
            pieces[1:] = [f"constexpr int WATCHDOG_MS = {self.watchdog_ms};", prelude(self.used, watched=True)]
        for shape in self.wgmmas:
            pieces.append(wgmma_wrapper(*shape, name=multiply_name(shape[2], shape == self.wgmmas[0])))
        return PrintedKernel("\n\n".join([*pieces, out.text()]) + "\n", entry)

    def entry(self) -> str:
        """A name that says what the kernel is, made of numbers and type names of ours."""
        rings = [op for op in self.kernel.body.block.ops if isinstance(op, hopper.RingOp)]
        types = "_".join(dtype_of(ring.result).ptx for ring in rings[:2])
        tile, stages = self.kernel.tile, rings[0].result.type.stages if rings else 0
        cluster_m, cluster_n = self.cluster
        split = f"_split{self.kernel.parts}" if self.kernel.parts > 1 else ""
        tail = "" if self.kernel.tail is None else f"_tail{number(self.kernel.tail)}"
        return f"gemm_{types}_{tile.m.data}x{tile.n.data}{tail}_cluster{cluster_m}x{cluster_n}{split}_stages{stages}"

    def header(self) -> str:
        k, tile = self.kernel, self.kernel.tile
        plus_c = " + C" if any(isinstance(op, hopper.TmaFillOp) for op in k.walk()) else ""
        split = f", {k.parts} for each tile, which sum a part of K each" if k.parts > 1 else ""
        tail = "" if k.tail is None else f" and, from column {k.tail_begins} on, {tile.m.data} x {number(k.tail)} tiles"
        return (
            f"// D[M, {number(k.columns)}] = A[M, {number(k.depth)}] @ B{plus_c}. "
            f"A CTA makes {tile.m.data} x {tile.n.data} tiles{tail}, "
            f"{self.cluster[0]} x {self.cluster[1]} CTAs form a cluster{split}.\n"
            f"// {number(k.threads)} threads and {number(k.shared)} bytes of shared memory a CTA. Made by gemmir."
        )

    def parameter(self, value: SSAValue) -> str:
        name = self.out.name(value)
        match value.type:
            case hopper.TensorMapType():
                return f"const __grid_constant__ TensorMap {name}"
            case hopper.PointerType(element=element):
                writable = isinstance(value, BlockArgument) and self.kernel.binds.data[value.index].tensor.data < 0
                return f"{'' if writable else 'const '}{DTYPES[str(element)].cuda}* {name}"
            case other:
                return f"{'int' if str(other) == 'i32' else 'i64'} {name}"

    def block(self, block: Block) -> None:
        """Print the ops of a block; runs of ops for one lane of a whole warp share one `if`."""
        ops = list(block.ops)
        while ops:
            run = self.leading_run(ops)
            if not isinstance(ops[0], hopper.WarpOp):
                self.comment(ops[0])
            if run > 1 or (run == 1 and self.chaos):
                with self.out.block("if (lane == 0)"):
                    for op in ops[:run]:
                        self.op(op)
            elif run == 1:
                start = len(self.out.lines)
                self.op(ops[0])
                self.out.lines[start] = _after_indent(self.out.lines[start], "if (lane == 0) ")
            else:
                run = 1
                self.op(ops[0])
            del ops[:run]

    def comment(self, op: Operation) -> None:
        if (text := self.comments.of(op)) is not None:
            self.out.line(f"// {text}")

    def leading_run(self, ops: list[Operation]) -> int:
        if self.elected:
            return 0
        loads = (hopper.TmaLoadOp, hopper.TmaFillOp)
        single = (*loads, hopper.TmaStoreOp, hopper.ExpectOp, hopper.ArriveOp, hopper.GrantOp)
        return next((i for i, op in enumerate(ops) if not isinstance(op, single)), len(ops))

    def op(self, op: Operation) -> None:
        if (method := self.methods.get(type(op))) is None:
            raise UnsupportedError(
                "GMR-U001", f"op {op.name[:60]} in a hopper kernel", rule="the printer knows hopper ops only"
            )
        if self.chaos and isinstance(op, SYNCHRONISING):
            self.call("chaos_sleep", "chaos")
        try:
            method(op)
        except KeyError as error:
            raise IRError("GMR-R002", f"{op.name} uses a value that is not defined before it") from error

    # Roles and loops

    def roles(self, op: hopper.RolesOp) -> None:
        self.first_warp, head, total = 0, "if", number(self.kernel.threads) // 32
        for role in op.body.block.ops:
            assert isinstance(role, hopper.WarpgroupsOp)
            end = self.first_warp + number(role.number) * WARPS_PER_GROUP
            with self.out.block(f"{head} (warp < {end})" if end < total else "else" if head != "if" else ""):
                if role.body.block.args:
                    group = f"warp / {WARPS_PER_GROUP}"
                    first = self.first_warp // WARPS_PER_GROUP
                    name = self.out.name(role.body.block.args[0])
                    if any(True for _ in role.body.block.args[0].uses):
                        self.out.line(f"const int {name} = {group}{f' - {first}' if first else ''};")
                self.comment(role)
                self.block(role.body.block)
            self.first_warp, head = end, "else if"

    def warp(self, op: hopper.WarpOp) -> None:
        only = " && lane == 0" if op.elected is not None else ""
        self.elected = op.elected is not None
        with self.out.block(f"if (warp == {self.first_warp + number(op.index)}{only})"):
            self.comment(op)
            self.block(op.body.block)
        self.elected = False

    def m(self) -> str:
        return self.out[next(a for a in self.kernel.body.block.args if str(a.type) == "i32")]

    def groups(self) -> str:
        """The type that says which rows belong to which group."""
        grouping, groups = self.kernel.grouping, self.kernel.groups
        assert grouping is not None and groups is not None
        sizes = [number(groups)]
        if grouping.meaning is Grouping.K_OFFS:
            ring = next(op.result.type for op in self.kernel.body.block.ops if isinstance(op, hopper.RingOp))
            sizes += [number(self.kernel.depth), ring.dims[2]]
        return f"{self.need(GROUPINGS[grouping.meaning])}<{', '.join(map(str, sizes))}>"

    def count_tiles(self, op: hopper.CountTilesOp) -> None:
        index = "" if op.index is None else f"{self.out[op.index]}, "
        self.out.line(f"const {self.groups()} groups{{{index}{self.m()}}};")
        tiles, tile = self.out.name(op.result), self.kernel.tile
        balanced = "false" if self.kernel.balanced is None else "true"
        shape = f"{self.groups()}, {tile.m.data}, {tile.n.data}, N, {balanced}"
        if op.per_cluster is not None:
            shape += f", {self.cluster[0]}, {self.cluster[1]}"
        self.out.line(f"const {self.need('GroupTiles')}<{shape}> {tiles}(groups);")
        self.out.line(f"if ({tiles}.none()) return;")

    def group_tiles(self, op: hopper.TilesOp, count: SSAValue) -> None:
        with self.out.block(f"for (auto tiles = {self.out[count]}; !tiles.done(); tiles.next())"):
            names = tile_arguments(self.kernel.grouping, True)
            arguments = zip(op.body.block.args, names, strict=True)
            used = [(self.out.name(a), f"tiles.{TILE[name]}") for a, name in arguments if any(a.uses)]
            if used:
                along_m = "true" if op.raster.data is RasterName.ALONG_M else "false"
                self.out.line(f"tiles.find<{number(op.group)}, {along_m}>({self.place_in_cluster()});")
                self.out.line(f"const int {', '.join(f'{name} = {value}' for name, value in used)};")
            self.block(op.body.block)

    def tiles(self, op: hopper.TilesOp) -> None:
        if op.count is not None:
            return self.group_tiles(op, op.count)
        with self.out.block(f"for ({self.tiles_type(op)} tiles({self.m()}); !tiles.done(); tiles.next())"):
            self.tile_origin(op)
            self.block(op.body.block)

    def first_tile(self, op: hopper.FirstTileOp) -> None:
        last_warp = number(self.kernel.threads) // 32 - 1
        when = self.out[op.overlaps]
        if ctas := number(op.ctas):
            when = f"({when} || gridDim.x <= {ctas})"
        tiles = f"{self.tiles_type(op)} tiles({self.m()}); {when}"
        with self.out.block(f"if ({tiles} && warp == {last_warp} && lane == 0 && !tiles.done())"):
            self.tile_origin(op)
            with self.out.block(f"if ({self.out[op.body.block.args[0]]} == 0)"):
                self.block(op.body.block)

    def tiles_type(self, op: hopper.TilesOp | hopper.FirstTileOp) -> str:
        kernel, (cluster_m, cluster_n) = self.kernel, self.cluster
        along_m = "true" if op.raster.data is RasterName.ALONG_M else "false"
        order, first = f"{number(op.group)}, {along_m}", kernel.tail_begins
        if isinstance(op, hopper.TilesOp) and op.tail is not None:
            assert kernel.tail is not None and kernel.after is not None
            arguments = f"{kernel.tile.m.data}, {number(kernel.tail)}, {first}, {number(kernel.after)}, N, {order}"
            return f"{self.need('TailTiles')}<{arguments}>"
        columns = "N" if kernel.tail is None else str(first)
        arguments = f"{kernel.tile.m.data}, {kernel.tile.n.data}, {cluster_m}, {cluster_n}, {columns}, {order}"
        if kernel.tail is not None:
            assert kernel.after is not None
            tail = number(kernel.tail), number(kernel.after)
            arguments += f", 1, {columns_of_tiles(number(kernel.columns), kernel.tile.n.data, *tail)[1]}"
        elif kernel.parts > 1:
            arguments += f", {kernel.parts}"
        return f"{self.need('Tiles')}<{arguments}>"

    def tile_origin(self, op: hopper.TilesOp | hopper.FirstTileOp) -> None:
        row, column = (self.out.name(a) for a in op.body.block.args)
        if isinstance(op, hopper.FirstTileOp) or any(True for a in op.body.block.args for _ in a.uses):
            self.out.line(f"int {row}, {column};")
            self.out.line(f"tiles.origin({self.place_in_cluster()}, {row}, {column});")

    def place_in_cluster(self) -> str:
        """Which of the tiles of a cluster is this CTA's."""
        return "rank" if self.cluster[0] * self.cluster[1] > 1 else "0"

    def in_part(self, op: hopper.InPartOp) -> None:
        with self.out.block(f"if (rank {'==' if op.others is None else '!='} 0)"):
            self.block(op.body.block)

    def k_blocks(self, op: hopper.KBlocksOp) -> None:
        self.out.lines.append("#pragma unroll 1")
        last, step = self.end_of(op), op.blocks
        with self.out.scope():
            k = self.out.name(op.body.block.args[0])
        onward = f"++{k}" if step == 1 else f"{k} += {step}"
        with self.out.block(f"for (int {k} = {number(op.first)}; {k} < {last}; {onward})"):
            self.block(op.body.block)

    def setmaxnreg(self, op: hopper.SetMaxRegistersOp) -> None:
        self.call(f"setmaxnreg_{'dec' if op.grow is None else 'inc'}<{number(op.registers)}>")

    def constant(self, op: ConstantOp) -> None:
        value = op.value
        if isinstance(value, FloatAttr) or not isinstance(value, IntegerAttr):
            raise UnsupportedError("GMR-U001", "a constant that is not an integer in a hopper kernel")
        self.out.alias(op.result, str(value.value.data))


def _after_indent(line: str, text: str) -> str:
    body = line.lstrip()
    return line[: len(line) - len(body)] + text + body
