"""`hopper-check-sync`: what it says, and that it has nothing to say of kernels that are right."""

from __future__ import annotations

import gc
import itertools
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmir.compiler import lower
from gemmir.dialects import hopper
from gemmir.dialects.gemm import set_schedule, the_matmul
from gemmir.dialects.hopper.base import count
from gemmir.errors import SyncError
from gemmir.ir_text import make_context, parse_module
from gemmir.loop_legality import SCALE_SLOTS
from gemmir.passes.gemm_lower_to_hopper import GemmLowerToHopperPass
from gemmir.passes.hopper_check_sync import HopperCheckSyncPass
from gemmir.passes.sync.check import check_kernel
from gemmir.passes.sync.extract import program
from gemmir.passes.sync.memory_map import MemoryMap, overlapping
from gemmir.passes.sync.traces import default_traces
from gemmir.pipeline import parse_pipeline, run_passes
from gemmir.schedule import Schedule, Split
from gemmir.testing.strategies import program_text, stream_schedules
from tests.kernels import FP8_SCHEDULE
from tests.sabotage.kernels import TEXTS, Ir, erase, kernel_in, module_of, one
from tests.schedules import completed, fp8_problem, half_problem, legal_schedules

SECONDS = 0.2
"""What a check may take."""


def gemm_text(fp8: bool, k_blocks: int) -> str:
    depth = k_blocks * (128 if fp8 else 64)
    element = "f8E4M3FN" if fp8 else "bf16"
    x, w, d = f"tensor<?x{depth}x{element}>", f"tensor<{depth}x4096x{element}>", "tensor<?x4096xbf16>"
    xs, ws = f"tensor<?x{k_blocks}xf32>", f"tensor<{k_blocks}x32xf32>"
    if not fp8:
        return f"""
func.func @k(%x: {x}, %w: {w}) -> {d} {{
  %y = gemm.matmul %x, %w : ({x}, {w}) -> {d}
  func.return %y : {d}
}}"""
    return f"""
func.func @k(%x: {x}, %xs: {xs}, %w: {w}, %ws: {ws}) -> {d} {{
  %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128) : ({x}, {w}, {xs}, {ws}) -> {d}
  func.return %y : {d}
}}"""


def kernel_for(fp8: bool, k_blocks: int, schedule: Schedule) -> hopper.KernelOp:
    module = parse_module(gemm_text(fp8, k_blocks))
    set_schedule(the_matmul(module), schedule)
    GemmLowerToHopperPass().apply(make_context(), module)
    return kernel_in(module)


@settings(derandomize=True)
@given(st.data(), st.booleans(), st.sampled_from((1, 2, 3, 7, 40)))
def test_no_false_alarm(data: st.DataObject, fp8: bool, k_blocks: int):
    problem = fp8_problem(None, 4096, 128 * k_blocks) if fp8 else half_problem(None, 4096, 64 * k_blocks)
    check_kernel(kernel_for(fp8, k_blocks, data.draw(legal_schedules(problem))))


@settings(derandomize=True)
@given(st.data(), st.booleans(), st.sampled_from((1, 2, 3, 7, 40)), st.sampled_from((1, 2, 3)))
def test_no_false_alarm_for_few_rows(data: st.DataObject, fp8: bool, k_blocks: int, parts: int):
    depth = parts * k_blocks * (128 if fp8 else 64)
    whole = fp8_problem(None, 4096, depth) if fp8 else half_problem(None, 4096, depth)
    problem = replace(whole, expected_m=16, numerics=replace(whole.numerics, split_k=parts))
    text = program_text(problem, data.draw(stream_schedules(problem)))
    check_kernel(kernel_in(lower(text, m=16, until="hopper").module))


CHUNKED = replace(
    FP8_SCHEDULE, block_n=64, split=Split.ALONG_M, balanced=False, scale_batch=1, store_slices=1, num_stages=None
)


