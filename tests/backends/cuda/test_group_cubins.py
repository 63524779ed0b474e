"""What every NVRTC at hand makes of kernels for groups: no serialised WGMMA, no spill, the ops that the IR asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product

import pytest

from gemmir.backends.cuda.audit import audit_sass
from gemmir.backends.cuda.compiler_log import check_log
from gemmir.backends.cuda.nvrtc import Compiled, compile_cubin
from gemmir.bench.grouped import GROUPED_SETS, GroupedCase
from gemmir.compiler import lower
from gemmir.dtypes import F32
from gemmir.legality import is_legal
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Family, Schedule, Split
from gemmir.testing.groups import GROUPINGS
from gemmir.testing.strategies import columns_problem, fp8_problem, half_problem
from tests.backends.cuda.disassembly import InBatches
from tests.backends.cuda.oldest_nvrtc import compile_by_oldest, needs_oldest_nvrtc
from tests.kernels import Lowered, lowered

TILES = {
    "narrow": Schedule(),
    "tall": Schedule(block_m=192, block_n=128, math_warpgroups=3, split=Split.ALONG_M),
    "turns": Schedule(block_m=128, block_n=128, math_warpgroups=2, split=Split.ALONG_M, turns=True),
    "wide": Schedule(block_m=128, block_n=256, math_warpgroups=2, split=Split.ALONG_N),
}


def problem_of(grouping: Grouping, fp8: bool) -> GemmProblem:
    """With an N that no tile divides; weight gradients add to C in f32."""
    if grouping is Grouping.K_OFFS:
        one = columns_problem(None, 520, 1280, d=F32) if fp8 else half_problem(None, 520, 1280, d=F32)
        return replace(one, grouping=grouping, groups=7, has_c=True)
    one = fp8_problem(None, 520, 1280) if fp8 else half_problem(None, 520, 1280)
    return replace(one, grouping=grouping, groups=7)


CASES = {
    f"{grouping.value}-{'fp8' if fp8 else 'bf16'}-{name}": (problem, tile)
    for grouping in GROUPINGS
    for fp8 in (True, False)
    for problem in (problem_of(grouping, fp8),)
    for name, tile in TILES.items()
    if is_legal(problem, tile)
}
CLUSTERED = {
    f"{name}-{cluster_m}x{cluster_n}": (problem, clustered)
    for name, (problem, tile) in CASES.items()
    for cluster_m, cluster_n in ((2, 1), (1, 2))
    for clustered in (replace(tile, family=Family.TILES, cluster_m=cluster_m, cluster_n=cluster_n),)
    if is_legal(problem, clustered)
}
ALL = CASES | CLUSTERED


def test_most_tiles_serve_every_grouping() -> None:
    assert len(CASES) == 31
    assert len(CLUSTERED) == 59
    assert {name.rsplit("-", 1)[0] for name in CASES if name.endswith("wide")} == {n.rsplit("-", 1)[0] for n in CASES}


@cache
def printed(case: str) -> Lowered:
    return lowered(*ALL[case])


@cache
def compiled(case: str) -> Compiled:
    return compile_cubin(printed(case).source)


SASS = InBatches(lambda case: compiled(case).cubin, list(ALL))


@pytest.mark.parametrize("case", ALL)
def test_kernels_of_groups(case: str) -> None:
    assert check_log(compiled(case).log).spill_stores == 0
    audit_sass(printed(case).kernel, SASS[case])


def default_tiles() -> Iterator[str]:
    """In clusters, sources of the kernels that are chosen for what `gemmir bench --set grouped` measures."""
    for each in GROUPED_SETS.values():
        for dtype, shape, (m, n) in product(each.dtypes, each.shapes, ((2, 1), (1, 2))):
            fixed = Schedule(family=Family.TILES, cluster_m=m, cluster_n=n)
            yield lower(GroupedCase(dtype, each.grouping.value, *shape).program(fixed)).source


def test_default_tiles_in_clusters() -> None:
    names = re.compile(r"^(gemm_\w+)\($", re.MULTILINE)
    sources = {
        (names.findall(source)[0], "KOffs<" in source, "Counts<" in source): source for source in default_tiles()
    }
    assert len(sources) >= 16
    for source in sources.values():
        resources = check_log(compile_cubin(source).log)
        assert resources.spill_stores == resources.spill_loads == resources.stack_bytes == 0


@needs_oldest_nvrtc
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_kernels_of_groups_by_the_oldest_nvrtc(grouping: Grouping) -> None:
    cases = [case for case, (problem, _) in ALL.items() if problem.grouping is grouping]
    assert len(cases) >= 10
    by_oldest = compile_by_oldest(printed(case).source for case in cases)
    assert [check_log(one.log).spill_stores for one in by_oldest.values()] == [0] * len(cases)
