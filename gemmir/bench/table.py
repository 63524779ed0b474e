"""A report as text: a table for each element type and form of groups, worst row first, then what it comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from gemmir.bench.between import KINDS, Step
from gemmir.bench.report import Calibration, GraphTimes, Report, Row, worst_first
from gemmir.bench.timing import Timing
from gemmir.target import SM_90A

NOTHING = "-"
DEARER = (1.0, 1.03)
"""Ratios to the row above beyond which rows are counted: those that cost more, and those that do beyond noise."""
GRAPH_LEGEND = (
    "graph: a layer of many in a captured CUDA graph, each with its own weights; overlap: each may start while the one "
    "before ends"
)


def table(report: Report) -> str:
    """The whole report, for a terminal."""
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    method = ", ".join(f"{name} {value}" for name, value in report.method.items())
    parts = [f"{machine}\n{method}\n{report.date}\n"]
    if report.calibration is not None:
        parts.append(calibration(report.calibration))
    for kind in dict.fromkeys(row.case.kind for row in report.rows):
        parts.append(section(kind, worst_first([row for row in report.rows if row.case.kind == kind])))
    for kind in dict.fromkeys(step.case.kind for step in report.between):
        parts.append(between(kind, [step for step in report.between if step.case.kind == kind]))
    return "\n".join(parts)


def between(kind: str, steps: Sequence[Step]) -> str:
    """Rows of one kind of case against those above them, in this order, then what it comes to by kind of time."""
    times = [name for name in KINDS if any(name in step.times for step in steps)]
    lines = [[steps[0].case.dimensions, *(cell for name in times for cell in (name, "above", "ratio")), "above"]]
    lines += [[step.case.label, *_step(step, times), step.above.label] for step in steps]
    head = f"{kind}, rows between: microseconds; ratios are to the next row above, above 1 where fewer rows cost more"
    return "\n".join([head, *_columns(lines), *(_dearer(name, steps) for name in times)]) + "\n"


def _step(step: Step, times: Sequence[str]) -> list[str]:
    found = [(*step.times.get(name, (None, None)), step.ratio(name)) for name in times]
    return [_number(x, form) for each in found for x, form in zip(each, (".2f", ".2f", ".3f"), strict=True)]


def _dearer(name: str, steps: Sequence[Step]) -> str:
    """The worst row by one kind of time, and how many cost more than the row above them."""
    ratios = [(ratio, step.case.label) for step in steps if (ratio := step.ratio(name)) is not None]
    worst, where = max(ratios)
    counts = ", ".join(f"{sum(ratio > bound for ratio, _ in ratios)} above {bound}" for bound in DEARER)
    return f"{name}: worst {worst:.3f} at {where}; {counts} of {len(ratios)}"


def calibration(found: Calibration) -> str:
    timing = found.result.timing
    time = f"refused: {found.result.refused}" if timing is None else f"{timing.us:.2f} us"
    return f"calibration: {found.peer} at {found.case}: {time}\n"


@dataclass(frozen=True, slots=True)
class Columns:
    """What a table has columns for. `peers`: names; `in_graphs`: those with times in a graph."""

    peers: tuple[str, ...]
    hot: bool
    graph: bool
    in_graphs: frozenset[str]


def columns_of(rows: Sequence[Row]) -> Columns:
    graphs = [row.graph for row in rows if row.graph is not None]
    return Columns(
        tuple(dict.fromkeys(name for row in rows for name in row.peers)),
        any(row.timing is not None and row.timing.hot_us is not None for row in rows),
        bool(graphs),
        frozenset(name for graph in graphs for name in graph.peers),
    )


def section(kind: str, rows: Sequence[Row]) -> str:
    """The rows of one kind of case, in this order."""
    columns = columns_of(rows)
    lines = [header(rows[0].case.dimensions, columns), *(cells(row, columns) for row in rows)]
    text = [f"{kind}: microseconds; ratios are a peer's time over gemmir's, above 1 where gemmir is faster"]
    if columns.graph:
        text.append(GRAPH_LEGEND)
    return "\n".join([*text, *_columns(lines), *summary(rows, columns), *notes(rows)]) + "\n"


def header(dimensions: str, columns: Columns) -> list[str]:
    hot, graph = columns.hot, columns.graph
    found = [dimensions, "gemmir", *(["hot"] if hot else []), *(["graph", "overlap"] if graph else [])]
    found += ["TFLOP/s", "floor", "x floor"]
    for peer in columns.peers:
        found += [peer, "ratio", *(["hot", "ratio"] if hot else [])]
        found += ["graph", "ratio", "overlap ratio"] if peer in columns.in_graphs else []
    return [*found, "kernel"]


def cells(row: Row, columns: Columns) -> list[str]:
    graph = row.graph
    found = [row.case.label, *_times(row.timing, columns.hot)]
    if columns.graph:
        found += [_median(timing) for timing in _own(graph)]
    found += [_number(row.tflops, ".0f"), _number(row.floor_us, ".1f"), _number(row.times_floor, ".2f")]
    for peer in columns.peers:
        result = row.peers.get(peer)
        times = _times(None if result is None else result.timing, columns.hot)
        for warm, time in zip((False, True), times, strict=False):
            found += [time, _number(row.ratio(peer, warm), ".3f")]
        found += _peer_in_graph(graph, peer) if peer in columns.in_graphs else []
    return [*found, row.entry]


def _own(graph: GraphTimes | None) -> tuple[Timing | None, Timing | None]:
    return (None, None) if graph is None else (graph.plain, graph.overlap)


def _peer_in_graph(graph: GraphTimes | None, peer: str) -> list[str]:
    """A peer's time in a graph, and its ratios to gemmir's without and with overlap."""
    if graph is None:
        return [NOTHING] * 3
    result = graph.peers.get(peer)
    ratios = [_number(graph.ratio(peer, overlap), ".3f") for overlap in (False, True)]
    return [_median(None if result is None else result.timing), *ratios]


def summary(rows: Sequence[Row], columns: Columns) -> list[str]:
    """A line per peer and kind of time: worst row for gemmir and geometric mean; one for the floor; one for repeats."""
    found: list[str] = []
    for peer in columns.peers:
        for warm in (False, True) if columns.hot else (False,):
            name = f"{peer}, hot" if warm else peer
            found += _extreme(name, rows, lambda row, peer=peer, warm=warm: row.ratio(peer, warm), min)
        for overlap in (False, True) if peer in columns.in_graphs else ():
            name = f"{peer}, graph{' with overlap' if overlap else ''}"
            found += _extreme(name, rows, lambda row, peer=peer, overlap=overlap: _ratio(row, peer, overlap), min)
    found += _extreme("x floor", rows, lambda row: row.times_floor, max)
    spreads = [row.timing.spread for row in rows if row.timing is not None and len(row.timing.series) > 1]
    if spreads:
        found.append(f"repeats: gemmir's medians of a row are at most {max(spreads):.1%} apart")
    return found


def _ratio(row: Row, peer: str, overlap: bool) -> float | None:
    return None if row.graph is None else row.graph.ratio(peer, overlap)


def notes(rows: Sequence[Row]) -> list[str]:
    """Wrong results, and each reason of a refusal once, with how many rows it concerns."""
    found = [f"WRONG RESULT, not timed: {row.case}: {fault}" for row in rows for fault in row.faults]
    reasons = Counter(reason for row in rows for reason in [*_refusals(row), *_graph_notes(row.graph)])
    return found + [f"{NOTHING} {reason} (rows: {count})" for reason, count in reasons.items()]


def _refusals(row: Row) -> list[str]:
    everyone = [*row.peers.items(), *({} if row.graph is None else row.graph.peers).items()]
    found = [f"{name}: {result.refused}" for name, result in everyone if result.timing is None]
    return list(dict.fromkeys(found))


def _graph_notes(graph: GraphTimes | None) -> list[str]:
    """What the times of a graph do not show by themselves."""
    if graph is None:
        return []
    found: list[str] = []
    if graph.plain is not None and graph.overlap is None:
        found.append("overlap: the kernel does not wait by itself for the one before it")
    if graph.weights < graph.layers:
        found.append(f"graph: memory holds {graph.weights} weights for {graph.layers} layers, which take them in turn")
    if graph.weight_bytes < 2 * SM_90A.l2_bytes:
        found.append("graph: the weights of all layers are less than twice the L2, and may not come from DRAM")
    return found


def _extreme(
    name: str,
    rows: Sequence[Row],
    value: Callable[[Row], float | None],
    worst: Callable[[Sequence[tuple[float, str]]], tuple[float, str]],
) -> list[str]:
    known = [(found, row.case.label) for row in rows if (found := value(row)) is not None]
    if not known:
        return []
    number, where = worst(known)
    mean = geometric_mean([found for found, _ in known])
    return [f"{name}: worst {number:.3f} at {where}, geometric mean {mean:.3f} of {len(known)}"]


def _times(timing: Timing | None, hot: bool) -> list[str]:
    times = [None if timing is None else timing.us]
    if hot:
        times.append(None if timing is None else timing.hot_us)
    return [_number(time, ".2f") for time in times]


def _median(timing: Timing | None) -> str:
    return _number(None if timing is None else timing.us, ".2f")


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of as many cells each, one below the other."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(_aligned(line, widths)).rstrip() for line in lines]


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first and the last column to the left, numbers to the right."""
    last = len(line) - 1
    return [
        cell.ljust(width) if column in (0, last) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
