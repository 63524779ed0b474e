"""
On paper: what could one wave of CTAs gain that each own an equal share of the bytes, instead of whole tiles?

    python -m tests.calibration.equal_shares      the set `decode` by the cost model, as Markdown; needs no GPU

A CTA of the `stream` family owns tiles of weights, or a part of K of each. For equal shares there are two predictions:
`free`, where tiles are gathered as they are now, however they are cut, which is a bound; and `gathered`, where whatever
is cut is gathered as parts of K are, and a CTA goes on from one tile to the next as it does now.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from gemmir.bench.cases import DECODE, Case
from gemmir.compiler import lower
from gemmir.decode import decode_split_k
from gemmir.dialects.gemm import problem_of, schedule_of, the_matmul
from gemmir.passes.cost_model import operand_bytes, predict
from gemmir.passes.l2_model import cluster_tiles
from gemmir.passes.stream_model import STREAM, stream_clocks
from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule
from gemmir.target import SM_90A

DTYPES = ("f8E4M3FN", "bf16")


@dataclass(frozen=True, slots=True)
class Shares:
    """
    `busiest`: bytes that the busiest SM loads over the mean of all SMs. Microseconds as the schedule is (`now`), those
    that DRAM needs of them (`dram`), and with equal shares.
    """

    busiest: float
    now: float
    dram: float
    free: float
    gathered: float


def shares(problem: GemmProblem, schedule: Schedule) -> Shares:
    """Of a complete schedule of the `stream` family for one product, whose tiles load equally many bytes."""
    cost, c = predict(problem, schedule), STREAM
    rows, columns = cluster_tiles(problem, schedule)
    tiles = Fraction(rows * columns, SM_90A.sms)
    free = _cycles(problem, schedule, max(Fraction(0), tiles - 1))
    parts, changes = pieces(tiles)
    numerics = replace(problem.numerics, split_k=max(parts, problem.numerics.split_k if parts > 1 else 1))
    gathered = _cycles(replace(problem, numerics=numerics), schedule, changes)
    written = problem.all_rows * problem.n * problem.d.bytes
    dram = (operand_bytes(problem) + written) / (c.dram_efficiency * SM_90A.dram_bytes_per_second)
    times = (_us(*free, dram), _us(*gathered, dram))
    return Shares(cost.rounds * SM_90A.sms / cost.tiles, cost.microseconds, cost.dram_seconds * 1e6, *times)


def pieces(tiles: Fraction) -> tuple[int, Fraction]:
    """In how many parts a tile is cut, and how often a CTA goes on to another tile, with `tiles` of them a CTA."""
    if tiles.denominator == 1:
        return 1, tiles - 1
    if tiles.numerator == 1:
        return tiles.denominator, Fraction(0)
    return max(2, math.ceil(1 / tiles)), Fraction(math.ceil(tiles))


def _cycles(problem: GemmProblem, schedule: Schedule, changes: Fraction) -> tuple[float, float]:
    """Clocks of an equal share of all k-blocks, in which a CTA goes on so often, and of its last tile's way out."""
    rows, columns = cluster_tiles(problem, schedule)
    assert schedule.num_stages is not None
    clocks = stream_clocks(problem, schedule, schedule.num_stages, SM_90A.sms)
    again = STREAM.again_clocks if rows > 1 and problem.numerics.split_k > 1 else 0.0
    blocks = rows * columns * problem.k_blocks / SM_90A.sms
    return blocks * (clocks.k_block + again) + changes * (STREAM.tile_clocks + clocks.leaving), clocks.tile


def _us(cycles: float, last: float, dram: float) -> float:
    """Microseconds of so many clocks, beside which DRAM is busy for `dram` seconds, and of the `last` ones."""
    order, hz = STREAM.dram_order, STREAM.clock_hz
    return (STREAM.launch_seconds + last / hz + ((cycles / hz) ** order + dram**order) ** (1 / order)) * 1e6


def chosen(case: Case) -> tuple[GemmProblem, Schedule]:
    matmul = the_matmul(lower(case.text, m=case.m, until="schedule").module)
    return problem_of(matmul), schedule_of(matmul)


def lines() -> Iterator[str]:
    """A table for each type, the row with most to gain first."""
    for dtype in DTYPES:
        yield from (
            "",
            f"{dtype}:",
            "",
            "| M x N x K | tile | busiest SM | now | of it DRAM | free | gain | gathered | gain |",
        )
        yield "|---" * 9 + "|"
        cases = [Case(dtype, *shape, decode_split_k(*shape[1:], dtype)) for shape in DECODE]
        found = [(case, schedule, shares(problem, schedule)) for case in cases for problem, schedule in [chosen(case)]]
        for case, schedule, s in sorted(found, key=lambda each: each[2].free / each[2].now):
            tile = f"{schedule.block_m}x{schedule.block_n}" + (f", {case.split_k} parts" if case.split_k > 1 else "")
            times = f"{s.now:.1f} | {s.dram:.1f} | {s.free:.1f} | {s.now / s.free:.2f} | {s.gathered:.1f}"
            row = f"{case.label.replace('x', ' x ')} | {tile} | {s.busiest:.2f} | {times} | {s.now / s.gathered:.2f}"
            yield f"| {row} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")
