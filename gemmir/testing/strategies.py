"""
Hypothesis strategies: problems that the kernels compute, legal schedules for them and schedules that are not, programs.

Needs hypothesis, which gemmir itself does not depend on.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from gemmir.dtypes import BF16, F8E4M3FN, F8E5M2, F16, F32, I32, DType
from gemmir.legality import (
    BLOCK_M,
    CLUSTERS,
    CLUSTERS_OF_FOUR,
    MATH_WARPGROUPS,
    MAX_STAGES,
    MIN_STAGES,
    WG_COLUMN_STEP,
    is_legal,
)
from gemmir.loop_legality import PROMOTE_CHUNKS, SCALE_SLOTS
from gemmir.matmul_rules import DIMS, operand_scale_shape
from gemmir.numerics import NumericsSpec
from gemmir.problem import SCALE_BLOCK, GemmProblem, Grouping, Recipe
from gemmir.schedule import SCALES_OF_TILE, Evict, Family, RasterAxis, Schedule, Split
from gemmir.stream_legality import MAX_BLOCK_M, MAX_PARTS, MAX_WARPGROUPS, form
from gemmir.target import SM_90A
from gemmir.tile import legal_store_slices, widest_scale_batch

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

RESULTS = (BF16, F16, F32)
WEIGHT_SCALES = st.sampled_from((Recipe.BLOCK_WISE_128X128, Recipe.BLOCK_WISE_128X128, Recipe.BLOCK_WISE_1X128))
MAJORS = st.sampled_from((("k", "k"), ("k", "k"), ("m", "k"), ("k", "n"), ("m", "n")))
ADDENDS = st.sampled_from((False, False, True))
FP8_PAIRS = ((F8E4M3FN, F8E4M3FN), (F8E5M2, F8E4M3FN), (F8E5M2, F8E5M2), (F8E4M3FN, F8E5M2))


def fp8_problem(
    m: int | None, n: int, k: int, a: DType = F8E4M3FN, b: DType = F8E4M3FN, d: DType = BF16, expected_m: int = 4096
) -> GemmProblem:
    """FP8 with scales 1x128 x 128x128, promoted every 128 elements of K."""
    recipes = (Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_128X128)
    return GemmProblem(m, n, k, a, b, d, *recipes, NumericsSpec(32, SCALE_BLOCK), expected_m=expected_m)


def columns_problem(
    m: int | None, n: int, k: int, a: DType = F8E4M3FN, b: DType = F8E4M3FN, d: DType = BF16, expected_m: int = 4096
) -> GemmProblem:
    """FP8 with scales 1x128 x 1x128, promoted every 128 elements of K."""
    return replace(fp8_problem(m, n, k, a, b, d, expected_m), scale_b=Recipe.BLOCK_WISE_1X128)


def half_problem(
    m: int | None, n: int, k: int, dtype: DType = BF16, d: DType = BF16, expected_m: int = 4096
) -> GemmProblem:
    """16-bit operands without scales, accumulated in the tensor core."""
    return GemmProblem(
        m, n, k, dtype, dtype, d, Recipe.NONE, Recipe.NONE, NumericsSpec(16, None), expected_m=expected_m
    )


@st.composite
def problems(draw: st.DrawFn, min_k: int = 0, max_m: int = 20_000) -> GemmProblem:
    """What the `tiles` family computes: any M or `?`, N and K whole 16-byte rows, with an operand C or without."""
    m = draw(st.none() | st.integers(1, max_m))
    d = draw(st.sampled_from(RESULTS))
    n = 16 // d.bytes * draw(st.integers(1, 4096))
    expected = draw(st.sampled_from((1, 64, 500, 4096)))
    if draw(st.booleans()):
        k = 16 * draw(st.integers(-(-min_k // 16), 1024))
        a, b = draw(st.sampled_from((F8E4M3FN, F8E5M2))), draw(st.sampled_from((F8E4M3FN, F8E5M2)))
        return replace(fp8_problem(m, n, k, a, b, d, expected), scale_b=draw(WEIGHT_SCALES), has_c=draw(ADDENDS))
    k = 8 * draw(st.integers(-(-min_k // 8), 1024))
    problem = half_problem(m, n, k, draw(st.sampled_from((BF16, F16))), d, expected)
    return _laid_out(replace(problem, has_c=draw(ADDENDS)), *draw(MAJORS))


def _laid_out(problem: GemmProblem, a: str, b: str) -> GemmProblem:
    """`problem` with operands of these majors; M and N rounded up where their rows must be whole 16 bytes."""
    m, n = problem.m, problem.n
    m = m if m is None or a == "k" else -(-m // 8) * 8
    return replace(problem, m=m, n=n if b == "k" else -(-n // 8) * 8, a_major=a, b_major=b)


@cache
def _placed(problem: GemmProblem) -> tuple[Schedule, ...]:
    """Every legal tile with every legal cluster, issue order and chunk."""
    open_schedule = Schedule(family=Family.TILES, block_k=problem.block_k)
    shapes = (
        replace(open_schedule, block_m=block_m, block_n=block_n, math_warpgroups=groups, split=split)
        for block_m in BLOCK_M
        for groups in MATH_WARPGROUPS
        for split in Split
        for block_n in range(WG_COLUMN_STEP, 513, WG_COLUMN_STEP)
    )
    # A block over 256 columns is legal in a cluster only.
    possible = [s for s in shapes if is_legal(problem, replace(s, cluster_m=2)) or is_legal(problem, s)]
    variants = (
        replace(s, cluster_m=cluster_m, cluster_n=cluster_n, turns=turns, promote_chunk=chunk)
        for s in possible
        for cluster_m, cluster_n in CLUSTERS
        for turns in (False, True)
        for chunk in PROMOTE_CHUNKS
    )
    return tuple(s for s in variants if is_legal(problem, s))


def placed_schedules(problem: GemmProblem) -> tuple[Schedule, ...]:
    """All legal choices of blocks, math warpgroups, split, turns, chunk and cluster; everything else open."""
    # Legality depends on neither size nor expectation.
    return _placed(replace(problem, m=None, n=512, k=512, expected_m=4096))


def sliced_schedules(problem: GemmProblem, placed: Schedule) -> tuple[Schedule, ...]:
    """`placed` with each number of slices in which its tile may leave."""
    sliced = (replace(placed, store_slices=slices) for slices in legal_store_slices(problem, placed))
    return tuple(s for s in sliced if is_legal(problem, s))


def tails(problem: GemmProblem, sliced: Schedule) -> list[tuple[int, int]]:
    """Widths of legal narrower tiles for the last columns, and columns of tiles before them."""
    assert sliced.block_n is not None
    widths, columns = range(WG_COLUMN_STEP, sliced.block_n, WG_COLUMN_STEP), -(-problem.n // sliced.block_n)
    pairs = ((width, after) for width in widths for after in range(1, columns))
    return [(n, after) for n, after in pairs if is_legal(problem, replace(sliced, tail_n=n, tail_after=after))]


def completed(problem: GemmProblem, schedule: Schedule) -> Schedule:
    """`schedule` with all that it leaves open chosen by the passes: what fixes only a part need not name the rest."""
    from gemmir.compiler import lower
    from gemmir.dialects.gemm import schedule_of, the_matmul

    found = lower(_program(problem, schedule), m=problem.expected_m, until="schedule")
    return schedule_of(the_matmul(found.module))


@st.composite
def legal_schedules(draw: st.DrawFn, problem: GemmProblem) -> Schedule:
    """Complete schedules that keep every rule, over the whole space."""
    everywhere = placed_schedules(problem)
    # First the height, then the loop: otherwise narrow tiles, which have the most variants, crowd out the rest.
    block_m = draw(st.sampled_from(sorted({s.block_m or 0 for s in everywhere})))
    groups = draw(st.sampled_from(sorted({s.math_warpgroups or 0 for s in everywhere if s.block_m == block_m})))
    tiles = [s for s in everywhere if s.block_m == block_m and s.math_warpgroups == groups]
    loop = draw(st.sampled_from(sorted({(bool(s.turns), s.promote_chunk or 0) for s in tiles})))
    placed = draw(st.sampled_from([s for s in tiles if (s.turns, s.promote_chunk) == loop]))
    larger = [s for m, n in CLUSTERS_OF_FOUR if is_legal(problem, s := replace(placed, cluster_m=m, cluster_n=n))]
    if larger and draw(st.integers(0, 7)) == 7:
        placed = draw(st.sampled_from(larger))
    sliced = draw(st.sampled_from(sliced_schedules(problem, placed)))
    possible = tails(problem, sliced)
    tail_n, after = draw(st.sampled_from(possible)) if possible and draw(st.booleans()) else (0, 0)
    sliced = replace(sliced, tail_n=tail_n, tail_after=after)
    fitting = [n for n in range(MIN_STAGES, MAX_STAGES + 1) if is_legal(problem, replace(sliced, num_stages=n))]
    drawn = replace(
        sliced,
        raster_axis=draw(st.sampled_from(RasterAxis)),
        raster_group=draw(st.sampled_from((1, 2, 3, 8, 16, 64))),
        evict=draw(st.sampled_from([e for e in Evict if is_legal(problem, replace(sliced, evict=e))])),
        balanced=draw(st.booleans()),
        scale_batch=draw(st.sampled_from(sorted({1, widest_scale_batch(problem, sliced)}))),
        num_stages=draw(st.sampled_from(fitting)),
    )
    slots = [n for n in (*SCALE_SLOTS, SCALES_OF_TILE) if is_legal(problem, replace(drawn, scale_slots=n))]
    return completed(problem, replace(drawn, scale_slots=draw(st.sampled_from(slots))))


@st.composite
def nearly_legal_schedules(draw: st.DrawFn, problem: GemmProblem) -> Schedule:
    """Legal schedules of which one choice was changed so that a rule is broken."""
    legal = draw(legal_schedules(problem))
    block_m, block_n, block_k = legal.block_m, legal.block_n, legal.block_k
    slices, stages = legal.store_slices, legal.num_stages
    assert block_m is not None and block_n is not None and block_k is not None
    assert slices is not None and stages is not None
    changes: tuple[dict[str, int | bool | Evict], ...] = (
        {"block_m": block_m + 32},
        {"block_m": 320},
        {"block_n": block_n + 8},
        {"block_n": block_n + 512},
        {"block_k": block_k * 2},
        {"math_warpgroups": 4},
        {"turns": not legal.turns},
        {"promote_chunk": 2},
        {"promote_chunk": 3},
        {"cluster_m": 4, "cluster_n": 2},
        {"cluster_m": 3},
        {"cluster_m": 2, "evict": Evict.BOTH},
        {"raster_group": 0},
        {"raster_group": 65},
        {"scale_batch": 2 * widest_scale_batch(problem, legal)},
        {"scale_batch": 3},
        {"scale_slots": 3},
        {"scale_slots": 4, "num_stages": 6},
        {"store_slices": slices + 1},
        {"store_slices": 5},
        {"num_stages": 1},
        {"num_stages": MAX_STAGES + 1},
        {"num_stages": stages + 4},
        {"block_n": block_n * 2},
    )
    broken = [s for c in changes if not is_legal(problem, s := replace(legal, **c))]
    return draw(st.sampled_from(broken))


def sizes(step: int, tile: int, most: int) -> st.SearchStrategy[int]:
    """Multiples of `step` up to `most`: mostly those around multiples of `tile`, where tails begin and end."""
    around = {t + d for t in range(0, most + 1, tile) for d in (-step, 0, step)}
    return st.one_of(
        st.sampled_from(sorted(size for size in around if 0 < size <= most)),
        st.integers(1, most // step).map(lambda count: count * step),
    )


@st.composite
def small_problems(draw: st.DrawFn, most_m: int = 200, most_n: int = 200, most_k_blocks: int = 5) -> GemmProblem:
    """Problems with a fixed M, small enough to simulate, whose sizes lie around the edges of tiles and k-blocks."""
    d = draw(st.sampled_from(RESULTS))
    m, n = draw(sizes(1, 64, most_m)), draw(sizes(16 // d.bytes, 64, most_n))
    if draw(st.booleans()):
        k = draw(sizes(16, SCALE_BLOCK, most_k_blocks * SCALE_BLOCK))
        problem = fp8_problem(m, n, k, *draw(st.sampled_from(FP8_PAIRS)), d)
        return replace(problem, scale_b=draw(WEIGHT_SCALES), has_c=draw(ADDENDS))
    k = draw(sizes(8, 64, most_k_blocks * 64))
    problem = half_problem(m, n, k, draw(st.sampled_from((BF16, F16))), d)
    return _laid_out(replace(problem, has_c=draw(ADDENDS)), *draw(MAJORS))


def split_in_two(problem: GemmProblem) -> GemmProblem:
    """`problem` with two parts of K, in the form that such kernels have: 16-bit result, k-major, without C."""
    d, n = (BF16, -(-problem.n // 8) * 8) if problem.d == F32 else (problem.d, problem.n)
    scale_b = Recipe.BLOCK_WISE_128X128 if problem.promoted else Recipe.NONE
    usual = replace(problem, n=n, d=d, scale_b=scale_b, a_major="k", b_major="k", has_c=False)
    return replace(usual, numerics=replace(problem.numerics, split_k=2))


@st.composite
def split_programs(draw: st.DrawFn) -> str:
    """IR text of a small product whose two parts of K are summed by a CTA each, with a complete legal schedule."""
    problem = draw(small_problems(most_k_blocks=8).filter(lambda problem: problem.k_blocks % 2 == 0))
    problem = split_in_two(problem)
    return program_text(problem, draw(legal_schedules(problem)))


def program_text(problem: GemmProblem, schedule: Schedule | None = None, name: str = "product") -> str:
    """
    The function `name`, which computes `problem` (without an epilogue), with `schedule` fixed, as IR text.

    Its arguments are x, w, the index operand of groups, the scales xs and ws, and c, as far as there are such.
    """
    return str(_program(problem, schedule, name))


def _program(problem: GemmProblem, schedule: Schedule | None, name: str = "product") -> ModuleOp:
    from gemmir.dialects.gemm import set_schedule, the_matmul
    from gemmir.ir_text import parse_module

    module = parse_module(_text(problem, name))
    if schedule is not None:
        set_schedule(the_matmul(module), schedule)
    return module


def _text(problem: GemmProblem, name: str) -> str:
    dims = DIMS[problem.grouping]
    sizes = {"G": problem.groups, "M": problem.m, "N": problem.n, "K": problem.k}

    def shape(text: str) -> tuple[int | None, ...]:
        return tuple(sizes[dim] for dim in text.split(" x "))

    result, clauses = _tensor(shape(dims.d), problem.d), ""
    operands = {"x": _tensor(shape(dims.a), problem.a), "w": _tensor(shape(dims.b), problem.b)}
    if dims.index:
        operands["index"] = _tensor(shape(dims.index), I32)
        clauses += f" groups (%index by {problem.grouping.value})"
    if problem.scale_a is not Recipe.NONE:
        operands["xs"] = _tensor(operand_scale_shape(problem.scale_a, shape(dims.a), k_axis=1), F32)
        operands["ws"] = _tensor(operand_scale_shape(problem.scale_b, shape(dims.b), k_axis=0), F32)
        clauses += f" scaled (%xs by {problem.scale_a.value}, %ws by {problem.scale_b.value})"
    if problem.numerics.split_k > 1:
        clauses += f" numerics <split_k = {problem.numerics.split_k}>"
    if problem.has_c:
        operands["c"] = result
        clauses += " accumulate %c"
    if (problem.a_major, problem.b_major) != ("k", "k"):
        clauses += f" layout <a = {problem.a_major}, b = {problem.b_major}>"
    arguments = ", ".join(f"%{operand}: {type_}" for operand, type_ in operands.items())
    op = {Grouping.NONE: "matmul", Grouping.BATCH: "batched_matmul"}.get(problem.grouping, "grouped_matmul")
    return f"""
