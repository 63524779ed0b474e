"""
How long a kernel takes, predicted from its schedule.

One k-block of a tile keeps three things busy: the tensor cores, each math warpgroup's own chain (multiply, wait,
promote, issue again) and the loads from L2. Tiles go in rounds over the SMs that are there, and all of it is bounded
by DRAM. Cycles are of the SM clock, which itself falls as the tensor cores get busier (power). What the tile order
costs is in `gemmir.passes.l2_model`; while it is open, one is assumed that reads each operand once.

What the model knows as numbers is in `gemmir.passes.cost_constants`, fitted to what `tests/calibration` holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log1p
from typing import NamedTuple

from gemmir.passes.cost_constants import DEFAULT, Constants
from gemmir.passes.l2_model import Traffic, cluster_tiles, grid_of, orders_of, resident_clusters, traffic
from gemmir.passes.scale_slots import scale_slots_of, with_scales_at_once
from gemmir.passes.stream_model import STREAM, StreamConstants, stream_clocks
from gemmir.passes.tail_model import deal
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import SCALES_OF_TILE, Evict, Family, Schedule
from gemmir.target import SM_90A, Target
from gemmir.tile import STAGE_ROW_BYTES, default_store_slices, fitting_stages, tail_schedule, tile_geometry

COLUMN_SCALES = 1.75
"""How much longer a promotion takes with a scale a column: a product each, and their loads (estimate)."""

ADDEND_LATENCY = 1000
"""Clocks from a load of C to its arrival, which is from DRAM (estimate)."""

TAIL_BEGINS = 2000
"""
Clocks before the narrower tile of a CTA whose tiles flow into each other: a wave in vain, and the way out of the tile
before (estimate).
"""

OPEN_ORDER_DISTINCT = (0.1, 0.25)
"""Parts of A and B among all loads that CTAs side by side do not share, in groups of 4: while the order is open."""


ALIKE_ORDERS = 0.002
"""
Up to this share of the best time, the order that reads least from DRAM is taken for several groups, whose operands are
new to L2 one after another: 8 x 4096 rows, FP8 4096 x 7168, 1344 us in the order of the least time, 1313 in this one.
"""

HINTED_WAVES = 2
"""With more waves than these, hints made kernels slower: by up to 15% with `weights`, 59% with `both` (H100)."""

LEAST_L2_SHARE = 1.0
"""How busy L2 is, of the bytes a clock of the target, with tiles that load least."""

LEAST_CLOCK_SHARE = 0.5
"""Of the highest clock, however long a kernel runs: the terms of `_clock` are for milliseconds, not for days."""

SHALLOW_STAGES = 3
"""Stages up to which k-blocks that are accumulated in place are longer."""


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
    fixed_seconds: float
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


def _tensor_clocks(schedule: Schedule, target: Target) -> float:
    """Tensor-core clocks of one k-block of the whole tile."""
    assert schedule.block_m is not None and schedule.block_n is not None
    instructions = STAGE_ROW_BYTES // target.wgmma_k_bytes * schedule.block_m // target.wgmma_m
    return instructions * schedule.block_n * target.tensor_clocks_per_column


def _stages(problem: GemmProblem, schedule: Schedule, target: Target) -> int:
    """Those of the ring; while that is open, the most that fit."""
    return schedule.num_stages or fitting_stages(problem, schedule, target)


def _chunk(problem: GemmProblem, schedule: Schedule) -> int:
    """k-blocks between moments at which a warpgroup has nothing in flight, or 1."""
    return min(schedule.promote_chunk or 1, problem.k_blocks)


def _math_clocks(problem: GemmProblem, schedule: Schedule, tensor: float, target: Target, c: Constants) -> float:
    """Clocks of one k-block if its operands were there: tensor cores, operand reads and the warpgroups' chains."""
    groups = schedule.math_warpgroups
    assert groups is not None
    tile = tile_geometry(schedule)
    wave_bytes = (target.wgmma_m + tile.wg_columns) * STAGE_ROW_BYTES
    operand_reads = groups * tile.waves * wave_bytes / target.shared_bytes_per_clock
    if not problem.promoted:
        busy = _norm(tensor, operand_reads, c.operand_order) * (1 + c.in_place_wave * (tile.waves - 1))
        shallow = 1 + c.in_place_shallow if _stages(problem, schedule, target) <= SHALLOW_STAGES else 1.0
        busy = _norm(busy, STREAM.in_place_chain, STREAM.overlap_order)
        return busy * (c.in_place_three if groups == 3 else 1.0) * shallow
    # Of a chunk, only the last k-block's promotion has no wave of the same warpgroup to hide behind (estimate).
    chunk = _chunk(problem, schedule)
    promotion = c.promotion_per_column * tile.wg_columns * (COLUMN_SCALES if problem.column_scales else 1)
    steps = 0 if problem.column_scales else tile.wg_steps
    after_a_wave = tile.waves * (promotion + c.wave_latency) + c.scale_step * steps
    busy = max(tensor, operand_reads, tensor / groups + after_a_wave / chunk)
    if groups == 3:
        return busy * c.three_warpgroups
    in_step = groups == 2 and tile.waves == 1 and not schedule.turns
    return busy * (1 + (c.convoy - 1) / chunk) if in_step else busy


