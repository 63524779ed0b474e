"""
How long a kernel takes, predicted from its schedule.

One k-block of a tile keeps three things busy: the tensor cores, each math warpgroup's own chain (multiply, wait,
promote, issue again) and the loads from L2. Tiles go in rounds over the SMs that are there, and all of it is bounded
by DRAM. Cycles are of the SM clock, which itself falls as the tensor cores get busier (power).

The constants were fitted to measurements of gemmir's own kernels on an H200, which `tests/passes/measured.py` holds
with how well they are met. What was not measured is called an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule
from gemmir.target import SM_90A, Target
from gemmir.tile import STAGE_ROW_BYTES, shared_layout, tile_geometry

WAVE_LATENCY = 260.0
"""Clocks of a wave that are neither multiplication nor promotion: completion, barrier, scales, issue (fitted)."""

SCALE_STEP = 24.0
"""Clocks that each weight scale of a k-block adds to a warpgroup's chain: why 128x176 loses to 128x192 (fitted)."""

PROMOTION_PER_COLUMN = 0.5
"""Issue slots of one promoted wave per column: one FFMA per accumulator, four warps on four schedulers."""

CONVOY = 1.25
"""Two promoting warpgroups of one wave fall into step unless they take turns: 963 cycles against 768 (measured)."""

CHUNK_BUBBLE = 1000.0
"""Clocks per tile in which a warpgroup that takes k-blocks in chunks has nothing in flight (estimate: as in place)."""

THREE_WARPGROUPS = 1.18
"""Three promoting warpgroups of one wave (estimate): by hand, 192x128 takes 5% longer than 128x192."""

IN_PLACE_K_BLOCK = 100.0
"""Fewest clocks of a k-block that is accumulated in place: barrier, descriptors, four WGMMAs (estimate)."""

IN_PLACE_BUBBLE = 1000.0
"""Clocks per tile in which a warpgroup that accumulates in place has nothing in flight (fitted)."""

MULTICAST_GAIN = 0.05
"""Of the bytes that a cluster reads only once, the share that loads get faster by (fitted)."""

CLUSTER_COUPLING = 1.02
"""A slot is free only when both CTAs of a cluster have read it: k-blocks take that much longer (fitted)."""

BEST_MULTICAST = 1 - MULTICAST_GAIN / 2
"""Multicast spares at most half of all rows."""

LOAD_LATENCY = 1000.0
"""Clocks from a free stage to the first bytes of its refill: L2, TMA and both barriers (fitted)."""

OVERLAP_ORDER = 20.0
"""Loads and multiplication within a k-block overlap as a norm of this order: 4% over the maximum where they tie."""

DRAM_OVERLAP_ORDER = 4.0
"""The same between the whole kernel's cycles and its DRAM traffic."""

DRAM_EFFICIENCY = 0.85
"""Share of the copy bandwidth that a GEMM's reads reach with a cold L2 (measured)."""

TILE_CLOCKS = 0.0
"""
Clocks per tile beside the store: the first WGMMA of a tile is issued before the last is staged, so that nothing is left
(fitted).
"""

STORE_EXPOSED = 0.6
"""Share of a tile's store that nothing hides (fitted)."""

LAUNCH_SECONDS = 3.0e-6
"""Launch, barriers, tensor maps, the first bytes from DRAM and the last store (measured: 2.5 to 4 us)."""

CLUSTER_SECONDS = 0.2e-6
"""Meeting of a cluster before the first load and before exit (estimate)."""