@pytest.mark.parametrize("chunk", [2, 4])
@pytest.mark.parametrize("k_blocks", range(1, 10))
def test_chunks_of_any_rest_in_any_ring(chunk: int, k_blocks: int):
    for stages, cluster_m in itertools.product((2, 3, 4, 5), (1, 2)):
        schedule = replace(CHUNKED, promote_chunk=chunk, num_stages=stages, cluster_m=cluster_m)
        check_kernel(kernel_for(True, k_blocks, schedule))


@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_a_warp_for_scales_in_any_ring(slots: int, chunk: int):
    """As many k-blocks as are whole steps of so many slots; rings that such steps fill, and do not fill."""
    narrow = replace(CHUNKED, block_m=64, math_warpgroups=1, promote_chunk=chunk, scale_slots=slots, scale_batch=32)
    fewest = SCALE_SLOTS[slots]
    for stages, k_blocks in itertools.product({max(fewest, 2), fewest + 2, 9, 12}, (slots, 2 * slots, 3 * slots, 12)):
        kernel = kernel_for(True, k_blocks, replace(narrow, num_stages=stages, cluster_m=1 + k_blocks % 2))
        check_kernel(kernel)


@pytest.mark.parametrize("k_blocks", range(1, 10))
def test_a_warp_for_scales_beside_every_loop(k_blocks: int):
    """In turns, slice by slice, and in clusters."""
    tiles = (
        {"block_n": 128, "split": Split.ALONG_M, "turns": True, "cluster_m": 1},
        {"block_n": 128, "split": Split.ALONG_N, "store_slices": 2},
        {"block_n": 64, "cluster_n": 2, "cluster_m": 1},
    )
    for stages, tile in itertools.product((2, 3, 4), tiles):
        schedule = replace(CHUNKED, promote_chunk=1, scale_slots=1, num_stages=stages, **tile)
        check_kernel(kernel_for(True, k_blocks, schedule))


@pytest.mark.parametrize(
    "name",
    ["fp8-turns", "fp8-1x2", "fp8-waves-2x1", "fp8-chunk", "fp8-chunk-2x1", "fp8-scales", "bf16-2x1", "bf16-1x2"],
)
def test_no_false_alarm_at_any_seam(name: str):
    """Two neighbouring tiles of any length, begun at any position in the ring."""
    kernel = kernel_in(module_of(name))
    made = program(kernel)
    stages, chunk = made.stages, made.chunk
    fewest = (made.k_blocks - 1) % chunk + 1
    lengths = range(fewest, stages + 1 + chunk, chunk)
    starts = range(fewest, fewest + 2 * stages * chunk, chunk)
    check_kernel(kernel, list(itertools.product(starts, lengths, lengths))[:: 1 if stages == 2 else 5])


def test_every_default_schedule_in_time():
    """The slowest of many kernels, each by its best of three: what it takes on a machine that does nothing else."""
    taken: list[float] = []
    for fp8, k_blocks, columns in itertools.product((True, False), (1, 4, 56), (576, 4096, 24576)):
        text = (
            gemm_text(fp8, k_blocks).replace("x4096x", f"x{columns}x").replace("x32xf32", f"x{-(-columns // 128)}xf32")
        )
        for m in (64, 500, 4096):
            module = parse_module(text.replace(" : (", f" expect <m = {m}> : (", 1))
            run_passes(module, tuple(p for p in parse_pipeline(None) if p.name.startswith("gemm-")))
            taken.append(min(seconds_of(kernel_in(module)) for _ in range(3)))
    assert max(taken) < SECONDS, f"{max(taken) * 1e3:.0f} ms"


def seconds_of(kernel: hopper.KernelOp) -> float:
    gc.collect(0)
    start = time.process_time()
    check_kernel(kernel)
    return time.process_time() - start


def test_the_pass_checks_every_kernel_and_changes_nothing():
    module = module_of("fp8")
    before = str(module)
    HopperCheckSyncPass().apply(make_context(), module)
    assert str(module) == before
    erase(one(Ir(kernel_in(module)).producer, hopper.ExpectOp))
    with pytest.raises(SyncError, match="GMR-Y001"):
        HopperCheckSyncPass().apply(make_context(), module)


