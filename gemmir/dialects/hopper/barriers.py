"""How the roles of a hopper kernel wait for one another."""

from __future__ import annotations

from typing import ClassVar

from xdsl.dialects.builtin import IndexType, UnitAttr
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, opt_prop_def, prop_def, var_operand_def
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects.hopper.base import NATURAL, POSITIVE, HopperOperation
from gemmir.dialects.hopper.control import TilesOp, enclosing
from gemmir.dialects.hopper.types import BarriersType, CursorType
from gemmir.target import SM_90A

TURN_THREADS = 2 * SM_90A.warpgroup_threads
"""A turn is passed between two warpgroups."""


@irdl_op_definition
class InitBarriersOp(HopperOperation):
    """One thread initialises these barriers and fences, so that TMA and the cluster may use them after a sync."""

    name = "hopper.init_barriers"
    barriers = var_operand_def(BarriersType)
    assembly_format = "$barriers attr-dict `:` type($barriers)"


@irdl_op_definition
class CtaSyncOp(HopperOperation):
    """All threads of the CTA meet."""

    name = "hopper.cta_sync"
    assembly_format = "attr-dict"


@irdl_op_definition
class ClusterSyncOp(HopperOperation):
    """
    All threads of the cluster meet.

    Orders nothing in memory but what `init_barriers` fenced, unless it is a `release`: then what a thread did before
    has reached its peers after. At the end that keeps a CTA alive until all signals to it have arrived.
    """

    name = "hopper.cluster_sync"
    release = opt_prop_def(UnitAttr)
    assembly_format = "(`release` $release^)? attr-dict"


class OnBarrier(HopperOperation):
    """An op on barrier [stage of `cursor`, `group`] (group 0 if absent)."""

    barriers = operand_def(BarriersType)
    cursor = operand_def(CursorType)
    group = opt_operand_def(IndexType)

    BARRIER: ClassVar[str] = "$barriers `[` $cursor (`,` $group^)? `]`"
    TYPES: ClassVar[str] = " attr-dict `:` type($barriers) `,` type($cursor)"

    def verify_(self) -> None:
        barriers, cursor = self.barriers.type, self.cursor.type
        if not isinstance(barriers, BarriersType) or not isinstance(cursor, CursorType):
            return
        if barriers.dims[0] != cursor.dims[0]:
            raise VerifyException(f"{barriers} is indexed by a cursor of {cursor.dims[0]} stages")


@irdl_op_definition
class WaitOp(OnBarrier):
    """
    Wait until the phase at the cursor has completed (a consumer's wait).

    `of_peer`: it is a signal of the CTA that sums the other part of K, and what that did before is seen. `unless_last`:
    not in the last k-block of this CTA's last tile, where nothing more will come. Outside a loop over
    k-blocks it stands in a tile's last one.
    """

    name = "hopper.wait"
    unless_last = opt_prop_def(UnitAttr)
    of_peer = opt_prop_def(UnitAttr)
    assembly_format = OnBarrier.BARRIER + " (`of_peer` $of_peer^)? (`unless_last` $unless_last^)?" + OnBarrier.TYPES

    def verify_(self) -> None:
        super().verify_()
        if self.unless_last is not None and enclosing(self, TilesOp) is None:
            raise VerifyException("hopper.wait unless_last stands in hopper.tiles: elsewhere there is no last tile")


@irdl_op_definition
class AcquireOp(OnBarrier):
    """Wait until the phase before the one at the cursor has completed (a producer's wait; passes at first)."""

    name = "hopper.acquire"
    assembly_format = OnBarrier.BARRIER + OnBarrier.TYPES


@irdl_op_definition
class ArriveOp(OnBarrier):
    """One arrival per warp, by its first lane."""

    name = "hopper.arrive"
    assembly_format = OnBarrier.BARRIER + OnBarrier.TYPES


def writers(rank: int, cluster_m: int, cluster_n: int) -> tuple[int, ...]:
    """Ranks of the CTAs of a cluster that load for CTA `rank`, itself included: those of its row, then its column."""
    row, column = divmod(rank, cluster_n)
    others = (i * cluster_n + column for i in range(cluster_m) if i != row)
    return (*(row * cluster_n + j for j in range(cluster_n)), *others)


@irdl_op_definition
class ReleaseOp(OnBarrier):
    """
    One arrival per warp on this barrier of each of the `peers` CTAs of the cluster that write here, this one included:
    those of its row and its column (see `writers`).
    """

    name = "hopper.release"
    peers = prop_def(POSITIVE)
    assembly_format = OnBarrier.BARRIER + " `peers` $peers" + OnBarrier.TYPES


@irdl_op_definition
class ExpectOp(OnBarrier):
    """
    One arrival that also makes the phase wait for `bytes` from TMA.

    Last in a stage, after a `sync_warp`: it publishes what the warp's lanes stored before.
    """

    name = "hopper.expect"
    bytes = prop_def(POSITIVE)
    assembly_format = OnBarrier.BARRIER + " `bytes` $bytes" + OnBarrier.TYPES


@irdl_op_definition
class TakeTurnOp(HopperOperation):
    """Wait for this warpgroup's turn to issue (named barrier 1 + group). `only`: just the warpgroup of that number."""

    name = "hopper.take_turn"
    group = operand_def(IndexType)
    groups = prop_def(POSITIVE)
    only = opt_prop_def(NATURAL)
    assembly_format = "$group `of` $groups (`only` $only^)? attr-dict"


@irdl_op_definition
class PassTurnOp(HopperOperation):
    """Let the next warpgroup issue (arrive at its named barrier). `only`: just the warpgroup of that number."""

    name = "hopper.pass_turn"
    group = operand_def(IndexType)
    groups = prop_def(POSITIVE)
    only = opt_prop_def(NATURAL)
    assembly_format = "$group `of` $groups (`only` $only^)? attr-dict"


@irdl_op_definition
class SyncWarpOp(HopperOperation):
    """The lanes of a warp meet, and see what the others did before."""

    name = "hopper.sync_warp"
    assembly_format = "attr-dict"


@irdl_op_definition
class FenceProxyAsyncOp(HopperOperation):
    """Order this thread's ordinary shared-memory accesses before later ones by TMA or WGMMA."""

    name = "hopper.fence_proxy_async"
    assembly_format = "attr-dict"
