"""
The rules that a schedule must obey, each one predicate, used by verifiers and by searches alike.

A rule looks only at the choices that it needs; while one of them is open it has nothing to say. It returns what is
wrong as a `Violation`, with the arithmetic and the cheapest fix, or None.
"""

from __future__ import annotations

from gemmir.errors import ScheduleError
from gemmir.layouts import PANEL, STAGED_COLUMNS
from gemmir.loop_legality import promote_chunk, scale_slots, turns
from gemmir.order_legality import evict, raster
from gemmir.problem import GROUP_ALIGNMENT, GemmProblem, Grouping
from gemmir.rule import Rule, Violation, missing
from gemmir.schedule import Family, Schedule, Split
from gemmir.stream_legality import RULES as OF_STREAMS
from gemmir.tail_legality import NO_TAIL, tail
from gemmir.target import SM_90A, TMA_SHARED_ALIGNMENT, WARP_LANES, Target, launch_registers, setmaxnreg_split
from gemmir.tile import (
    STAGE_ROW_BYTES,
    TileGeometry,
    exchange,
    legal_store_slices,
    shared_layout,
    tail_schedule,
    tile_geometry,
    widest_scale_batch,
)

BLOCK_M = (64, 128, 192, 256)
MATH_WARPGROUPS = (1, 2, 3)
MAX_STAGES = 12
STREAM_MAX_STAGES = 24
MIN_STAGES = 2
WG_COLUMN_STEP = 16
"""A warpgroup's columns leave by stmatrix.x4 where they are 16-bit, and in TMA boxes of at least 32 bytes."""

CLUSTERS = ((1, 1), (2, 1), (1, 2))
"""CTAs along M and N that form clusters of two."""

CLUSTERS_OF_FOUR = ((4, 1), (1, 4), (2, 2))
"""Of one product only: a GPU runs 30 of them at a time, on 120 of its 132 SMs (asked of the driver)."""

SEARCHED_CLUSTER, MAX_CLUSTER = (max(m * n for m, n in shapes) for shapes in (CLUSTERS, CLUSTERS_OF_FOUR))
"""CTAs of the largest cluster that is tried where none is asked for, and of any."""

MAX_SPLIT_K = 2
"""Parts of K where two CTAs swap halves of a tile."""

REGISTER_OVERHEAD = 28
REGISTERS_PER_WAVE = 4
"""Registers that a math thread needs beside accumulators: loop state; scales and addresses of each wave (measured)."""

COLUMN_SCALE_REGISTERS = (4, 16)
"""Registers for column scales on their way from shared memory; where k-blocks go in chunks (measured)."""

INSTRUCTION_OVERHEAD = 26
"""Registers that ptxas asks for beside one instruction's accumulators, within the launch bound (C7602; measured)."""

ADDEND_WARPGROUPS, ADDEND_COLUMNS = 2, 256
"""Most math warpgroups, and columns of a tile, where a C is added."""

SCALES_STEP = TMA_SHARED_ALIGNMENT // 4
"""Column scales, in f32, that fill what TMA writes to at least."""

SCALE_STEPS_MAX = 32
"""The producer warp expands weight scales, one per lane."""


