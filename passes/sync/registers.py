"""setmaxnreg: a warpgroup that asks for more registers than are free waits for ever (R0)."""

from __future__ import annotations

from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number
from gemmir.passes.sync.report import refuse
from gemmir.target import SM_90A, launch_registers


def check_registers(kernel: hopper.KernelOp) -> None:
    """All warpgroups together keep to what the CTA got at launch, and none shrinks to more."""
    threads = number(kernel.threads)
    at_launch = launch_registers(threads)
    total = 0
    for op in kernel.body.walk():
        if not isinstance(op, hopper.WarpgroupsOp):
            continue
        settings = [child for child in op.body.block.ops if isinstance(child, hopper.SetMaxRegistersOp)]
        if len(settings) > 1:
            refuse("R0", "setmaxnreg twice in one role", "set the registers once", settings[1])
        registers = number(settings[0].registers) if settings else at_launch
        if settings and settings[0].grow is None and registers > at_launch:
            refuse("R0", f"setmaxnreg shrinks {at_launch} registers to {registers}", "grow to more", settings[0])
        total += number(op.number) * SM_90A.warpgroup_threads * registers
    available = threads * at_launch
    if total > available:
        refuse(
            "R0",
            f"warpgroups ask for {total} registers of {available}: setmaxnreg never returns",
            "give them fewer registers, as gemmir.target.setmaxnreg_split does",
            kernel,
        )
