"""Ratios, the order of rows, means, the text, and JSON there and back, on given numbers."""

import json
from dataclasses import replace

import pytest

from gemmir.bench.cases import Case
from gemmir.bench.grouped import GroupedCase
from gemmir.bench.report import Calibration, GraphTimes, PeerResult, Report, Row, worst_first
from gemmir.bench.table import table
from gemmir.bench.timing import Timing


def timing(*samples: float, hot: float | None = None) -> Timing:
    return Timing((samples,), hot)


def row(
    n: int, ours: Timing | None, floor: float | None = 5.0, dtype: str = "bf16", fault: str = "", **peers: PeerResult
) -> Row:
    named = {name.replace("_block", "-block"): result for name, result in peers.items()}
    return Row(Case(dtype, 64, n, 128), f"kernel_{n}", f"<block = {n}>", floor, ours, fault, named)


FAST = row(128, timing(10.0, 12.0, 11.0), cublas=PeerResult(timing(22.0)), deep_gemm=PeerResult(None, "not here"))
SLOW = row(256, timing(20.0), cublas=PeerResult(timing(10.0)), deep_gemm=PeerResult(None, "not here"))
ALONE = row(512, timing(10.0), cublas=PeerResult(None, "refused"), deep_gemm=PeerResult(None, "not here"))
FAR = row(640, timing(50.0), cublas=PeerResult(None, "refused"), deep_gemm=PeerResult(None, "not here"))
WRONG = row(1024, None, fault="3 of 65536 elements are not finite")


def report(*rows: Row) -> Report:
    return Report(
        "2026-11-25T12:00:00+00:00", {"device": "NVIDIA H200 (132 SMs)", "torch": "2.11"}, {"launches": 20}, rows
    )


