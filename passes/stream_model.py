"""
How long a kernel of the `stream` family takes, predicted from its schedule.

A CTA's k-blocks follow one another: each keeps its loads, the tensor cores and the chain of a math warpgroup (multiply,
wait, promote) busy, which overlap in part. Loads come no faster than an SM takes them, than L2 feeds all CTAs, and than
a ring of so few stages asks for them. CTAs go in rounds, and all of it is bounded by DRAM. Fitted to kernels of 1 to
128 rows on an H100 and, but for DRAM, taken for an H200 (`tests/calibration/h100-stream.json`).
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
    load_bytes_per_clock: float = 126.0
    """Into one SM."""
    l2_bytes_per_clock: float = 11400.0
    """Into all of them together."""
    load_latency: float = 2330.0
    """Clocks from the request of a stage to its arrival, where all CTAs ask at once."""
    least_instruction_columns: float = 29.8
    """Columns of the narrowest instruction that the tensor cores are not idle in."""
    promoted_chain: float = 206.0
    promoted_chain_per_row: float = 1.31
    in_place_chain: float = 202.0
    overlap_order: float = 3.9
    load_order: float = 6.62
    tile_clocks: float = 633.0
    leaving_clocks_per_element: float = 0.0757
    gather_clocks: float = 834.0
    gather_clocks_per_element: float = 0.225
    again_clocks: float = 136.0
    """Of a k-block whose weights other CTAs load as well, where K is split: measured, not understood."""
    uneven_share: float = 0.0827
    """How much longer DRAM takes for a round of which CTAs have nothing to load, as part of that round's share."""
    dram_efficiency: float = 0.896
    dram_order: float = 6.83
    launch_seconds: float = 3.07e-6


STREAM = StreamConstants()


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
    chain = c.promoted_chain + c.promoted_chain_per_row * schedule.block_m if problem.promoted else c.in_place_chain
    stage_bytes = (min(schedule.block_m, problem.group_rows) + schedule.block_n) * STAGE_ROW_BYTES
    rates = (1 / c.load_bytes_per_clock, ctas / c.l2_bytes_per_clock)
    loads = _norm((stage_bytes * _norm(rates, c.load_order), c.load_latency / stages), c.load_order)
    elements = schedule.block_m * schedule.block_n
    leaving = elements * c.leaving_clocks_per_element
    return StreamClocks(
        tensor=tensor,
        math=_norm((tensor, chain), c.overlap_order),
        loads=loads,
        k_block=_norm((tensor, chain, loads), c.overlap_order),
        leaving=leaving,
        tile=leaving + _gather_clocks(problem, elements, c),
    )


def _gather_clocks(problem: GemmProblem, elements: int, c: StreamConstants) -> float:
    """Clocks in which one CTA gets the sums of the others, where K is split."""
    if (parts := problem.numerics.split_k) == 1:
        return 0.0
    return c.gather_clocks + (parts - 1) * elements * c.gather_clocks_per_element
