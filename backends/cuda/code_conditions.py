"""
What machine code may be refused for, by name: for those who ask for it in their builds.

`check_log` refuses spills and a stack already, by the compiler's word; this looks at the instructions as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gemmir.backends.cuda.compiler_log import Resources, read_log
from gemmir.backends.cuda.sass import count_opcodes
from gemmir.errors import CompileError

CONDITIONS = {
    "spill": "registers are spilled",
    "local-memory": "threads have a stack, or load or store local memory",
    "no-wgmma": "no instruction is a WGMMA",
}
"""Name -> what is so where it holds."""

WGMMAS = ("HGMMA", "QGMMA", "IGMMA", "BGMMA")
LOCAL = ("LDL", "STL")
_SMALLER = "use a smaller block_m or block_n, or more math_warpgroups"
_DEFECT = "report this with the program: every kernel of gemmir computes with WGMMA"


def check_conditions(names: Sequence[str], log: str, sass: str) -> None:
    """
    Raise `CompileError` (GMR-C002) for those of `names` (of CONDITIONS) that hold for a kernel.

    `log` is that of the compiler, `sass` what `gemmir.backends.cuda.sass.disassemble` returns.
    """
    used, count = read_log(log), count_opcodes(sass)
    found = {name: found for name in names if (found := _found(name, used, count))}
    if found:
        raise CompileError(
            "GMR-C002",
            "; ".join(f"{name}: {what}" for name, what in found.items()),
            rule="; ".join(f"not wanted: {CONDITIONS[name]}" for name in found),
            fix=_DEFECT if set(found) == {"no-wgmma"} else _SMALLER,
        )


def _found(name: str, used: Resources, count: Counter[str]) -> str:
    """What makes the condition `name` hold; "" if it does not."""
    if name == "spill":
        stored, loaded = used.spill_stores, used.spill_loads
        return f"{stored} bytes stored, {loaded} bytes loaded" if stored or loaded else ""
    if name == "local-memory":
        seen = [f"{count[opcode]} {opcode}" for opcode in LOCAL if count[opcode]]
        return ", ".join([*([f"{used.stack_bytes} bytes of stack a thread"] if used.stack_bytes else []), *seen])
    return "" if any(count[opcode] for opcode in WGMMAS) else f"none of {sum(count.values())} instructions is one"
