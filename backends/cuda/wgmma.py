"""The one wrapper whose text depends on the tile: four WGMMAs that multiply one slot."""

from __future__ import annotations

from gemmir.dtypes import DType
from gemmir.layouts import DESCRIPTOR_STEP

INSTRUCTIONS_PER_SLOT = 4
"""A slot row is 128 bytes of K, one WGMMA takes 32."""


def wgmma_wrapper(a: DType, b: DType, columns: int) -> str:
    """`multiply<FRESH>(d, a, b)`: d (64 x `columns`) = A * B over one slot, plus d unless FRESH."""
    registers = columns // 2
    k = 32 // a.bytes
    names = ", ".join(f"%{i}" for i in range(registers))
    operands = ", ".join(f'"+f"(d[{i}])' for i in range(registers))
    scales = "1, 1" if a.is_fp8 else "1, 1, 0, 0"
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
template <bool FRESH> DEVICE void multiply(float (&d)[{registers}], u32 a, u32 b) {{
    const u64 da = wgmma_descriptor(a), db = wgmma_descriptor(b);
#pragma unroll
    for (int i = 0; i < {INSTRUCTIONS_PER_SLOT}; ++i)
        wgmma_{shape}(d, da + {DESCRIPTOR_STEP} * i, db + {DESCRIPTOR_STEP} * i, !FRESH || i > 0);
}}"""
