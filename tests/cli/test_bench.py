"""`gemmir bench` without a GPU: what it takes, and how it refuses."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import gemmir
from gemmir.backends.cuda.driver import DeviceInfo
from gemmir.bench import measure
from gemmir.bench.cases import SETS, Case
from gemmir.bench.grouped import GROUPED_SETS, AnyCase, GroupedCase
from gemmir.bench.peers import Peer
from gemmir.bench.report import Calibration, GraphTimes, PeerResult, Report, Row
from gemmir.bench.timing import Timing
from gemmir.cli import bench
from gemmir.cli.diagnostics import UsageError
from gemmir.cli.main import main, parse
from gemmir.errors import InputError, ScheduleError

CLOCK = Timing(((86.0,),))
H200 = DeviceInfo("NVIDIA H200", 132, (9, 0), 232448)


def arguments(*argv: str) -> argparse.Namespace:
    return parse(["bench", *argv])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[AnyCase]:
    """A stand-in for the GPU and the clock; kernels are really compiled. What was measured, in order."""
    seen: list[AnyCase] = []

    def measured(case: AnyCase, kernel: gemmir.CompiledKernel, peers: list[object], *_: object) -> Row:
        seen.append(case)
        fault = "wrong" if case.m == 13 else ""
        timing = None if fault else Timing(((10.0, 11.0, 12.0),))
        return Row(case, kernel.manifest.entry, "<>", 5.0, timing, fault, {"cublas": PeerResult(Timing(((22.0,),)))})

    monkeypatch.setattr(measure, "require_gpu", lambda: H200)
    monkeypatch.setattr(measure, "machine", lambda info: {"device": info.name})
    monkeypatch.setattr(measure, "measure", measured)
    monkeypatch.setattr(measure, "calibrate", lambda _: Calibration(measure.CALIBRATION, "cublas", PeerResult(CLOCK)))
    return seen


def test_without_a_gpu_it_exits_with_3_before_anything_else(tmp_path: Path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "gemmir", "bench", "--file", str(tmp_path / "none"), "--json", str(out)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error[GMR-D001]")
    assert not out.exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["--set", "huge"],
        ["--shape", "64x128"],
        ["--shape", "0x128x128"],
        ["--dtype", "f32"],
        ["--peers", "cutlass"],
        ["--peers", "none,cublas"],
        ["--launches", "0"],
        ["--repeat", "-1"],
        ["--rows", "4096"],
        ["--flush", "write"],
        ["--graph", "--layers", "0"],
        ["--shape", "2x64x128x128", "--grouping", "none"],
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["bench", *argv])
    assert end.value.code == 2
    assert "usage: gemmir" in capsys.readouterr().err


def test_the_default_is_the_dense_set_in_fp8_and_bf16():
    cases = bench.cases_of(arguments())
    assert cases[: len(cases) // 2] == [Case("f8E4M3FN", *shape) for shape in SETS["dense"]]
    assert [case.dtype for case in cases[len(cases) // 2 :]] == ["bf16"] * len(SETS["dense"])
    assert arguments().peers == ("cublas", "cublas-block", "deep_gemm", "torch")
    assert arguments("--peers", "none").peers == ()
    assert arguments("--peers", "deep_gemm,cublas,deep_gemm").peers == ("deep_gemm", "cublas")


def test_sets_shapes_and_files_add_up_and_nothing_comes_twice(tmp_path: Path):
    file = tmp_path / "shapes.txt"
    file.write_text("64 128 256\n1x8x16\n")
    found = bench.cases_of(arguments("--shape", "64x128x256", "2x8x16", "--file", str(file), "--dtype", "bf16", "bf16"))
    assert found == [Case("bf16", 64, 128, 256), Case("bf16", 2, 8, 16), Case("bf16", 1, 8, 16)]
    assert len(bench.cases_of(arguments("--set", "small", "layers", "--dtype", "bf16"))) == 30


def test_groups_have_sets_of_their_own():
    contiguous, masked, along_k = (GROUPED_SETS[name].shapes for name in ("contiguous", "masked", "k-grouped"))
    found = bench.cases_of(arguments("--set", "grouped"))
    assert found == [
        *(GroupedCase(dtype, "offs", *shape) for dtype in ("f8E4M3FN", "bf16") for shape in contiguous),
        *(GroupedCase("f8E4M3FN", "counts", *shape) for shape in masked),
        *(GroupedCase(dtype, "k_offs", *shape) for dtype in ("f8E4M3FN", "bf16") for shape in along_k),
    ]
    assert bench.cases_of(arguments("--set", "contiguous", "masked", "k-grouped")) == found
    assert len(bench.cases_of(arguments("--set", "grouped", "masked"))) == len(found)
    bf16 = bench.cases_of(arguments("--set", "masked", "--dtype", "bf16"))
    assert bf16 == [GroupedCase("bf16", "counts", *shape) for shape in masked]


def test_four_sizes_are_groups(tmp_path: Path):
    file = tmp_path / "shapes.txt"
    file.write_text("64 128 256\n4 64 128 256\n")
    argv = ["--shape", "2x64x128x256", "4x64x128x256", "--file", str(file), "--dtype", "bf16"]
    dense = Case("bf16", 64, 128, 256)
    assert bench.cases_of(arguments(*argv)) == [dense, *(GroupedCase("bf16", "offs", g, 64, 128, 256) for g in (2, 4))]
    batch = bench.cases_of(arguments(*argv, "--grouping", "batch"))
    assert batch == [dense, *(GroupedCase("bf16", "batch", g, 64, 128, 256) for g in (2, 4))]
    alone = bench.cases_of(arguments("--shape", "2x64x128x256", "--grouping", "counts"))
    assert [case.dtype for case in alone] == ["f8E4M3FN", "bf16"]


@pytest.mark.parametrize("argv", [[], ["--shape", "64x128x256"], ["--set", "masked"]])
def test_a_grouping_without_a_shape_of_groups_is_refused(argv: list[str]):
    with pytest.raises(UsageError, match="--grouping counts: no shape of groups, such as --shape 8x256x4096x7168"):
        bench.cases_of(arguments(*argv, "--grouping", "counts"))


def test_groups_are_measured_and_the_machine_with_them(
    tmp_path: Path, gpu: list[AnyCase], capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.json"
    argv = ["bench", "--shape", "2x64x128x256", "--grouping", "group_ids", "--dtype", "f8E4M3FN", "--json", str(out)]
    assert main([*argv, "--schedule", "block = 64x128x128"]) == 0
    assert gpu == [GroupedCase("f8E4M3FN", "group_ids", 2, 64, 128, 256)]
    captured = capsys.readouterr()
    assert "calibration: cublas at f8E4M3FN-4096x7168x2048: 86.00 us" in captured.out
    assert "f8E4M3FN, groups by group_ids: microseconds" in captured.out
    assert "gemm_e4m3_e4m3_64x128_" in captured.out
    assert "1 of 1: f8E4M3FN-group_ids-2x64x128x256: 11.00 us" in captured.err
    report = Report.from_json(out.read_text())
    assert report.rows[0].case == gpu[0]
    assert report.calibration == Calibration(measure.CALIBRATION, "cublas", PeerResult(CLOCK))


def test_a_kernel_of_groups_is_made_for_its_form_and_number():
    for grouping in ("offs", "group_ids", "counts", "batch"):
        kernel = bench.compiled(GroupedCase("bf16", grouping, 3, 20, 128, 256), arguments())
        assert (kernel.manifest.grouping, kernel.manifest.groups) == (grouping, 3)
    case = GroupedCase("bf16", "offs", 3, 20, 128, 256)
    with pytest.raises(ScheduleError):
        bench.compiled(case, arguments("--schedule", "block = 256x256x64, stages = 9"))


def test_options_given_twice_add_up():
    args = arguments("--shape", "1x2x3", "--shape", "4x5x6", "7x8x9", "--set", "dense", "--set", "layers")
    assert (len(args.shape), args.set) == (3, ["dense", "layers"])
    assert arguments("--shape", "1x2x3").set == [], "the default is not changed by a call"


def test_a_file_with_a_bad_line_or_without_a_shape_is_refused(tmp_path: Path):
    file = tmp_path / "shapes.txt"
    file.write_text("64 128\n")
    with pytest.raises(InputError, match="64 128"):
        bench.cases_of(arguments("--file", str(file)))
    file.write_text("# nothing\n")
    with pytest.raises(UsageError, match="no shape"):
        bench.cases_of(arguments("--file", str(file)))


@pytest.mark.parametrize("name", ["no/such/out.json", "."])
def test_a_path_that_cannot_be_written_is_found_before_measuring(name: str, tmp_path: Path, gpu: list[AnyCase]):
    assert main(["bench", "--shape", "64x128x256", "--json", str(tmp_path / name)]) == 2
    assert gpu == []


@pytest.mark.usefixtures("gpu")
def test_the_table_is_on_stdout_and_all_samples_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    assert main(["bench", "--shape", "64x128x256", "--dtype", "bf16", "--json", str(out)]) == 0
    captured = capsys.readouterr()
    assert "device NVIDIA H200" in captured.out
    assert "64x128x256" in captured.out
    assert "cublas: worst 2.000 at 64x128x256" in captured.out
    assert "1 of 1: bf16-64x128x256: 11.00 us, ratio to the fastest peer 2.000, gemm_bf16" in captured.err
    report = Report.from_json(out.read_text())
    assert report.rows[0].timing == Timing(((10.0, 11.0, 12.0),))
    assert report.method["launches"] == 20
    assert json.loads(out.read_text())["date"] == report.date
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.usefixtures("gpu")
def test_the_flush_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    argv = ["bench", "--shape", "64x128x256", "--dtype", "bf16", "--json", str(out)]
    for options, flush in ((["--flush", "read"], "read"), (["--flush", "zero"], "zero"), ([], "zero")):
        assert main([*argv, *options]) == 0
        assert f"rest seconds 0.25, flush {flush}, hot False\n" in capsys.readouterr().out
        assert json.loads(out.read_text())["method"]["flush"] == flush


@pytest.mark.usefixtures("gpu")
def test_a_wrong_result_exits_with_1_after_the_others(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--shape", "13x128x256", "64x128x256", "--dtype", "bf16"]) == 1
    out = capsys.readouterr().out
    assert "WRONG RESULT, not timed: bf16-13x128x256: wrong" in out
    assert "cublas: worst 2.000 at 64x128x256" in out


def test_a_run_that_is_cut_short_leaves_what_it_had(
    tmp_path: Path, gpu: list[AnyCase], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole = measure.measure

    def interrupted(case: AnyCase, *rest: object) -> Row:
        if gpu:
            raise KeyboardInterrupt
        return whole(case, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "measure", interrupted)
    out = tmp_path / "out.json"
    assert main(["bench", "--shape", "64x128x256", "65x128x256", "--dtype", "bf16", "--json", str(out)]) == 130
    assert [row.case.m for row in Report.from_json(out.read_text()).rows] == [64]
    assert capsys.readouterr().out == ""


def test_what_cannot_be_compiled_is_refused_before_anything_is_measured(gpu: list[AnyCase]):
    assert main(["bench", "--shape", "64x128x256", "64x12x256", "--dtype", "bf16"]) == 1
    assert gpu == []


def test_a_fixed_schedule_and_a_pipeline_reach_the_kernel():
    case = Case("bf16", 64, 256, 256)
    kernel = bench.compiled(case, arguments("--schedule", "block = 64x64x64, stages = 3"))
    assert (kernel.manifest.block_m, kernel.manifest.block_n) == (64, 64)
    assert "stages = 3" in kernel.manifest.schedule
    with pytest.raises(ScheduleError):
        bench.compiled(case, arguments("--schedule", "block = 256x256x64, stages = 9"))


def test_k_in_parts(gpu: list[Case], capsys: pytest.CaptureFixture[str]):
    argv = ["bench", "--shape", "64x128x512", "--dtype", "f8E4M3FN", "--split-k", "2", "--schedule", "stages = 3"]
    assert main(argv) == 0
    assert gpu == [Case("f8E4M3FN", 64, 128, 512, 2)]
    assert "_split2_stages3" in capsys.readouterr().out


TIMES = GraphTimes(32, 32, 10**9, Timing(((6.0,),)), Timing(((5.0,),)), "", {"cublas": PeerResult(Timing(((9.0,),)))})


@pytest.fixture
def asked(gpu: list[AnyCase], monkeypatch: pytest.MonkeyPatch) -> list[measure.Options]:
    """Rows of that stand-in with times in a graph, wrong ones for 14 rows; how each was to be measured."""
    found: list[measure.Options] = []
    whole = measure.measure

    def measured(
        case: AnyCase, kernel: gemmir.CompiledKernel, peers: list[Peer], options: measure.Options, _: object
    ) -> Row:
        found.append(options)
        wrong = replace(TIMES, plain=None, overlap=None, fault="last of 32 layers in a graph: wrong")
        return replace(whole(case, kernel, peers, options, H200), graph=wrong if case.m == 14 else TIMES)

    monkeypatch.setattr(measure, "measure", measured)
    return found


def test_layers_in_a_graph(tmp_path: Path, asked: list[measure.Options], capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    argv = ["bench", "--shape", "64x128x256", "--dtype", "bf16", "--graph", "--flush", "read", "--json", str(out)]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "flush read, hot False, graph layers 32, graph replays 20\n" in captured.out
    assert "cublas, graph: worst 1.500 at 64x128x256" in captured.out
    assert "cublas, graph with overlap: worst 1.800 at 64x128x256" in captured.out
    assert (
        "11.00 us, ratio to the fastest peer 2.000, 6.00 us in a graph (5.00 with overlap), gemm_bf16" in captured.err
    )
    report = Report.from_json(out.read_text())
    assert report.rows[0].graph == TIMES
    assert (report.method["graph layers"], report.method["graph replays"]) == (32, 20)
    assert main([*argv, "--layers", "8"]) == 0
    assert main(["bench", "--shape", "64x128x256", "--dtype", "bf16"]) == 0
    assert [(options.layers, options.flush) for options in asked] == [(32, "read"), (8, "read"), (0, "zero")]


@pytest.mark.usefixtures("asked")
def test_a_wrong_result_in_a_graph_exits_with_1(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--shape", "14x128x256", "64x128x256", "--dtype", "bf16", "--graph"]) == 1
    captured = capsys.readouterr()
    assert "WRONG RESULT, not timed: bf16-14x128x256: last of 32 layers in a graph: wrong" in captured.out
    assert "1 of 2: bf16-14x128x256: WRONG RESULT: last of 32 layers in a graph: wrong" in captured.err


def test_layers_of_groups_go_into_a_graph_as_well(
    tmp_path: Path, asked: list[measure.Options], gpu: list[AnyCase], capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.json"
    argv = ["bench", "--shape", "64x128x256", "2x64x128x256", "--grouping", "counts", "--dtype", "f8E4M3FN"]
    assert main([*argv, "--graph", "--json", str(out)]) == 0
    assert gpu == [Case("f8E4M3FN", 64, 128, 256), GroupedCase("f8E4M3FN", "counts", 2, 64, 128, 256)]
    assert [options.layers for options in asked] == [32, 32]
    captured = capsys.readouterr()
    dense, grouped = captured.out.split("\nf8E4M3FN, groups by counts: ")
    for text, sizes in ((dense, "M x N x K"), (grouped, "G x M x N x K")):
        header = next(line for line in text.splitlines() if line.startswith(sizes))
        assert header[len(sizes) :].split()[:3] == ["gemmir", "graph", "overlap"]
    assert "f8E4M3FN-counts-2x64x128x256: 11.00 us, ratio to the fastest peer 2.000, 6.00 us in a graph" in captured.err
    assert [row.graph for row in Report.from_json(out.read_text()).rows] == [TIMES, TIMES]


def test_layers_without_a_graph_are_wrong_usage(gpu: list[AnyCase], capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--shape", "64x128x256", "--layers", "8"]) == 2
    assert "--layers 8: they are those of --graph" in capsys.readouterr().err
    assert gpu == []


def test_the_set_decode_has_masked_groups_beside_its_dense_products():
    masked = GroupedCase("f8E4M3FN", "counts", 32, 20, 4096, 7168)
    cases = bench.cases_of(arguments("--set", "decode"))
    assert {case.dtype for case in cases} == {"f8E4M3FN", "bf16"}
    assert cases[-1] == masked
    assert [case.shape for case in cases[:-1] if isinstance(case, Case)] == [*SETS["decode"], *SETS["decode"]]
    assert bench.cases_of(arguments("--set", "decode", "masked")).count(masked) == 1
    assert masked in bench.cases_of(arguments("--set", "decode", "--dtype", "f8E4M3FN", "--split-k", "1"))
    for argv, rows in ((["--dtype", "bf16"], 17), (["--split-k", "2"], 34)):
        found = bench.cases_of(arguments("--set", "decode", *argv))
        assert (len(found), masked in found) == (rows, False)


def test_the_help_is_readable_in_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for option in ("--flush {zero,read}", "--graph", "--layers N"):
        assert option in out