def _load_clocks(
    problem: GemmProblem, schedule: Schedule, spread: float, rounds: int, target: Target, c: Constants
) -> float:
    """Clocks in which L2 delivers a k-block's operands and warps fill in scales, or in which few stages let it."""
    assert schedule.block_m is not None and schedule.block_n is not None
    rows = min(schedule.block_m, problem.group_rows) + min(schedule.block_n, problem.n)
    transfer = rows * STAGE_ROW_BYTES / (c.l2_efficiency * target.l2_bytes_per_clock_per_sm) * (1 + spread)
    if not problem.promoted:
        transfer *= c.in_place_loads
    if _hinted(schedule, rounds):
        transfer *= c.hinted_loads
    stages = _stages(problem, schedule, target)
    filled = _filled_rows(problem, schedule) / max(1, rounds)
    fill = c.fill_clocks if problem.promoted else c.in_place_fill_clocks
    transfer += _scale_clocks(problem, schedule, stages, c) + fill * filled
    held = 1 if _chunk(problem, schedule) == 1 else 2
    return max(transfer, (c.load_latency + transfer) / max(1, stages - held))


def _hinted(schedule: Schedule, rounds: int) -> bool:
    """Whether L2 is told to let go of operands first; while that is open, whether it will be: in one wave or two."""
    if schedule.evict is not None:
        return schedule.evict is not Evict.NEITHER
    return rounds <= HINTED_WAVES and (schedule.cluster_m or 1) * (schedule.cluster_n or 1) == 1


def _scale_clocks(problem: GemmProblem, schedule: Schedule, stages: int, c: Constants) -> float:
    """Clocks in which the scales of a k-block are filled in."""
    if not problem.promoted:
        return 0.0
    slots = schedule.scale_slots
    if slots is None:
        slots, _ = scale_slots_of(problem, schedule, stages)
    if slots == 0:
        return c.scales_by_producer
    if slots == SCALES_OF_TILE:
        return c.scales_of_tile
    return c.scales_by_warp - c.scales_at_once * (1 - 1 / slots)


def _filled_rows(problem: GemmProblem, schedule: Schedule) -> int:
    """Rows of the last tile that lie past the last row."""
    assert schedule.block_m is not None
    return -problem.group_rows % schedule.block_m if problem.grouping is Grouping.NONE else 0


def _tile_clocks(problem: GemmProblem, schedule: Schedule, rounds: int, target: Target, c: Constants) -> float:
    """
    Clocks of a tile beside its k-blocks: what of its store nothing hides, and an idle start.

    Between chunked tiles nothing is in flight. Behind a CTA's last tile that costs nothing: there is no tile to go on
    with, so that of `rounds` tiles all but one have the bubble.
    """
    assert schedule.block_m is not None and schedule.block_n is not None
    rows, columns = min(schedule.block_m, problem.group_rows), min(schedule.block_n, problem.n)
    if (parts := problem.numerics.split_k) > 1:
        rows //= parts
    leaving = rows * (columns * problem.d.bytes / target.store_bytes_per_clock_per_sm + c.store_row_clocks)
    slices = schedule.store_slices or default_store_slices(problem, schedule)
    exposed = c.store_exposed if slices == 1 else c.sliced_store_exposed
    if not problem.promoted:
        exposed = c.in_place_store_exposed + (slices - 1) * c.in_place_slice_exposed
    bubble = c.chunk_bubble if problem.promoted else c.in_place_bubble
    bubble *= 0.0 if problem.promoted and schedule.promote_chunk in (None, 1) else 1 - 1 / max(1, rounds)
    more = _exchange_clocks(problem, schedule, c) + _addend_clocks(problem, rows * columns, slices, target)
    return exposed * leaving + bubble + more


