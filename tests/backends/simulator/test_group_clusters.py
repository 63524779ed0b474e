"""Simulated clusters of groups: exact, whatever the groups, and bit for bit what CTAs that stand alone compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemmir.backends.cuda.target import the_kernel
from gemmir.backends.reference import exact_inputs, random_inputs, run
from gemmir.backends.simulator import simulate
from gemmir.compiler import lower
from gemmir.dialects import hopper
from gemmir.errors import SyncError
from gemmir.groups import K_ALIGNMENT_BYTES
from gemmir.ir_text import parse_module
from gemmir.problem import GROUP_ALIGNMENT, GemmProblem, Grouping
from gemmir.schedule import Family, Schedule
from gemmir.testing.groups import GROUPINGS, any_indices, extent_of, grouped_forms, indices
from gemmir.testing.oracles import check_bits
from gemmir.testing.strategies import columns_problem, fp8_problem, half_problem, program_text

ALONE, CLUSTERS = (1, 1), ((2, 1), (1, 2))
GROUPS, N, K_BLOCKS = 5, 72, 3
"""Three tiles of columns: the second CTA of a cluster along N has none in every other cluster tile."""

LENGTHS: dict[str, tuple[int, ...]] = {
    "no rows": (0, 0, 0, 0, 0),
    "one row": (0, 0, 1, 0, 0),
    "one row each": (1, 1, 1, 1, 1),
    "all in one": (0, 200, 0, 0, 0),
    "a row below a tile": (63, 63, 0, 63, 0),
    "whole tiles": (64, 64, 0, 64, 0),
    "a row above a tile": (65, 0, 65, 0, 65),
    "a row around two tiles": (127, 0, 129, 0, 0),
    "tiles in odd numbers": (130, 10, 0, 0, 60),
    "mostly empty": (0, 0, 0, 0, 3),
}
"""Rows of each group; with `k_offs`, k-blocks are these modulo 4."""

BROKEN: dict[Grouping, tuple[tuple[int, ...], ...]] = {
    Grouping.OFFS: ((70, 60, 190, 500, 200), (-1, 65, 65, 2**31 - 1, 200)),
    Grouping.COUNTS: ((-1, 70, 201, 0, 3), (2**31 - 1, -(2**31), 129, 1, 64)),
    Grouping.GROUP_IDS: ((3,) * 10 + (4,) * 54 + (3,) * 64 + (7,) * 60 + (1,) * 10, (2,) * 70 + (-1,) * 58 + (0,) * 2),
    Grouping.K_OFFS: ((64, 32, 96, 128, 999), (128, 64, 192, 192, 256)),
}
"""Index operands with entries that make no sense, between others that do."""


@dataclass(frozen=True)
class Case:
    """A form of groups, its operands, and the index operand (none for a batch, whose M it is)."""

    grouping: Grouping
    fp8: bool
    m: int
    index: tuple[int, ...]

    @property
    def problem(self) -> GemmProblem:
        along_k = self.grouping is Grouping.K_OFFS
        one = (columns_problem if along_k else fp8_problem) if self.fp8 else half_problem
        k = (128 if self.fp8 else 64) * (12 if along_k else K_BLOCKS)
        return replace(one(self.m, N, k), grouping=self.grouping, groups=GROUPS)


def case_of(grouping: Grouping, fp8: bool, lengths: Sequence[int]) -> Case:
    if grouping is Grouping.BATCH:
        return Case(grouping, fp8, max(1, *lengths), ())
    if grouping is Grouping.COUNTS:
        return Case(grouping, fp8, max(70, *lengths), tuple(lengths))
    if grouping is Grouping.K_OFFS:
        step = K_ALIGNMENT_BYTES // (1 if fp8 else 2)
        return Case(grouping, fp8, 70, tuple(accumulate(rows % 4 * step for rows in lengths)))
    if grouping is Grouping.OFFS:
        return Case(grouping, fp8, sum(lengths) + 5, tuple(accumulate(lengths)))
    ids = [id_ for group, rows in enumerate(lengths) for id_ in _padded(group, rows)]
    return Case(grouping, fp8, len(ids) or 1, tuple(ids) or (-1,))


def _padded(group: int, rows: int) -> list[int]:
    return [group] * rows + [-1] * (-rows % GROUP_ALIGNMENT)


@cache
def kernel_of(problem: GemmProblem, cluster: tuple[int, int]) -> hopper.KernelOp:
    """Tiles of 64 x 32, for any M."""
    fixed = Schedule(family=Family.TILES, block_m=64, block_n=32, cluster_m=cluster[0], cluster_n=cluster[1])
    return the_kernel(lower(program_text(problem, fixed), m=problem.expected_m).module)


def check(case: Case, seed: int = 0) -> None:
    """In every cluster, each element on exact data, those that nobody writes too; and the same bits as without one."""
    module = parse_module(program_text(case.problem))
    inputs = exact_inputs(module, None, seed)
    if case.index:
        inputs["index"] = torch.tensor(case.index, dtype=torch.int32)
    tensors, any_m = list(inputs.values()), replace(case.problem, m=None)
    expected = run(module, tensors)
    assert isinstance(expected, torch.Tensor)
    alone = simulate(kernel_of(any_m, ALONE), tensors, case.m, seed=seed)
    for cluster in CLUSTERS:
        got = simulate(kernel_of(any_m, cluster), tensors, case.m, seed=seed)
        assert torch.equal(got, expected), cluster
        assert torch.equal(got.view(torch.int16), alone.view(torch.int16)), cluster


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_groups_of_every_length(grouping: Grouping, fp8: bool):
    cases = dict.fromkeys(case_of(grouping, fp8, lengths) for lengths in LENGTHS.values())
    assert len(cases) >= 8, "a batch is as long with no row, with one, and with one each"
    for seed, case in enumerate(cases):
        check(case, seed)


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("grouping", BROKEN)
def test_entries_that_make_no_sense(grouping: Grouping, fp8: bool):
    for seed, index in enumerate(BROKEN[grouping]):
        m = len(index) if grouping is Grouping.GROUP_IDS else 200
        check(Case(grouping, fp8, m, index), seed)


@given(data=st.data(), grouping=st.sampled_from(GROUPINGS), valid=st.booleans(), seed=st.integers(0, 1 << 16))
def test_drawn_groups(data: st.DataObject, grouping: Grouping, valid: bool, seed: int):
    """Layouts, results, scales and C of every kind, tiles that the passes choose."""
    problem = data.draw(grouped_forms(grouping))
    cluster_m, cluster_n = data.draw(st.sampled_from(CLUSTERS))
    text = program_text(problem, Schedule(family=Family.TILES, cluster_m=cluster_m, cluster_n=cluster_n))
    inputs = random_inputs(parse_module(text), None, seed)
    if grouping is not Grouping.BATCH:
        index = data.draw((indices if valid else any_indices)(grouping, extent_of(problem)))
        inputs["index"] = torch.tensor(index, dtype=torch.int32)
    kernel = the_kernel(lower(text).module)
    assert kernel.cluster_ctas == 2
    clusters = data.draw(st.integers(1, 3))

    def of_clusters(*tensors: torch.Tensor) -> torch.Tensor:
        assert problem.m is not None
        return simulate(kernel, tensors, problem.m, seed=seed, clusters=clusters)

    check_bits(of_clusters, text, inputs=list(inputs.values()))


def test_a_cluster_shares_what_one_group_multiplies():
    """B along M, A along N; of matrices of each group that of the tile's group, and of one list of tiles."""
    for grouping, cluster, axis, own in (
        (Grouping.OFFS, (2, 1), "m", True),
        (Grouping.COUNTS, (1, 2), "n", True),
        (Grouping.K_OFFS, (2, 1), "m", False),
    ):
        kernel = kernel_of(replace(case_of(grouping, True, LENGTHS["one row"]).problem, m=None), cluster)
        loads = [op for op in kernel.walk() if isinstance(op, hopper.TmaLoadOp) and op.multicast is not None]
        assert [(load.properties["multicast"], load.group is not None) for load in loads] == [
            (hopper.AxisAttr(hopper.types.AxisName(axis)), own)
        ]
        (counted,) = (op for op in kernel.walk() if isinstance(op, hopper.CountTilesOp))
        assert counted.per_cluster is not None


@pytest.mark.parametrize("lengths", ["one row", "tiles in odd numbers"])
def test_a_list_for_each_cta_hangs_its_peer(lengths: str):
    """Groups with an odd number of tiles, dealt out tile by tile: one CTA waits for what the other never sends."""
    case = case_of(Grouping.OFFS, False, LENGTHS[lengths])
    kernel = kernel_of(replace(case.problem, m=None), (2, 1)).clone()
    (counted,) = (op for op in kernel.walk() if isinstance(op, hopper.CountTilesOp))
    del counted.properties["per_cluster"]
    inputs = exact_inputs(parse_module(program_text(case.problem)), None, 0)
    inputs["index"] = torch.tensor(case.index, dtype=torch.int32)
    with pytest.raises(SyncError) as caught:
        simulate(kernel, list(inputs.values()), case.m)
    assert caught.value.code == "GMR-Y001"
