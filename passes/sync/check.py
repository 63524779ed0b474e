"""The check itself: every trace of a kernel run and judged."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterable
from contextlib import contextmanager

from gemmir.dialects import hopper
from gemmir.passes.sync.execute import Machine
from gemmir.passes.sync.exits import check_exits
from gemmir.passes.sync.extract import Program, program
from gemmir.passes.sync.registers import check_registers
from gemmir.passes.sync.report import Fault, Refusal, to_error
from gemmir.passes.sync.rules import check_end
from gemmir.passes.sync.traces import Trips


def check_kernel(kernel: hopper.KernelOp, traces: Iterable[Trips] | None = None, *, split_warps: bool = False) -> None:
    """
    Prove the synchronisation of a kernel, or raise `SyncError` (GMR-Y001).

    `traces` are the runs to look at, each the k-blocks of a CTA's tiles; by default those that stand for all.
    `split_warps` looks at the first warp of a math warpgroup apart from the rest: slower, and finds the same.
    """
    name = f"@{kernel.sym_name.data[:60]}"
    try:
        with _without_collection():
            check_registers(kernel)
            check_exits(kernel)
            made = program(kernel, split_warps)
            for trips in made.traces if traces is None else traces:
                for wide in made.wide(trips):
                    if faults := faults_of(made, trips, wide):
                        raise to_error(name, faults, trips)
    except Refusal as refusal:
        raise to_error(name, [refusal.fault]) from None


def faults_of(made: Program, trips: Trips, wide: int | None = None) -> list[Fault]:
    """What is wrong in one run; `wide`: how many of its tiles come before those of the tail (default: all)."""
    machine = Machine(made.roles(trips, wide), len(made.memory.names))
    finished = machine.run()
    if finished or not machine.faults:
        check_end(machine, finished)
    return machine.faults


@contextmanager
def _without_collection() -> Generator[None]:
    """A check makes many objects and drops them all: collecting meanwhile would walk the whole heap for nothing."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
