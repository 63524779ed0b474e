"""The hopper ops of kernels for few rows: text that goes round, and IR that is refused, rule by rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import pytest

from gemmir.bench.cases import program_text
from gemmir.compiler import lower
from gemmir.errors import IRError
from gemmir.ir_text import parse_module

FP8 = "family = stream, block = 24x128x128, warpgroups = 2 along n, chunk = 2, stages = 3"
BF16 = "family = stream, block = 16x128x64, warpgroups = 1 along n, stages = 3"
KERNELS = {
    "fp8": (1024, 2688, "f8E4M3FN", FP8, 1),
    "fp8 in three parts": (1024, 2688, "f8E4M3FN", FP8, 3),
    "bf16": (1000, 448, "bf16", BF16, 1),
    "bf16 in two parts": (1000, 456, "bf16", BF16.replace("128x64", "64x64"), 2),
}
PARTS = "fp8 in three parts"


@cache
def text_of(name: str) -> str:
    return str(lower(program_text(*KERNELS[name]), m=24, until="hopper").module)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_round_trip(name: str) -> None:
    assert str(parse_module(text_of(name))) == text_of(name)


def swap(old: str, new: str, count: int = 1) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert re.search(old, text) is not None, old
        return re.sub(old, new, text, count=count)

    return change


def moved(line: str, behind: str) -> Callable[[str], str]:
    """The first line that holds `line` goes behind the first one that holds `behind`."""

    def change(text: str) -> str:
        lines = text.splitlines(keepends=True)
        taken = lines.pop(next(i for i, found in enumerate(lines) if line in found))
        lines.insert(1 + next(i for i, found in enumerate(lines) if behind in found), taken)
        return "".join(lines)

    return change


REFUSED = {
    "a wait for the grid in a role": (
        moved("hopper.wait_for_grid", "hopper.warp 0"),
        "hopper.wait_for_grid stands at the top of a kernel",
    ),
    "the kernel behind let go in a role": (
        moved("hopper.launch_dependents", "hopper.warp 0"),
        "hopper.launch_dependents stands at the top of a kernel",
    ),
    "a prefetch in a role": (
        moved("hopper.tma_prefetch", "hopper.warp 0"),
        "values used but not defined",
    ),
    "anything but prefetches for the first tile": (
        moved("hopper.prefetch_maps", "hopper.part_block"),
        "hopper.first_tile holds only prefetches",
    ),
    "first tiles that ask for M": (
        swap(r"if %overlaps", "if %m"),
        "hopper.first_tile takes the parameter that is bound to overlaps",
    ),
    "a flag that is 64 bits wide": (
        swap(r"%overlaps: i32", "%overlaps: i64"),
        "used with type i32",
    ),
    "more rows of scales than a slot has": (
        swap(r"row %k(\w*) \+ 1 for", r"row %k\1 + 9 for"),
        "rows of scales that are read",
    ),
    "scales of a row that is no k-block": (
        swap(r"row %rest \+ 0", "row %group + 0"),
        "takes the number of a k-block",
    ),
    "a warpgroup without scales": (
        swap(r"!hopper.ring<2x8x2xf32>", "!hopper.ring<2x8x1xf32>", count=0),
        "scales of warpgroups that are read: 2 of 1",
    ),
    "copies by one lane": (
        swap(r"hopper.warp 2 \{", "hopper.warp 2 elected {"),
        "takes all lanes of a warp",
    ),
    "copies from another k-block": (
        swap(r"hopper.copy_scales %scale_b\[%first,", "hopper.copy_scales %scale_b[%m0_4,"),
        "begins with the first k-block of a part of K",
    ),
    "a grant to a part that there is not": (
        swap(r"grant part 2", "grant part 3"),
        "parts of K: 4 of 3",
    ),
    "sums that are not all registers": (
        swap(r"registers 0, 12 -> %sums", "registers 0, 16 -> %sums"),
        "are not quads that it has",
    ),
    "a hint that there is not": (
        swap(r"evict first", "evict sometimes"),
        "Expected `first`, or `last`",
    ),
    "f32 transposed": (
        swap(r"!hopper.staging<2x24x64xbf16>", "!hopper.staging<2x24x64xf32>", count=0),
        "bytes of a staging area",
    ),
    "half a panel transposed": (
        swap(r"row 0 transposed", "row 8 transposed"),
        "whole panels of 64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(IRError, match=message) as error:
        parse_module(change(text_of(PARTS)))
    assert error.value.code in ("GMR-R001", "GMR-R002")


def test_parts_of_k_are_for_kernels_that_have_some() -> None:
    in_part = "hopper.in_part {\n hopper.sync_warp\n }\n hopper.launch_dependents"
    text = text_of("fp8").replace("hopper.launch_dependents", in_part, 1)
    with pytest.raises(IRError, match="in_part"):
        parse_module(text)
