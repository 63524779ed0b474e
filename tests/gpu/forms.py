"""Forms of a dense product beside the usual ones: f32 results, an operand C, a scale a column, any memory layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from gemmir.dtypes import F16, F32
from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule
from gemmir.testing.strategies import columns_problem, fp8_problem, half_problem, program_text

SIZES = ((5, 100, 0), (1, 100, 1), (63, 264, 2), (257, 520, 5), (1000, 2112, 9))
"""
M, N and k-blocks, the last one with a tail: single and odd rows, N off the block, K = 0, fewer k-blocks than stages and
more.
"""

KINDS: dict[str, GemmProblem] = {
    "fp8-f32": fp8_problem(1, 8, 16, d=F32),
    "bf16-f32": half_problem(1, 8, 8, d=F32),
    "f16-f32": half_problem(1, 8, 8, F16, F32),
    "fp8-c": replace(fp8_problem(1, 8, 16), has_c=True),
    "fp8-f32-c": replace(fp8_problem(1, 8, 16, d=F32), has_c=True),
    "fp8-columns": columns_problem(1, 8, 16),
    "fp8-columns-c": replace(columns_problem(1, 8, 16), has_c=True),
    "fp8-columns-f32": columns_problem(1, 8, 16, d=F32),
    "fp8-columns-f32-c": replace(columns_problem(1, 8, 16, d=F32), has_c=True),
    "bf16-c": replace(half_problem(1, 8, 8), has_c=True),
    "f16-c": replace(half_problem(1, 8, 8, F16, F16), has_c=True),
    "bf16-f32-c": replace(half_problem(1, 8, 8, d=F32), has_c=True),
    "bf16-mk": replace(half_problem(1, 8, 8), a_major="m"),
    "bf16-kn": replace(half_problem(1, 8, 8), b_major="n"),
    "bf16-mn": replace(half_problem(1, 8, 8), a_major="m", b_major="n"),
    "f16-mn": replace(half_problem(1, 8, 8, F16, F16), a_major="m", b_major="n"),
    "bf16-mn-f32-c": replace(half_problem(1, 8, 8, d=F32), a_major="m", b_major="n", has_c=True),
}


@dataclass(frozen=True)
class Form:
    """A product for one M; `schedule` is what is fixed of its schedule."""

    name: str
    problem: GemmProblem
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def text(self) -> str:
        return program_text(self.problem, self.schedule, "layer")

    @property
    def m(self) -> int:
        assert self.problem.m is not None
        return self.problem.m

    def __str__(self) -> str:
        return f"{self.name}-{self.problem.m}x{self.problem.n}x{self.problem.k}"


def _whole(size: int, step: int) -> int:
    """`size`, or the next multiple of `step`: rows in memory are whole 16 bytes."""
    return -(-size // step) * step


def forms() -> Iterator[Form]:
    """Each kind in every size with the schedule that the passes choose, and in clusters."""
    for name, kind in KINDS.items():
        for m, n, k_blocks in SIZES:
            rows = m if kind.a_major == "k" else _whole(m, 8)
            columns = _whole(n, 8 if kind.b_major == "n" else 16 // kind.d.bytes)
            yield Form(name, replace(kind, m=rows, n=columns, k=max(0, kind.block_k * k_blocks - 16)))
        large = replace(kind, m=515 if kind.a_major == "k" else 520, n=776, k=kind.block_k * 7)
        for cluster_m, cluster_n in ((2, 1), (1, 2)):
            fixed = Schedule(block_m=128, block_n=128, cluster_m=cluster_m, cluster_n=cluster_n)
            yield Form(f"{name}-cluster{cluster_m}x{cluster_n}", large, fixed)


FORMS = tuple(forms())

LARGE_FORMS = tuple(Form(name, replace(kind, m=4096, n=7168, k=2048)) for name, kind in KINDS.items())
