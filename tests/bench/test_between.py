"""Rows between those of the table against the next ones above, on given times."""

import json
from dataclasses import replace

import pytest

from gemmir.bench.between import above, steps
from gemmir.bench.cases import BETWEEN_ROWS, DECODE, LAYERS, SETS, Case
from gemmir.bench.grouped import GroupedCase
from gemmir.bench.report import GraphTimes, Report, Row
from gemmir.bench.table import table
from gemmir.bench.timing import Timing
from gemmir.decode import decode_split_k

NK = (2112, 7168)


def row(m: int, us: float | None, dtype: str = "bf16", parts: int = 1, hot: float | None = None) -> Row:
    timing = None if us is None else Timing(((us - 1, us, us + 2),), hot)
    return Row(Case(dtype, m, *NK, parts), f"kernel_{m}", "<>", 5.0, timing, "" if timing else "wrong")


def in_graph(found: Row, plain: float | None, overlap: float | None = None) -> Row:
    times = [None if us is None else Timing(((us,),)) for us in (plain, overlap)]
    return replace(found, graph=GraphTimes(32, 32, 10**9, *times, "" if plain else "wrong"))


def report(*rows: Row) -> Report:
    return Report("2026-11-25T12:00:00+00:00", {"device": "NVIDIA H200"}, {"launches": 20}, rows)


def test_each_row_has_the_next_one_of_the_table_above():
    assert {m: above(m) for m in (1, 32, 33, 63, 64, 65, 127, 128, 129)} == {
        1: None,
        32: None,
        33: 64,
        63: 64,
        64: None,
        65: 128,
        127: 128,
        128: None,
        129: None,
    }


def test_the_set_has_every_layer_with_the_rows_that_are_compared():
    shapes = SETS["between"]
    assert len(set(shapes)) == len(shapes) == len(LAYERS) * len(BETWEEN_ROWS) == 72
    assert {(m, n, k) for m, n, k in shapes if above(m) is None} == {shape for shape in DECODE if shape[0] > 32}
    for m, n, k in shapes:
        assert above(m) is None or (above(m), n, k) in shapes
    timed = [Row(Case("f8E4M3FN", *s, decode_split_k(*s[1:])), "", "", None, Timing(((1.0,),))) for s in shapes]
    assert len(steps(timed)) == 60


def test_the_dearest_row_comes_first_and_ratios_are_of_medians():
    found = steps([row(64, 10.0), row(33, 9.0), row(40, 12.0), row(63, 10.0), row(128, 20.0), row(65, 21.0)])
    assert [(step.case.m, step.above.m) for step in found] == [(40, 64), (65, 128), (63, 64), (33, 64)]
    assert [step.ratio("cold") for step in found] == pytest.approx([1.2, 1.05, 1.0, 0.9])
    assert found[0].times == {"cold": (12.0, 10.0)}
    assert found[0].ratio("hot") is None


def test_only_the_same_product_is_compared():
    others = [row(64, 10.0, "f8E4M3FN"), row(64, 10.0, parts=2), row(128, 20.0)]
    assert steps([row(33, 9.0), *others]) == []
    assert [step.above for step in steps([row(33, 9.0, parts=2), *others])] == [others[1].case]
    group = replace(row(33, 9.0), case=GroupedCase("bf16", "counts", 4, 33, *NK))
    assert steps([group, row(64, 10.0)]) == []


def test_a_wrong_result_is_not_compared():
    assert steps([row(33, None), row(64, 10.0)]) == []
    assert steps([row(33, 9.0), row(64, None)]) == []
    wrong = in_graph(row(33, 9.0), None)
    assert steps([wrong, in_graph(row(64, 10.0), 8.0)])[0].times == {"cold": (9.0, 10.0)}


def test_every_kind_of_time_that_both_have_is_compared():
    mine = in_graph(row(33, 9.0, hot=6.0), 8.0, 5.0)
    (step,) = steps([mine, in_graph(row(64, 10.0, hot=5.0), 4.0)])
    assert step.times == {"cold": (9.0, 10.0), "hot": (6.0, 5.0), "graph": (8.0, 4.0)}


def test_a_report_tells_them_in_its_table_and_in_json():
    whole = report(
        *(in_graph(row(m, us), us / 2, 5.0) for m, us in ((64, 10.0), (33, 9.0), (40, 12.0), (63, 10.2))),
        row(33, 9.0, "f8E4M3FN"),
        row(64, 9.0, "f8E4M3FN"),
    )
    bf16, fp8 = table(whole).split("\nbf16, rows between: ")[1].split("\nf8E4M3FN, rows between: ")
    lines = [line.split() for line in bf16.splitlines()]
    assert lines[1][5:] == "cold above ratio graph above ratio overlap above ratio above".split()
    assert [line[0] for line in lines[2:5]] == ["40x2112x7168", "63x2112x7168", "33x2112x7168"]
    assert lines[2][1:] == "12.00 10.00 1.200 6.00 5.00 1.200 5.00 5.00 1.000 64x2112x7168".split()
    assert bf16.splitlines()[5] == "cold: worst 1.200 at 40x2112x7168; 2 above 1.0, 1 above 1.03 of 3"
    assert bf16.splitlines()[7] == "overlap: worst 1.000 at 63x2112x7168; 0 above 1.0, 0 above 1.03 of 3"
    assert "cold: worst 1.000 at 33x2112x7168; 0 above 1.0, 0 above 1.03 of 1" in fp8

    data = json.loads(whole.to_json())
    assert data["between"][0] == {
        "case": "bf16-40x2112x7168",
        "above": "bf16-64x2112x7168",
        "us": {"cold": [12.0, 10.0], "graph": [6.0, 5.0], "overlap": [5.0, 5.0]},
        "ratios": {"cold": 1.2, "graph": 1.2, "overlap": 1.0},
    }
    assert Report.from_json(whole.to_json()) == whole
    assert json.loads(report(row(64, 10.0)).to_json())["between"] == []
    assert "rows between" not in table(report(row(64, 10.0)))