def block_shape(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """block_m is whole WGMMA rows, block_k one swizzle row."""
    if s.block_m is not None and s.block_m not in BLOCK_M:
        return Violation(
            "GMR-S003", f"block_m = {s.block_m}", f"block_m is one of {BLOCK_M}: whole rows of WGMMA", "use 128"
        )
    if s.block_n is not None and not 16 <= s.block_n <= 512:
        return Violation("GMR-S003", f"block_n = {s.block_n}", "16 <= block_n <= 512", "use 128")
    if s.block_k is not None and s.block_k != problem.block_k:
        return Violation(
            "GMR-S003",
            f"block_k = {s.block_k} elements of {problem.a} is {s.block_k * problem.a.bytes} bytes",
            f"a stage holds one swizzle row of {STAGE_ROW_BYTES} bytes of K",
            f"use block_k = {problem.block_k}",
        )
    if s.math_warpgroups is not None and s.math_warpgroups not in MATH_WARPGROUPS:
        return Violation(
            "GMR-S003", f"math_warpgroups = {s.math_warpgroups}", f"one of {MATH_WARPGROUPS}", "use math_warpgroups = 2"
        )
    return None


def warpgroup_tile(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Each warpgroup owns whole 64-row waves, and columns that WGMMA, stmatrix and TMA boxes can express."""
    if missing(s, "block_m", "block_n", "math_warpgroups", "split"):
        return None
    assert s.block_m is not None and s.block_n is not None and s.math_warpgroups is not None
    divided, name = (s.block_n, "block_n") if s.split is Split.ALONG_N else (s.block_m, "block_m")
    if divided % s.math_warpgroups:
        return Violation(
            "GMR-S003",
            f"{name} = {divided} over {s.math_warpgroups} math warpgroups",
            "the split dimension divides evenly",
            "change math_warpgroups or split",
        )
    tile = tile_geometry(s)
    if tile.wg_rows % target.wgmma_m:
        return Violation(
            "GMR-S003",
            f"{tile.wg_rows} rows a warpgroup (block_m = {s.block_m}, {s.math_warpgroups} warpgroups)",
            f"a warpgroup owns whole waves of {target.wgmma_m} rows",
            "use split = n, or fewer math_warpgroups",
        )
    if tile.wg_columns % WG_COLUMN_STEP or not WG_COLUMN_STEP <= tile.wg_columns <= target.wgmma_n_max:
        return Violation(
            "GMR-S003",
            f"{tile.wg_columns} columns a warpgroup (block_n = {s.block_n})",
            f"a multiple of {WG_COLUMN_STEP} from {WG_COLUMN_STEP} to {target.wgmma_n_max}",
            f"use block_n = {max(1, round(tile.wg_columns / WG_COLUMN_STEP)) * WG_COLUMN_STEP}",
        )
    return None


def scale_steps(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """One lane of the producer warp expands one weight scale."""
    if problem.column_scales:
        return _column_scales(s)
    if not problem.promoted or missing(s, "block_m", "block_n", "math_warpgroups", "split"):
        return None
    assert s.block_n is not None
    step = tile_geometry(s).column_step
    if s.block_n // step > SCALE_STEPS_MAX:
        return Violation(
            "GMR-S003",
            f"block_n = {s.block_n} in steps of {step} columns is {s.block_n // step} weight scales",
            f"at most {SCALE_STEPS_MAX}, one per lane of the producer warp",
            "use block_n a multiple of 32",
        )
    return None


def _column_scales(s: Schedule) -> Violation | None:
    """A tile's column scales are one TMA box, which lands at a multiple of 128 bytes."""
    if s.block_n is None or (s.block_n % SCALES_STEP == 0 and s.block_n <= SM_90A.max_tma_box):
        return None
    return Violation(
        "GMR-S003",
        f"block_n = {s.block_n} with a scale a column",
        f"the scales of a tile are one box: a multiple of {SCALES_STEP} columns, at most {SM_90A.max_tma_box}",
        f"use block_n = {min(max(1, round(s.block_n / SCALES_STEP)) * SCALES_STEP, SM_90A.max_tma_box)}",
    )


def math_registers(problem: GemmProblem, schedule: Schedule) -> int:
    """Registers of a math thread: accumulators, partial sums if promoted, and the overhead."""
    tile = tile_geometry(schedule)
    partials = _partials(problem, schedule) * tile.fragment_registers
    return tile.waves * tile.fragment_registers + partials + _overhead(problem, schedule, tile)


def _partials(problem: GemmProblem, schedule: Schedule) -> int:
    """Partial sums that a math thread holds: two where k-blocks go in chunks."""
    if not problem.promoted:
        return 0
    return 1 if schedule.promote_chunk in (None, 1) else 2


def _overhead(problem: GemmProblem, schedule: Schedule, tile: TileGeometry) -> int:
    columns = 0
    if problem.column_scales:
        columns = COLUMN_SCALE_REGISTERS[0 if schedule.promote_chunk in (None, 1) else 1]
    return REGISTER_OVERHEAD + REGISTERS_PER_WAVE * tile.waves + columns


def registers(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Accumulators fit the registers that setmaxnreg gives a math thread."""
    if missing(s, "block_m", "block_n", "math_warpgroups", "split") or s.math_warpgroups not in MATH_WARPGROUPS:
        return None
    assert s.math_warpgroups is not None
    tile, budget = tile_geometry(s), setmaxnreg_split(s.math_warpgroups)[1]
    needed, overhead = math_registers(problem, s), _overhead(problem, s, tile)
    at_launch = launch_registers((s.math_warpgroups + 1) * target.warpgroup_threads)
    if tile.fragment_registers + INSTRUCTION_OVERHEAD > at_launch:
        return Violation(
            "GMR-S002",
            f"{tile.fragment_registers} accumulators of one WGMMA + {INSTRUCTION_OVERHEAD} registers",
            f"a thread has {at_launch} registers at launch with {s.math_warpgroups} math warpgroups",
            "use fewer columns a warpgroup, or fewer math_warpgroups",
        )
    if needed <= budget:
        return None
    partials = _partials(problem, s)
    partial = f" + {f'{partials} x ' * (partials > 1)}{tile.fragment_registers} partial" if partials else ""
    return Violation(
        "GMR-S002",
        f"{tile.waves} x {tile.fragment_registers} accumulators{partial} + {overhead} = {needed} registers a thread",
        f"setmaxnreg gives a math thread {budget} with {s.math_warpgroups} math warpgroups",
        "use a smaller block_m or block_n, or more math_warpgroups",
    )


def least_stages(problem: GemmProblem, s: Schedule) -> int:
    """Slots of the ring; where two CTAs swap sums, the last k-block of a tile, and what the other sends meanwhile."""
    if problem.numerics.split_k == 1 or s.family is Family.STREAM:
        return MIN_STAGES
    return max(MIN_STAGES, exchange(s).parts + 1)


def most_stages(s: Schedule) -> int:
    """Slots of the ring: those of `stream` are small."""
    return STREAM_MAX_STAGES if s.family is Family.STREAM else MAX_STAGES


def shared_memory(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """The ring, the outgoing tile and the barriers fit one block's shared memory."""
    if missing(s, "block_m", "block_n", "math_warpgroups", "split"):
        return None
    fewest, most = least_stages(problem, s), most_stages(s)
    stages = fewest if s.num_stages is None else s.num_stages
    if not fewest <= stages <= most:
        return Violation(
            "GMR-S001", f"num_stages = {stages}", f"{fewest} <= num_stages <= {most}", "leave num_stages open"
        )
    layout = shared_layout(problem, s, stages)
    if layout.total_bytes <= target.shared_bytes:
        return None
    fitting = (target.shared_bytes - layout.fixed_bytes) // layout.stage_bytes
    fix = f"use num_stages = {fitting}" if fitting >= fewest else "use a smaller block_m or block_n"
    return Violation(
        "GMR-S001",
        f"{stages} stages x {layout.stage_bytes} + {layout.fixed_bytes} (outgoing tile, barriers) = "
        f"{layout.total_bytes} bytes",
        f"{target.name} offers {target.shared_bytes} bytes a block",
        fix,
    )


def tma_boxes(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """A box has at most 256 rows, and what a CTA loads for its cluster is whole swizzle atoms of 8 rows."""
    if missing(s, "block_m", "block_n"):
        return None
    assert s.block_m is not None and s.block_n is not None
    sides = (("block_m", s.block_m, s.cluster_n, problem.a_major), ("block_n", s.block_n, s.cluster_m, problem.b_major))
    for name, rows, extent, major in sides:
        shared_by = extent or 1
        if major != "k":
            if (found := _panels(s, name, rows, shared_by)) is not None:
                return found
            continue
        if rows % (8 * shared_by):
            return Violation(
                "GMR-S004",
                f"{name} = {rows} shared by {shared_by} CTAs is {rows / shared_by:g} rows each",
                "each CTA of a cluster loads whole swizzle atoms of 8 rows",
                f"use {name} a multiple of {8 * shared_by}",
            )
        widest = SEARCHED_CLUSTER if problem.grouping is Grouping.NONE else 1
        if rows // (widest if extent is None else shared_by) > target.max_tma_box:
            return Violation(
                "GMR-S003",
                f"{name} = {rows} in one TMA box a CTA",
                f"a box has at most {target.max_tma_box} rows",
                f"use {name} = {target.max_tma_box * shared_by} or a cluster",
            )
    return None


def _panels(s: Schedule, name: str, extent: int, shared_by: int) -> Violation | None:
    """An operand that is not k-major comes in boxes of 64 columns, of which CTAs and warpgroups have whole ones."""
    if extent % (PANEL * shared_by):
        return Violation(
            "GMR-S004",
            f"{name} = {extent} shared by {shared_by} CTAs is {extent / shared_by:g} each",
            f"an operand that is not k-major is loaded in panels of {PANEL}",
            f"use {name} a multiple of {PANEL * shared_by}",
        )
    if name != "block_n" or missing(s, "block_m", "math_warpgroups", "split") or not s.math_warpgroups:
        return None
    if (columns := tile_geometry(s).wg_columns) % PANEL == 0:
        return None
    return Violation(
        "GMR-S003",
        f"{columns} columns a warpgroup of an n-major B",
        f"a warpgroup multiplies whole panels of {PANEL} columns",
        f"use block_n = {max(1, round(columns / PANEL)) * PANEL * (extent // columns)}",
    )


def cluster(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Clusters of one or two CTAs, or of four where they compute one product and do not split K."""
    m, n = (1 if extent is None else extent for extent in (s.cluster_m, s.cluster_n))
    if problem.grouping is Grouping.GROUP_IDS and m > 1 and m * (s.block_m or 0) > GROUP_ALIGNMENT:
        what = f"cluster of {m} x {n} tiles of {s.block_m} rows for groups by group_ids"
        rule = f"CTAs share B of one group, which has blocks of {GROUP_ALIGNMENT} rows: the second would have none"
        return Violation("GMR-S004", what, rule, "use cluster = 1x2, or block_m = 64")
    parts = 1 if s.cluster_m is None and s.cluster_n is None else problem.numerics.split_k
    single = problem.grouping is Grouping.NONE and problem.numerics.split_k == 1
    if ((m, n) in CLUSTERS and m * n * parts <= MAX_SPLIT_K) or ((m, n) in CLUSTERS_OF_FOUR and single):
        return None
    if parts > 1:
        what = f"cluster of {m} x {n} tiles with split_k = {parts}: {m * n * parts} CTAs"
        return Violation("GMR-S004", what, "a cluster of two sums both parts of K of one tile", "use cluster = 1x1")
    shapes = CLUSTERS + CLUSTERS_OF_FOUR * single
    rule = "one of " + ", ".join(f"{along_m}x{along_n}" for along_m, along_n in shapes)
    return Violation("GMR-S004", f"cluster of {m} x {n} CTAs", rule, "use cluster = 2x1")


def _many_segments(problem: GemmProblem) -> bool:
    """Whether a warp cannot hold what it knows of all groups at once."""
    ended = problem.grouping in (Grouping.OFFS, Grouping.K_OFFS)
    return problem.grouping is Grouping.GROUP_IDS or (ended and problem.groups > WARP_LANES)


def groups(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """A tile has rows of one group, or all rows of one and as many k-blocks as that has."""
    if problem.grouping is Grouping.GROUP_IDS and s.block_m is not None and GROUP_ALIGNMENT % s.block_m:
        return Violation(
            "GMR-S003",
            f"block_m = {s.block_m} for groups by group_ids",
            f"a tile lies in one of the blocks of {GROUP_ALIGNMENT} rows that belong to one group",
            f"use block_m = {GROUP_ALIGNMENT}",
        )
    if _many_segments(problem) and s.math_warpgroups == MATH_WARPGROUPS[-1]:
        return Violation(
            "GMR-S002",
            f"{s.math_warpgroups} math warpgroups for {problem.groups} groups by {problem.grouping.value}",
            f"warps that go through more than {WARP_LANES} groups, or blocks of rows, need the registers that "
            "setmaxnreg leaves them beside two math warpgroups",
            "use math_warpgroups = 2",
        )
    if problem.grouping is Grouping.K_OFFS and s.promote_chunk not in (None, 1):
        return Violation(
            "GMR-S003",
            f"promote_chunk = {s.promote_chunk} for groups along K",
            "each group has its own number of k-blocks, so that they go one at a time",
            "use promote_chunk = 1",
        )
    return None


def scale_batch(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """The producer fetches the weight scales of one k-block at a time, or of as many as its lanes can hold."""
    if s.scale_batch in (None, 1) or missing(s, "block_m", "block_n", "math_warpgroups", "split"):
        return None
    widest = widest_scale_batch(problem, s)
    if s.scale_batch == widest:
        return None
    return Violation(
        "GMR-S003",
        f"scale_batch = {s.scale_batch} with block_n = {s.block_n}",
        f"1, or {widest}: {WARP_LANES} lanes hold the scales of so many k-blocks"
        if widest > 1
        else "1: there are no weight scales to fetch, or too many",
        f"use scale_batch = {widest}",
    )


def split_k(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Each of two CTAs finishes one of the two waves of a warpgroup; what it gets for it fits few slots of the ring."""
    parts = problem.numerics.split_k
    if parts == 1 or missing(s, "block_m", "block_n", "math_warpgroups", "split"):
        return None
    if problem.k_blocks % parts:
        what = f"split_k = {parts} of {problem.k_blocks} k-blocks"
        rule = "two CTAs that swap sums have equally many k-blocks"
        return Violation("GMR-S003", what, rule, f"use family = stream, or pad K to a multiple of {parts} k-blocks")
    tile = tile_geometry(s)
    if parts > MAX_SPLIT_K or tile.waves != parts:
        return Violation(
            "GMR-S003",
            f"{tile.waves} waves a warpgroup with split_k = {parts}",
            f"split_k is at most {MAX_SPLIT_K}, and each of two CTAs finishes one of two waves of 64 rows",
            "use block_m = 128 along n, or 128 rows a warpgroup along m",
        )
    found = exchange(s)
    whole = found.parts * found.registers == tile.fragment_registers and found.registers % 4 == 0
    if found.parts <= MIN_STAGES and whole:
        return None
    return Violation(
        "GMR-S003",
        f"{tile.fragment_registers} sums a thread in {found.parts} slots of the ring",
        f"sums are exchanged in at most {MIN_STAGES} slots, four at a time",
        "use columns a warpgroup a multiple of 16, and block_n about block_m or more",
    )


def store_slices(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """A tile leaves whole, wave by wave, or of one wave that is not promoted some columns after others."""
    if s.store_slices in (None, 1) or missing(s, "block_m", "block_n", "math_warpgroups", "split"):
        return None
    legal = legal_store_slices(problem, s)
    if s.store_slices in legal:
        return None
    return Violation(
        "GMR-S003",
        f"slices = {s.store_slices} of {tile_geometry(s).waves} waves a warpgroup",
        "a tile leaves in one slice, in one a wave, or, where sums are not promoted, one wave in whole "
        f"{STAGED_COLUMNS} columns" + ("; K is split: it leaves whole" if problem.numerics.split_k > 1 else ""),
        f"use slices = {' or '.join(map(str, legal))}",
    )


def addend(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Where there is a C the store thread also loads, for which it needs registers (measured)."""
    if not problem.has_c:
        return None
    groups, columns = ADDEND_WARPGROUPS, ADDEND_COLUMNS
    rule = f"the store thread also loads C: it has registers for {groups} math warpgroups and {columns} columns"
    if s.math_warpgroups is not None and s.math_warpgroups > groups:
        what = f"{s.math_warpgroups} math warpgroups with an operand C"
        return Violation("GMR-S002", what, rule, f"use math_warpgroups = {groups}")
    if s.block_n is not None and s.block_n > columns:
        return Violation("GMR-S002", f"block_n = {s.block_n} with an operand C", rule, f"use block_n = {columns}")
    return None


RULES: tuple[Rule, ...] = (
    block_shape,
    warpgroup_tile,
    scale_steps,
    cluster,
    tma_boxes,
    split_k,
    tail,
    raster,
    evict,
    groups,
    turns,
    store_slices,
    promote_chunk,
    addend,
    scale_batch,
    scale_slots,
    registers,
    shared_memory,
)

STREAM_RULES: tuple[Rule, ...] = (*OF_STREAMS, tail, raster, scale_batch, scale_slots, shared_memory)


def rules_of(schedule: Schedule) -> tuple[Rule, ...]:
    """The rules of a schedule's family; those of `tiles` while it is open."""
    return STREAM_RULES if schedule.family is Family.STREAM else RULES


def violation(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> Violation | None:
    """The first rule that `schedule` breaks, or None. Rules about open choices hold."""
    for rule in rules_of(schedule):
        if (found := rule(problem, schedule, target)) is not None:
            return found
    if not schedule.tail_n or missing(schedule, "block_m", "block_n", "math_warpgroups", "split"):
        return None
    if (found := violation(problem, tail_schedule(problem, schedule), target)) is None:
        return None
    return Violation(found.code, f"tail: {found.what}", found.rule, NO_TAIL)


def is_legal(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> bool:
    return violation(problem, schedule, target) is None


def check_schedule(problem: GemmProblem, schedule: Schedule, target: Target = SM_90A) -> None:
    """Raise `ScheduleError` with the arithmetic if `schedule` breaks a rule."""
    if (found := violation(problem, schedule, target)) is not None:
        raise ScheduleError(found.code, found.what, rule=found.rule, fix=found.fix)