def line_of(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line.split()


def test_a_ratio_is_the_peers_time_over_gemmirs():
    assert FAST.ratio("cublas") == 2.0
    assert SLOW.ratio("cublas") == 0.5
    assert FAST.ratio("deep_gemm") is None
    assert FAST.ratio("nobody") is None
    assert WRONG.ratio("cublas") is None


def test_the_worst_ratio_is_that_to_the_fastest_peer():
    both = row(128, timing(10.0), cublas=PeerResult(timing(12.0)), deep_gemm=PeerResult(timing(9.0)))
    assert both.worst_ratio == 0.9
    assert ALONE.worst_ratio is None


def test_hot_times_are_compared_with_hot_times():
    hot = row(128, timing(10.0, hot=8.0), cublas=PeerResult(timing(10.0, hot=6.0)))
    assert hot.ratio("cublas", hot=True) == 0.75
    assert FAST.ratio("cublas", hot=True) is None


def test_rows_are_sorted_worst_first():
    assert worst_first([ALONE, FAST, FAR, SLOW, WRONG]) == [WRONG, SLOW, FAST, FAR, ALONE]


def test_rate_and_distance_from_the_floor():
    assert SLOW.times_floor == 4.0
    assert SLOW.tflops == pytest.approx(2 * 64 * 256 * 128 / 20e-6 / 1e12)
    assert (WRONG.times_floor, WRONG.tflops) == (None, None)
    assert row(128, timing(10.0), floor=None).times_floor is None


def test_the_geometric_mean_of_inverse_ratios_is_one():
    def summed_up(*ratios: float) -> str:
        return table(report(*(row(128, timing(1.0), cublas=PeerResult(timing(ratio))) for ratio in ratios)))

    assert "cublas: worst 0.500 at 64x128x128, geometric mean 1.000 of 2" in summed_up(2.0, 0.5)
    assert "cublas: worst 1.000 at 64x128x128, geometric mean 6.000 of 3" in summed_up(1.0, 8.0, 27.0)


def test_the_table_is_sorted_and_summed_up():
    text = table(report(ALONE, FAST, SLOW))
    lines = text.splitlines()
    assert lines[0] == "device NVIDIA H200 (132 SMs), torch 2.11"
    rows = [line.split()[0] for line in lines if line.startswith("64x")]
    assert rows == ["64x256x128", "64x128x128", "64x512x128"]
    assert line_of(text, "64x256x128") == "64x256x128 20.00 0 5.0 4.00 10.00 0.500 - - kernel_256".split()
    assert line_of(text, "64x512x128") == "64x512x128 10.00 1 5.0 2.00 - - - - kernel_512".split()
    assert "cublas: worst 0.500 at 64x256x128, geometric mean 1.000 of 2" in lines
    assert "x floor: worst 4.000 at 64x256x128, geometric mean 2.601 of 3" in lines
    assert not any(line.startswith("deep_gemm: worst") for line in lines)


def test_each_reason_of_a_refusal_is_listed_once():
    lines = table(report(ALONE, FAST, SLOW)).splitlines()
    assert lines.count("- deep_gemm: not here (rows: 3)") == 1
    assert lines.count("- cublas: refused (rows: 1)") == 1


def test_a_wrong_result_is_shouted_and_has_no_time():
    text = table(report(FAST, WRONG))
    assert "WRONG RESULT, not timed: bf16-64x1024x128: 3 of 65536 elements are not finite" in text
    assert line_of(text, "64x1024x128") == "64x1024x128 - - 5.0 - - - - - kernel_1024".split()


def test_each_element_type_has_a_table_and_peers_of_its_own():
    fp8 = row(128, timing(10.0), dtype="f8E4M3FN", cublas_block=PeerResult(timing(11.0)))
    first, second = table(report(fp8, FAST)).split("\nbf16: ")
    assert "cublas-block" in first
    assert "cublas-block" not in second
    assert "cublas-block: worst 1.100" in first


def test_hot_columns_come_with_hot_times():
    hot = row(128, timing(10.0, hot=8.0), cublas=PeerResult(timing(12.0, hot=6.0)))
    text = table(report(hot))
    assert line_of(text, "64x128x128") == "64x128x128 10.00 8.00 0 5.0 2.00 12.00 1.200 6.00 0.750 kernel_128".split()
    assert "cublas, hot: worst 0.750 at 64x128x128, geometric mean 0.750 of 1" in text
    assert "hot" not in table(report(FAST))


def graph(
    ours: float | None, overlap: float | None, cublas: float | None = None, weights: int = 32, fault: str = ""
) -> GraphTimes:
    """Times of 32 layers whose weights are 10 MB each."""
    times = [None if us is None else timing(us) for us in (ours, overlap)]
    peers = {} if cublas is None else {"cublas": PeerResult(timing(cublas))}
    return GraphTimes(32, weights, weights * 10_000_000, *times, fault, peers)


def test_graph_columns_come_with_times_in_a_graph():
    with_both = row(128, timing(10.0), cublas=PeerResult(timing(12.0)), deep_gemm=PeerResult(timing(11.0)))
    first = replace(with_both, graph=graph(8.0, 5.0, cublas=6.0))
    second = replace(SLOW, graph=graph(4.0, None, cublas=12.0))
    text = table(report(first, second))
    assert line_of(text, "64x128x128") == (
        "64x128x128 10.00 8.00 5.00 0 5.0 2.00 12.00 1.200 6.00 0.750 1.200 11.00 1.100 kernel_128".split()
    )
    assert line_of(text, "64x256x128") == (
        "64x256x128 20.00 4.00 - 0 5.0 4.00 10.00 0.500 12.00 3.000 - - - kernel_256".split()
    )
    lines = text.splitlines()
    assert "cublas, graph: worst 0.750 at 64x128x128, geometric mean 1.500 of 2" in lines
    assert "cublas, graph with overlap: worst 1.200 at 64x128x128, geometric mean 1.200 of 1" in lines
    assert not any(line.startswith("deep_gemm, graph") for line in lines)
    assert "- overlap: the kernel does not wait by itself for the one before it (rows: 1)" in lines
    assert any(line.startswith("graph: a layer of many in a captured CUDA graph") for line in lines)
    header = next(line for line in lines if line.startswith("M x N x K"))
    assert header.split("gemmir")[1].split()[:2] == ["graph", "overlap"]
    assert "graph" not in table(report(FAST))


def test_graph_columns_line_up_and_are_empty_where_a_row_has_none():
    text = table(report(replace(FAST, graph=graph(8.0, 5.0, cublas=6.0)), SLOW))
    lines = [line for line in text.splitlines() if line.startswith(("64x", "M x"))]
    assert len({line.index("kernel") for line in lines}) == 1
    assert line_of(text, "64x256x128") == "64x256x128 20.00 - - 0 5.0 4.00 10.00 0.500 - - - - - kernel_256".split()


def test_hot_times_and_those_in_a_graph_have_columns_of_their_own():
    hot = row(128, timing(10.0, hot=8.0), cublas=PeerResult(timing(12.0, hot=6.0)))
    text = table(report(replace(hot, graph=graph(4.0, 2.0, cublas=3.0))))
    assert line_of(text, "64x128x128") == (
        "64x128x128 10.00 8.00 4.00 2.00 0 5.0 2.00 12.00 1.200 6.00 0.750 3.00 0.750 1.500 kernel_128".split()
    )


def test_weights_that_layers_share_or_that_stay_in_l2_are_told():
    notes = {
        "- graph: memory holds 31 weights for 32 layers, which take them in turn (rows: 1)": 31,
        "- graph: the weights of all layers are less than twice the L2, and may not come from DRAM (rows: 1)": 10,
    }
    for note, weights in notes.items():
        lines = table(report(replace(FAST, graph=graph(8.0, 5.0, weights=weights)))).splitlines()
        assert note in lines
    told = table(report(replace(FAST, graph=graph(8.0, 5.0))))
    assert "weights for" not in told
    assert "L2" not in told


def test_a_peer_that_refuses_in_a_graph_is_told():
    refused = GraphTimes(32, 32, 10**9, timing(8.0), timing(5.0), "", {"cublas": PeerResult(None, "in a graph: no")})
    assert "- cublas: in a graph: no (rows: 1)" in table(report(replace(FAST, graph=refused))).splitlines()


def test_a_wrong_result_in_a_graph_is_shouted():
    wrong = replace(FAST, graph=graph(None, None, fault="last of 32 layers in a graph with overlap: bad"))
    assert wrong.faults == ("last of 32 layers in a graph with overlap: bad",)
    assert worst_first([SLOW, wrong]) == [wrong, SLOW]
    lines = table(report(wrong, SLOW)).splitlines()
    assert "WRONG RESULT, not timed: bf16-64x128x128: last of 32 layers in a graph with overlap: bad" in lines
    assert not any("does not wait" in line for line in lines)
    assert (FAST.faults, WRONG.faults) == ((), ("3 of 65536 elements are not finite",))


def test_times_in_a_graph_as_json_there_and_back():
    timed = replace(
        SLOW, graph=GraphTimes(8, 7, 10**9, Timing(((1.5, 2.5),)), None, "", {"cublas": FAST.peers["cublas"]})
    )
    wrong = replace(FAST, graph=graph(None, None, fault="bad"))
    whole = replace(report(timed, wrong, FAST), method={"launches": 20, "flush": "read"})
    assert Report.from_json(whole.to_json()) == whole
    data = json.loads(whole.to_json())
    assert data["method"]["flush"] == "read"
    assert data["rows"][0]["graph"]["plain"]["series"] == [[1.5, 2.5]]
    assert data["rows"][0]["graph"]["peers"]["cublas"]["timing"]["series"] == [[22.0]]
    older = json.loads(report(FAST).to_json())
    del older["rows"][0]["graph"]
    assert Report.from_json(json.dumps(older)) == report(FAST)


def test_repeats_show_how_far_they_agree():
    twice = row(128, Timing(((10.0, 10.0), (10.2, 10.2))))
    assert "repeats: gemmir's medians of a row are at most 2.0% apart" in table(report(twice))
    assert "repeats" not in table(report(FAST))


def test_columns_line_up():
    lines = [line for line in table(report(FAST, SLOW, ALONE)).splitlines() if line.startswith(("64x", "M x"))]
    assert len({line.index("kernel") for line in lines}) == 1


def test_json_there_and_back():
    whole = report(WRONG, row(128, Timing(((1.5, 2.5), (3.5, 4.5)), 1.25), None, cublas=PeerResult(timing(2.0))), SLOW)
    text = whole.to_json()
    assert Report.from_json(text) == whole
    data = json.loads(text)
    assert data["schema"] == 1
    assert data["rows"][1]["timing"] == {"series": [[1.5, 2.5], [3.5, 4.5]], "hot_us": 1.25}
    assert data["rows"][1]["case"] == {"dtype": "bf16", "m": 64, "n": 128, "k": 128, "split_k": 1}
    assert data["rows"][2]["schedule"] == "<block = 256>"


IN_GROUPS = GroupedCase("bf16", "counts", 2, 64, 128, 128)
GROUPED = Row(IN_GROUPS, "kernel_128", "<>", 5.0, timing(10.0), "", {"torch": FAST.peers["cublas"]})
CALIBRATION = Calibration(Case("f8E4M3FN", 4096, 7168, 2048), "cublas", PeerResult(timing(86.0, 87.0, 88.0)))


def test_groups_have_tables_of_their_own():
    dense, grouped = table(report(FAST, GROUPED)).split("\nbf16, groups by counts: ")
    assert "64x128x128" in dense
    assert "cublas" not in grouped
    assert grouped.splitlines()[1].startswith("G x M x N x K")
    assert line_of(grouped, "2x64x128x128") == "2x64x128x128 10.00 0 5.0 2.00 22.00 2.200 kernel_128".split()
    assert "torch: worst 2.200 at 2x64x128x128, geometric mean 2.200 of 1" in grouped
    assert GROUPED.tflops == pytest.approx(2 * 128 * 128 * 128 / 10e-6 / 1e12)


def test_the_calibration_is_told():
    text = table(replace(report(GROUPED), calibration=CALIBRATION))
    assert "calibration: cublas at f8E4M3FN-4096x7168x2048: 87.00 us\n" in text
    refused = replace(CALIBRATION, result=PeerResult(None, "no cuBLASLt"))
    assert "4096x7168x2048: refused: no cuBLASLt\n" in table(replace(report(GROUPED), calibration=refused))
    assert "calibration" not in table(report(FAST))


def test_groups_and_calibration_as_json_there_and_back():
    whole = replace(report(GROUPED, FAST), calibration=CALIBRATION)
    assert Report.from_json(whole.to_json()) == whole
    data = json.loads(whole.to_json())
    assert data["rows"][0]["case"] == {
        "dtype": "bf16",
        "grouping": "counts",
        "groups": 2,
        "rows": 64,
        "n": 128,
        "k": 128,
    }
    assert data["calibration"]["peer"] == "cublas"
    assert data["calibration"]["case"]["m"] == 4096
    assert data["calibration"]["result"]["timing"]["series"] == [[86.0, 87.0, 88.0]]
    older = json.loads(report(FAST).to_json())
    del older["calibration"]
    assert Report.from_json(json.dumps(older)) == report(FAST)


@pytest.mark.parametrize("text", ['{"schema": 2, "rows": []}', "{}", "[]", "nonsense", '{"schema": 1, "rows": []}'])
def test_other_json_is_refused(text: str):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Report.from_json(text)