BOOST_CLOCK_HZ = 1.9e9
POWER_DROP_HZ = 0.3e9
"""SM clock with idle tensor cores, and how much lower it settles with busy ones (fitted)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """
    A prediction. `tensor`, `math`, `loads` and `k_block` are clocks per k-block of one tile, `tile` clocks per tile
    beside its k-blocks. `rounds` is how many tiles the busiest CTA computes, `utilisation` the tensor cores' share.
    """

    tensor: float
    math: float
    loads: float
    k_block: float
    tile: float
    tiles: int
    rounds: int
    cycles: float
    utilisation: float
    clock_hz: float
    dram_seconds: float
    seconds: float

    @property
    def microseconds(self) -> float:
        return self.seconds * 1e6

    @property
    def limiter(self) -> str:
        """What a k-block, or the whole kernel, waits for most."""
        if self.dram_seconds > self.cycles / self.clock_hz:
            return "DRAM"
        if self.loads >= self.math:
            return "L2"
        return "tensor cores" if self.math <= 1.05 * self.tensor else "the warpgroups' chain"


def resident_clusters(schedule: Schedule, target: Target = SM_90A) -> int:
    """Clusters that run at once, one CTA an SM."""
    return target.sms // ((schedule.cluster_m or 1) * (schedule.cluster_n or 1))


def cluster_tiles(problem: GemmProblem, schedule: Schedule) -> tuple[int, int]:
    """Rows and columns of the grid of cluster tiles."""
    assert schedule.block_m is not None and schedule.block_n is not None
    rows = -(-problem.rows // (schedule.block_m * (schedule.cluster_m or 1)))
    return rows, -(-problem.n // (schedule.block_n * (schedule.cluster_n or 1)))


def fitting_stages(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> int:
    """The most stages that shared memory holds, however few."""
    layout = shared_layout(problem, schedule, 1)
    return (target.shared_bytes - layout.fixed_bytes) // layout.stage_bytes


def _tensor_clocks(schedule: Schedule, target: Target) -> float:
    """Tensor-core clocks of one k-block of the whole tile."""
    assert schedule.block_m is not None and schedule.block_n is not None
    instructions = STAGE_ROW_BYTES // target.wgmma_k_bytes * schedule.block_m // target.wgmma_m
    return instructions * schedule.block_n * target.tensor_clocks_per_column


def _chunk(problem: GemmProblem, schedule: Schedule) -> int:
    """k-blocks between moments at which a warpgroup has nothing in flight, or 1."""
    return min(schedule.promote_chunk or 1, problem.k_blocks)


def _math_clocks(problem: GemmProblem, schedule: Schedule, tensor: float, target: Target) -> float:
    """Clocks of one k-block if its operands were there: tensor cores, operand reads and the warpgroups' chains."""
    groups = schedule.math_warpgroups
    assert groups is not None
    tile = tile_geometry(schedule)
    wave_bytes = (target.wgmma_m + tile.wg_columns) * STAGE_ROW_BYTES
    operand_reads = groups * tile.waves * wave_bytes / target.shared_bytes_per_clock
    if not problem.promoted:
        return max(tensor, operand_reads, IN_PLACE_K_BLOCK)
    # Of a chunk, only the last k-block's promotion has no wave of the same warpgroup to hide behind (estimate).
    chunk = _chunk(problem, schedule)
    after_a_wave = tile.waves * (PROMOTION_PER_COLUMN * tile.wg_columns + WAVE_LATENCY) + SCALE_STEP * tile.wg_steps
    busy = max(tensor, operand_reads, tensor / groups + after_a_wave / chunk)
    if groups == 3:
        return busy * THREE_WARPGROUPS
    in_step = groups == 2 and tile.waves == 1 and not schedule.turns
    return busy * (1 + (CONVOY - 1) / chunk) if in_step else busy


def _load_clocks(problem: GemmProblem, schedule: Schedule, target: Target) -> float:
    """Clocks in which L2 delivers the operands of one k-block, or in which few stages let it."""
    assert schedule.block_m is not None and schedule.block_n is not None
    rows_a, rows_b = min(schedule.block_m, problem.rows), min(schedule.block_n, problem.n)
    shared = 0.0
    if schedule.cluster_m == 2 and problem.rows > schedule.block_m:
        shared = rows_b / 2
    elif schedule.cluster_n == 2 and problem.n > schedule.block_n:
        shared = rows_a / 2
    rows = rows_a + rows_b - MULTICAST_GAIN * shared
    transfer = rows * STAGE_ROW_BYTES / target.l2_bytes_per_clock_per_sm
    stages = schedule.num_stages or fitting_stages(problem, schedule, target)
    held = 1 if _chunk(problem, schedule) == 1 else 2
    return max(transfer, (LOAD_LATENCY + transfer) / max(1, stages - held))


