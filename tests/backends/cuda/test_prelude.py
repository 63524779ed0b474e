"""The prelude gives what is used and what that needs, in order."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gemmir.backends.cuda.prelude import prelude, sections
from gemmir.backends.cuda.printer import print_kernel
from gemmir.compiler import lower
from gemmir.dtypes import BF16, F16, F32
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Schedule, Split
from gemmir.testing.strategies import columns_problem, program_text, split_in_two
from tests.kernels import BF16_SCHEDULE, FP8_SCHEDULE, STREAM_SCHEDULE, lowered
from tests.schedules import fp8_problem, half_problem

BALANCED = Schedule(balanced=True)
FORMS = [grouping for grouping in Grouping if grouping is not Grouping.NONE]


def groups_of(grouping: Grouping) -> GemmProblem:
    return replace(half_problem(100, 64, 64), grouping=grouping, groups=3)


def test_only_what_is_used() -> None:
    text = prelude(["mbarrier_arrive_peer"])
    assert "mbarrier_arrive_peer" in text
    assert "peer_address" in text
    assert "mbarrier_wait" not in text
    assert "//@" not in text


def test_needs_come_first() -> None:
    names = list(sections())
    for section in sections().values():
        assert all(names.index(need) < names.index(section.name) for need in section.needs), section.name


def test_unknown_sections_are_refused() -> None:
    with pytest.raises(KeyError):
        prelude(["nothing"])


def test_lanes_meet_under_no_condition() -> None:
    """An instruction of all lanes in an arm of `?:`, or behind `&&`, hangs the lanes that go the other way."""
    collective = re.compile(r"(\?|&&|\|\||\bif \([^;]*\)) *[^;?]*__(shfl|ballot|reduce|any|all|syncwarp)\w*\(")
    assert collective.search("most = lane >= d ? __shfl_up_sync(mask, most, d) : most;")
    assert collective.search("if (lane >= d) left = __shfl_up_sync(mask, most, d);")
    found = [match[0] for section in sections().values() for match in [collective.search(section.text)] if match]
    assert found == []


def test_every_section_is_used_by_some_kernel() -> None:
    fp8, bf16 = fp8_problem(None, 7168, 2048), half_problem(None, 7168, 2048)
    split = lowered(split_in_two(fp8), replace(FP8_SCHEDULE, cluster_m=1, num_stages=4))
    sources = [
        lowered(fp8, FP8_SCHEDULE).source,
        lowered(fp8, replace(FP8_SCHEDULE, scale_batch=16)).source,
        lowered(fp8, replace(FP8_SCHEDULE, block_n=192, split=Split.ALONG_M, turns=True, cluster_m=1)).source,
        lowered(fp8, replace(FP8_SCHEDULE, cluster_m=1, cluster_n=1, tail_n=128, tail_after=27)).source,
        split.source,
        lowered(bf16, BF16_SCHEDULE).source,
        lowered(replace(bf16, a=half_problem(None, 8, 8).a, d=fp8.d), BF16_SCHEDULE).source,
        lowered(replace(fp8, d=F16), FP8_SCHEDULE).source,
        *(lowered(replace(fp8, d=d, has_c=True), replace(FP8_SCHEDULE, num_stages=3)).source for d in (BF16, F16, F32)),
        lowered(columns_problem(None, 7168, 2048), replace(FP8_SCHEDULE, num_stages=3)).source,
        lowered(replace(bf16, a_major="m"), BF16_SCHEDULE).source,
        print_kernel(lowered(fp8, FP8_SCHEDULE).kernel, chaos=True).source,
        lowered(fp8, STREAM_SCHEDULE).source,
        lowered(replace(fp8, grouping=Grouping.COUNTS, groups=3), STREAM_SCHEDULE).source,
        *(
            lower(program_text(replace(half_problem(100, 64, 64), grouping=g, groups=3), BALANCED)).source
            for g in FORMS
        ),
        lower(program_text(groups_of(Grouping.OFFS), Schedule(cluster_m=2, cluster_n=1))).source,
        print_kernel(split.kernel, watchdog_ms=100).source,
    ]
    unused = [s.name for s in sections().values() if not any(s.text in source for source in sources)]
    assert unused == []