def _exchange_clocks(problem: GemmProblem, schedule: Schedule, c: Constants) -> float:
    """Clocks in which the CTAs of a tile swap their sums, where K is split."""
    if (parts := problem.numerics.split_k) == 1:
        return 0.0
    assert schedule.block_m is not None and schedule.block_n is not None
    sent = schedule.block_m * schedule.block_n * 4 * (parts - 1) / parts
    return c.exchange_clocks + sent / c.exchange_bytes_per_clock


def _addend_clocks(problem: GemmProblem, elements: int, slices: int, target: Target) -> float:
    """Clocks in which the slices of C but the first arrive: that one is there before a tile is finished (estimate)."""
    if not problem.has_c:
        return 0.0
    arriving = elements * problem.d.bytes / target.l2_bytes_per_clock_per_sm
    return (slices - 1) * (ADDEND_LATENCY + arriving / slices)


def operand_bytes(problem: GemmProblem) -> int:
    """Bytes of A and B, each once. Scales are below 4% of A and are left out."""
    rows = problem.rows if problem.grouping is Grouping.K_OFFS else problem.all_rows
    return (rows * problem.a.bytes + problem.weights * problem.n * problem.b.bytes) * problem.k


def dram_seconds(
    problem: GemmProblem, target: Target = SM_90A, constants: Constants = DEFAULT, again: int = 0
) -> float:
    """Seconds that DRAM needs for the bytes of the problem, each once, and for `again` more."""
    written = max(0.0, problem.all_rows * problem.n * problem.d.bytes - constants.l2_dirty_bytes)
    added = problem.rows * problem.n * problem.d.bytes if problem.has_c else 0
    moved = operand_bytes(problem) + again + written + added
    return moved / (constants.dram_efficiency * target.dram_bytes_per_second)


def _norm(x: float, y: float, order: float) -> float:
    high, low = (x, y) if x >= y else (y, x)
    return high * (1 + (low / high) ** order) ** (1 / order) if high else 0.0


def _order(problem: GemmProblem, schedule: Schedule, target: Target, constants: Constants) -> Traffic | None:
    """What the tile order of a schedule moves; None while it is open."""
    if schedule.raster_axis is None or schedule.raster_group is None:
        return None
    return traffic(grid_of(problem, schedule, target), schedule.raster_axis, schedule.raster_group, constants)


def _order_terms(order: Traffic | None, groups: int, c: Constants) -> tuple[float, int]:
    """What the tile order of each group adds: a share to the clocks of loads, bytes to those that DRAM reads."""
    a, b = OPEN_ORDER_DISTINCT if order is None else (order.distinct_a, order.distinct_b)
    return c.spread_a * a + c.spread_b * b, 0 if order is None else groups * order.dram_again


def _dram_order(problem: GemmProblem, schedule: Schedule, rounds: int, target: Target, c: Constants) -> float:
    """
    How well DRAM and all rounds overlap. One round in place with a ring that is deep is to DRAM what `stream` is: no
    tile's end or result comes between its loads.
    """
    once = not problem.promoted and rounds == 1 and _hinted(schedule, rounds)
    alike = once and _stages(problem, schedule, target) > SHALLOW_STAGES
    return STREAM.dram_order if alike else c.dram_overlap_order


def _l2_share(schedule: Schedule, utilisation: float, tensor: float, target: Target) -> float:
    """Share of what L2 delivers that operands take, with tensor cores that work `utilisation` of the time."""
    assert schedule.block_m is not None and schedule.block_n is not None
    operands = (schedule.block_m + schedule.block_n) * STAGE_ROW_BYTES
    return utilisation * operands / (tensor * target.l2_bytes_per_clock_per_sm)


def _clock(cycles: float, utilisation: float, l2: float, dram: float, c: Constants) -> float:
    """SM clock under power: lower for busy tensor cores, L2 (`l2`: share) and DRAM (`dram` seconds), long kernels."""
    seconds = max(cycles / c.boost_clock_hz, 1e-9)
    drop = c.power_drop_hz * utilisation + c.dram_drop_hz * min(1.0, dram / seconds)
    sustained = c.sustained_drop_hz + c.l2_drop_hz * max(0.0, l2 - LEAST_L2_SHARE)
    settled = c.boost_clock_hz - drop - sustained * log1p(seconds / c.sustained_seconds)
    return max(LEAST_CLOCK_SHARE * c.boost_clock_hz, settled)


