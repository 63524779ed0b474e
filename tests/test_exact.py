"""
More than 2,000 products, simulated and compared in full with the reference, with no tolerance.

Kernels of every shape that is legal: math warpgroups and how they divide the tile, waves, slices, clusters, turns and
chunks; each with the smallest tile that has the shape, and with as many k-blocks as the ring has slots, one more, one
fewer, and one.
Sizes lie around the edges of tiles and k-blocks. Each product has data, an order of events and a grid of its own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

import pytest
import torch

from gemmir.backends.simulator import simulate
from gemmir.compiler import module_of
from gemmir.dialects.hopper import KernelOp
from gemmir.dtypes import BF16, F16
from gemmir.pipeline import parse_pipeline, run_passes
from gemmir.problem import GemmProblem
from gemmir.schedule import RasterAxis, Schedule
from gemmir.testing import check_exact
from gemmir.testing.strategies import (
    FP8_PAIRS,
    completed,
    fp8_problem,
    half_problem,
    placed_schedules,
    program_text,
    sliced_schedules,
)
from gemmir.tile import tile_geometry

ENOUGH = 2000
STAGES = (2, 3, 4)
FEWEST = 2

Shape = tuple[object, ...]


@dataclass(frozen=True)
class Product:
    """One case: so many rows, and a seed for data and simulator."""

    m: int
    seed: int
    clusters: int


@dataclass(frozen=True)
class Group:
    """A kernel, and the products that it computes: the schedule is what was chosen, completed as for `base`."""

    base: GemmProblem
    problem: GemmProblem
    schedule: Schedule
    products: tuple[Product, ...]

    @cached_property
    def text(self) -> str:
        return program_text(self.problem, as_completed(self.base, self.schedule))

    def __str__(self) -> str:
        s, k_blocks = self.schedule, self.problem.k_blocks
        assert s.split is not None
        turns = "-turns" if s.turns else f"-chunk{s.promote_chunk}" if s.promote_chunk != 1 else ""
        slices = f"-{s.store_slices}slices" if tile_geometry(s).waves > 1 else ""
        return (
            f"{self.problem.a}-{s.block_m}x{s.block_n}-{s.math_warpgroups}{s.split.value}-"
            f"{s.cluster_m}x{s.cluster_n}{turns}{slices}-{k_blocks}of{s.num_stages}"
        )


as_completed = cache(completed)


def shape(schedule: Schedule) -> Shape:
    """What sets kernels apart, whatever the size of their tile."""
    alone = schedule.math_warpgroups == 1
    return (
        schedule.math_warpgroups,
        None if alone else schedule.split,
        tile_geometry(schedule).waves,
        (schedule.cluster_m, schedule.cluster_n),
        schedule.turns,
        schedule.promote_chunk,
        schedule.store_slices,
    )


def variants(problem: GemmProblem) -> Iterator[Schedule]:
    """Every tile with each number of slices, small ones first."""
    for placed in sorted(placed_schedules(problem), key=lambda s: (s.block_m or 0) * (s.block_n or 0)):
        yield from sliced_schedules(problem, placed)


def smallest(problem: GemmProblem) -> list[Schedule]:
    """The smallest tile of every shape."""
    found: dict[Shape, Schedule] = {}
    for schedule in variants(problem):
        found.setdefault(shape(schedule), schedule)
    return list(found.values())


def number_of_products(problem: GemmProblem, schedule: Schedule) -> int:
    """More where they cost less: by the WGMMAs of 64 x 16 that a cluster tile takes."""
    assert schedule.block_m is not None
    assert schedule.block_n is not None
    ctas = 2 if schedule.cluster_m == 2 or schedule.cluster_n == 2 else 1
    cost = ctas * schedule.block_m * schedule.block_n // 1024 * problem.k_blocks
    most, budget = (16, 40) if problem.a.is_fp8 else (11, 120)
    return max(FEWEST, min(most, budget // cost))


def heights(rows: int, count: int, chance: random.Random) -> list[int]:
    """`count` heights about the edges of a tile of `rows`, at most two tiles; seldom two where these cost most."""
    edges = [1, rows - 1, rows, rows + 1]
    inside = [chance.randrange(1, rows) for _ in range(count - 2)]
    beyond = [chance.randrange(rows, 2 * rows) for _ in range(2 if count > FEWEST else 0)]
    return chance.sample([*edges, *inside, *beyond], count)


def sized(base: GemmProblem, problem: GemmProblem, schedule: Schedule, chance: random.Random) -> Group:
    """One kernel: N and M around the edges of a tile, K with or without a tail in the last of its k-blocks."""
    assert schedule.block_m is not None
    assert schedule.block_n is not None
    rows, columns = schedule.block_m * (schedule.cluster_m or 1), schedule.block_n * (schedule.cluster_n or 1)
    steps = problem.block_k * problem.a.bytes // 16
    k = problem.k - 16 // problem.a.bytes * chance.choice((0, 1, steps - 1, chance.randrange(steps)))
    count = number_of_products(problem, schedule)
    beyond = (columns + 8, 8 * chance.randint(1, columns // 4)) if count > FEWEST else ()
    n = chance.choice((columns, columns - 8, *beyond))
    products = tuple(
        Product(m, chance.randrange(1 << 16), chance.choice((1, 1, 2, 3))) for m in heights(rows, count, chance)
    )
    return Group(base, replace(problem, n=n, k=k), schedule, products)


def all_groups() -> list[Group]:
    chance = random.Random(20)
    groups: list[Group] = []
    for base in (fp8_problem(None, 128, 128), half_problem(None, 128, 64)):
        for number, schedule in enumerate(smallest(base)):
            stages = STAGES[number % len(STAGES)]
            fixed = replace(
                schedule,
                raster_axis=chance.choice(list(RasterAxis)),
                raster_group=chance.choice((1, 2, 8)),
                num_stages=stages,
            )
            for blocks in sorted({1, stages - 1, stages, stages + 1}):
                a, b = chance.choice(FP8_PAIRS) if base.a.is_fp8 else (chance.choice((BF16, F16)),) * 2
                problem = replace(base, k=blocks * base.block_k, a=a, b=b, d=chance.choice((BF16, F16)))
                groups.append(sized(base, problem, fixed, chance))
    return groups


GROUPS = all_groups()
"""The same ones every time."""


def kernel_of(group: Group) -> KernelOp:
    module = module_of(group.text)
    run_passes(module, parse_pipeline(None))
    return next(op for op in module.body.block.ops if isinstance(op, KernelOp))


def test_there_are_enough():
    assert sum(len(group.products) for group in GROUPS) >= ENOUGH
    assert len({(group.text, product) for group in GROUPS for product in group.products}) >= ENOUGH


def test_all_shapes_and_edges_are_there():
    for is_fp8, problem in ((True, fp8_problem(None, 128, 128)), (False, half_problem(None, 128, 64))):
        mine = [group for group in GROUPS if group.problem.a.is_fp8 is is_fp8]
        assert {shape(group.schedule) for group in mine} == {shape(s) for s in variants(problem)}
    assert {group.schedule.math_warpgroups for group in GROUPS} == {1, 2, 3}
    assert len({(group.problem.a, group.problem.b, group.problem.d) for group in GROUPS}) == 2 * (len(FP8_PAIRS) + 2)
    edges = Counter(
        (blocks - stages, group.problem.k % group.problem.block_k != 0)
        for group in GROUPS
        if (blocks := group.problem.k_blocks) and (stages := group.schedule.num_stages)
    )
    for against_the_ring in (-1, 0, 1):
        assert edges[against_the_ring, False] >= 10
        assert edges[against_the_ring, True] >= 10


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_every_element_is_exact(group: Group):
    kernel, program, compared = kernel_of(group), module_of(group.text), 0
    for product in group.products:

        def run(*tensors: torch.Tensor, product: Product = product) -> torch.Tensor:
            return simulate(kernel, tensors, product.m, seed=product.seed, clusters=product.clusters)

        check_exact(run, program, product.m, seed=product.seed)
        compared += 1
    assert compared == len(group.products)
