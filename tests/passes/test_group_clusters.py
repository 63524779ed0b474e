"""Clusters of groups: who chooses them, and that what is chosen by hand is proven for every list of tiles."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.backends.cuda.target import the_kernel
from gemmir.bench.grouped import GROUPED_SETS, GroupedCase
from gemmir.compiler import lower
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.errors import ScheduleError
from gemmir.ir_text import parse_module
from gemmir.passes.block_search import GROUPS_GAIN, Candidate, _ranked, search
from gemmir.passes.cost_model import Cost, predict
from gemmir.passes.sync.check import check_kernel
from gemmir.passes.sync.execute import Machine
from gemmir.passes.sync.extract import program
from gemmir.passes.sync.traces import Trips
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Family, Schedule, Split
from gemmir.testing.groups import GROUPINGS
from gemmir.testing.strategies import columns_problem, fp8_problem, half_problem, legal_schedules, program_text
from tests.passes.run_passes import run
from tests.sabotage.kernels import kernel_in, module_of

NAME = "gemm-select-blocks"
CLUSTERS = ((2, 1), (1, 2))


def grouped(grouping: Grouping, fp8: bool = True, m: int | None = None) -> GemmProblem:
    one = columns_problem if grouping is Grouping.K_OFFS else fp8_problem
    return replace((one if fp8 else half_problem)(m, 1024, 2048), grouping=grouping, groups=4)


# ------------------------------------------------------------ who chooses them


def bench_problems() -> list[GemmProblem]:
    """Those of `gemmir bench --set grouped`."""
    found: list[GemmProblem] = []
    for each in GROUPED_SETS.values():
        for dtype in each.dtypes:
            for shape in each.shapes:
                case = GroupedCase(dtype, each.grouping.value, *shape)
                found.append(replace(problem_of(the_matmul(parse_module(case.text))), m=case.m))
    return found


@pytest.mark.parametrize("problem", bench_problems(), ids=str)
def test_groups_stay_alone_by_themselves(problem: GemmProblem):
    """What was chosen when there were no clusters for groups."""
    asked = search(problem, Schedule(cluster_m=1, cluster_n=1)).best
    assert search(problem, Schedule()).best == asked


@given(
    grouping=st.sampled_from(GROUPINGS),
    fp8=st.booleans(),
    sizes=st.tuples(*(st.sampled_from((1, 20, 128, 520, 2112, 7168)) for _ in range(3))),
    groups=st.sampled_from((1, 4, 32)),
)
def test_a_cluster_is_chosen_only_where_it_is_clearly_ahead(
    grouping: Grouping, fp8: bool, sizes: tuple[int, int, int], groups: int
):
    m, n, k = sizes[0], -(-sizes[1] // 8) * 8, -(-sizes[2] // 128) * 128
    problem = replace(grouped(grouping, fp8), m=m, n=n, k=k, groups=groups)
    alone, found = search(problem, Schedule(cluster_m=1, cluster_n=1)).best, search(problem, Schedule()).best
    if found.alone:
        assert found == alone
    else:
        assert found.cost.seconds <= (1 - GROUPS_GAIN) * alone.cost.seconds


def candidates(of_cluster: float) -> list[Candidate]:
    """One that does without a cluster and takes 1 second, and one in a cluster, with its seconds."""
    tile = Schedule(block_m=128, block_n=128, math_warpgroups=2, split=Split.ALONG_M, turns=True, promote_chunk=1)
    both = [replace(tile, cluster_m=1, cluster_n=1), replace(tile, cluster_m=2, cluster_n=1)]
    cost: Cost = predict(grouped(Grouping.OFFS), both[0])
    return [Candidate(s, replace(cost, seconds=t)) for s, t in zip(both, (1.0, of_cluster), strict=True)]


@pytest.mark.parametrize(
    ("of_cluster", "gain", "alone"),
    [(0.99, 0.0, False), (0.99, GROUPS_GAIN, True), (0.97, GROUPS_GAIN, False), (1.1, 0.0, True)],
)
def test_by_how_much_a_cluster_is_ahead(of_cluster: float, gain: float, alone: bool):
    assert _ranked(candidates(of_cluster), gain)[0].alone is alone


def test_the_decision_says_so():
    _, s, decisions = run(program_text(grouped(Grouping.OFFS, m=4096)), NAME)
    assert (s.cluster_m, s.cluster_n) == (1, 1)
    (cluster,) = (d for d in decisions if d.subject == "cluster")
    assert "groups form clusters where that is predicted to save 2%" in cluster.because


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_what_is_asked_for_is_given(grouping: Grouping, cluster: tuple[int, int], fp8: bool):
    """With tiles that lie in a block of 128 rows, if that is what carries a number."""
    problem = grouped(grouping, fp8, 4096)
    _, s, decisions = run(program_text(problem), f"{NAME}{{cluster={cluster[0]},{cluster[1]}}}")
    assert (s.cluster_m, s.cluster_n) == cluster
    assert "cluster" not in [d.subject for d in decisions]
    if grouping is Grouping.GROUP_IDS:
        assert s.block_m is not None
        assert s.block_m * cluster[0] <= 128


def test_rows_that_carry_numbers_and_tall_clusters():
    with pytest.raises(ScheduleError) as caught:
        run(program_text(grouped(Grouping.GROUP_IDS, m=4096)), f"{NAME}{{cluster=2,1 block=128,256}}")
    assert caught.value.code == "GMR-S006"
    assert "cluster of 2 x 1 tiles of 128 rows" in caught.value.what


# ------------------------------------------------------------ the proof


@given(data=st.data(), grouping=st.sampled_from(GROUPINGS), fp8=st.booleans(), cluster=st.sampled_from(CLUSTERS))
def test_drawn_schedules_are_proven(data: st.DataObject, grouping: Grouping, fp8: bool, cluster: tuple[int, int]):
    problem = grouped(grouping, fp8)
    drawn = data.draw(
        legal_schedules(problem).filter(lambda s: (s.cluster_m, s.cluster_n) == cluster), label="schedule"
    )
    kernel = the_kernel(lower(program_text(problem, drawn)).module)
    assert kernel.cluster_ctas == 2
    check_kernel(kernel)


LISTS: tuple[Trips, ...] = ((1,), (1, 1), (5, 1, 3), (1, 9, 1, 1), (2, 2, 2, 2, 2, 2, 2), (7, 1, 6, 2, 5, 3, 4))
"""k-blocks of each tile: empty groups along K have one."""


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_any_list_is_safe_and_the_same_for_both_ctas(grouping: Grouping, cluster: tuple[int, int]):
    fixed = Schedule(family=Family.TILES, block_m=64, block_n=64, cluster_m=cluster[0], cluster_n=cluster[1])
    kernel = the_kernel(lower(program_text(grouped(grouping, False), fixed)).module)
    made = program(kernel)
    check_kernel(kernel, LISTS)
    check_kernel(kernel, LISTS[:3], split_warps=True)
    for trips in LISTS:
        first, second = made.roles(trips)
        assert [len(role.trace.events) for role in first] == [len(role.trace.events) for role in second]


@pytest.mark.parametrize("name", ["fp8-offs-2x1", "bf16-counts-1x2", "bf16-k-offs-2x1"])
@pytest.mark.parametrize(("first", "second"), [((2, 1), (2,)), ((3,), ()), ((1, 4), (1, 5)), ((7, 2), (2, 7, 1))])
def test_lists_that_differ_hang_somebody(name: str, first: Trips, second: Trips):
    """Why a list that depends on the rank is refused: with fewer tiles, or other k-blocks, a peer waits for ever."""
    made = program(kernel_in(module_of(name)))
    machine = Machine([made.roles(first)[0], made.roles(second)[1]], len(made.memory.names))
    assert not machine.run() or machine.faults
    same = Machine([made.roles(first)[0], made.roles(first)[1]], len(made.memory.names))
    assert same.run()
    assert not same.faults
