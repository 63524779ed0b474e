"""What is printed follows the IR op by op, is the same every time, and holds no string out of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.backends.cuda.nvrtc import lint_source
from gemmir.backends.cuda.printer import print_kernel
from gemmir.backends.cuda.target import the_kernel
from gemmir.errors import UnsupportedError
from gemmir.ir_text import parse_module
from gemmir.layouts import Swizzle, descriptor_high_bits
from gemmir.schedule import Split
from tests.kernels import BF16_SCHEDULE, FP8_SCHEDULE, lowered
from tests.schedules import fp8_problem, half_problem, legal_schedules, problems

FP8, BF16 = fp8_problem(None, 7168, 2048), half_problem(None, 7168, 2048)


def body(source: str) -> str:
    return source[source.index('extern "C"') :]


FIRST_WAVE = (
    "wgmma_wait<0>();",
    "settled(partial);",
    "promote<128>(total0, partial, scales.row[0], scales.step);",
    "multiply<true>(partial, ring_a + at.stage * 16384 + 8192, ring_b + at.stage * 32768 + group * 16384);",
    "wgmma_commit();",
)
SECOND_WAVE = (
    "fence_proxy_async();",
    "__syncwarp();",
    "wgmma_wait<0>();",
    "if (lane < 2) mbarrier_arrive_peer(empty + at.stage * 8, lane);",
    "promote<128>(total1, partial, scales.row[1], scales.step);",
    "multiply<true>(partial, ring_a + ahead.stage * 16384, ring_b + ahead.stage * 32768 + group * 16384);",
    "at.advance();",
    "scales = next_scales;",
)
AHEAD = "const auto ahead = at.next();"


def staged(total: str) -> tuple[str, ...]:
    """How one wave of 64 x 128 leaves."""
    return (
        "mbarrier_wait(drained + group * 8, out.parity ^ 1);",
        f"stage_columns<0, 64, 0, 7>({total}, staging + group * 16384, warp % 4 * 16);",
        f"stage_columns<32, 64, 0, 7>({total}, staging + group * 16384 + 8192, warp % 4 * 16);",
        "fence_proxy_async();",
        "__syncwarp();",
        "if (lane == 0) mbarrier_arrive(staged + group * 8);",
        "out.advance();",
    )


def in_order(text: str, steps: Sequence[str]) -> str:
    """What follows the last of `steps`, each of which comes after the one before."""
    for step in steps:
        assert step in text, step
        text = text[text.index(step) + len(step) :]
    return text


def test_the_main_loop_reads_as_it_runs() -> None:
    """All k-blocks but the last in the loop; in the last each wave leaves while the next one runs."""
    text = body(lowered(FP8, FP8_SCHEDULE).source)
    wait = "mbarrier_wait(full + ahead.stage * 8, ahead.parity);"
    loop, peeled = text[text.index("for (int k = 0; k < 15; ++k) {") :].split("\n            }\n", 1)
    in_order(loop, (*FIRST_WAVE, AHEAD, wait, *SECOND_WAVE))
    assert "tiles.last()" not in loop
    steps = (*FIRST_WAVE, *staged("total0"), AHEAD, f"if (!tiles.last()) {wait}", *SECOND_WAVE, *staged("total1"))
    assert in_order(peeled, steps).lstrip().startswith("}\n        wgmma_wait<0>();")


def test_the_loop_of_a_whole_tile_has_every_k_block() -> None:
    text = body(lowered(FP8, replace(FP8_SCHEDULE, store_slices=1, num_stages=3)).source)
    loop = text[text.index("for (int k = 0; k < 16; ++k) {") :]
    wait = "if (k + 1 < 16 || !tiles.last()) mbarrier_wait(full + ahead.stage * 8, ahead.parity);"
    in_order(loop, (*FIRST_WAVE, AHEAD, wait, *SECOND_WAVE))
    assert text.count("stage_columns<0, 64, 0, 7>(total") == 2


def test_the_producer_loads_then_says_what_comes() -> None:
    text = body(lowered(FP8, FP8_SCHEDULE).source)
    producer = text[text.index("if (warp == 8) {") : text.index("if (warp == 9 && lane == 0) {")]
    order = [
        "__ldg(",
        "mbarrier_wait(empty",
        "tma_load(ring_a",
        "tma_load_multicast(ring_b",
        "store_shared_f32(",
        "mbarrier_expect(",
    ]
    places = [producer.index(step) for step in order]
    assert places == sorted(places)


def test_scales_in_batches_read_as_they_are_fetched() -> None:
    """Two lanes a k-block: the column of each lane, the batch, then one scale a lane in each k-block."""
    text = body(lowered(FP8, replace(FP8_SCHEDULE, scale_batch=16)).source)
    producer = text[text.index("if (warp == 8) {") : text.index("if (warp == 9 && lane == 0) {")]
    steps = (
        "const int column = n0 + lane % 2 * 128;",
        "ScaleBatch<16, 2> batch(column < N, scale_b + column / 128 * scale_b_stride_n, scale_b_stride_k, 16);",
        "for (int k = 0; k < 16; ++k) {",
        "const float scales = batch.at(k);",
        "mbarrier_wait(empty",
        "if (lane < 2) store_shared_f32(ring_scale_b + at.stage * 16 + lane * 4, scales);",
    )
    in_order(producer, steps)
    assert "__ldg" not in producer
    one = replace(FP8_SCHEDULE, block_n=128, split=Split.ALONG_M, scale_batch=32)
    assert "const int column = n0;" in lowered(FP8, one).source


def test_the_producer_fences_where_nobody_else_loads() -> None:
    text = body(lowered(FP8, replace(FP8_SCHEDULE, cluster_m=1)).source)
    producer = text[text.index("if (warp == 8) {") : text.index("if (warp == 9 && lane == 0) {")]
    in_order(producer, ("mbarrier_wait(empty", "fence_proxy_async();", "tma_load(ring_a"))
    math = text[: text.index("if (warp == 8) {")]
    assert math.count("fence_proxy_async();") == math.count("stage_columns<0") == 2, "one for each slice"


def explained(source: str) -> int:
    """Lines of the kernel that only explain."""
    return sum(line.strip().startswith("//") for line in body(source).splitlines())


def test_the_kernel_is_short() -> None:
    """Its statements; `test_golden` limits what is read, comments and all."""
    whole = lowered(FP8, replace(FP8_SCHEDULE, store_slices=1, num_stages=3)).source
    assert len(body(whole).splitlines()) - explained(whole) < 140
    sliced = lowered(FP8, FP8_SCHEDULE).source
    assert len(body(sliced).splitlines()) - explained(sliced) < 180, "one k-block and the slices of a tile twice"
    assert len(sliced.splitlines()) - explained(sliced) < 410
    assert 12 <= explained(sliced) <= 20


def test_the_same_ir_prints_the_same_source() -> None:
    first, second = lowered(FP8, FP8_SCHEDULE), lowered(FP8, FP8_SCHEDULE)
    assert first.source == second.source
    again = parse_module(str(first.module))
    assert print_kernel(the_kernel(again)).source == first.source


def test_swizzles_and_descriptors_come_from_the_layouts() -> None:
    source = lowered(FP8, FP8_SCHEDULE).source
    assert f"0x{descriptor_high_bits(Swizzle.B128, 1024):x}ull" in source
    narrow = lowered(FP8, replace(FP8_SCHEDULE, block_n=112, split=Split.ALONG_M, cluster_m=1)).source
    for columns, swizzle in ((64, Swizzle.B128), (32, Swizzle.B64), (16, Swizzle.B32)):
        assert f", {columns}, {swizzle.row_shift}, {swizzle.row_mask}>(" in narrow


HOSTILE = 'evil(){} } __global__ void pwn("'


def test_no_name_of_the_ir_reaches_the_source() -> None:
    text = str(lowered(FP8, FP8_SCHEDULE).module)
    text = text.replace("@layer", f'@"{HOSTILE.replace(chr(34), chr(92) + chr(34))}"').replace('"x"', '"pwned_label"')
    text = re.sub(r"%ring_a\b", "%pwned_value", text)
    source = print_kernel(the_kernel(parse_module(text))).source
    assert "evil" not in source
    assert "pwn" not in source
    lint_source(source)


def test_an_op_of_another_dialect_is_refused() -> None:
    text = str(lowered(FP8, FP8_SCHEDULE).module)
    text = text.replace("hopper.prefetch_maps", "%c = arith.constant 1.0 : f32\n    hopper.prefetch_maps", 1)
    with pytest.raises(UnsupportedError) as error:
        print_kernel(the_kernel(parse_module(text)))
    assert error.value.code == "GMR-U001"


@given(st.data())
def test_every_legal_schedule_prints_and_lints(data: st.DataObject) -> None:
    problem = data.draw(problems(min_k=16))
    schedule = data.draw(legal_schedules(problem))
    found = lowered(problem, schedule)
    lint_source(found.source)
    assert re.fullmatch(r"gemm_[0-9a-z_]+", found.entry)
    assert found.source.isascii()


def test_numbers_of_bf16_instructions() -> None:
    source = lowered(BF16, BF16_SCHEDULE).source
    assert "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16" in source
    assert "keep, 1, 1, 0, 0;" in source
