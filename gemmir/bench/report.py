"""What was measured, as data that survives as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gemmir.bench.between import Step, steps
from gemmir.bench.cases import Case
from gemmir.bench.floor import flops
from gemmir.bench.grouped import AnyCase, case_from
from gemmir.bench.timing import Timing

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class PeerResult:
    """A peer's times for a case, or why there are none."""

    timing: Timing | None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class GraphTimes:
    """
    Times of one of `layers` layers back to back in a CUDA graph, in microseconds: gemmir's, and each peer's by name.

    `weights`: how many different weights the layers take in turn, of `weight_bytes` in all; one each if memory allows.
    `overlap`: times where a layer may start while the one before ends; None where the kernel does not wait by itself.
    Nothing is timed where the last layer's result was wrong, which `fault` then tells.
    """

    layers: int
    weights: int
    weight_bytes: int
    plain: Timing | None
    overlap: Timing | None
    fault: str = ""
    peers: dict[str, PeerResult] = field(default_factory=dict[str, PeerResult])

    def ratio(self, peer: str, overlap: bool = False) -> float | None:
        """The peer's time over gemmir's, plain or with overlap; None where either has none."""
        found, ours = self.peers.get(peer), self.overlap if overlap else self.plain
        if ours is None or found is None or found.timing is None:
            return None
        return found.timing.us / ours.us


@dataclass(frozen=True, slots=True)
class Row:
    """
    One case: gemmir's kernel (`entry`, and its `schedule` as IR text), its times, and those of each peer by name.

    `timing` is None where the result was wrong, which `fault` then tells. `floor_us`: see `gemmir.bench.floor`. `graph`
    is there where layers in a graph were asked for.
    """

    case: AnyCase
    entry: str
    schedule: str
    floor_us: float | None
    timing: Timing | None
    fault: str = ""
    peers: dict[str, PeerResult] = field(default_factory=dict[str, PeerResult])
    graph: GraphTimes | None = None

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with results of this row, alone and in a graph; such are not timed."""
        alone = (self.fault,) if self.timing is None else ()
        return alone if self.graph is None or self.graph.plain is not None else (*alone, self.graph.fault)

    def ratio(self, peer: str, hot: bool = False) -> float | None:
        """The peer's time over gemmir's, above 1 where gemmir is faster; None where either has none."""
        found = self.peers.get(peer)
        if self.timing is None or found is None or found.timing is None:
            return None
        if not hot:
            return found.timing.us / self.timing.us
        ours, theirs = self.timing.hot_us, found.timing.hot_us
        return None if ours is None or theirs is None else theirs / ours

    @property
    def worst_ratio(self) -> float | None:
        """Against the fastest peer."""
        ratios = [ratio for peer in self.peers if (ratio := self.ratio(peer)) is not None]
        return min(ratios, default=None)

    @property
    def times_floor(self) -> float | None:
        return None if self.timing is None or self.floor_us is None else self.timing.us / self.floor_us

    @property
    def tflops(self) -> float | None:
        if self.timing is None:
            return None
        return flops(self.case) / self.timing.us / 1e6


@dataclass(frozen=True, slots=True)
class Calibration:
    """A peer's times for a case that is the same in every run: how fast this machine is today."""

    case: Case
    peer: str
    result: PeerResult


@dataclass(frozen=True, slots=True)
class Report:
    """
    `machine`: device and versions; `method`: how it was measured; both for people and by name. `date`: ISO, UTC.

    `calibration`: measured where no row has such a time of its own, that is, with groups.
    """

    date: str
    machine: dict[str, str]
    method: dict[str, int | float | bool | str]
    rows: tuple[Row, ...]
    calibration: Calibration | None = None

    @property
    def between(self) -> list[Step]:
        """Rows against the next one above, where there are such, the dearest first (see `gemmir.bench.between`)."""
        return steps(self.rows)

    def to_json(self) -> str:
        """Every field, and `between`, which follows from the rows."""
        derived = {"between": [step.as_json() for step in self.between]}
        return json.dumps({"schema": SCHEMA, **asdict(self), **derived}, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Report:
        """Rebuild a report; `ValueError`, `KeyError` or `TypeError` if `text` is not one."""
        data: dict[str, Any] = json.loads(text)
        if data.pop("schema") != SCHEMA:
            raise ValueError("report of another schema")
        data.pop("between", None)
        rows = tuple(_row(row) for row in data.pop("rows"))
        return Report(rows=rows, calibration=_calibration(data.pop("calibration", None)), **data)


def _row(data: dict[str, Any]) -> Row:
    peers = {name: _peer_result(result) for name, result in data.pop("peers").items()}
    timing, graph = _timing(data.pop("timing")), _graph(data.pop("graph", None))
    return Row(case=case_from(data.pop("case")), timing=timing, peers=peers, graph=graph, **data)


def _graph(data: dict[str, Any] | None) -> GraphTimes | None:
    if data is None:
        return None
    peers = {name: _peer_result(result) for name, result in data.pop("peers").items()}
    plain, overlap = _timing(data.pop("plain")), _timing(data.pop("overlap"))
    return GraphTimes(plain=plain, overlap=overlap, peers=peers, **data)


def _calibration(data: dict[str, Any] | None) -> Calibration | None:
    return None if data is None else Calibration(Case(**data["case"]), data["peer"], _peer_result(data["result"]))


def _peer_result(data: dict[str, Any]) -> PeerResult:
    return PeerResult(_timing(data["timing"]), data["refused"])


def _timing(data: dict[str, Any] | None) -> Timing | None:
    return None if data is None else Timing(tuple(map(tuple, data["series"])), data["hot_us"])


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """Wrong results, then the lowest ratio to the fastest peer; without any, farthest from the floor first."""

    def key(row: Row) -> tuple[bool, float, float]:
        ratio = math.inf if row.worst_ratio is None else row.worst_ratio
        return (not row.faults, ratio, -(row.times_floor or 0.0))

    return sorted(rows, key=key)
