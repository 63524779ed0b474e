"""The error of a device that this process has lost: what CUDA said, what kernels reported, what was launched last."""

from __future__ import annotations

from gemmir.backends.cuda import recent, watchdog
from gemmir.errors import DeviceLostError

NOT_OF_A_KERNEL = frozenset({214, 220, 226, 709, 810, 911})
"""Errors of memory, of links and of other devices, and of a context or an MPS client that somebody ended."""


def lost_device(status: int, what: str) -> DeviceLostError:
    """The error for CUDA's `status`, which `what` names; GMR-D010 if a watchdog barked, else GMR-D004 or GMR-D007."""
    launches = recent.lines()
    if status in NOT_OF_A_KERNEL:
        return DeviceLostError(
            "GMR-D007",
            "\n".join([what, *launches]),
            rule="after a fault of the hardware or the end of its context, a process cannot use the device any more",
            fix="restart the process; if it comes again, look for Xid errors in dmesg and in nvidia-smi -q",
        )
    if barks := watchdog.barks():
        return DeviceLostError(
            "GMR-D010",
            "\n".join([what, *barks, *launches]),
            rule="no wait inside a kernel lasts longer than the limit of its watchdog",
            fix="restart the process; if the kernel is only slow (a debugger, a shared GPU), set a higher limit; else "
            "report it, with `gemmir compile --emit hopper,cuda`",
        )
    return DeviceLostError(
        "GMR-D004",
        "\n".join([what, *launches]),
        rule="after a fault in any kernel of this process, the device refuses all further work of it",
        fix="restart the process; find the faulty kernel with compute-sanitizer",
    )
