"""
`gemm-lower-to-hopper`: build the kernel that a complete schedule describes.

It decides nothing: every choice is in the schedule, and an open one is an error. The function is replaced by one
`hopper.kernel` of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.passes import ModulePass
from xdsl.rewriter import Rewriter

from gemmir.dialects.gemm import problem_of, schedule_of, the_matmul
from gemmir.dialects.hopper import KernelOp
from gemmir.errors import ScheduleError
from gemmir.legality import check_schedule
from gemmir.passes import PASSES
from gemmir.passes.lowering.kernel import build_kernel
from gemmir.passes.lowering.plan import Plan


@dataclass(frozen=True)
class GemmLowerToHopperPass(ModulePass):
    """Replace the function by the kernel that its schedule describes."""

    name = "gemm-lower-to-hopper"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        if any(isinstance(child, KernelOp) for child in op.body.block.ops):
            return
        matmul = the_matmul(op)
        problem, schedule = problem_of(matmul), schedule_of(matmul)
        if not schedule.complete:
            raise ScheduleError(
                "GMR-S005",
                f"the schedule leaves {', '.join(schedule.open_fields)} open",
                rule="lowering decides nothing",
                fix=f"run {','.join(PASSES[: PASSES.index(self.name)])} first",
            )
        check_schedule(problem, schedule)
        func = matmul.parent_op()
        assert func is not None
        name = func.properties["sym_name"]
        assert isinstance(name, StringAttr)
        kernel = build_kernel(Plan.of(problem, schedule), matmul, name.data)
        for nested in kernel.walk():
            nested.location = matmul.location
        Rewriter.replace_op(func, kernel, [])
