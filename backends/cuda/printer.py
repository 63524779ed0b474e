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
from xdsl.ir import Block, Operation, SSAValue

from gemmir.backends.cuda.prelude import prelude
from gemmir.backends.cuda.wgmma import wgmma_wrapper
from gemmir.backends.cuda.writer import Writer
from gemmir.dialects import hopper
from gemmir.dialects.hopper.types import AxisName, RasterName
from gemmir.dtypes import DTYPES, DType
from gemmir.errors import IRError, UnsupportedError
from gemmir.layouts import store_chunks

WARPS_PER_GROUP = 4
TURN_THREADS = 256
"""A turn is passed between two warpgroups."""


@dataclass(frozen=True, slots=True)
class PrintedKernel:
    """CUDA source and the name of its entry point."""

    source: str
    entry: str


SYNCHRONISING = (
    hopper.AcquireOp,
    hopper.ArriveOp,
    hopper.ClusterSyncOp,
    hopper.ExpectOp,
    hopper.FenceProxyAsyncOp,
    hopper.PassTurnOp,
    hopper.PutScalesOp,
    hopper.ReleaseOp,
    hopper.StageFragmentOp,
    hopper.StoreCommitOp,
    hopper.StoreWaitReadOp,
    hopper.TakeTurnOp,
    hopper.TmaLoadOp,
    hopper.TmaStoreOp,
    hopper.WaitOp,
    hopper.WgmmaFenceOp,
    hopper.WgmmaWaitOp,
)
"""Before these a kernel under chaos sleeps."""


def print_kernel(kernel: hopper.KernelOp, chaos: bool = False) -> PrintedKernel:
    """
    CUDA source of a verified kernel; `UnsupportedError` (GMR-U001) for an op that does not belong in one.

    With `chaos` the kernel takes a seed after its other parameters, and each warp sleeps for a pseudo-random time
    before everything that synchronises: results must not change. For tests only.
    """
    return _Printer(kernel, chaos).print()


def _int(attribute: IntegerAttr[Any]) -> int:
    return attribute.value.data


def _dtype(storage: SSAValue) -> DType:
    type_ = storage.type
    assert isinstance(type_, hopper.RingType | hopper.StagingType | hopper.PointerType)
    return DTYPES[str(type_.element)]


