"""A report as text: a table for each element type and form of groups, worst row first, then what it comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import geometric_mean

from gemmir.bench.report import Calibration, Report, Row, worst_first
from gemmir.bench.timing import Timing

NOTHING = "-"


def table(report: Report) -> str:
    """The whole report, for a terminal."""
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    method = ", ".join(f"{name} {value}" for name, value in report.method.items())
    parts = [f"{machine}\n{method}\n{report.date}\n"]
    if report.calibration is not None:
        parts.append(calibration(report.calibration))
    for kind in dict.fromkeys(row.case.kind for row in report.rows):
        parts.append(section(kind, worst_first([row for row in report.rows if row.case.kind == kind])))
    return "\n".join(parts)


def calibration(found: Calibration) -> str:
    timing = found.result.timing
    time = f"refused: {found.result.refused}" if timing is None else f"{timing.us:.2f} us"
    return f"calibration: {found.peer} at {found.case}: {time}\n"


def section(kind: str, rows: Sequence[Row]) -> str:
    """The rows of one kind of case, in this order."""
    peers = list(dict.fromkeys(name for row in rows for name in row.peers))
    hot = any(row.timing is not None and row.timing.hot_us is not None for row in rows)
    lines = [header(rows[0].case.dimensions, peers, hot), *(cells(row, peers, hot) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [f"{kind}: microseconds; ratios are a peer's time over gemmir's, above 1 where gemmir is faster"]
    text += ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
    return "\n".join([*text, *summary(rows, peers, hot), *notes(rows)]) + "\n"


def header(dimensions: str, peers: Sequence[str], hot: bool) -> list[str]:
    found = [dimensions, "gemmir", *(["hot"] if hot else []), "TFLOP/s", "floor", "x floor"]
    for peer in peers:
        found += [peer, "ratio", *(["hot", "ratio"] if hot else [])]
    return [*found, "kernel"]


def cells(row: Row, peers: Sequence[str], hot: bool) -> list[str]:
    found = [row.case.label, *_times(row.timing, hot), _number(row.tflops, ".0f")]
    found += [_number(row.floor_us, ".1f"), _number(row.times_floor, ".2f")]
    for peer in peers:
        result = row.peers.get(peer)
        times = _times(None if result is None else result.timing, hot)
        for warm, time in zip((False, True), times, strict=False):
            found += [time, _number(row.ratio(peer, warm), ".3f")]
    return [*found, row.entry]


def summary(rows: Sequence[Row], peers: Sequence[str], hot: bool) -> list[str]:
    """A line per peer: its worst row for gemmir and the geometric mean; one for the floor; one for the repeats."""
    found: list[str] = []
    for peer in peers:
        for warm in (False, True) if hot else (False,):
            name = f"{peer}, hot" if warm else peer
            found += _extreme(name, rows, lambda row, peer=peer, warm=warm: row.ratio(peer, warm), min)
    found += _extreme("x floor", rows, lambda row: row.times_floor, max)
    spreads = [row.timing.spread for row in rows if row.timing is not None and len(row.timing.series) > 1]
    if spreads:
        found.append(f"repeats: gemmir's medians of a row are at most {max(spreads):.1%} apart")
    return found


def notes(rows: Sequence[Row]) -> list[str]:
    """Wrong results, and each reason of a refusal once, with how many rows it concerns."""
    found = [f"WRONG RESULT, not timed: {row.case}: {row.fault}" for row in rows if row.timing is None]
    refusals = Counter(
        (name, result.refused) for row in rows for name, result in row.peers.items() if result.timing is None
    )
    return found + [f"{NOTHING} {name}: {reason} (rows: {count})" for (name, reason), count in refusals.items()]


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


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first and the last column to the left, numbers to the right."""
    last = len(line) - 1
    return [
        cell.ljust(width) if column in (0, last) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
