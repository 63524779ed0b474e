"""
Rows between those of a table, each against the next one above: a row more must not cost more than all up to there.

Compared are dense products of 33 to 63 rows with those of 64, and of 65 to 127 rows with those of 128, where a report
has both for the same N, K, type and parts of K, so that both were timed in one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gemmir.bench.cases import Case

if TYPE_CHECKING:
    from gemmir.bench.report import Row

KINDS = ("cold", "hot", "graph", "overlap")
"""The times that a row may have: alone with a cold L2, back to back, and in a graph without and with overlap."""

STEPS = ((33, 64), (65, 128))
"""First row that is compared, and the one above."""


@dataclass(frozen=True, slots=True)
class Step:
    """
    A case, `above` it the one of more rows, and by kind of time (`KINDS`) the microseconds of both.

    Kinds that either has no time of are not there.
    """

    case: Case
    above: Case
    times: dict[str, tuple[float, float]]

    def ratio(self, kind: str) -> float | None:
        """Its time over that of the case above: more than 1 where fewer rows cost more. None without both times."""
        if (found := self.times.get(kind)) is None:
            return None
        mine, above = found
        return mine / above

    def as_json(self) -> dict[str, object]:
        ratios = {kind: mine / above for kind, (mine, above) in self.times.items()}
        return {"case": str(self.case), "above": str(self.above), "us": self.times, "ratios": ratios}


def above(m: int) -> int | None:
    """The rows that `m` rows are compared with; None for others than 33 to 63 and 65 to 127."""
    return next((last for first, last in STEPS if first <= m < last), None)


def steps(rows: Sequence[Row]) -> list[Step]:
    """All that `rows` have, the highest ratio first: by the time with a cold L2."""
    known = {row.case: row for row in rows if isinstance(row.case, Case)}
    found: list[Step] = []
    for case, row in known.items():
        more = above(case.m)
        other = None if more is None else known.get(replace(case, m=more))
        if other is None or not isinstance(other.case, Case):
            continue
        mine, theirs = dict(_times(row)), dict(_times(other))
        if times := {kind: (mine[kind], theirs[kind]) for kind in KINDS if kind in mine and kind in theirs}:
            found.append(Step(case, other.case, times))
    return sorted(found, key=lambda step: -(step.ratio(KINDS[0]) or 0.0))


def _times(row: Row) -> Iterator[tuple[str, float]]:
    """Medians in microseconds, by kind."""
    if row.timing is not None:
        yield "cold", row.timing.us
        if row.timing.hot_us is not None:
            yield "hot", row.timing.hot_us
    if row.graph is not None and row.graph.plain is not None:
        yield "graph", row.graph.plain.us
        if row.graph.overlap is not None:
            yield "overlap", row.graph.overlap.us