def test_the_report_names_both_events_and_what_is_missing():
    text = str(module_of("fp8"))
    module = parse_module(text, "kernel.mlir")
    erase(one(Ir(kernel_in(module)).producer, hopper.FenceProxyAsyncOp))
    with pytest.raises(SyncError) as error:
        check_kernel(kernel_in(module))
    lines = text.splitlines()
    read = next(i for i, line in enumerate(lines, 1) if "load_scales" in line and "-> %scales" in line)
    load = next(i for i, line in enumerate(lines, 1) if "tma_load %map_scale_a" in line)
    column, load_column = (lines[i - 1].index("hopper") + 1 for i in (read, load))
    assert error.value.render().splitlines() == [
        "GMR-Y001: @k: bytes are read by ordinary instructions, then used by TMA or WGMMA with no fence in between",
        f"  CTA 0, math warpgroup 0: hopper.load_scales at kernel.mlir:{read}:{column} of stage 0 (outside the tiles)",
        f"  CTA 0, producer warp: hopper.tma_load at kernel.mlir:{load}:{load_column} of stage 0 (tile 0, k-block 3)",
        "  in a run with 4 + 2 k-blocks",
        "  and 5 more faults (R6)",
        f"  --> kernel.mlir:{read}:{column}",
        "  rule: R6: between an ordinary access and one by TMA or WGMMA to the same bytes, one of the threads fences "
        "the proxies",
        "  fix: hopper.fence_proxy_async after the first, before it is published, or before the second",
    ]


def test_a_hang_is_told_with_everybody_who_waits():
    ir = Ir(kernel_in(module_of("bf16")))
    erase(one(ir.math, hopper.ArriveOp))
    with pytest.raises(SyncError) as error:
        check_kernel(ir.kernel)
    assert "store thread: hopper.wait" in error.value.what
    assert error.value.fix is not None
    assert "4 of 4 arrivals are missing" in error.value.fix


def test_an_op_of_which_nothing_is_known():
    module = module_of("bf16")
    ir = Ir(kernel_in(module))
    barrier = one(ir.math, hopper.WgmmaFenceOp)
    stranger = parse_module("func.func @f() {\n  func.return\n}").body.block.first_op
    assert stranger is not None
    block = barrier.parent_block()
    assert block is not None
    block.insert_op_before(stranger.clone(), barrier)
    with pytest.raises(SyncError, match=r"func\.func in a hopper kernel"):
        check_kernel(ir.kernel)


@pytest.mark.parametrize("name", TEXTS)
def test_a_kernel_that_went_through_text(name: str):
    check_kernel(kernel_in(parse_module(str(module_of(name)))))


def test_default_traces():
    assert default_traces(3, 7) == ((1,), (2, 1), (4, 2), (7, 1, 3))
    assert default_traces(2, 1) == ((1,), (1, 1, 1), (1,) * 8)
    assert default_traces(3, 7, tile_slots=2) == (*default_traces(3, 7), (1,) * 8)
    assert default_traces(3, 8, 2, True, 4) == (*default_traces(3, 8, 2, True), (2,) * 14)
    assert default_traces(2, 1, tile_slots=4) == default_traces(4, 1)


@pytest.mark.parametrize(
    ("k_blocks", "chunk", "traces"),
    [
        (8, 2, ((2,), (2, 2), (4, 4), (8, 2, 4))),
        (7, 2, ((1,), (3, 1), (5, 3), (9, 1, 3))),
        (7, 4, ((3,), (3, 3), (7, 7), (11, 3, 3))),
        (3, 3, ((3,), (3, 3), (6, 6), (9, 3, 3))),
    ],
)
def test_tiles_of_every_trace_leave_the_same_rest(k_blocks: int, chunk: int, traces: tuple[tuple[int, ...], ...]):
    assert default_traces(3, k_blocks, chunk) == traces
    for stages in range(2, 13):
        made = default_traces(stages, k_blocks, chunk)
        assert {length % chunk for trace in made for length in trace} == {k_blocks % chunk}
        assert 2 * stages + chunk <= max(made[3]) < 2 * stages + 2 * chunk