class _Clocks(NamedTuple):
    """The first fields of `Cost`, of one kind of tiles."""

    tensor: float
    math: float
    loads: float
    k_block: float
    tile: float


def _clocks(
    problem: GemmProblem, schedule: Schedule, spread: float, rounds: int, target: Target, c: Constants
) -> _Clocks:
    tensor = _tensor_clocks(schedule, target)
    math = _math_clocks(problem, schedule, tensor, target, c)
    loads = _load_clocks(problem, schedule, spread, rounds, target, c)
    shared = (schedule.cluster_m or 1) * (schedule.cluster_n or 1)
    k_block = _norm(math, loads, c.overlap_order) * (c.cluster_coupling if shared > 1 else 1.0)
    return _Clocks(tensor, math, loads, k_block, _tile_clocks(problem, schedule, rounds, target, c))


def _tail_clocks(problem: GemmProblem, schedule: Schedule, spread: float, target: Target, c: Constants) -> _Clocks:
    """Those of the narrower tiles of the last columns, of which a CTA seldom has a second one."""
    stages = _stages(problem, schedule, target)
    tail = replace(tail_schedule(problem, schedule), num_stages=stages)
    found = _clocks(problem, tail, spread, 1, target, c)
    flows = problem.promoted and schedule.promote_chunk in (None, 1)
    return found._replace(tile=found.tile + (TAIL_BEGINS if flows else 0))