class _Printer:
    def __init__(self, kernel: hopper.KernelOp, chaos: bool):
        self.kernel = kernel
        self.chaos = chaos
        self.out = Writer()
        self.used: set[str] = {"types", "TensorMap", "smem_address", "warp_uniform"}
        self.wgmma: tuple[DType, DType, int] | None = None
        self.first_warp = 0
        self.elected = False
        self.cluster = (kernel.cluster.m.data, kernel.cluster.n.data)
        self.methods: dict[type[Operation], Callable[[Any], None]] = {
            hopper.AcquireOp: self.acquire,
            hopper.AdvanceOp: lambda op: self.out.line(f"{self.out[op.cursor]}.advance();"),
            hopper.ArriveOp: self.arrive,
            hopper.BarriersOp: self.storage,
            hopper.ClusterSyncOp: lambda op: self.call("cluster_sync"),
            hopper.CtaSyncOp: lambda op: self.out.line("__syncthreads();"),
            hopper.CursorOp: self.cursor,
            hopper.ExpectOp: self.expect,
            hopper.FenceProxyAsyncOp: lambda op: self.call("fence_proxy_async"),
            hopper.FetchScalesOp: self.fetch_scales,
            hopper.FragmentOp: self.fragment,
            hopper.InitBarriersOp: self.init_barriers,
            hopper.KBlocksOp: self.k_blocks,
            hopper.LoadScalesOp: self.load_scales,
            hopper.MoveScalesOp: lambda op: self.out.line(f"{self.out[op.target]} = {self.out[op.source]};"),
            hopper.NextOp: self.next,
            hopper.PassTurnOp: self.pass_turn,
            hopper.PrefetchMapsOp: self.prefetch_maps,
            hopper.PromoteOp: self.promote,
            hopper.PutScalesOp: self.put_scales,
            hopper.ReleaseOp: self.release,
            hopper.RingOp: self.storage,
            hopper.RolesOp: self.roles,
            hopper.ScalesOp: self.scales,
            hopper.SetMaxRegistersOp: self.setmaxnreg,
            hopper.StageFragmentOp: self.stage_fragment,
            hopper.StagingOp: self.storage,
            hopper.StoreCommitOp: lambda op: self.call("tma_store_commit"),
            hopper.StoreWaitReadOp: lambda op: self.call(f"tma_store_wait_read<{_int(op.pending)}>"),
            hopper.SyncWarpOp: lambda op: self.out.line("__syncwarp();"),
            hopper.TakeTurnOp: self.take_turn,
            hopper.TilesOp: self.tiles,
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

    # The kernel and its blocks

    def print(self) -> PrintedKernel:
        kernel, out = self.kernel, self.out
        parameters = ",\n    ".join([*(self.parameter(a) for a in kernel.body.block.args), *["u32 seed"] * self.chaos])
        cluster = self.cluster[0] * self.cluster[1]
        dims = f"__cluster_dims__({cluster}, 1, 1) " if cluster > 1 else ""
        out.line(f"constexpr int N = {_int(kernel.columns)};")
        out.line()
        out.line(f'extern "C" __global__ void {dims}__launch_bounds__({_int(kernel.threads)}, 1)')
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
        if self.wgmma is not None:
            pieces.append(wgmma_wrapper(*self.wgmma))
        return PrintedKernel("\n\n".join([*pieces, out.text()]) + "\n", entry)

    def entry(self) -> str:
        """A name that says what the kernel is, made of numbers and type names of ours."""
        rings = [op for op in self.kernel.body.block.ops if isinstance(op, hopper.RingOp)]
        types = "_".join(_dtype(ring.result).ptx for ring in rings[:2])
        tile, stages = self.kernel.tile, rings[0].result.type.stages if rings else 0
        cluster_m, cluster_n = self.cluster
        return f"gemm_{types}_{tile.m.data}x{tile.n.data}_cluster{cluster_m}x{cluster_n}_stages{stages}"

    def header(self) -> str:
        k, tile = self.kernel, self.kernel.tile
        return (
            f"// D[M, {_int(k.columns)}] = A[M, {_int(k.depth)}] @ B. A CTA makes {tile.m.data} x {tile.n.data} tiles, "
            f"{self.cluster[0]} x {self.cluster[1]} CTAs form a cluster.\n"
            f"// {_int(k.threads)} threads and {_int(k.shared)} bytes of shared memory a CTA. Made by gemmir."
        )

    def parameter(self, value: SSAValue) -> str:
        name = self.out.name(value)
        match value.type:
            case hopper.TensorMapType():
                return f"const __grid_constant__ TensorMap {name}"
            case hopper.PointerType(element=element):
                return f"const {DTYPES[str(element)].cuda}* {name}"
            case other:
                return f"{'int' if str(other) == 'i32' else 'i64'} {name}"

    def block(self, block: Block) -> None:
        """Print the ops of a block; runs of ops for one lane of a whole warp share one `if`."""
        ops = list(block.ops)
        while ops:
            run = self.leading_run(ops)
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

    def leading_run(self, ops: list[Operation]) -> int:
        if self.elected:
            return 0
        single = (hopper.TmaLoadOp, hopper.ExpectOp, hopper.ArriveOp)
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

    def need(self, name: str) -> str:
        self.used.add(name)
        return name

    def call(self, function: str, *arguments: str) -> None:
        self.used.add(function.split("<")[0])
        self.out.line(f"{function}({', '.join(arguments)});")

    # Roles and loops

    def roles(self, op: hopper.RolesOp) -> None:
        self.first_warp, head, total = 0, "if", _int(self.kernel.threads) // 32
        for role in op.body.block.ops:
            assert isinstance(role, hopper.WarpgroupsOp)
            end = self.first_warp + _int(role.number) * WARPS_PER_GROUP
            with self.out.block(f"{head} (warp < {end})" if end < total else "else" if head != "if" else ""):
                if role.body.block.args:
                    group = f"warp / {WARPS_PER_GROUP}"
                    first = self.first_warp // WARPS_PER_GROUP
                    name = self.out.name(role.body.block.args[0])
                    if any(True for _ in role.body.block.args[0].uses):
                        self.out.line(f"const int {name} = {group}{f' - {first}' if first else ''};")
                self.block(role.body.block)
            self.first_warp, head = end, "else if"

    def warp(self, op: hopper.WarpOp) -> None:
        only = " && lane == 0" if op.elected is not None else ""
        self.elected = op.elected is not None
        with self.out.block(f"if (warp == {self.first_warp + _int(op.index)}{only})"):
            self.block(op.body.block)
        self.elected = False

    def tiles(self, op: hopper.TilesOp) -> None:
        tile, (cluster_m, cluster_n) = self.kernel.tile, self.cluster
        along_m = "true" if op.raster.data is RasterName.ALONG_M else "false"
        arguments = f"{tile.m.data}, {tile.n.data}, {cluster_m}, {cluster_n}, N, {_int(op.group)}, {along_m}"
        m = next(a for a in self.kernel.body.block.args if str(a.type) == "i32")
        rank = "rank" if cluster_m * cluster_n > 1 else "0"
        with self.out.block(
            f"for ({self.need('Tiles')}<{arguments}> tiles({self.out[m]}); !tiles.done(); tiles.next())"
        ):
            row, column = (self.out.name(a) for a in op.body.block.args)
            if any(True for a in op.body.block.args for _ in a.uses):
                self.out.line(f"int {row}, {column};")
                self.out.line(f"tiles.origin({rank}, {row}, {column});")
            self.block(op.body.block)

    def k_blocks(self, op: hopper.KBlocksOp) -> None:
        self.out.lines.append("#pragma unroll 1")
        last = _int(op.last)
        with self.out.scope():
            k = self.out.name(op.body.block.args[0])
        with self.out.block(f"for (int {k} = {_int(op.first)}; {k} < {last}; ++{k})"):
            self.block(op.body.block)

    def setmaxnreg(self, op: hopper.SetMaxRegistersOp) -> None:
        self.call(f"setmaxnreg_{'dec' if op.grow is None else 'inc'}<{_int(op.registers)}>")

    def constant(self, op: ConstantOp) -> None:
        value = op.value
        if isinstance(value, FloatAttr) or not isinstance(value, IntegerAttr):
            raise UnsupportedError("GMR-U001", "a constant that is not an integer in a hopper kernel")
        self.out.alias(op.result, str(value.value.data))

    # Storage

    def storage(self, op: hopper.RingOp | hopper.StagingOp | hopper.BarriersOp) -> None:
        self.out.line(f"const u32 {self.out.name(op.result)} = {_plus('smem', _int(op.offset))};")

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

    def slot(self, ring: SSAValue, cursor: SSAValue, *more: str) -> str:
        """Address of the slot at a cursor, plus byte offsets."""
        type_ = ring.type
        assert isinstance(type_, hopper.RingType)
        return " + ".join([self.out[ring], f"{self.out[cursor]}.stage * {type_.slot_bytes}", *(m for m in more if m)])

    def barrier(self, op: Any) -> str:
        """Address of the barrier that an op acts on."""
        type_ = op.barriers.type
        assert isinstance(type_, hopper.BarriersType)
        stages, groups = type_.dims
        parts = [self.out[op.barriers]]
        if stages > 1:
            parts.append(f"{self.out[op.cursor]}.stage * {8 * groups}")
        if op.group is not None and groups > 1:
            group = self.out[op.group]
            parts.append(str(int(group) * 8) if group.isdigit() else f"{group} * 8")
        return " + ".join(part for part in parts if part != "0")

    # Barriers

    def init_barriers(self, op: hopper.InitBarriersOp) -> None:
        with self.out.block("if (threadIdx.x == 0)"):
            for value in op.barriers:
                owner = value.owner
                if not isinstance(owner, hopper.BarriersOp):
                    raise UnsupportedError("GMR-U001", "barriers that hopper.barriers did not make")
                stages, groups = owner.result.type.dims
                init = f"{self.need('mbarrier_init')}({self.out[value]} + i * 8, {_int(owner.arrivals)});"
                self.out.line(f"for (int i = 0; i < {stages * groups}; ++i) {init}")
            self.call("fence_mbarrier_init")

    def wait(self, op: hopper.WaitOp) -> None:
        wait = f"{self.need('mbarrier_wait')}({self.barrier(op)}, {self.out[op.cursor]}.parity);"
        if op.unless_last is None:
            return self.out.line(wait)
        loop = _enclosing(op, hopper.KBlocksOp)
        k = self.out[loop.body.block.args[0]]
        self.out.line(f"if ({k} + 1 < {_int(loop.last)} || !tiles.last()) {wait}")

    def acquire(self, op: hopper.AcquireOp) -> None:
        self.call("mbarrier_wait", self.barrier(op), f"{self.out[op.cursor]}.parity ^ 1")

    def arrive(self, op: hopper.ArriveOp) -> None:
        self.call("mbarrier_arrive", self.barrier(op))

    def expect(self, op: hopper.ExpectOp) -> None:
        self.call("mbarrier_expect", self.barrier(op), str(_int(op.bytes)))

    def release(self, op: hopper.ReleaseOp) -> None:
        peers = _int(op.peers)
        if peers == 1:
            return self.out.line(f"if (lane == 0) {self.need('mbarrier_arrive')}({self.barrier(op)});")
        self.out.line(f"if (lane < {peers}) {self.need('mbarrier_arrive_peer')}({self.barrier(op)}, lane);")

    def turn(self, op: hopper.TakeTurnOp | hopper.PassTurnOp, call: str) -> None:
        only = "" if op.only is None else f"if ({self.out[op.group]} == {_int(op.only)}) "
        self.out.line(f"{only}{call};")

    def take_turn(self, op: hopper.TakeTurnOp) -> None:
        self.turn(op, f"{self.need('named_barrier_sync')}(1 + {self.out[op.group]}, {TURN_THREADS})")

    def pass_turn(self, op: hopper.PassTurnOp) -> None:
        following = f"({self.out[op.group]} + 1) % {_int(op.groups)}"
        self.turn(op, f"{self.need('named_barrier_arrive')}(1 + {following}, {TURN_THREADS})")

    # Loads

    def prefetch_maps(self, op: hopper.PrefetchMapsOp) -> None:
        with self.out.block("if (threadIdx.x == 0)"):
            for value in op.maps:
                self.call("prefetch_tensormap", self.out[value])

    def tma_load(self, op: hopper.TmaLoadOp) -> None:
        row, column = _scaled(self.out[op.row], _int(op.row_step)), _scaled(self.out[op.column], _int(op.column_step))
        box, stages = op.map.type, op.full.type
        assert isinstance(box, hopper.TensorMapType) and isinstance(stages, hopper.BarriersType)
        full = f"{self.out[op.full]} + {self.out[op.cursor]}.stage * {8 * stages.dims[1]}"
        map_ = self.out[op.map]
        if op.multicast is None:
            return self.call("tma_load", self.slot(op.ring, op.cursor), map_, column, row, full)
        cluster_m, cluster_n = self.cluster
        if op.multicast.data is AxisName.M:
            part, ctas = f"rank / {cluster_n}", sum(1 << (i * cluster_n) for i in range(cluster_m))
            mask = f"{ctas} << rank % {cluster_n}" if cluster_n > 1 else str(ctas)
        else:
            part, ctas = f"rank % {cluster_n}", (1 << cluster_n) - 1
            mask = f"{ctas} << rank / {cluster_n} * {cluster_n}" if cluster_m > 1 else str(ctas)
        rows, bytes_ = box.dims[0], box.dims[0] * box.dims[1] * box.element_bytes
        part = part.removesuffix(" / 1")
        if " " in part:
            part = f"({part})"
        destination = self.slot(op.ring, op.cursor, f"{part} * {bytes_}")
        self.call("tma_load_multicast", destination, map_, column, f"{row} + {part} * {rows}", full, mask)

    def fetch_scales(self, op: hopper.FetchScalesOp) -> None:
        column, k, steps = self.out[op.column], self.out[op.k], _int(op.steps)
        pointer, stride_k, stride_n = self.out[op.pointer], self.out[op.stride_k], self.out[op.stride_n]
        self.out.line(f"const int column = {column} + lane * {_int(op.step)};")
        load = f"__ldg({pointer} + {k} * {stride_k} + column / 128 * {stride_n})"
        self.out.line(f"const float {self.out.name(op.result)} = lane < {steps} && column < N ? {load} : 0.f;")

    def put_scales(self, op: hopper.PutScalesOp) -> None:
        store = self.need("store_shared_f32")
        slot = self.slot(op.ring, op.cursor, "lane * 4")
        self.out.line(f"if (lane < {_int(op.steps)}) {store}({slot}, {self.out[op.value]});")

    # Arithmetic

    def zero(self, op: hopper.ZeroOp) -> None:
        for fragment in op.fragments:
            self.call("zero", self.out[fragment])

    def load_scales(self, op: hopper.LoadScalesOp) -> None:
        group = self.out[op.group]
        first = f"{group} * {_int(op.group_rows)} + " if _int(op.group_rows) else ""
        rows = self.slot(op.rows, op.cursor, f"({first}warp % {WARPS_PER_GROUP} * 16 + lane / 4) * 4")
        steps = self.slot(op.steps, op.cursor, f"{group} * {_int(op.group_steps) * 4}" if _int(op.group_steps) else "")
        self.out.line(f"{self.out[op.scales]}.load({rows}, {steps});")

    def multiply(self, op: hopper.WgmmaOp) -> None:
        fragment = op.fragment.type
        assert isinstance(fragment, hopper.FragmentType)
        wanted = (_dtype(op.a), _dtype(op.b), fragment.dims[1])
        if self.wgmma not in (None, wanted):
            raise UnsupportedError("GMR-U001", "WGMMAs of two shapes in one kernel")
        self.wgmma = wanted
        self.need("wgmma_descriptor")
        group, row_bytes = self.out[op.group], 128

        def rows(first: int, per_group: int) -> list[str]:
            parts = [f"{group} * {per_group * row_bytes}"] if per_group else []
            return parts + ([str(first * row_bytes)] if first else [])

        a = self.slot(op.a, op.cursor, *rows(_int(op.a_row), _int(op.a_group_rows)))
        b = self.slot(op.b, op.cursor, *rows(0, _int(op.b_group_rows)))
        fresh = "false" if op.fresh is None else "true"
        self.out.line(f"multiply<{fresh}>({self.out[op.fragment]}, {a}, {b});")

    def wgmma_wait(self, op: hopper.WgmmaWaitOp) -> None:
        self.call(f"wgmma_wait<{_int(op.pending)}>")
        for fragment in op.fragments:
            self.call("settled", self.out[fragment])

    def promote(self, op: hopper.PromoteOp) -> None:
        scales = self.out[op.scales]
        self.call(
            f"promote<{_int(op.step)}>",
            *(self.out[op.total], self.out[op.partial], f"{scales}.row[{_int(op.wave)}]", f"{scales}.step"),
        )

    # The way out

    def stage_fragment(self, op: hopper.StageFragmentOp) -> None:
        staging, owner = op.staging.type, op.staging.owner
        assert isinstance(staging, hopper.StagingType)
        if not isinstance(owner, hopper.StagingOp):
            raise UnsupportedError("GMR-U001", "a staging area that hopper.staging did not make")
        self.need({"bf16": "pack_bf16", "f16": "pack_f16"}[str(staging.element)])
        row = " + ".join(filter(None, [str(_int(op.row)) if _int(op.row) else "", f"warp % {WARPS_PER_GROUP} * 16"]))
        _, rows, columns = staging.dims
        base = f"{self.out[op.staging]} + {self.out[op.group]} * {_int(owner.pitch)}"
        for chunk in store_chunks(columns, rows, staging.element_bytes):
            shape = f"{chunk.first // 2}, {chunk.columns}, {chunk.swizzle.row_shift}, {chunk.swizzle.row_mask}"
            self.call(f"stage_columns<{shape}>", self.out[op.fragment], _plus(base, chunk.offset), row)

    def tma_store(self, op: hopper.TmaStoreOp) -> None:
        row, column = _plus(self.out[op.row], _int(op.row_offset)), _plus(self.out[op.column], _int(op.column_offset))
        source = _plus(self.out[op.staging], _int(op.offset))
        self.call("tma_store_if", f"{column} < N", self.out[op.map], column, row, source)


def _enclosing(op: Operation, kind: type[hopper.KBlocksOp]) -> hopper.KBlocksOp:
    parent = op.parent_op()
    while parent is not None and not isinstance(parent, kind):
        parent = parent.parent_op()
    if parent is None:
        raise UnsupportedError("GMR-U001", f"{op.name} outside {kind.name}")
    return parent


def _scaled(value: str, factor: int) -> str:
    return value if factor == 1 else f"{value} * {factor}"


def _plus(value: str, offset: int) -> str:
    return f"{value} + {offset}" if offset else value


def _after_indent(line: str, text: str) -> str:
    body = line.lstrip()
    return line[: len(line) - len(body)] + text + body