func.func @{name}({arguments}) -> {result} {{
  %y = gemm.{op} %x, %w{clauses} : ({", ".join(operands.values())}) -> {result}
  func.return %y : {result}
}}"""


def _tensor(shape: tuple[int | None, ...], dtype: DType) -> str:
    return f"tensor<{'x'.join(['?' if size is None else str(size) for size in shape] + [str(dtype)])}>"


@st.composite
def tile_programs(draw: st.DrawFn) -> str:
    """IR text of a small product, with a complete legal schedule of the `tiles` family."""
    problem = draw(small_problems())
    return program_text(problem, draw(legal_schedules(problem)))


MOST_BLOCKS = {1: 6, 2: 4, 3: 3}
"""k-blocks of a part of K that are drawn, by the number of parts: as many as make rings go round."""


@st.composite
def stream_problems(draw: st.DrawFn, most_m: int = 200, most_n: int = 200, most_parts: int = MAX_PARTS) -> GemmProblem:
    """Small problems in the form that the `stream` family computes, with K, which may be 0, in one to three parts."""
    problem = split_in_two(draw(small_problems(most_m, most_n, 1)))
    parts = draw(st.integers(1, most_parts))
    blocks = draw(st.integers(0 if parts == 1 else 1, MOST_BLOCKS[parts]))
    # So many that each part has them, but the last one, which has at least one.
    fewest = max((blocks - 1) * parts, (parts - 1) * blocks) + 1
    total = draw(st.integers(min(fewest, blocks * parts), blocks * parts))
    step = 16 // problem.a.bytes
    tail = draw(st.sampled_from((0, 1)) | st.integers(0, problem.block_k // step - 1)) if total else 0
    numerics = replace(problem.numerics, split_k=parts)
    return replace(problem, k=total * problem.block_k - tail * step, numerics=numerics)


@st.composite
def stream_schedules(draw: st.DrawFn, problem: GemmProblem) -> Schedule:
    """Complete legal schedules of the `stream` family."""
    groups = draw(st.integers(1, MAX_WARPGROUPS))
    one_wave = problem.promoted or problem.numerics.split_k > 1
    waves = 1 if one_wave else draw(st.integers(1, SM_90A.max_tma_box // (SM_90A.wgmma_m * groups)))
    tile = Schedule(
        family=Family.STREAM,
        block_n=SM_90A.wgmma_m * groups * waves,
        block_k=problem.block_k,
        math_warpgroups=groups,
        split=Split.ALONG_N,
        promote_chunk=draw(st.sampled_from(PROMOTE_CHUNKS)) if problem.promoted else 1,
    )
    rows = range(SM_90A.wgmma_n_step, MAX_BLOCK_M + 1, SM_90A.wgmma_n_step)
    placed = draw(st.sampled_from([s for m in rows if is_legal(problem, s := replace(tile, block_m=m))]))
    fitting = [n for n in range(MIN_STAGES, MAX_STAGES + 1) if is_legal(problem, replace(placed, num_stages=n))]
    # Rings that a tile's k-blocks go round, with one left over, or just fill, or do not.
    blocks = problem.part_k_blocks
    rings = ([n for n in fitting if n < blocks - 1], [blocks - 1], [blocks], [n for n in fitting if n > blocks])
    stages = st.one_of([st.sampled_from(ring) for ring in rings if set(ring) & set(fitting)])
    drawn = replace(
        placed,
        raster_axis=draw(st.sampled_from(RasterAxis)),
        raster_group=draw(st.sampled_from((1, 2, 8))),
        evict=draw(st.sampled_from(Evict)),
        balanced=draw(st.booleans()),
        num_stages=draw(stages),
    )
    return completed(problem, drawn)


@st.composite
def stream_programs(draw: st.DrawFn) -> str:
    """IR text of a small product, with a complete legal schedule of the `stream` family."""
    problem = draw(stream_problems())
    return program_text(problem, draw(stream_schedules(problem)))


def any_schedules(problem: GemmProblem) -> st.SearchStrategy[Schedule]:
    """Complete legal schedules of every family that computes a problem whose K is whole."""
    if form(problem, Schedule(family=Family.STREAM), SM_90A) is not None:
        return legal_schedules(problem)
    return st.one_of(legal_schedules(problem), stream_schedules(problem))


def programs() -> st.SearchStrategy[str]:
    """IR text of a small product, with a complete legal schedule for it, of any family."""
    return st.one_of(tile_programs(), tile_programs(), stream_programs())


@st.composite
def partial_schedules(draw: st.DrawFn, problem: GemmProblem) -> Schedule:
    """
    Legal schedules of which any choices are left open: there is at least one way to complete them.

    While the family is open, the rules are those of `tiles`: what is one of `stream` says so.
    """
    legal = draw(any_schedules(problem))
    names = [field.name for field in fields(legal)]
    kept = draw(st.sets(st.sampled_from(names)))
    kept |= {"family"} if legal.family is Family.STREAM else set()
    return Schedule(**{name: getattr(legal, name) for name in names if name in kept})
