"""
`hopper-check-sync`: prove that a kernel neither hangs nor races, or refuse it.

It changes nothing and has no options. docs/proof.md says what is proven, and what is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gemmir.dialects.hopper import KernelOp
from gemmir.passes.sync.check import check_kernel


@dataclass(frozen=True)
class HopperCheckSyncPass(ModulePass):
    """Raise `SyncError` (GMR-Y001) for a kernel whose synchronisation cannot be proven."""

    name = "hopper-check-sync"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for child in op.body.block.ops:
            if isinstance(child, KernelOp):
                check_kernel(child)
