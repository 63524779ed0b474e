"""Faults of the narrower tiles of the last columns, which have a loop of their own in every role."""

from __future__ import annotations

from gemmir.dialects import hopper
from tests.sabotage.fault import Collection
from tests.sabotage.kernels import Ir, all_of, change, erase, get, move_before, one, put

TAIL = Collection()
fault = TAIL.add

KERNELS = ("fp8-tail", "fp8-tail-turns", "bf16-tail")


@fault(*KERNELS, rule="R0")
def tail_not_loaded(ir: Ir) -> None:
    """The producer leaves the narrower tiles out."""
    erase(one(ir.producer, hopper.TilesOp, 1))


@fault(*KERNELS, rule="R0")
def tail_not_sent(ir: Ir) -> None:
    """The store thread leaves the narrower tiles out."""
    erase(one(ir.store, hopper.TilesOp, 1))


@fault(*KERNELS, rule="R0")
def tail_announced_as_wide(ir: Ir) -> None:
    """The producer announces the bytes of a wide tile for a narrower one."""
    wide, narrow = all_of(ir.producer, hopper.ExpectOp)
    put(narrow, "bytes", get(wide, "bytes"))


@fault("fp8-tail", "fp8-tail-turns", rule="R8")
def wave_in_vain_never_settles(ir: Ir) -> None:
    """The wave that is multiplied in vain behind the wide tiles is not waited for."""
    tail = all_of(ir.math, hopper.TilesOp)[1]
    (wait,) = [op for op in all_of(ir.math, hopper.WgmmaWaitOp) if op.parent_block() is tail.parent_block()]
    erase(wait)


@fault("fp8-tail", "fp8-tail-turns", rule="R5")
@fault("bf16-tail", rule="R0")
def tail_not_awaited(ir: Ir) -> None:
    """The first k-block of a narrower tile is not waited for."""
    erase(one(one(ir.math, hopper.TilesOp, 1), hopper.WaitOp))


@fault("fp8-tail", "fp8-tail-turns", rule="R0")
def tail_behind_the_last_told_before(ir: Ir) -> None:
    """The last k-block of a narrower tile is waited for as if there were one after it."""
    loop = one(one(ir.math, hopper.TilesOp, 1), hopper.KBlocksOp)
    put(loop, "last", get(loop, "last") + 1)


@fault(*KERNELS, caught_by="simulator")
def tail_loaded_first(ir: Ir) -> None:
    """The producer loads the narrower tiles before the wide ones."""
    wide, narrow = all_of(ir.producer, hopper.TilesOp)
    move_before(narrow, wide)


@fault(*KERNELS, caught_by="simulator")
def tail_staged_as_wide(ir: Ir) -> None:
    """The boxes of a narrower tile are sent from where a wide one's would lie."""
    for store in all_of(one(ir.store, hopper.TilesOp, 1), hopper.TmaStoreOp):
        put(store, "column_offset", get(store, "column_offset") + 16)


@fault("fp8-tail", "bf16-tail", caught_by="verifier")
def tail_staged_in_wide_rows(ir: Ir) -> None:
    """Narrower rows are staged in an area of wide ones."""
    for stage in all_of(one(ir.math, hopper.TilesOp, 1), hopper.StageFragmentOp):
        change(stage, ir.storage("staging_tail"), ir.storage("staging"))
