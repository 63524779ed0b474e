"""The products that the GPU tests run: the dense layers of DeepSeek-V3, and shapes drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

LAYERS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
"""(N, K) of the dense layers."""

SHAPES = (
    *((4096, n, k) for n, k in LAYERS),
    *((2048, 2112, 7168), (1024, 7168, 16384), (512, 4096, 7168), (256, 7168, 2048), (8192, 8192, 8192)),
)
"""(M, N, K) whose default kernels are looked at instruction by instruction."""

ROWS = (1, 63, 64, 65, 128, 1000, 4096)
DRAWN = 300


@dataclass(frozen=True)
class Case:
    """D[m, n] = A[m, k] @ B[k, n]: `dtype` f8E4M3FN or f8E5M2 (block-wise scales), bf16 or f16 (none)."""

    dtype: str
    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.dtype}-{self.m}x{self.n}x{self.k}"

    @property
    def text(self) -> str:
        """The product as IR, for any M."""
        return fp8_text(self.n, self.k, self.dtype) if self.dtype.startswith("f8") else plain_text(self)


def fp8_text(n: int, k: int, dtype: str = "f8E4M3FN") -> str:
    """FP8 with scales 1x128 x 128x128 and a BF16 result."""
    blocks_k, blocks_n = -(-k // 128), -(-n // 128)
    x, w, d = f"tensor<?x{k}x{dtype}>", f"tensor<{k}x{n}xf8E4M3FN>", f"tensor<?x{n}xbf16>"
    xs, ws = f"tensor<?x{blocks_k}xf32>", f"tensor<{blocks_k}x{blocks_n}xf32>"
    return f"""
func.func @layer(%x: {x}, %xs: {xs}, %w: {w}, %ws: {ws}) -> {d} {{
  %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128) : ({x}, {w}, {xs}, {ws}) -> {d}
  func.return %y : {d}
}}"""


def plain_text(case: Case) -> str:
    """16-bit floats in and out."""
    x, w, d = (f"tensor<{s}x{case.dtype}>" for s in (f"?x{case.k}", f"{case.k}x{case.n}", f"?x{case.n}"))
    return f"""
func.func @layer(%x: {x}, %w: {w}) -> {d} {{
  %y = gemm.matmul %x, %w : ({x}, {w}) -> {d}
  func.return %y : {d}
}}"""


def layer_cases() -> list[Case]:
    return [Case(dtype, m, n, k) for dtype in ("f8E4M3FN", "bf16") for n, k in LAYERS for m in ROWS]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small problems: every number of k-blocks around that of the stages, tails of K and N, odd and single rows."""
    dtype = draw(st.sampled_from(["f8E4M3FN", "bf16"] * 4 + ["f8E5M2", "f16"]))
    element, block_k = (1, 128) if dtype.startswith("f8") else (2, 64)
    step = 16 // element
    blocks = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 25]))
    tail = draw(st.sampled_from([0, 0, 0, step, block_k // 2, block_k - step]))
    n = draw(st.one_of(st.integers(1, 320).map(lambda v: 8 * v), st.sampled_from([16, 120, 128, 136, 512, 2112, 4104])))
    m = draw(
        st.one_of(st.integers(1, 700), st.sampled_from([1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 2049]))
    )
    return Case(dtype, m, n, (blocks - 1) * block_k + (tail or block_k))


def drawn_cases() -> list[Case]:
    """The same `DRAWN` cases every time."""
    found: list[Case] = []

    @seed(20261122)
    @settings(
        max_examples=2 * DRAWN,  # some come twice
        derandomize=False,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    return list(dict.fromkeys(found))[:DRAWN]
