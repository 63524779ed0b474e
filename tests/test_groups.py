"""Which elements belong to which group: what valid indices say, and that no index reaches out of bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.backends.reference.index_data import DRAWN_PER_GROUP, draw_index
from gemmir.groups import Extent, Span, first_fault, spans
from gemmir.problem import Grouping
from gemmir.testing.groups import INDEXED, any_indices, indices

OFFS, IDS, COUNTS, K_OFFS = Grouping.OFFS, Grouping.GROUP_IDS, Grouping.COUNTS, Grouping.K_OFFS
EXTENTS = st.builds(
    Extent, groups=st.integers(1, 300), m=st.integers(0, 700), k=st.integers(0, 900), k_step=st.sampled_from((64, 128))
)


def rows(grouping: Grouping, index: list[int], groups: int, m: int) -> list[tuple[int, int, int]]:
    return [(s.number, s.first, s.last) for s in spans(grouping, index, Extent(groups, m, 256, 128))]


def test_rows_of_one_group_follow_those_of_another():
    assert rows(OFFS, [3, 3, 10], 3, 12) == [(0, 0, 3), (2, 3, 10)]
    assert rows(OFFS, [0, 0], 2, 12) == []


def test_rows_say_their_group():
    index = [1] * 100 + [-1] * 28 + [0] * 128 + [-1] * 128 + [1] * 5
    assert rows(IDS, index, 2, len(index)) == [(1, 0, 100), (0, 128, 256), (1, 384, 389)]


def test_the_first_rows_of_a_matrix_count():
    assert rows(COUNTS, [0, 7, 12], 3, 12) == [(1, 0, 7), (2, 0, 12)]


def test_k_is_divided():
    found = spans(K_OFFS, [0, 128, 128, 384], Extent(4, 5, 512, 128))
    assert [(s.number, s.k_first, s.k_last) for s in found] == [
        (0, 0, 0),
        (1, 0, 128),
        (2, 128, 128),
        (3, 128, 384),
    ]
    assert {(s.first, s.last) for s in found} == {(0, 5)}


def test_without_an_index():
    assert spans(Grouping.NONE, [], Extent(1, 5, 7, 64)) == [Span(0, 0, 5, 0, 7)]
    assert spans(Grouping.BATCH, [], Extent(2, 5, 7, 64)) == [Span(0, 0, 5, 0, 7), Span(1, 0, 5, 0, 7)]
    assert spans(Grouping.BATCH, [], Extent(2, 0, 7, 64)) == []
    assert first_fault(Grouping.BATCH, [], Extent(2, 5, 7, 64)) is None


@pytest.mark.parametrize(
    ("grouping", "index", "left", "fault"),
    [
        (OFFS, [4, 2, 8], [0, 2], "offs[1] = 2: group 1 begins at 4, M is 10"),
        (OFFS, [4, 11, 10], [0], "offs[1] = 11: group 1 begins at 4, M is 10"),
        (OFFS, [-1, 3, 8], [1, 2], "offs[0] = -1: group 0 begins at 0, M is 10"),
        (COUNTS, [11, 3, -1], [1], "counts[0] = 11: from 0 to M = 10"),
        (COUNTS, [1, -1, 3], [0, 2], "counts[1] = -1: from 0 to M = 10"),
        (IDS, [3] * 10, [], "group_ids[0] = 3: from 0 to 2, or -1 for padding"),
        (IDS, [-2] * 10, [], "group_ids[0] = -2: from 0 to 2, or -1 for padding"),
        (IDS, [0] * 4 + [1] * 6, [0], "group_ids[4] = 1: the rows of a group start at a multiple of 128"),
        (IDS, [0] * 4 + [-1, 0] + [-1] * 4, [0], "group_ids[5] = 0: the rows of a group start at a multiple of 128"),
        (IDS, [0] * 9 + [7], [0], "group_ids[9] = 7: from 0 to 2, or -1 for padding"),
        (K_OFFS, [128, 100, 256], [0, 2], "offs[1] = 100: group 1 begins at 128, K is 512"),
        (K_OFFS, [100, 128, 256], [2], "offs[0] = 100: group 0 begins at 0, and groups end at multiples of 128"),
        (K_OFFS, [128, 640, 640], [0], "offs[1] = 640: group 1 begins at 128, K is 512"),
    ],
)
def test_the_first_invalid_entry_is_named_and_left_out(
    grouping: Grouping, index: list[int], left: list[int], fault: str
):
    extent = Extent(3, 10, 512, 128)
    assert [span.number for span in spans(grouping, index, extent)] == left
    assert (first_fault(grouping, index, extent) or "").startswith(fault)


def elements(found: list[Span], grouping: Grouping) -> list[tuple[int, int, int]]:
    """(group where it has a matrix of its own, row, element of K where K is divided) of all that is covered."""
    along_k = grouping is K_OFFS
    covered: list[tuple[int, int, int]] = []
    for s in found:
        number = s.number if grouping is COUNTS else 0
        first, last = (s.k_first, s.k_last) if along_k else (s.first, s.last)
        covered += [(number, 0, i) if along_k else (number, i, 0) for i in range(first, last)]
    return covered


@given(data=st.data(), grouping=st.sampled_from(INDEXED), extent=EXTENTS)
def test_a_valid_index_has_no_fault_and_says_all(data: st.DataObject, grouping: Grouping, extent: Extent):
    index = data.draw(indices(grouping, extent))
    covered = elements(spans(grouping, index, extent), grouping)
    assert first_fault(grouping, index, extent) is None
    if grouping is IDS:
        assert [row for _, row, _ in covered] == [row for row, group in enumerate(index) if group >= 0]
    elif extent.m:
        assert len(covered) == (sum(index) if grouping is COUNTS else index[-1])


@given(data=st.data(), grouping=st.sampled_from(INDEXED), extent=EXTENTS)
def test_no_index_reaches_out_of_bounds_or_writes_twice(data: st.DataObject, grouping: Grouping, extent: Extent):
    index = data.draw(any_indices(grouping, extent))
    found = spans(grouping, index, extent)
    covered = elements(found, grouping)
    assert len(covered) == len(set(covered))
    for s in found:
        assert 0 <= s.number < extent.groups
        assert 0 <= s.first < s.last <= extent.m
        assert 0 <= s.k_first <= s.k_last <= extent.k


@given(data=st.data(), grouping=st.sampled_from(INDEXED), extent=EXTENTS)
def test_drawn_indices_have_no_fault(data: st.DataObject, grouping: Grouping, extent: Extent):
    size = DRAWN_PER_GROUP * extent.groups
    drawn = data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=size, max_size=size))
    index = draw_index(grouping, extent, drawn)
    assert len(index) == (extent.m if grouping is IDS else extent.groups)
    assert first_fault(grouping, index, extent) is None
