"""From a program to a kernel: what may come in, what can be looked at, and what the cache spares."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from xdsl.passes import ModulePass

import gemmir
from gemmir.backends.cuda.compiler_log import read_log
from gemmir.bench.grouped import GroupedCase, schedule_from
from gemmir.cache import Cache
from gemmir.compiler import lower
from gemmir.errors import InputError, IRError, ScheduleError, SyncError
from gemmir.ir_text import parse_module
from gemmir.pipeline import Observer
from gemmir.program import Program
from gemmir.universe import PASSES
from tests.gpu.problems import fp8_text

ROOT = Path(__file__).resolve().parents[1]
TEXT = fp8_text(512, 384)


def program() -> Program:
    p = Program("layer")
    x, xs = p.input("x", (None, 384), "f8E4M3FN"), p.input("xs", (None, 3), "f32")
    w, ws = p.input("w", (384, 512), "f8E4M3FN"), p.input("ws", (3, 4), "f32")
    y = p.matmul(x, w, scale_a=xs, scale_b=ws, recipe=("block_wise_1x128", "block_wise_128x128"))
    p.output(y.cast("bf16"))
    return p


def test_text_path_module_and_program_give_the_same_kernel(tmp_path: Path) -> None:
    path = tmp_path / "layer.mlir"
    path.write_text(TEXT)
    sources = [lower(s).source for s in (TEXT, path, str(path), parse_module(TEXT), program())]
    assert len(set(sources)) == 1


def test_lowering_leaves_the_module_alone() -> None:
    module = parse_module(TEXT)
    before = str(module)
    lower(module)
    assert str(module) == before


def test_every_level_can_be_looked_at_and_fed_back() -> None:
    whole = lower(TEXT)
    assert list(whole.ir) == ["gemm", "schedule", "hopper"]
    assert "schedule <" not in whole.ir["gemm"]
    assert "schedule <family = tiles" in whole.ir["schedule"]
    assert "hopper.kernel @layer" in whole.ir["hopper"]
    for level in whole.ir:
        assert lower(whole.ir[level]).source == whole.source, level


@pytest.mark.parametrize(("until", "levels"), [("gemm", ["gemm"]), ("schedule", ["gemm", "schedule"])])
def test_lowering_stops_where_it_is_told(until: str, levels: list[str]) -> None:
    found = lower(TEXT, until=until)  # type: ignore[arg-type]
    assert found.source == ""
    assert set(levels) <= set(found.ir)
    assert "hopper" not in found.ir


def test_the_schedule_is_chosen_for_the_expected_m() -> None:
    small, large = (lower(TEXT, m=m, until="schedule").schedule for m in (16, 8192))
    assert "family = stream" in small
    assert "family = tiles" in large
    assert small != large


def test_an_m_that_the_program_fixes_needs_no_hint() -> None:
    fixed = TEXT.replace("tensor<?x", "tensor<256x")
    assert "expect" not in lower(fixed, m=16, until="schedule").ir["schedule"]


def test_what_is_fixed_no_pass_changes() -> None:
    pipeline = (
        "gemm-canonicalize,gemm-select-family,gemm-select-blocks{block=128,128,128 warpgroups=2 split=n cluster=1,2},"
        "gemm-fit-tail,gemm-rasterize{axis=along_n group=3},gemm-balance,gemm-plan-pipeline{stages=4},"
        "gemm-lower-to-hopper"
    )
    found = lower(TEXT, pipeline=pipeline).schedule
    for choice in (
        "block = 128x128x128",
        "warpgroups = 2 along n",
        "cluster = 1x2",
        "along_n, group = 3",
        "stages = 4",
    ):
        assert choice in found


def test_each_pass_is_shown() -> None:
    seen: list[str] = []

    class Names(Observer):
        def ran(self, pass_: ModulePass, text: str, seconds: float) -> None:
            seen.append(pass_.name)

    lower(TEXT, observer=Names())
    assert seen[:8] == [
        "gemm-canonicalize",
        "gemm-select-family",
        "gemm-select-blocks",
        "gemm-fit-tail",
        "gemm-rasterize",
        "gemm-balance",
        "gemm-plan-pipeline",
        "gemm-lower-to-hopper",
    ]


@pytest.mark.parametrize("pipeline", ["no-such-pass", "gemm-plan-pipeline{stages=", "gemm-select-blocks{colour=red}"])
def test_a_bad_pipeline_is_refused(pipeline: str) -> None:
    with pytest.raises(IRError) as error:
        lower(TEXT, pipeline=pipeline)
    assert error.value.code == "GMR-R004"


def test_a_pipeline_that_leaves_choices_open_is_refused() -> None:
    with pytest.raises(ScheduleError, match="num_stages") as error:
        lower(TEXT, pipeline="gemm-select-family,gemm-select-blocks,gemm-fit-tail,gemm-rasterize,gemm-lower-to-hopper")
    assert error.value.code == "GMR-S005"


def test_the_pipeline_that_lowering_advises_leaves_nothing_open() -> None:
    with pytest.raises(ScheduleError) as error:
        lower(TEXT, pipeline="gemm-lower-to-hopper")
    advised = re.fullmatch(r"run (\S+) first", str(error.value.fix))
    assert advised is not None
    assert list(lower(TEXT, pipeline=f"{advised[1]},gemm-lower-to-hopper").ir) == ["gemm", "schedule", "hopper"]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(InputError, match="'hopper'"):
        gemmir.compile(TEXT).ir("assembler")


def test_a_kernel_shows_what_it_is() -> None:
    kernel = gemmir.compile(TEXT)
    assert kernel.manifest.name == "layer"
    assert [t.name for t in kernel.manifest.inputs] == ["x", "xs", "w", "ws"]
    assert [t.order for t in kernel.manifest.inputs][:3] == [(0, 1), (1, 0), (1, 0)]
    assert kernel.manifest.inputs[3].free_strides
    assert kernel.manifest.schedule.startswith("#gemm.schedule<family = tiles")
    assert kernel.source_path is not None
    assert kernel.source_path.read_text() == kernel.source
    assert kernel.cubin.startswith(b"\x7fELF")
    assert "registers" in kernel.log
    assert any("gemm-plan-pipeline: stages" in d for d in kernel.decisions)


def test_kernels_with_other_options_are_other_kernels() -> None:
    first = gemmir.compile(TEXT)
    assert gemmir.compile(TEXT).source_path == first.source_path
    others = [gemmir.compile(TEXT, m=16), gemmir.compile(TEXT, chaos=True), gemmir.compile(program())]
    assert len({k.source_path for k in (first, *others)}) == 4
    assert len(Cache().entries()) == 4


def test_a_file_that_changes_while_it_is_compiled_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lowered would be kept under the key of what it was before."""
    path = tmp_path / "layer.mlir"
    path.write_text(TEXT)

    def lower_late(*args: object, **options: object) -> object:
        path.write_text(TEXT.replace("layer", "other"))
        return lower(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("gemmir.compiler.lower", lower_late)
    with pytest.raises(InputError, match=r"layer.mlir: it changed while") as error:
        gemmir.compile(path)
    assert error.value.code == "GMR-I005"
    assert Cache().entries() == ()


def test_without_the_cache_nothing_is_kept() -> None:
    assert gemmir.compile(TEXT, cache=False).source_path is None
    assert Cache().entries() == ()


def test_a_kernel_under_chaos_may_spill():
    """Three warpgroups leave 128 registers a thread at launch, and the sleeps need some."""
    product = GroupedCase("bf16", "offs", 9, 333, 1536, 640)
    schedule = schedule_from("family = tiles, block = 192x112x64, warpgroups = 3 along m", product)
    kernel = gemmir.compile(product.program(schedule), cache=False, chaos=True)
    assert read_log(kernel.log).spill_stores > 0
    gemmir.compile(product.program(schedule), cache=False)


def test_under_chaos_every_wait_is_late() -> None:
    kernel = gemmir.compile(TEXT, chaos=True)
    assert kernel.source.count("chaos_sleep(chaos);") > 20
    assert kernel.manifest.params[-1].kind == "seed"
    assert "chaos" not in gemmir.compile(TEXT).source


IN_A_NEW_PROCESS = """
import json, sys, time
from pathlib import Path
import gemmir
from gemmir.program import Program
start = time.process_time()
kernel = gemmir.compile(Path({path!r}).read_text())
seconds = time.process_time() - start
loaded = sorted({{name.split(".")[0] for name in sys.modules}} & {{"xdsl", "torch", "numpy", "cuda"}})
print(json.dumps([loaded, kernel.manifest.entry, len(kernel.ir("hopper")), seconds]))
"""


def test_a_second_process_finds_the_kernel_without_xdsl(tmp_path: Path) -> None:
    path = tmp_path / "layer.mlir"
    path.write_text(TEXT)
    kernel = gemmir.compile(TEXT)
    command = [sys.executable, "-c", IN_A_NEW_PROCESS.format(path=str(path))]
    run = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=True)
    loaded, entry, length, seconds = json.loads(run.stdout)
    assert loaded == []
    assert entry == kernel.manifest.entry
    assert length == len(kernel.ir("hopper"))
    assert seconds < 0.6, "processor time, imports included: 0.1 on an idle machine"


WITHOUT_CHECK = ",".join(PASSES[:-1])


@pytest.mark.parametrize("pipeline", [None, WITHOUT_CHECK, "gemm-canonicalize"])
def test_no_pipeline_leaves_the_proof_out(pipeline: str | None) -> None:
    """A kernel that came in as hopper IR without its release is refused, whatever passes are asked for."""
    text = lower(TEXT).ir["hopper"]
    broken = "\n".join(line for line in text.splitlines() if "hopper.release" not in line)
    with pytest.raises(SyncError) as error:
        lower(broken, pipeline=pipeline)
    assert error.value.code == "GMR-Y001"
    assert lower(text, pipeline=pipeline).source


def test_a_pipeline_without_the_check_gives_the_same_kernel() -> None:
    assert lower(TEXT, pipeline=WITHOUT_CHECK).source == lower(TEXT).source