def test_parts_of_shared_memory():
    memory = MemoryMap()
    memory.add([(0, 64), (32, 96), (96, 128), (0, 32)])
    memory.cut()
    whole, middle, last, first = (set(memory.parts([s])) for s in ((0, 64), (32, 96), (96, 128), (0, 32)))
    assert first < whole
    assert len(whole) == 2
    assert len(whole & middle) == 1
    assert not last & (whole | middle)
    assert set(memory.parts([(0, 64), (32, 96)])) == whole | middle
    assert overlapping([((0, 8), "a"), ((8, 16), "b")]) is None
    assert overlapping([((0, 9), "a"), ((8, 16), "b")]) == (((0, 9), "a"), ((8, 16), "b"))


def test_what_a_run_looks_like():
    made = program(kernel_in(module_of("fp8-2x1")))
    assert (made.stages, made.k_blocks, len(made.ctas)) == (3, 7, 2)
    names = [role.name for role in made.roles((1,))[1]]
    assert names == ["math warpgroup 0", "math warpgroup 1", "producer warp", "store thread"]
    loads = [sum(e.nbytes > 0 and isinstance(e.op, hopper.TmaLoadOp) for e in made.roles((2, 3))[0][2].trace.events)]
    assert loads == [3 * 5]


def test_schedule_of_one_k_block():
    problem = half_problem(None, 4096, 64)
    assert problem.k_blocks == 1
    check_kernel(kernel_for(False, 1, completed(problem, Schedule(num_stages=2))))


WAVES = {
    "two waves of two warpgroups": Schedule(block_m=128, block_n=128, math_warpgroups=2, split=Split.ALONG_N),
    "three waves of one": Schedule(block_m=192, block_n=64, math_warpgroups=1),
}


@pytest.mark.parametrize("cluster", [(1, 1), (2, 1), (1, 2)], ids=["alone", "along m", "along n"])
@pytest.mark.parametrize("stages", [2, 3, 4, 5])
@pytest.mark.parametrize("tile", WAVES)
def test_no_false_alarm_where_a_tile_leaves_wave_by_wave(tile: str, stages: int, cluster: tuple[int, int]):
    """From no loop over k-blocks to one that is longer than the ring."""
    waves = 2 if tile.startswith("two") else 3
    for k_blocks in range(1, 10):
        fixed = replace(WAVES[tile], cluster_m=cluster[0], cluster_n=cluster[1], store_slices=waves, num_stages=stages)
        kernel = kernel_for(True, k_blocks, completed(fp8_problem(None, 4096, 128 * k_blocks), fixed))
        assert len([op for op in kernel.walk() if isinstance(op, hopper.StageFragmentOp)]) == waves
        assert program(kernel).k_blocks == k_blocks
        assert program(kernel).stages == stages
        check_kernel(kernel)


def test_waits_of_a_peeled_block_are_those_of_the_last_one():
    """Two tiles: in the second, the last, the peeled block does not wait for more; the loop always waits."""
    made = program(kernel_in(module_of("fp8")))
    for trips in ((1, 1), (3, 2), (7, 7)):
        role = made.roles(trips)[0][0]
        assert role.name == "math warpgroup 0"
        waits = [e for e in role.trace.events if isinstance(e.op, hopper.WaitOp)]
        assert {e.op.barriers.name_hint for e in waits if isinstance(e.op, hopper.WaitOp)} == {"full"}
        assert len(waits) == sum(trips), "one a k-block, the very first one ahead of the tiles"


@pytest.mark.parametrize(("name", "peers"), [("fp8-2x2", 2), ("bf16-4x1", 3)])
def test_a_slot_is_given_back_to_all_who_write_it_or_to_the_cta_itself(name: str, peers: int):
    """What is printed counts lanes, and would tell others than those that are looked at."""
    kernel = kernel_in(module_of(name))
    for op in kernel.walk():
        if isinstance(op, hopper.ReleaseOp):
            op.properties["peers"] = count(peers)
    with pytest.raises(SyncError, match=f"a release to {peers} of the [34] CTAs that write a slot"):
        check_kernel(kernel)
