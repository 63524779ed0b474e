"""
What a launcher must know about a compiled kernel, as plain data that survives as JSON.

A manifest is read off the hopper IR once, stored beside the cubin, and is all that a later process needs: it imports
neither xDSL nor the passes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from gemmir.problem import GROUP_ALIGNMENT, Grouping
from gemmir.records import dataclass
from gemmir.target import balanced_clusters, columns_of_tiles

SCHEMA = 4


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """
    A tensor that the kernel takes or returns: one argument of the IR function, or its result.

    `shape` is that of the mathematics (A: M x K, B: K x N; of rank 3 with groups first) with None where M stands;
    `dtype` MLIR's name. `order` lists the dimensions from slowest to fastest in memory: (0, 1) is row-major, (1, 0)
    what `w.t()` gives.
    `free_strides`: any strides will do (the kernel takes them as parameters) and `order` says nothing.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    order: tuple[int, ...]
    free_strides: bool = False


@dataclass(frozen=True, slots=True)
class TensorMapParam:
    """
    A `__grid_constant__` tensor map over tensor `tensor` (index into inputs, -1 for the output).

    `box` is (columns, rows): elements along the fastest dimension, then along the next; one group's. `swizzle` is the
    span in bytes, 16 for none. `addend`: the tensor is operand C, each tile of which is read before that of the output
    is written; so the output may be this very tensor.
    """

    tensor: int
    box: tuple[int, int]
    swizzle: int
    addend: bool = False
    kind: str = "tensor_map"


@dataclass(frozen=True, slots=True)
class PointerParam:
    """The address of `tensor` (index into inputs, -1 for the output)."""

    tensor: int
    kind: str = "pointer"


@dataclass(frozen=True, slots=True)
class StrideParam:
    """Stride of `tensor` along `dimension`, in elements, as int64."""

    tensor: int
    dimension: int
    kind: str = "stride"


@dataclass(frozen=True, slots=True)
class RowsParam:
    """M as int32."""

    kind: str = "rows"


@dataclass(frozen=True, slots=True)
class OverlapsParam:
    """1 as int32 if the launch overlaps with that of the kernel before on the stream, else 0."""

    kind: str = "overlaps"


@dataclass(frozen=True, slots=True)
class SeedParam:
    """The seed of the delays of a kernel under chaos, as uint32."""

    kind: str = "seed"


Param = TensorMapParam | PointerParam | StrideParam | RowsParam | OverlapsParam | SeedParam
_PARAMS: dict[str, type[Param]] = {
    "tensor_map": TensorMapParam,
    "pointer": PointerParam,
    "stride": StrideParam,
    "rows": RowsParam,
    "overlaps": OverlapsParam,
    "seed": SeedParam,
}


@dataclass(frozen=True, slots=True)
class GridRule:
    """
    How many CTAs a call with M rows gets where `resident` clusters run at once:

        tall = ceil(M / rows) * repeats + extra, if extra > 0 at most M
        tiles = tall * columns
        clusters = min(resident, tiles); if balanced, ceil(tiles / ceil(tiles / resident))
        grid = clusters * cluster_ctas
    """

    rows: int
    repeats: int
    extra: int
    columns: int
    cluster_ctas: int
    balanced: bool

    def tiles(self, m: int) -> int:
        """Cluster tiles that there can be."""
        tall = -(-m // self.rows) * self.repeats + self.extra
        return (min(m, tall) if self.extra else tall) * self.columns

    def ctas(self, m: int, resident: int) -> int:
        """CTAs to launch where `resident` clusters run at once."""
        tiles = self.tiles(m)
        clusters = balanced_clusters(tiles, resident) if self.balanced else min(resident, tiles)
        return clusters * self.cluster_ctas


@dataclass(frozen=True, slots=True)
class Manifest:
    """
    One kernel: its entry point, its parameters in order, and how to launch it.

    The grid is `min(co-resident clusters, cluster tiles) * cluster CTAs`, where a cluster tile covers
    `block_m * cluster_m` rows and `block_n * cluster_n` columns of the M x N output, or `tail_n` columns behind
    `tail_after` columns of tiles; if `balanced`, the fewest clusters
    that need as many rounds. `threads` per CTA. With a `grouping` (see `gemmir.problem.Grouping`; "none" for one
    product) of `groups` groups the number of tiles is known on the device only, and the grid has CTAs for as many as
    there can be.
    """

    name: str
    """The function's name in the IR, for people; never printed into CUDA source."""
    entry: str
    target: str
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    params: tuple[Param, ...]
    n: int
    k: int
    block_m: int
    block_n: int
    cluster_m: int
    cluster_n: int
    threads: int
    shared_bytes: int
    balanced: bool
    schedule: str
    """The schedule as IR text, for people."""
    decisions: tuple[str, ...] = ()
    grouping: str = "none"
    groups: int = 1
    split_k: int = 1
    """CTAs that compute a tile together, each a part of K."""
    tail_n: int = 0
    tail_after: int = 0
    """Behind so many columns of tiles, they are `tail_n` columns wide; 0: nowhere."""
    waits: bool = False
    """Whether the kernel itself waits for those before it, so that it may be started while they end."""

    @property
    def cluster_ctas(self) -> int:
        """CTAs of a cluster."""
        return self.cluster_m * self.cluster_n * self.split_k

    @property
    def grid_rule(self) -> GridRule:
        """The rule of the grid as numbers; a kernel of several groups balances its tiles itself."""
        rows, width = self.block_m * self.cluster_m, self.block_n * self.cluster_n
        columns, extra = sum(columns_of_tiles(self.n, width, self.tail_n, self.tail_after)), 0
        if self.grouping == Grouping.OFFS.value:
            repeats, extra = 1, 2 * self.groups  # each group's first and last rows may fill only part of a tile
        elif self.grouping == Grouping.GROUP_IDS.value:
            rows, repeats = GROUP_ALIGNMENT, -(-GROUP_ALIGNMENT // rows)
        else:
            repeats = 1 if self.grouping == Grouping.NONE.value else self.groups
        balanced = self.balanced and self.grouping == Grouping.NONE.value
        return GridRule(rows, repeats, extra, columns, self.cluster_ctas, balanced)

    def most_cluster_tiles(self, m: int) -> int:
        """Cluster tiles that a call with this M can have: how many there are, where one product is computed."""
        return self.grid_rule.tiles(m)

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Rebuild a manifest; `ValueError`, `KeyError` or `TypeError` if `text` is not one."""
        data: dict[str, Any] = json.loads(text)
        if data.pop("schema") != SCHEMA:
            raise ValueError("manifest of another schema")
        data["inputs"] = tuple(_tensor(t) for t in data["inputs"])
        data["output"] = _tensor(data["output"])
        data["params"] = tuple(_param(p) for p in data["params"])
        data["decisions"] = tuple(data["decisions"])
        return Manifest(**data)


def _tensor(data: dict[str, Any]) -> TensorSpec:
    data = {**data, "shape": tuple(data["shape"]), "order": tuple(data["order"])}
    return TensorSpec(**data)


def _param(data: dict[str, Any]) -> Param:
    if "box" in data:
        data = {**data, "box": tuple(data["box"])}
    return _PARAMS[data["kind"]](**data)
