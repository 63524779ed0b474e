"""What the agents of a kernel do, as far as synchronisation goes: one `Event` per op, stage and phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from xdsl.ir import Operation

Span = tuple[int, int]
"""Bytes [low, high) of a CTA's shared memory."""

OUTSIDE = -1
"""The trip of an event outside the loops."""

OWN = (-1,)
"""Instead of ranks: the CTA itself."""

_TRIP_BITS = 16


class Kind(IntEnum):
    """The kinds of events, in the order of `execute`'s handlers."""

    INIT = 0
    WAIT = 1
    ARRIVE = 2
    TMA_LOAD = 3
    READ = 4
    WRITE = 5
    FENCE_PROXY = 6
    SYNC_WARP = 7
    WGMMA_FENCE = 8
    WGMMA = 9
    WGMMA_COMMIT = 10
    WGMMA_WAIT = 11
    REGISTERS = 12
    TMA_STORE = 13
    STORE_COMMIT = 14
    STORE_WAIT = 15
    BAR_SYNC = 16
    BAR_ARRIVE = 17
    MEET_CTA = 18
    MEET_CLUSTER = 19
    SEND = 20


@dataclass(slots=True, eq=False)
class Event:
    """
    One thing that an agent does. Which fields mean something follows from `kind`.

    `stage` is that of its cursor (-1: none). `barrier` is the shared-memory address of an mbarrier, or the number of a
    named barrier. `amount` counts arrivals a warp, or threads of a named barrier, or groups that may stay in flight.
    `parts` are the parts of shared memory that it touches (see `Memory`), `ranks` the CTAs that it reaches.
    """

    kind: Kind
    op: Operation
    stage: int = -1
    barrier: int = -1
    parity: int = 0
    amount: int = 1
    nbytes: int = 0
    parts: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    fragments: tuple[int, ...] = ()
    of_peer: bool = False
    """A signal that another CTA's ordinary accesses rely on, or the wait for one."""
    barriers: tuple[tuple[int, int], ...] = ()
    """`INIT`: address and arrivals of each barrier."""


@dataclass(slots=True, eq=False)
class Trace:
    """The events of one role in one CTA, and in which tile and k-block each one happens."""

    events: list[Event] = field(default_factory=list[Event])
    trips: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True, eq=False)
class Role:
    """
    Warps of one CTA that run the same code.

    `warps` of them; `elected`: one thread only.
    """

    name: str
    warps: int
    elected: bool
    trace: Trace


def trip(tile: int, k_block: int) -> int:
    """Tile and k-block in one number."""
    return (tile << _TRIP_BITS) | (k_block + 1)


def trip_text(number: int) -> str:
    """`tile 1, k-block 3`, or where else it was."""
    if number == OUTSIDE:
        return "outside the tiles"
    tile, k_block = number >> _TRIP_BITS, (number & ((1 << _TRIP_BITS) - 1)) - 1
    return f"tile {tile}" if k_block < 0 else f"tile {tile}, k-block {k_block}"
