"""
What ptxas said about a kernel, and when that means it must not run.

ptxas calls serialised WGMMA, an ignored setmaxnreg and register spills "info" and succeeds. Each costs a large part of
the speed, so each fails the compilation here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gemmir.backends.cuda.nvrtc import readable_log
from gemmir.errors import CompileError

_COMPLAINT = re.compile(r"^.*\bC75\d\d\b.*$", re.MULTILINE)
_CODE = re.compile(r"\bC75\d\d\b")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(.*)")
_BARRIERS = re.compile(r"used (\d+) barriers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True)
class Resources:
    """
    What one thread (registers, spills, stack) and one block (shared memory, named barriers) of a kernel use.

    `registers` is what the block is launched with, before setmaxnreg. `shared_bytes` is static shared memory.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack_bytes: int
    shared_bytes: int
    barriers: int


def read_log(log: str) -> Resources:
    """
    The resources that the log of `--ptxas-options=-v` reports, the most of any kernel in it.

    `CompileError` (GMR-C002) if it reports none: a scan that sees nothing has proven nothing.
    """
    used = _USED.findall(log)
    frames = [tuple(map(int, frame)) for frame in _FRAME.findall(log)]
    if not used or not frames:
        raise CompileError(
            "GMR-C002",
            "the compiler's log reports no resource usage",
            rule="a kernel is accepted only after its registers and spills were read",
            fix="compile with --ptxas-options=-v",
        )
    return Resources(
        registers=max(int(count) for count, _ in used),
        spill_stores=max(frame[1] for frame in frames),
        spill_loads=max(frame[2] for frame in frames),
        stack_bytes=max(frame[0] for frame in frames),
        shared_bytes=max(_number(_SHARED, rest) for _, rest in used),
        barriers=max(_number(_BARRIERS, rest) for _, rest in used),
    )


def check_log(log: str, may_spill: bool = False) -> Resources:
    """
    The resources of a kernel that may run.

    `CompileError` (GMR-C002) if ptxas reported any of C7508 to C7520 (WGMMA serialised, waits injected, setmaxnreg
    ignored), spilled registers or gave threads a stack. `may_spill`: kernels that look for faults, under chaos or with
    a watchdog, need registers for it and are in no hurry.
    """
    if complaints := _COMPLAINT.findall(log):
        codes = ", ".join(sorted({code for line in complaints for code in _CODE.findall(line)}))
        raise CompileError(
            "GMR-C002",
            f"ptxas reported {codes}\n" + readable_log("\n".join(dict.fromkeys(complaints))),
            rule="WGMMA runs asynchronously and setmaxnreg takes effect",
            fix="use a smaller block_m or block_n",
        )
    found = read_log(log)
    if not may_spill and (found.spill_stores or found.spill_loads or found.stack_bytes):
        raise CompileError(
            "GMR-C002",
            f"ptxas spilled: {found.spill_stores} bytes stored, {found.spill_loads} bytes loaded, "
            f"{found.stack_bytes} bytes of stack a thread, at {found.registers} registers",
            rule="a kernel keeps everything in registers",
            fix="use a smaller block_m or block_n, or more math_warpgroups",
        )
    return found


def _number(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    return 0 if found is None else int(found.group(1))
