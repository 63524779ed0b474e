"""
Shared memory cut into the parts that matter: bytes which exactly the same ops touch are one part.

An op touches spans of bytes; where spans overlap, they share parts. So buffers that alias need no special case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gemmir.passes.sync.events import Span


@dataclass
class MemoryMap:
    """Collects spans with `add`; after `cut`, `parts` says what each one is made of."""

    spans: set[Span] = field(default_factory=set[Span])
    parts_of: dict[Span, tuple[int, ...]] = field(default_factory=dict[Span, tuple[int, ...]])
    names: list[Span] = field(default_factory=list[Span])
    """By part: bytes that it holds, the first of possibly many pieces."""

    def add(self, spans: Iterable[Span]) -> None:
        self.spans.update(spans)

    def cut(self) -> None:
        """Give every span its parts."""
        starts: dict[int, list[Span]] = {}
        ends: dict[int, list[Span]] = {}
        for span in self.spans:
            starts.setdefault(span[0], []).append(span)
            ends.setdefault(span[1], []).append(span)
        parts: dict[Span, list[int]] = {span: [] for span in self.spans}
        known: dict[frozenset[Span], int] = {}
        live: set[Span] = set()
        places = sorted(starts.keys() | ends.keys())
        for place, following in zip(places, [*places[1:], places[-1] if places else 0], strict=True):
            live.difference_update(ends.get(place, ()))
            live.update(starts.get(place, ()))
            if live and (members := frozenset(live)) not in known:
                known[members] = len(self.names)
                self.names.append((place, following))
                for span in live:
                    parts[span].append(known[members])
        self.parts_of = {span: tuple(found) for span, found in parts.items()}

    def parts(self, spans: Sequence[Span]) -> tuple[int, ...]:
        if len(spans) == 1:
            return self.parts_of[spans[0]]
        return tuple(dict.fromkeys(part for span in spans for part in self.parts_of[span]))


def joined(spans: Iterable[Span]) -> list[Span]:
    """The bytes of all `spans`, as spans that do not overlap."""
    found: list[Span] = []
    for low, high in sorted(spans):
        if found and low < found[-1][1]:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


def overlapping(named: Sequence[tuple[Span, str]]) -> tuple[tuple[Span, str], tuple[Span, str]] | None:
    """Two of these spans that overlap, or None."""
    ordered = sorted(named)
    for one, following in pairwise(ordered):
        if following[0][0] < one[0][1]:
            return one, following
    return None
