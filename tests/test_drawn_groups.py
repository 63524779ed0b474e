"""The products of groups that a GPU computes are as many as is said, and of all kinds; drawn here without one."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import pytest

from gemmir.groups import first_fault
from gemmir.problem import Grouping
from gemmir.testing.groups import extent_of
from tests.gpu.groups import drawn, drawn_in_clusters


@pytest.mark.parametrize("grouping", [Grouping.GROUP_IDS, Grouping.BATCH])
def test_three_hundred_products_of_a_form(grouping: Grouping):
    """No two alike, of twenty kernels; the tests on a GPU count those of the other forms, which take longer to draw."""
    kernels = drawn(grouping)
    found = {(replace(one.problem, m=None), m, index) for one in kernels for m, index in one.calls}
    assert (len(kernels), len(found)) == (20, 300)
    for one in kernels if grouping is not Grouping.BATCH else []:
        for m, index in one.calls:
            assert first_fault(grouping, list(index), extent_of(replace(one.problem, m=m))) is None
    problems = [one.problem for one in kernels]
    assert {problem.has_c for problem in problems} == {problem.promoted for problem in problems} == {True, False}
    assert {"f32", "bf16", "f16"} == {problem.d.name for problem in problems}
    assert {problem.a_major for problem in problems} == {"k", "m"}
    assert {problem.b_major for problem in problems} == {"k", "n"}


def test_groups_end_around_a_tile():
    """One row less than 64 or 128, so many, and one more."""
    indices = [index for one in drawn(Grouping.GROUP_IDS) for _, index in one.calls]
    runs = {len(list(run)) for index in indices for group, run in groupby(index) if group >= 0}
    assert {63, 64, 65, 127, 128, 129} <= runs


def test_sixty_products_in_each_cluster():
    kernels = drawn_in_clusters(Grouping.BATCH, (2, 1))
    found = {(replace(one.problem, m=None), one.fixed, m) for one in kernels for m, _ in one.calls}
    assert (len(kernels), len(found)) == (12, 60)
    assert {(one.fixed.cluster_m, one.fixed.cluster_n) for one in kernels} == {(2, 1)}
