"""
Clusters of two that compute products of groups, on a Hopper GPU: 60 drawn products of each form and each cluster.

Every bit is the model's, and every byte around a result is as before. Groups have odd numbers of tiles, one row or
none, and index operands make sense or not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import pytest
import torch

import gemmir
from gemmir.backends.reference.data import random_inputs
from gemmir.backends.reference.groups import result_shape, written
from gemmir.ir_text import parse_module
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Family, Schedule
from gemmir.testing.groups import GROUPINGS
from gemmir.testing.strategies import columns_problem, fp8_problem, half_problem, program_text
from tests.gpu.eager import operands_of
from tests.gpu.groups import drawn_in_clusters
from tests.gpu.test_groups import check

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
CLUSTERS = ((2, 1), (1, 2))
SEEDS = int(os.environ.get("GEMMIR_CHAOS_SEEDS", "100"))
"""Of random delays, for each kernel."""


def kernel_for(problem: GemmProblem, schedule: Schedule, chaos: bool = False) -> gemmir.CompiledKernel:
    """A kernel for any M."""
    text = program_text(replace(problem, m=None), schedule)
    return gemmir.compile(text, m=problem.m, cache=False, chaos=chaos)


def run_by(
    kernel: gemmir.CompiledKernel,
) -> Callable[[GemmProblem, dict[str, torch.Tensor], torch.Tensor], torch.Tensor]:
    return lambda problem, inputs, out: kernel(*inputs.values(), out=out)


@pytest.mark.parametrize("cluster", CLUSTERS, ids=["2x1", "1x2"])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_drawn_products(grouping: Grouping, cluster: tuple[int, int]) -> None:
    """Problems, tiles, M and groups as hypothesis draws them, no two alike."""
    kernels = drawn_in_clusters(grouping, cluster)
    assert sum(len(one.calls) for one in kernels) == 60
    for one in kernels:
        kernel = kernel_for(one.problem, one.fixed)
        assert kernel.manifest.cluster_ctas == 2
        for seed, (m, index) in enumerate(one.calls):
            check(one.problem, m, index, seed, one.apart, run_by(kernel))


GROUPS, M = 6, 1500
LENGTHS = {
    "odd numbers of tiles": (1, 129, 0, 383, 640, 257),
    "one row each": (1, 1, 1, 1, 1, 1),
    "all in one": (0, 0, 1500, 0, 0, 0),
    "around a tile": (127, 128, 129, 0, 255, 257),
    "none": (0, 0, 0, 0, 0, 0),
}


def large(grouping: Grouping, fp8: bool) -> GemmProblem:
    """Tiles of every kind; an odd number of them along N."""
    one = (columns_problem if grouping is Grouping.K_OFFS else fp8_problem) if fp8 else half_problem
    return replace(one(M, 1032, 1536), grouping=grouping, groups=GROUPS)


def index_of(problem: GemmProblem, lengths: tuple[int, ...]) -> list[int]:
    """Rows of each group; along K, so many k-blocks of each, modulo 4."""
    match problem.grouping:
        case Grouping.OFFS:
            return list(accumulate(lengths))
        case Grouping.COUNTS:
            return list(lengths)
        case Grouping.K_OFFS:
            return list(accumulate(rows % 4 * problem.block_k for rows in lengths))
        case _:
            padded = [id_ for group, rows in enumerate(lengths) for id_ in [group] * rows + [-1] * (-rows % 128)]
            return (padded + [-1] * M)[:M]


def inputs_for(problem: GemmProblem, lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    inputs = random_inputs(parse_module(program_text(problem)), None, 3, DEVICE)
    if problem.grouping is not Grouping.BATCH:
        inputs["index"] = torch.tensor(index_of(problem, lengths), dtype=torch.int32, device=DEVICE)
    return inputs


def result_of(kernel: gemmir.CompiledKernel, problem: GemmProblem, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The result, in memory that held 77 before."""
    shape = result_shape(problem.grouping, operands_of(inputs))
    return kernel(*inputs.values(), out=torch.full(shape, 77.0, dtype=torch.bfloat16, device=DEVICE))


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("cluster", CLUSTERS, ids=["2x1", "1x2"])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_bits_of_ctas_that_stand_alone(grouping: Grouping, cluster: tuple[int, int], fp8: bool) -> None:
    """With the tiles that are chosen for each; 77 stays where no group is."""
    problem = large(grouping, fp8)
    shared = kernel_for(problem, Schedule(family=Family.TILES, cluster_m=cluster[0], cluster_n=cluster[1]))
    alone = kernel_for(problem, Schedule(family=Family.TILES, cluster_m=1, cluster_n=1))
    for lengths in LENGTHS.values():
        inputs = inputs_for(problem, lengths)
        one, other = (result_of(kernel, problem, inputs) for kernel in (shared, alone))
        assert torch.equal(one.view(torch.int16), other.view(torch.int16)), lengths
        outside = ~written(grouping, operands_of(inputs))
        assert bool((one[outside] == 77.0).all()), lengths


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("cluster", CLUSTERS, ids=["2x1", "1x2"])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_delays_change_no_bit_and_hang_nobody(grouping: Grouping, cluster: tuple[int, int], fp8: bool) -> None:
    """Groups of odd numbers of tiles: of many clusters, one CTA has no rows. Wider tiles spill under chaos."""
    problem = large(grouping, fp8)
    fixed = Schedule(family=Family.TILES, block_m=64, block_n=128, cluster_m=cluster[0], cluster_n=cluster[1])
    inputs = inputs_for(problem, LENGTHS["odd numbers of tiles"])
    expected = result_of(kernel_for(problem, fixed), problem, inputs)
    kernel = kernel_for(problem, fixed, chaos=True)
    different = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for seed in range(SEEDS):
        kernel.reseed(seed)
        different += (result_of(kernel, problem, inputs) != expected).sum()
    assert int(different) == 0
