"""What is printed and compiled of clusters of four CTAs."""

from __future__ import annotations

import re

import pytest

from gemmir.backends.cuda.audit import audit_sass, audit_source
from gemmir.backends.cuda.compiler_log import check_log
from gemmir.backends.cuda.nvrtc import compile_cubin
from gemmir.backends.cuda.sass import disassemble
from gemmir.dialects.hopper.barriers import writers
from gemmir.errors import SyncError
from gemmir.legality import CLUSTERS_OF_FOUR
from gemmir.schedule import Schedule
from tests.kernels import Lowered, lowered
from tests.schedules import completed, fp8_problem


def four(cluster: tuple[int, int]) -> Lowered:
    problem = fp8_problem(None, 2112, 1024)
    tile = Schedule(block_m=128, block_n=128, cluster_m=cluster[0], cluster_n=cluster[1])
    return lowered(problem, completed(problem, tile))


@pytest.mark.parametrize("cluster", CLUSTERS_OF_FOUR, ids=str)
def test_they_compile_to_what_their_ir_says(cluster: tuple[int, int]) -> None:
    kernel = four(cluster)
    compiled = compile_cubin(kernel.source)
    assert check_log(compiled.log).spill_stores == 0
    audit_sass(kernel.kernel, disassemble(compiled.cubin))


def test_slots_are_given_back_to_those_who_load_them() -> None:
    """The printed rank of each lane is that of a CTA of the row or of the column, each once."""
    found = re.search(r"if \(lane < (\d)\) mbarrier_arrive_peer\([^,]*, (.*) \? (.*) : (.*)\);", four((2, 2)).source)
    assert found is not None
    python = f"({found[3]}) if {found[2]} else ({found[4]})".replace("/", "//")
    for rank in range(4):
        ranks = [eval(python, {"lane": lane, "rank": rank}) for lane in range(int(found[1]))]
        assert tuple(ranks) == writers(rank, 2, 2)
        assert rank in ranks


def test_each_loads_its_part_and_sends_it_to_its_row_or_column() -> None:
    source = four((2, 2)).source
    loads = re.findall(
        r"tma_load_multicast\(ring_([ab]) \+ at.stage \* 16384 \+ \((.*?)\) \* (\d+), .*, (.*)\);", source
    )
    assert [(operand, int(apart)) for operand, _, apart, _ in loads] == [("a", 8192), ("b", 8192)]
    for rank in range(4):
        row, column = divmod(rank, 2)
        parts = [eval(part.replace("/", "//"), {"rank": rank}) for _, part, *_ in loads]
        masks = [eval(mask.replace("/", "//"), {"rank": rank}) for *_, mask in loads]
        assert parts == [column, row]
        assert masks == [0b11 << 2 * row, 0b101 << column]


@pytest.mark.parametrize(
    ("printed", "other"),
    [
        ("3 << rank / 2 * 2", "3 << rank % 2 * 2"),
        ("5 << rank % 2", "5 << rank / 2"),
        ("(rank % 2) * 8192", "(rank % 2) * 4096"),
        ("(rank / 2) * 8192", "(rank % 2) * 8192"),
        ("lane < 2 ? rank / 2 * 2 + lane : rank ^ 2", "lane < 2 ? rank / 2 * 2 + lane : rank ^ 1"),
    ],
)
def test_the_audit_sees_who_is_sent_what(printed: str, other: str) -> None:
    kernel = four((2, 2))
    assert printed in kernel.source
    with pytest.raises(SyncError, match="the IR asks for"):
        audit_source(kernel.kernel, kernel.source.replace(printed, other))
