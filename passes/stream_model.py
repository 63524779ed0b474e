"""
How long a kernel of the `stream` family takes, predicted from its schedule.

A CTA's k-blocks follow one another: each keeps its loads, the tensor cores and the chain of a math warpgroup (multiply,
wait, promote) busy, which overlap in part. Loads come no faster than an SM takes them, than L2 feeds all CTAs, and than
a ring of so few stages asks for them. CTAs go in rounds, and all of it is bounded by DRAM. Fitted to kernels of 1 to
256 rows on an H100 and on an H200, which differ in DRAM alone here (`tests/calibration/h?00-stream*.json`).
"""

from __future__ import annotations

from dataclasses import dataclass

from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule
from gemmir.target import SM_90A, Target
from gemmir.tile import STAGE_ROW_BYTES


@dataclass(frozen=True, slots=True)
class StreamConstants:
    """Clocks at `clock_hz`, orders of norms, bytes per clock, seconds."""

    clock_hz: float = 1.755e9
    load_bytes_per_clock: float = 140.0
    """Into one SM."""
    l2_bytes_per_clock: float = 13120.0
    """Into all of them together."""
    load_latency: float = 2312.0
    """Clocks from the request of a stage to its arrival, where all CTAs ask at once."""
    least_instruction_columns: float = 26.74
    """Columns of the narrowest instruction that the tensor cores are not idle in."""
    promoted_chain: float = 180.7
    promoted_chain_per_row: float = 1.953
    promoted_wave_order: float = 1.157
    """How a row's share grows with the waves of weights: warpgroups that promote side by side wait for one another."""
    in_place_chain: float = 205.1
    overlap_order: float = 4.662
    load_order: float = 6.831
    tile_clocks: float = 173.5
    leaving_clocks_per_element: float = 0.05385
    gather_clocks: float = 958.5
    gather_clocks_per_element: float = 0.1995
    again_clocks: float = 101.4
    """Of a k-block whose weights other CTAs load as well, where K is split: measured, not understood."""
    crowded_share: float = 0.06501
    """
    How much longer a k-block takes whose weights more than two CTAs load and two warpgroups promote, where K is whole:
    measured, not understood.
    """
    uneven_share: float = 0.1238
    """How much longer DRAM takes for a round of which CTAs have nothing to load, as part of that round's share."""
    dram_efficiency: float = 0.8961
    dram_order: float = 6.165
    launch_seconds: float = 3.062e-6


STREAM = StreamConstants()

CROWD = 2
"""Rows of tiles that may load the same weights at no price."""


@dataclass(frozen=True, slots=True)
class StreamClocks:
    """Clocks of a k-block: `tensor`, with the warpgroups' chains `math`, `loads`; and of a `tile` beside them."""

    tensor: float
    math: float
    loads: float
    k_block: float
    leaving: float
    tile: float


def _norm(values: tuple[float, ...], order: float) -> float:
    return sum(value**order for value in values) ** (1 / order)


def stream_clocks(
    problem: GemmProblem,
    schedule: Schedule,
    stages: int,
    ctas: int,
    target: Target = SM_90A,
    c: StreamConstants = STREAM,
) -> StreamClocks:
    """Of a schedule whose blocks and math warpgroups are chosen, with so many stages and CTAs side by side."""
    assert schedule.block_m is not None and schedule.block_n is not None and schedule.math_warpgroups is not None
    waves = schedule.block_n // target.wgmma_m
    columns = max(float(schedule.block_m), c.least_instruction_columns)
    instructions = waves * (STAGE_ROW_BYTES // target.wgmma_k_bytes)
    tensor = instructions * columns * target.tensor_clocks_per_column
    promoted = c.promoted_chain + c.promoted_chain_per_row * schedule.block_m * waves**c.promoted_wave_order
    chain = promoted if problem.promoted else c.in_place_chain
    stage_bytes = (min(schedule.block_m, problem.group_rows) + schedule.block_n) * STAGE_ROW_BYTES
    rates = (1 / c.load_bytes_per_clock, ctas / c.l2_bytes_per_clock)
    loads = _norm((stage_bytes * _norm(rates, c.load_order), c.load_latency / stages), c.load_order)
    rows = -(-problem.group_rows // schedule.block_m)
    crowded = rows > CROWD and waves > 1 and problem.promoted and problem.numerics.split_k == 1
    elements = schedule.block_m * schedule.block_n
    leaving = elements * c.leaving_clocks_per_element
    return StreamClocks(
        tensor=tensor,
        math=_norm((tensor, chain), c.overlap_order),
        loads=loads,
        k_block=_norm((tensor, chain, loads), c.overlap_order) * (1 + c.crowded_share * crowded),
        leaving=leaving,
        tile=leaving + _gather_clocks(problem, elements, c),
    )


def _gather_clocks(problem: GemmProblem, elements: int, c: StreamConstants) -> float:
    """Clocks in which one CTA gets the sums of the others, where K is split."""
    if (parts := problem.numerics.split_k) == 1:
        return 0.0
    return c.gather_clocks + (parts - 1) * elements * c.gather_clocks_per_element
