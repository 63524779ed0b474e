"""
How a GEMM is computed: the choices that passes make, and the rules that they must obey.

`Schedule` holds the choices; None means "still open". Each rule of the hardware is one predicate in `RULES`, used by
the verifier (which raises on a violation) and by the search (which drops the candidate) alike.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum


class Family(Enum):
    """
    Kernel family; both are persistent and warp-specialised, and compute one output tile at a time.

    - `tiles`: rows of A are the 64-row side of WGMMA, columns of B its N side.
    - `stream`: the other way round (swap_ab), for few rows: weights, 64 columns of B at a time, pass by a narrow N side
      of `block_m` rows of A, so that neither tensor cores nor shared memory are spent on rows that are not there.
    """

    TILES = "tiles"
    STREAM = "stream"


class Split(Enum):
    """How a tile is divided among the math warpgroups."""

    ALONG_M = "m"
    ALONG_N = "n"


class RasterAxis(Enum):
    """Tiles are visited in groups of `raster_group` tile rows (along_m) or tile columns (along_n)."""

    ALONG_M = "along_m"
    ALONG_N = "along_n"


class Evict(Enum):
    """
    Whose lines leave L2 first where others need the room: the cache hints of the producer's loads.

    What was written to L2 before, and would have to go to DRAM to make room, stays there as long as lines may leave.

    - `neither`: no hints.
    - `weights`: those of B leave first, those of A last.
    - `both`: those of A and B leave first.
    """

    NEITHER = "neither"
    WEIGHTS = "weights"
    BOTH = "both"


MAY_BE_NONE = ("tail_n", "tail_after", "scale_slots")
"""Choices of which 0 says that there are none."""

SCALES_OF_TILE = -1
"""As `scale_slots`, `tile` in IR text: the scales of all k-blocks of a tile are loaded at once, apart from the ring."""


def least(choice: str) -> int:
    """The least number that a choice may be, where it is one."""
    return SCALES_OF_TILE if choice == "scale_slots" else 0 if choice in MAY_BE_NONE else 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """
    The decisions for one kernel; None where none has been made.

    Blocks are in elements. `cluster_m` x `cluster_n` CTAs form a cluster; the CTAs along M share B by multicast, those
    along N share A.

    - `turns`: the math warpgroups issue their WGMMAs strictly in turn.
    - `promote_chunk`: k-blocks that a math warpgroup takes at a time, two of them in flight; 1: one after another, the
      next tile's first one included.
    - `tail_n`, `tail_after`: the columns behind so many columns of tiles are computed in tiles of `tail_n` columns,
      narrower than `block_n`, after all others: then the last round of tiles is a short one. Both 0: there are none.
    - `balanced`: no more clusters than the rounds of tiles need.
    - `scale_batch`: k-blocks whose weight scales one load of the producer fetches.
    - `scale_slots`: a warp of its own fills so many slots of the ring with scales at a time; `SCALES_OF_TILE`: it loads
      those of a whole tile at once, and slots have none; 0: the producer warp loads them with the operands.
    - `store_slices`: parts in which a warpgroup's tile leaves; each is staged in the same shared memory, once the one
      before has left.
    """

    family: Family | None = None
    block_m: int | None = None
    block_n: int | None = None
    block_k: int | None = None
    math_warpgroups: int | None = None
    split: Split | None = None
    turns: bool | None = None
    promote_chunk: int | None = None
    cluster_m: int | None = None
    cluster_n: int | None = None
    tail_n: int | None = None
    tail_after: int | None = None
    raster_axis: RasterAxis | None = None
    raster_group: int | None = None
    evict: Evict | None = None
    balanced: bool | None = None
    scale_batch: int | None = None
    scale_slots: int | None = None
    store_slices: int | None = None
    num_stages: int | None = None

    @property
    def has_tail(self) -> bool:
        """Whether the last columns are computed in narrower tiles."""
        return bool(self.tail_n)

    @property
    def complete(self) -> bool:
        return not self.open_fields

    @property
    def open_fields(self) -> tuple[str, ...]:
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is None)

    def filled(self, **choices: object) -> Schedule:
        """A copy in which open fields take `choices`; what is fixed stays."""
        return replace(self, **{k: v for k, v in choices.items() if getattr(self, k) is None})
