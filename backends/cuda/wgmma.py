"""The one wrapper whose text depends on the tile: four WGMMAs that multiply one slot."""

from __future__ import annotations

from gemmir.dtypes import DType
from gemmir.layouts import DESCRIPTOR_STEP, PANEL_STEP

INSTRUCTIONS_PER_SLOT = 4
"""A slot row is 128 bytes of K, one WGMMA takes 32."""


def multiply_name(columns: int, first: bool) -> str:
    """What the wrapper is called: that of a kernel's first tiles, or that of narrower ones."""
    return "multiply" if first else f"multiply_n{columns}"


def wgmma_wrapper(
    a: DType, b: DType, columns: int, a_panels: bool = False, b_panels: bool = False, name: str = "multiply"
) -> str:
    """
    `NAME<FRESH>(d, a, b)`: d (64 x `columns`) = A * B over one slot, plus d unless FRESH.

    `a_panels`, `b_panels`: the operand lies in panels, and WGMMA transposes it.
    """
    registers = columns // 2
    k = 32 // a.bytes
    names = ", ".join(f"%{i}" for i in range(registers))
    operands = ", ".join(f'"+f"(d[{i}])' for i in range(registers))
    scales = "1, 1" if a.is_fp8 else f"1, 1, {int(a_panels)}, {int(b_panels)}"
    of_a, of_b = ("wgmma_panel_descriptor" if panels else "wgmma_descriptor" for panels in (a_panels, b_panels))
    step_a, step_b = (PANEL_STEP if panels else DESCRIPTOR_STEP for panels in (a_panels, b_panels))
    shape = f"m64n{columns}k{k}"
    return f"""\
// d (64 x {columns}) = A (64 x {k}) * B ({columns} x {k})^T, plus d if `accumulate`; both operands from shared memory.
DEVICE void wgmma_{shape}(float (&d)[{registers}], u64 a, u64 b, int accumulate) {{
    asm volatile(
        "{{\\n.reg .pred keep;\\nsetp.ne.b32 keep, %{registers + 2}, 0;\\n"
        "wgmma.mma_async.sync.aligned.{shape}.f32.{a.ptx}.{b.ptx} "
        "{{{names}}}, "
        "%{registers}, %{registers + 1}, keep, {scales};\\n}}"
        : {operands}
        : "l"(a), "l"(b), "r"(accumulate));
}}

// The same over one slot, 128 bytes of K. FRESH: d is overwritten.
template <bool FRESH> DEVICE void {name}(float (&d)[{registers}], u32 a, u32 b) {{
    const u64 da = {of_a}(a), db = {of_b}(b);
#pragma unroll
    for (int i = 0; i < {INSTRUCTIONS_PER_SLOT}; ++i)
        wgmma_{shape}(d, da + {step_a} * i, db + {step_b} * i, !FRESH || i > 0);
}}"""
