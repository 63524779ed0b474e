"""Measurements as data: which kernel took how long on which GPU. Kept as JSON, a point a line, beside this file."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from gemmir.bench.cases import Case, program_text
from gemmir.dialects.gemm import problem_of, schedule_of, the_matmul
from gemmir.ir_text import parse_module
from gemmir.problem import GemmProblem
from gemmir.schedule import Evict, Family, Schedule

HERE = Path(__file__).parent
FILES = tuple(
    HERE / f"{name}.json"
    for name in (
        *("h200", "h200-gaps", "h100-raster", "h200-slots", "h200-choices", "h200-scales", "h200-drawn"),
        *("h100-tiles-rows", "h200-tiles-rows"),
    )
)
"""
All that the committed constants are fitted to: a menu of schedules, what fills its gaps, orders of tiles, who fills in
scales and slices of columns, what was then ranked first, scales of whole tiles at once, what was ranked first after
that for 30 products that were drawn and for the dense table, and what is chosen for the products of 136 to 256 rows of
`STREAM_FILES`.
"""

STREAM_FILES = tuple(
    HERE / f"{name}.json" for name in ("h100-stream", "h100-stream-rows", "h200-stream", "h200-stream-rows")
)
"""
What the constants of the family for few rows are fitted to: a menu of schedules up to 128 rows, and what the model
ranks first for 136 to 256.
"""

SCALES_FILE = HERE / "h200-scales.json"

TILES_ROWS_FILES = FILES[-2:]
"""What is chosen of the other family for the same products of 136 to 256 rows."""

OLDER = {"balanced": False, "scale_batch": 1, "scale_slots": 0, "tail_n": 0, "tail_after": 0}
"""What kernels did before a schedule could say it; for measurements that are older than these choices."""

OLDER_HINTS = {Family.TILES: Evict.NEITHER, Family.STREAM: Evict.WEIGHTS}
"""The same, of each family."""


@dataclass(frozen=True, slots=True)
class Point:
    """A product, and what stands between the brackets of its `schedule <...>`."""

    case: Case
    schedule: str

    def __str__(self) -> str:
        return f"{self.case}: {self.schedule}"

    def parsed(self) -> tuple[GemmProblem, Schedule]:
        """What the cost model takes; `GemmirError` if it is no legal schedule of the product."""
        case = self.case
        problem, schedule = _parsed(case.n, case.k, case.dtype, self.schedule, case.split_k)
        return replace(problem, expected_m=case.m), schedule


@cache
def _parsed(n: int, k: int, dtype: str, schedule: str, split_k: int) -> tuple[GemmProblem, Schedule]:
    matmul = the_matmul(parse_module(program_text(n, k, dtype, schedule, split_k)))
    return problem_of(matmul), schedule_of(matmul)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The microseconds of a point's kernel, median of several launches with a cold L2; its schedule is complete."""

    point: Point
    us: float

    def parsed(self) -> tuple[GemmProblem, Schedule]:
        """As of the point, with what was not a choice yet."""
        return _filled(self.point)


@cache
def _filled(point: Point) -> tuple[GemmProblem, Schedule]:
    problem, schedule = point.parsed()
    assert schedule.family is not None, point
    return problem, schedule.filled(evict=OLDER_HINTS[schedule.family], **OLDER)


@dataclass(frozen=True, slots=True)
class Series:
    """
    What was measured in one go on one GPU.

    `device` is the driver's name, `method` how time was taken, `versions` of what it depends on. `peers` are
    microseconds of cuBLAS (FP8: one scale per tensor), by which the same shapes on two machines can be compared.
    """

    device: str
    method: str
    versions: dict[str, str]
    peers: dict[Case, float]
    measurements: tuple[Measurement, ...]


def write(series: Series) -> str:
    """As JSON, one peer and one point a line, so that a diff shows which changed."""
    head = {"device": series.device, "method": series.method, "versions": series.versions}
    peers = [json.dumps(_case(case) | {"us": _rounded(us)}) for case, us in series.peers.items()]
    points = [
        json.dumps(_case(m.point.case) | {"us": _rounded(m.us), "schedule": m.point.schedule})
        for m in series.measurements
    ]
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    return "{\n" + ",\n".join([*lines, _list("peers", peers), _list("points", points)]) + "\n}\n"


def _list(name: str, lines: list[str]) -> str:
    inside = ",\n".join(f"    {line}" for line in lines)
    return f'  "{name}": [\n{inside}\n  ]' if lines else f'  "{name}": []'


def _case(case: Case) -> dict[str, object]:
    sizes: dict[str, object] = {"dtype": case.dtype, "m": case.m, "n": case.n, "k": case.k}
    return sizes | ({"split_k": case.split_k} if case.split_k > 1 else {})


def _rounded(us: float) -> float:
    """Two places: 10 ns, less than two launches differ by."""
    return round(us, 2)


def read(text: str) -> Series:
    """What `write` wrote."""
    raw = json.loads(text)
    peers = {_case_of(line): float(line["us"]) for line in raw["peers"]}
    measurements = tuple(Measurement(Point(_case_of(line), line["schedule"]), line["us"]) for line in raw["points"])
    return Series(raw["device"], raw["method"], raw["versions"], peers, measurements)


def _case_of(line: dict[str, object]) -> Case:
    m, n, k = (int(str(line[name])) for name in ("m", "n", "k"))
    return Case(str(line["dtype"]), m, n, k, int(str(line.get("split_k", 1))))


def load(paths: tuple[Path, ...] = FILES) -> list[Series]:
    return [read(path.read_text()) for path in paths]
