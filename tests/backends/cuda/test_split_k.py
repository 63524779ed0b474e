"""CUDA of kernels that split K: what is printed, what NVRTC makes of it, and what the launcher is told."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemmir.backends.cuda.audit import audit_sass
from gemmir.backends.cuda.compiler_log import check_log
from gemmir.backends.cuda.describe import describe
from gemmir.backends.cuda.nvrtc import compile_cubin
from gemmir.backends.cuda.printer import print_kernel
from gemmir.backends.cuda.sass import disassemble
from gemmir.manifest import Manifest
from gemmir.schedule import Schedule, Split
from gemmir.testing.strategies import split_in_two
from tests.backends.cuda.oldest_nvrtc import compile_by_oldest, needs_oldest_nvrtc
from tests.kernels import Lowered, lowered
from tests.schedules import fp8_problem, half_problem, legal_schedules, problems

WIDE = Schedule(block_m=128, block_n=256, math_warpgroups=2, split=Split.ALONG_N)
TILES = {
    "512x4096x7168 wide": (4096, 7168, WIDE),
    "512x4096x7168 tall": (4096, 7168, replace(WIDE, block_m=256, block_n=128, split=Split.ALONG_M)),
    "256x7168x2048 tall": (7168, 2048, replace(WIDE, block_m=256, block_n=112, split=Split.ALONG_M)),
    "256x7168x2048 batches": (7168, 2048, replace(WIDE, block_n=256, scale_batch=16)),
    "one k-block a part": (4096, 256, replace(WIDE, block_n=64)),
}


@cache
def printed(name: str) -> Lowered:
    if name == "bf16":
        return lowered(split_in_two(half_problem(None, 4096, 7168)), WIDE)
    n, k, schedule = TILES[name]
    return lowered(split_in_two(fp8_problem(None, n, k)), schedule)


def body(name: str) -> str:
    return printed(name).source.partition("constexpr int N")[2]


def test_the_loop_of_each_cta_goes_over_its_part() -> None:
    text = body("512x4096x7168 wide")
    assert "__cluster_dims__(2, 1, 1)" in text
    assert "const int rank = cluster_rank();" in text
    assert "for (int k = 0; k < 27; ++k)" in text  # math peels the last
    assert "for (int k = 0; k < 28; ++k)" in text
    assert "const int block = rank * 28 + k;" in text
    assert "map_a, block * 128, m0" in text
    assert "__ldg(scale_b + block * scale_b_stride_k" in text
    assert "true, 2> tiles(m)" in text or "false, 2> tiles(m)" in text
    assert printed("512x4096x7168 wide").entry == "gemm_e4m3_e4m3_128x256_cluster1x1_split2_stages4"


def test_each_cta_finishes_and_stores_one_wave() -> None:
    text = body("512x4096x7168 wide")
    assert re.findall(r"(send|add)_sums<(\d+), (\d+)>\((\w+)", text) == [
        ("send", "0", "32", "total0"),
        ("send", "32", "32", "total0"),
        ("add", "0", "32", "total1"),
        ("add", "32", "32", "total1"),
    ]
    assert set(re.findall(r"tma_store_if\([^,]*, \w+, [^,]*, ([^,]*),", text)) == {"m0 + (rank ^ 1) * 64"}
    assert "stage_columns<0, 64, 0, 7>(total1" in text
    assert "stage_columns<0, 64, 0, 7>(total0" not in text
    tall = body("512x4096x7168 tall")
    stores = set(re.findall(r"tma_store_if\([^,]*, \w+, [^,]*, ([^,]*),", tall))
    assert stores == {"m0 + (rank ^ 1) * 64", "m0 + (rank ^ 1) * 64 + 128"}


def test_the_wave_that_the_peer_finishes_comes_first() -> None:
    text = body("512x4096x7168 wide")
    first, second = "+ rank * 8192,", "+ (rank ^ 1) * 8192,"
    waves = [first if first in line else second for line in text.splitlines() if "multiply<true>" in line]
    assert waves == [first, second, first, second]  # the first of a tile; in the loop; the last of a tile
    loads = [line.strip() for line in text.splitlines() if "scales.load(" in line]
    assert all(line.endswith(", rank);") for line in loads)


def test_batches_of_scales_start_with_those_of_the_part() -> None:
    text = body("256x7168x2048 batches")
    start = "scale_b + rank * 8 * scale_b_stride_k + column / 128 * scale_b_stride_n, scale_b_stride_k, 8);"
    assert start in text
    assert "batch.at(k)" in text


def test_a_kernel_that_does_not_split_says_nothing_of_it() -> None:
    text = lowered(fp8_problem(None, 4096, 7168), replace(WIDE, cluster_m=1)).source
    for word in ("rank", "room", "_sums", "__cluster_dims__", "split"):
        assert word not in text.partition("constexpr int N")[2], word


@pytest.mark.parametrize("name", [*TILES, "bf16"])
def test_nothing_is_spilled_and_no_wgmma_serialised(name: str) -> None:
    kernel = printed(name)
    compiled = compile_cubin(kernel.source)
    resources = check_log(compiled.log)  # refuses C75xx
    assert resources.spill_stores == resources.spill_loads == resources.stack_bytes == 0
    sass = disassemble(compiled.cubin)
    audit_sass(kernel.kernel, sass)
    assert sass.count("STAS.128") == sends_of(kernel)


def sends_of(kernel: Lowered) -> int:
    """Stores of 16 bytes that a thread sends its peer."""
    return sum(int(count) // 4 for count in re.findall(r"send_sums<\d+, (\d+)>", kernel.source))


def test_sums_are_sent_while_the_last_wave_runs() -> None:
    """No wait for a WGMMA between the last one's issue and the last of the stores to the peer."""
    sass = disassemble(compile_cubin(printed("512x4096x7168 wide").source).cubin)
    order = [op for op in re.findall(r"WARPGROUP\.ARRIVE|WARPGROUP\.DEPBAR|STAS", sass)]
    first, last = order.index("STAS"), len(order) - 1 - order[::-1].index("STAS")
    assert set(order[first : last + 1]) == {"STAS"}
    assert order[first - 1] == "WARPGROUP.ARRIVE"
    assert order[last + 1] == "WARPGROUP.DEPBAR"