def _tile_clocks(problem: GemmProblem, schedule: Schedule, target: Target) -> float:
    """Clocks of a tile beside its k-blocks: what of its store nothing hides, and an idle start."""
    assert schedule.block_m is not None and schedule.block_n is not None
    rows, columns = min(schedule.block_m, problem.rows), min(schedule.block_n, problem.n)
    leaving = rows * columns * problem.d.bytes / target.store_bytes_per_clock_per_sm
    bubble = IN_PLACE_BUBBLE
    if problem.promoted:
        bubble = 0.0 if schedule.promote_chunk in (None, 1) else CHUNK_BUBBLE
    return TILE_CLOCKS + STORE_EXPOSED * leaving + bubble


def unique_bytes(problem: GemmProblem) -> int:
    """Bytes of A, B and D, each once. Scales are below 4% of A and are left out."""
    m, n, k = problem.rows, problem.n, problem.k
    return m * k * problem.a.bytes + n * k * problem.b.bytes + m * n * problem.d.bytes


def dram_seconds(problem: GemmProblem, target: Target = SM_90A) -> float:
    """Seconds that DRAM needs for the bytes of the problem, each once."""
    return unique_bytes(problem) / (DRAM_EFFICIENCY * target.dram_bytes_per_second)


def _norm(x: float, y: float, order: float) -> float:
    high, low = (x, y) if x >= y else (y, x)
    return high * (1 + (low / high) ** order) ** (1 / order) if high else 0.0


def predict(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> Cost:
    """
    The cost of `problem` under a schedule whose blocks, math warpgroups, split, turns and cluster are chosen.

    If the number of stages is open, the most that fit are assumed. Legality is not looked at.
    """
    tensor = _tensor_clocks(schedule, target)
    math = _math_clocks(problem, schedule, tensor, target)
    loads = _load_clocks(problem, schedule, target)
    cluster = (schedule.cluster_m or 1) * (schedule.cluster_n or 1)
    k_block = _norm(math, loads, OVERLAP_ORDER) * (CLUSTER_COUPLING if cluster > 1 else 1.0)
    tile = _tile_clocks(problem, schedule, target)
    rows, columns = cluster_tiles(problem, schedule)
    rounds = -(-rows * columns // resident_clusters(schedule, target))
    cycles = rounds * (problem.k_blocks * k_block + tile)
    working = rows * columns * cluster * problem.k_blocks * tensor
    utilisation = working / (target.sms * cycles) if cycles else 0.0
    clock = BOOST_CLOCK_HZ - POWER_DROP_HZ * utilisation
    dram = dram_seconds(problem, target)
    fixed = LAUNCH_SECONDS + (CLUSTER_SECONDS if cluster > 1 else 0.0)
    return Cost(
        tensor=tensor,
        math=math,
        loads=loads,
        k_block=k_block,
        tile=tile,
        tiles=rows * columns * cluster,
        rounds=rounds,
        cycles=cycles,
        utilisation=utilisation,
        clock_hz=clock,
        dram_seconds=dram,
        seconds=fixed + _norm(cycles / clock, dram, DRAM_OVERLAP_ORDER),
    )


def tile_bound(problem: GemmProblem, block_m: int, block_n: int, dram: float, target: Target = SM_90A) -> float:
    """Seconds that no schedule with this tile beats in `predict`; cheap. `dram` is `dram_seconds(problem)`."""
    tiles = -(-problem.rows // block_m) * -(-problem.n // block_n)
    clocks_per_element = target.tensor_clocks_per_column / target.wgmma_m * STAGE_ROW_BYTES / target.wgmma_k_bytes
    rows = (min(block_m, problem.rows) + min(block_n, problem.n)) * BEST_MULTICAST
    transfer = rows * STAGE_ROW_BYTES / target.l2_bytes_per_clock_per_sm
    k_block = max(block_m * block_n * clocks_per_element, transfer)
    cycles = -(-tiles // target.sms) * (problem.k_blocks * k_block + TILE_CLOCKS)
    return LAUNCH_SECONDS + _norm(cycles / BOOST_CLOCK_HZ, dram, DRAM_OVERLAP_ORDER)


def cluster_bound(problem: GemmProblem, alone: Cost) -> float:
    """Seconds that no cluster beats in `predict`, for a shape that costs `alone` without one."""
    k_block = _norm(alone.math, alone.loads * BEST_MULTICAST, OVERLAP_ORDER)
    cycles = alone.rounds * (problem.k_blocks * k_block + alone.tile)
    return LAUNCH_SECONDS + _norm(cycles / alone.clock_hz, alone.dram_seconds, DRAM_OVERLAP_ORDER)
