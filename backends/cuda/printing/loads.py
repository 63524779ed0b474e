"""Prints how operands and scales reach shared memory."""

from __future__ import annotations

from gemmir.backends.cuda.printing.base import Printing, plus
from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number
from gemmir.dialects.hopper.types import AxisName, EvictName

EVICT = {EvictName.FIRST: "EVICT_FIRST", EvictName.LAST: "EVICT_LAST"}


class PrintsLoads(Printing):
    """How operands and scales reach shared memory."""

    def prefetch_maps(self, op: hopper.PrefetchMapsOp) -> None:
        with self.out.block("if (threadIdx.x == 0)"):
            for value in op.maps:
                self.call("prefetch_tensormap", self.out[value])

    def tma_load(self, op: hopper.TmaLoadOp) -> None:
        row, column = scaled(self.out[op.row], number(op.row_step)), scaled(self.out[op.column], number(op.column_step))
        box, stages = op.map.type, op.full.type
        assert isinstance(box, hopper.TensorMapType) and isinstance(stages, hopper.BarriersType)
        full = f"{self.out[op.full]} + {self.out[op.cursor]}.stage * {8 * stages.dims[1]}"
        map_ = self.out[op.map]
        rows, bytes_ = box.dims[0], box.dims[0] * box.dims[1] * box.element_bytes
        panel = 0 if op.panel is None else number(op.panel)
        inside = str(panel * bytes_) if panel else ""
        column = plus(column, panel * box.dims[1])
        hint = "" if op.evict is None else f"_hinted<{EVICT[op.evict.data]}>"
        if op.multicast is None and op.group is not None:
            slot = self.slot(op.ring, op.cursor, inside)
            return self.call(f"tma_load_of_group{hint}", slot, map_, column, row, self.out[op.group], full)
        if op.multicast is None:
            return self.call(f"tma_load{hint}", self.slot(op.ring, op.cursor, inside), map_, column, row, full)
        cluster_m, cluster_n = self.cluster
        if op.multicast.data is AxisName.M:
            part, ctas = f"rank / {cluster_n}", sum(1 << (i * cluster_n) for i in range(cluster_m))
            mask = f"{ctas} << rank % {cluster_n}" if cluster_n > 1 else str(ctas)
        else:
            part, ctas = f"rank % {cluster_n}", (1 << cluster_n) - 1
            mask = f"{ctas} << rank / {cluster_n} * {cluster_n}" if cluster_m > 1 else str(ctas)
        part = part.removesuffix(" / 1")
        if " " in part:
            part = f"({part})"
        boxes = op.boxes(op.sharing(cluster_m, cluster_n))
        destination = self.slot(op.ring, op.cursor, f"{part} * {boxes * bytes_}", inside)
        if op.panel is None:
            row = f"{row} + {part} * {rows}"
        else:
            column = f"{column} + {part} * {boxes * box.dims[1]}"
        if op.group is None:
            return self.call("tma_load_multicast", destination, map_, column, row, full, mask)
        self.call("tma_load_multicast_of_group", destination, map_, column, row, self.out[op.group], full, mask)

    def tma_prefetch(self, op: hopper.TmaPrefetchOp) -> None:
        row, column = scaled(self.out[op.row], number(op.row_step)), scaled(self.out[op.column], number(op.column_step))
        self.call("tma_prefetch", self.out[op.map], column, row)

    def block_ahead(self, op: hopper.BlockAheadOp) -> None:
        self.out.alias(op.result, f"({self.out[op.k]} + {number(op.ahead)})")

    def group_block(self, op: hopper.GroupBlockOp) -> None:
        self.out.line(f"const int {self.out.name(op.result)} = {self.out[op.first]} + {self.out[op.k]};")

    def group_pointer(self, op: hopper.GroupPointerOp) -> None:
        pointer, group, stride = self.out[op.pointer], self.out[op.group], self.out[op.stride]
        self.out.line(f"const auto {self.out.name(op.result)} = {pointer} + {group} * {stride};")

    def fetch_scales(self, op: hopper.FetchScalesOp) -> None:
        column, k, steps = self.out[op.column], self.out[op.k], number(op.steps)
        pointer, stride_k, stride_n = self.out[op.pointer], self.out[op.stride_k], self.out[op.stride_n]
        self.out.line(f"const int column = {column} + lane * {number(op.step)};")
        load = f"__ldg({pointer} + {k} * {stride_k} + column / 128 * {stride_n})"
        self.out.line(f"const float {self.out.name(op.result)} = lane < {steps} && column < N ? {load} : 0.f;")

    def start_scales(self, op: hopper.StartScalesOp) -> None:
        blocks, lanes = op.result.type.dims
        pointer, stride_k, stride_n = self.out[op.pointer], self.out[op.stride_k], self.out[op.stride_n]
        step = f" + lane % {lanes} * {number(op.step)}" if lanes > 1 else ""
        self.out.line(f"const int column = {self.out[op.column]}{step};")
        name, type_ = self.out.name(op.result), f"{self.need('ScaleBatch')}<{blocks}, {lanes}>"
        part = "" if op.in_part is None else f"rank * {number(op.blocks)} * {stride_k} + "
        scale = f"{pointer} + {part}column / 128 * {stride_n}"
        self.out.line(f"{type_} {name}(column < N, {scale}, {stride_k}, {number(op.blocks)});")

    def next_scales(self, op: hopper.NextScalesOp) -> None:
        self.out.line(f"const float {self.out.name(op.result)} = {self.out[op.batch]}.at({self.out[op.k]});")

    def copy_scales(self, op: hopper.CopyScalesOp) -> None:
        ring = op.ring.type
        assert isinstance(ring, hopper.RingType)
        _, rows, columns = ring.dims
        where = self.out[op.first], str(number(op.blocks)), self.out[op.column], "N"
        strides = self.out[op.stride_k], self.out[op.stride_n]
        shape = f"{rows}, {columns}, {number(op.step)}"
        self.call(f"copy_scales<{shape}>", self.slot(op.ring, op.cursor), self.out[op.pointer], *where, *strides)

    def put_scales(self, op: hopper.PutScalesOp) -> None:
        store = self.need("store_shared_f32")
        slot = self.slot(op.ring, op.cursor, "lane * 4")
        self.out.line(f"if (lane < {number(op.steps)}) {store}({slot}, {self.out[op.value]});")


def scaled(value: str, factor: int) -> str:
    return value if factor == 1 else f"{value} * {factor}"
