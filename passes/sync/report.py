"""How a fault is told: the rule, both events with role, stage, trip and place in the IR, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from xdsl.dialects.builtin import FileLineColLoc
from xdsl.ir import Operation

from gemmir.errors import SourceLocation, SyncError

RULES: dict[str, str] = {
    "R0": "every agent reaches its end",
    "R1": "no wait can miss its phase: whoever waits for a phase is through before the next one completes",
    "R1a": "no wait can pass two phases early",
    "R2": "every arrival belongs to one phase only: it comes after the phase before is complete",
    "R3": "arrivals and bytes of every phase are exactly those that its barrier counts",
    "R4": "named barriers are met by the same number of threads, round after round",
    "R5": "of two accesses to the same bytes, one of them a write, the first is done before the second begins",
    "R5a": "registers of a WGMMA in flight are left alone, and fenced before they are handed to one",
    "R6": "between an ordinary access and one by TMA or WGMMA to the same bytes, one of the threads fences the proxies",
    "R7": "barriers are initialised before anybody uses them, and share their bytes with nothing",
    "R8": "no CTA ends, nor is one touched by a peer, while it may not be there",
}
"""What is proven, by the number that docs/proof.md gives it."""


@dataclass(frozen=True)
class Fault:
    """One breach of a rule. `events` are the ones concerned, as text; `missing` is what would put it right."""

    rule: str
    what: str
    missing: str
    events: tuple[str, ...] = ()
    op: Operation | None = None


def place_of(op: Operation | None) -> SourceLocation | None:
    """Where an op was in IR text, if it came from there."""
    if op is None or not isinstance(at := op.location, FileLineColLoc):
        return None
    return SourceLocation(at.filename.data, at.line.data, at.column.data)


def place_text(op: Operation) -> str:
    at = place_of(op)
    return op.name if at is None else f"{op.name} at {at.file}:{at.line}:{at.column}"


def to_error(kernel: str, faults: Sequence[Fault], trips: Sequence[int] = ()) -> SyncError:
    """The first fault in full, and how many more there are."""
    first = faults[0]
    lines = [f"{kernel}: {first.what}"]
    lines += [f"  {text}" for text in first.events]
    if trips:
        lines.append(f"  in a run with {' + '.join(map(str, trips))} k-blocks")
    if len(faults) > 1:
        others = dict.fromkeys(f.rule for f in faults[1:])
        lines.append(f"  and {len(faults) - 1} more faults ({', '.join(others)})")
    return SyncError(
        "GMR-Y001",
        "\n".join(lines),
        rule=f"{first.rule}: {RULES[first.rule]}",
        fix=first.missing,
        location=place_of(first.op),
    )


class Refusal(Exception):
    """Carries a fault that ends the check at once."""

    def __init__(self, fault: Fault):
        super().__init__(fault.what)
        self.fault = fault


def refuse(rule: str, what: str, missing: str, op: Operation | None) -> NoReturn:
    """Give up on a kernel: nothing can be proven of it."""
    raise Refusal(Fault(rule, what, missing, () if op is None else (place_text(op),), op))
