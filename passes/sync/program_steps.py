"""What the code of a role is made of: steps that become events, moves of cursors, and the loops around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gemmir.dialects import hopper
from gemmir.passes.sync.events import Event

ANY_K_BLOCKS = 1 << 10
"""k-blocks of a tile, as far as a loop over a number that is not known ends before them."""

STEADY = 0
"""Number of the cursor that never moves: for ops without one."""


@dataclass(slots=True, eq=False)
class Step:
    """An op whose event depends on where cursor number `cursor` is, modulo `period`."""

    cursor: int
    period: int
    build: Callable[[int], Event]
    unless_last: bool = False
    made: list[Event | None] = field(default_factory=list[Event | None])

    def __post_init__(self) -> None:
        self.made = [None] * self.period

    def make(self, at: int) -> Event:
        event = self.made[at] = self.build(at)
        return event


@dataclass(frozen=True, slots=True)
class Move:
    """Put cursor `target` `by` positions after cursor `source`."""

    target: int
    source: int
    by: int


@dataclass(frozen=True, slots=True)
class Loop:
    """`hopper.k_blocks`."""

    op: hopper.KBlocksOp
    first: int
    last: int
    step: int
    body: Sequence[Step | Move | Loop | Tiles]


@dataclass(frozen=True, slots=True)
class Tiles:
    """`hopper.tiles`."""

    body: Sequence[Step | Move | Loop | Tiles]
    tail: bool


Steps = list[Step | Move | Loop | Tiles]
