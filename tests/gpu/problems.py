"""The products that the GPU tests run: the dense layers of DeepSeek-V3, and shapes drawn at random."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from gemmir.bench.cases import LAYERS, Case, program_text

T = TypeVar("T")

SHAPES = (
    *((4096, n, k) for n, k in LAYERS),
    *((2048, 2112, 7168), (1024, 7168, 16384), (512, 4096, 7168), (256, 7168, 2048), (8192, 8192, 8192)),
)
"""(M, N, K) whose default kernels are looked at instruction by instruction."""

ROWS = (1, 63, 64, 65, 128, 1000, 4096)
DRAWN = 300


def fp8_text(n: int, k: int, dtype: str = "f8E4M3FN") -> str:
    """FP8 with scales 1x128 x 128x128 and a BF16 result."""
    return program_text(n, k, dtype)


def plain_text(case: Case) -> str:
    """16-bit floats in and out."""
    return case.text


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
    return distinct(cases(), 2 * DRAWN)[:DRAWN]


def distinct(strategy: st.SearchStrategy[T], examples: int) -> list[T]:
    """What so many examples are, each once, and the same every time: hypothesis draws some of them again and again."""
    found: list[T] = []

    @seed(20261122)
    @settings(
        max_examples=examples,
        derandomize=False,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(one: T) -> None:
        found.append(one)

    collect()
    return list(dict.fromkeys(found))