def predict(
    problem: GemmProblem,
    schedule: Schedule,
    target: Target = SM_90A,
    constants: Constants = DEFAULT,
    order: Traffic | None = None,
) -> Cost:
    """
    The cost of `problem` under a schedule whose blocks, math warpgroups, split, turns and cluster are chosen.

    If the number of stages is open, the most that fit are assumed; if the tile order is, `order`, or a good one.
    Legality is not looked at.
    """
    if schedule.family is Family.STREAM:
        return predict_stream(problem, schedule, target)
    c, schedule = constants, with_scales_at_once(problem, schedule, target)
    spread, again = _order_terms(order or _order(problem, schedule, target, c), problem.groups, c)
    parts, shared = problem.numerics.split_k, (schedule.cluster_m or 1) * (schedule.cluster_n or 1)
    cluster = shared * parts
    rows, columns = cluster_tiles(problem, schedule)
    tiles = rows * columns * cluster
    rounds = -(-rows * columns // resident_clusters(schedule, target, split_k=parts))
    tensor, math, loads, k_block, tile = _clocks(problem, schedule, spread, rounds, target, c)
    cycles = rounds * (problem.part_k_blocks * k_block + tile)
    working = tiles * problem.part_k_blocks * tensor
    if schedule.has_tail:
        dealt, narrow = deal(problem, schedule, target), _tail_clocks(problem, schedule, spread, target, c)
        tiles, rounds = dealt.wide + dealt.narrow, int(dealt.longest(1, 1))
        cycles = dealt.longest(
            problem.part_k_blocks * k_block + tile, problem.part_k_blocks * narrow.k_block + narrow.tile
        )
        working = problem.part_k_blocks * (dealt.wide * tensor + dealt.narrow * narrow.tensor)
    utilisation = working / (target.sms * cycles) if cycles else 0.0
    dram = dram_seconds(problem, target, c, again)
    clock = _clock(cycles, utilisation, _l2_share(schedule, utilisation, tensor, target), dram, c)
    fixed = c.launch_seconds + (c.cluster_seconds if cluster > 1 else 0.0)
    fixed += c.cold_seconds_per_byte * operand_bytes(problem)
    return Cost(
        tensor=tensor,
        math=math,
        loads=loads,
        k_block=k_block,
        tile=tile,
        tiles=tiles,
        rounds=rounds,
        cycles=cycles,
        utilisation=utilisation,
        clock_hz=clock,
        dram_seconds=dram,
        fixed_seconds=fixed,
        seconds=fixed + _norm(cycles / clock, dram, _dram_order(problem, schedule, rounds, target, c)),
    )


def predict_stream(problem: GemmProblem, schedule: Schedule, target: Target, c: StreamConstants = STREAM) -> Cost:
    """`predict` for the `stream` family, where the tile order is no matter."""
    rows, columns = cluster_tiles(problem, schedule)
    parts = problem.numerics.split_k
    resident = resident_clusters(schedule, target, split_k=parts)
    rounds = -(-rows * columns // resident)
    stages = schedule.num_stages or max(1, fitting_stages(problem, schedule, target))
    clocks = stream_clocks(problem, schedule, stages, min(rows * columns, resident) * parts, target, c)
    cycles = rounds * problem.part_k_blocks * clocks.k_block + (rounds - 1) * (c.tile_clocks + clocks.leaving)
    cycles += problem.part_k_blocks * c.again_clocks if rows > 1 and parts > 1 else 0.0
    fixed = c.launch_seconds + clocks.tile / c.clock_hz
    working = rows * columns * parts * problem.part_k_blocks * clocks.tensor
    written = problem.all_rows * problem.n * problem.d.bytes
    dram = (operand_bytes(problem) + written) / (c.dram_efficiency * target.dram_bytes_per_second)
    dram *= 1 + c.uneven_share * (rounds * resident / (rows * columns) - 1 if rounds > 1 else 0.0)
    return Cost(
        tensor=clocks.tensor,
        math=clocks.math,
        loads=clocks.loads,
        k_block=clocks.k_block,
        tile=clocks.tile,
        tiles=rows * columns * parts,
        rounds=rounds,
        cycles=cycles,
        utilisation=working / (target.sms * cycles) if cycles else 0.0,
        clock_hz=c.clock_hz,
        dram_seconds=dram,
        fixed_seconds=fixed,
        seconds=fixed + _norm(cycles / c.clock_hz, dram, c.dram_order),
    )


@dataclass(frozen=True, slots=True)
class Ordered:
    """A tile order, and what the kernel costs with it."""

    order: Traffic
    cost: Cost


def best_orders(
    problem: GemmProblem, schedule: Schedule, target: Target = SM_90A, constants: Constants = DEFAULT
) -> list[Ordered]:
    """
    The tile orders that a schedule leaves open, the fastest first; of equals, what reads less, then the narrower.

    Of several groups, orders within `ALIKE_ORDERS` of the fastest are equals.
    """
    grid = grid_of(problem, schedule, target)
    orders = [traffic(grid, *o, constants) for o in orders_of(grid, schedule.raster_axis, schedule.raster_group)]
    open_order = replace(schedule, raster_axis=None, raster_group=None)
    costed = [Ordered(order, predict(problem, open_order, target, constants, order)) for order in orders]
    enough = min(o.cost.seconds for o in costed) * (1 + ALIKE_ORDERS) if problem.groups > 1 else 0.0

    def rank(o: Ordered) -> tuple[float, int, int]:
        return round(max(o.cost.seconds, enough) * 1e9), o.order.dram_bytes, o.order.group

    return sorted(costed, key=rank)


def tile_bound(
    problem: GemmProblem,
    block_m: int,
    block_n: int,
    dram: float,
    target: Target = SM_90A,
    constants: Constants = DEFAULT,
) -> float:
    """Seconds that no schedule with this tile beats in `predict`; cheap. `dram` is `dram_seconds(problem)`."""
    c = constants
    tiles = problem.groups * -(-problem.group_rows // block_m) * -(-problem.n // block_n)
    clocks_per_element = target.tensor_clocks_per_column / target.wgmma_m * STAGE_ROW_BYTES / target.wgmma_k_bytes
    rows = min(block_m, problem.group_rows) + min(block_n, problem.n)
    transfer = rows * STAGE_ROW_BYTES / (c.l2_efficiency * target.l2_bytes_per_clock_per_sm)
    transfer *= min(1.0, c.hinted_loads) * (1.0 if problem.promoted else min(1.0, c.in_place_loads))
    k_block = max(block_m * block_n * clocks_per_element, transfer)
    cycles = -(-tiles // (target.sms // problem.numerics.split_k)) * problem.part_k_blocks * k_block
    order = c.dram_overlap_order if problem.promoted else max(c.dram_overlap_order, STREAM.dram_order)
    return c.launch_seconds + _norm(cycles / c.boost_clock_hz, dram, order)


def cluster_bound(problem: GemmProblem, alone: Cost, constants: Constants = DEFAULT) -> float:
    """Seconds that no cluster beats in `predict`, for a shape that costs `alone` without one."""
    c = constants
    loads = alone.loads / (1 + max(c.spread_a, c.spread_b))
    cycles = alone.rounds * (problem.part_k_blocks * _norm(alone.math, loads, c.overlap_order) + alone.tile)
    return c.launch_seconds + cycles / c.boost_clock_hz