@needs_oldest_nvrtc
def test_they_compile_with_the_oldest_nvrtc() -> None:
    names = [*TILES, "bf16"]
    compiled = compile_by_oldest(printed(name).source for name in names)
    assert [check_log(one.log).spill_stores for one in compiled.values()] == [0] * len(names)


def test_kernels_under_chaos_compile() -> None:
    chaotic = print_kernel(printed("one k-block a part").kernel, chaos=True)
    lines = [line.strip() for line in chaotic.source.splitlines()]
    for call in ("send_sums<", "mbarrier_grant("):
        at = next(i for i, line in enumerate(lines) if line.startswith(call))
        assert lines[at - 1] == "chaos_sleep(chaos);"
    check_log(compile_cubin(chaotic.source).log)


def test_the_manifest_tells_how_many_ctas_compute_a_tile() -> None:
    kernel = printed("512x4096x7168 wide")
    manifest = describe(kernel.kernel, kernel.entry, "sm_90a", "")
    assert (manifest.split_k, manifest.cluster_ctas, manifest.cluster_m, manifest.cluster_n) == (2, 2, 1, 1)
    assert Manifest.from_json(manifest.to_json()) == manifest


@settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_every_legal_schedule_compiles(data: st.DataObject) -> None:
    problem = data.draw(problems(min_k=16).filter(lambda problem: problem.k_blocks % 2 == 0))
    problem = split_in_two(problem)
    kernel = lowered(problem, data.draw(legal_schedules(problem)))
    resources = check_log(compile_cubin(kernel.source).log)
    assert resources.spill_stores == resources.spill_loads == resources.stack_bytes == 0
