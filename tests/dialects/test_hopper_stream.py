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
from tests.dialects.test_hopper import generic
from tests.sabotage.kernels import module_of

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
    assert str(parse_module(generic(parse_module(text_of(name))))) == text_of(name)


def test_the_kernels_hold_what_is_new() -> None:
    """Else a round trip says nothing of it."""
    text = text_of(PARTS)
    for line in (
        "hopper.launch_dependents",
        "hopper.first_tile along_n group 1 if %overlaps or 66 {",
        "hopper.tma_prefetch %map_b[%n0 * 1, %block * 128]",
        "hopper.wait_for_grid",
        "row %k_1 + 1 for %group",
        "hopper.in_part others {",
        "hopper.in_part {",
        "signal %summed to_first",
        "row 0 transposed",
        "signal %full evict last",
        "signal %full evict first",
        "hopper.grant part 2 %room[%granted]",
        "%first = hopper.first_block of 7",
        "of 64 blocks 21 -> %ring_scale_b[%at_3]",
    ):
        assert line in text, line


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


def behind(line: str, new: str) -> Callable[[str], str]:
    """`new` behind the first line that holds `line`."""

    def change(text: str) -> str:
        lines = text.splitlines(keepends=True)
        lines.insert(1 + next(i for i, found in enumerate(lines) if line in found), f"{new}\n")
        return "".join(lines)

    return change


def both(first: Callable[[str], str], second: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: second(first(text))


def at_the_end(text: str, what: str) -> str:
    """`what` as the last op of the kernel."""
    assert text.endswith("    }\n  }\n}")
    return text.removesuffix("  }\n}") + what + "  }\n}"


def first_tile_at_the_end(text: str) -> str:
    found = re.search(r"    hopper\.first_tile .*?\n    \}\n", text, re.DOTALL)
    assert found is not None
    return at_the_end(text.replace(found[0], ""), found[0])


REFUSED = {
    "a wait for the grid in a role": (
        moved("hopper.wait_for_grid", "hopper.warp 0"),
        "hopper.wait_for_grid stands at the top of a kernel",
    ),
    "the kernel behind let go in a role": (
        moved("hopper.launch_dependents", "hopper.warp 0"),
        "hopper.launch_dependents stands at the top of a kernel",
    ),
    "the kernel behind let go after all is done": (
        lambda text: at_the_end(text, "    hopper.launch_dependents\n"),
        "hopper.launch_dependents after the roles",
    ),
    "a wait for the grid after all is done": (
        lambda text: at_the_end(swap("    hopper.wait_for_grid\n", "")(text), "    hopper.wait_for_grid\n"),
        "hopper.wait_for_grid after the roles",
    ),
    "two waits for the grid": (
        behind("hopper.wait_for_grid", "hopper.wait_for_grid"),
        "hopper.wait_for_grid before hopper.wait_for_grid: until then no memory may be touched",
    ),
    "a first tile after all is done": (first_tile_at_the_end, "hopper.first_tile after the roles"),
    "a first tile with a group": (
        swap(r"\(%m0: index, %n0: index\)", "(%m0: index, %n0: index, %group: index)"),
        "hopper.first_tile takes a row and a column",
    ),
    "a prefetch in a role": (
        behind(
            "hopper.tma_load %map_b",
            "hopper.tma_prefetch %map_b[%n0_2 * 1, %block_1 * 128] : !hopper.tensor_map<128x128xf8E4M3FN, b128>",
        ),
        "hopper.tma_prefetch outside hopper.first_tile",
    ),
    "a prefetch of a matrix of many": (
        swap(r"tensor<2688x1024xf8E4M3FN>", "tensor<1x2688x1024xf8E4M3FN>"),
        "hopper.tma_prefetch: a map over a tensor of rank 3, no group",
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
    "scales that are no f32": (
        swap(r"!hopper.ring<2x8x2xf32>", "!hopper.ring<2x8x2xbf16>", count=0),
        "scales of !hopper.ring<2x8x2xbf16> and",
    ),
    "a partial sum that is no total": (
        both(
            behind("%total0 = hopper.fragment", "%other = hopper.fragment : !hopper.fragment<64x16>"),
            swap(
                r"promote_block %partial0 (.*?) : !hopper.fragment<64x24>",
                r"promote_block %other \1 : !hopper.fragment<64x16>",
            ),
        ),
        "for !hopper.fragment<64x16> and !hopper.fragment<64x24>",
    ),
    "fewer columns of scales than rows of a tile": (
        both(
            swap(r"!hopper.ring<2x8x24xf32>", "!hopper.ring<2x8x16xf32>", count=0),
            swap(r"!hopper.tensor_map<8x24xf32>", "!hopper.tensor_map<8x16xf32>", count=0),
        ),
        "column scales that are read: 24 of 16",
    ),
    "an odd number of scales": (
        both(
            swap(r"hopper.tma_load %map_scale_a.*", ""),
            swap(r"!hopper.ring<2x8x24xf32>", "!hopper.ring<2x8x25xf32>", count=0),
        ),
        "reads pairs of column scales, of which !hopper.ring<2x8x25xf32> has an odd number",
    ),
    "copies by one lane": (
        swap(r"hopper.warp 2 \{", "hopper.warp 2 elected {"),
        "takes all lanes of a warp",
    ),
    "copies from another k-block": (
        swap(r"hopper.copy_scales %scale_b\[%first,", "hopper.copy_scales %scale_b[%m0_4,"),
        "begins with the first k-block of a part of K",
    ),
    "copies along the wrong strides": (
        swap(r"strides %scale_b_stride_k, %scale_b_stride_n", "strides %scale_b_stride_n, %scale_b_stride_k"),
        "hopper.copy_scales reads a tensor of K blocks x N blocks",
    ),
    "copies past the scales": (swap(r"of 64 blocks 21", "of 64 blocks 22"), "rows of scales that are read: 22 of 21"),
    "copies of no tensor's strides": (
        swap(r"#hopper.bind<stride 3 1>", "#hopper.bind<stride 1 1>"),
        "hopper.copy_scales takes the address and the strides of one tensor",
    ),
    "a part of K without k-blocks": (swap(r"first_block of 7", "first_block of 0"), "expected integer >= 1, got 0"),
    "a grant to the first part": (swap(r"grant part 2", "grant part 0"), "expected integer >= 1, got 0"),
    "a grant to a peer, of which there are two": (
        swap(r"grant part 2", "grant"),
        "hopper.grant to a peer in a kernel that splits K among 3 CTAs",
    ),
    "sums for a peer, of which there are two": (
        swap(r"signal %summed to_first", "signal %summed"),
        "hopper.send_sums to a peer in a kernel that splits K among 3 CTAs",
    ),
    "sums sent by the first part, too": (
        swap(r"hopper.in_part others", "hopper.in_part"),
        "hopper.send_sums to the first part, from what may be the first part",
    ),
    "parts without slots for their sums": (
        swap(r"!hopper.ring<2x128x24xf32>", "!hopper.ring<1x128x24xf32>", count=0),
        "slots for the sums of other parts: 2 of 1",
    ),
    "sums that do not fit a slot": (
        swap(r"!hopper.ring<2x128x24xf32>", "!hopper.ring<2x64x24xf32>", count=0),
        "bytes of sums in a slot: 12288 of 6144",
    ),
    "a barrier of each warpgroup for a slot": (
        swap(r"!hopper.barriers<2x1>", "!hopper.barriers<2x2>", count=0),
        "the slots of a ring have one barrier each",
    ),
    "a slot of sums signalled by barriers of another type": (
        swap(r"(signal %summed to_first.*)!hopper.barriers<2x1>", r"\1!hopper.barriers<2x2>"),
        "operand is used with type !hopper.barriers<2x2>",
    ),
    "sums that are not all registers": (
        swap(r"registers 0, 12 -> %sums", "registers 0, 16 -> %sums"),
        "are not quads that it has",
    ),
    "a hint that there is not": (
        swap(r"evict first", "evict sometimes"),
        "Expected `first`, or `last`",
    ),
    "sums added to other registers than there are": (
        swap(r"-> %total0 registers 0, 12", "-> %total0 registers 4, 12"),
        "registers 4 to 16 of !hopper.fragment<64x24> are not quads that it has",
    ),
    "a hint to a multicast": (
        swap(r"signal %full evict last", "signal %full multicast n evict last"),
        "a multicast has no cache hint",
    ),
    "f32 transposed": (
        both(
            swap(r"!hopper.staging<2x24x64xbf16>", "!hopper.staging<2x24x64xf32>", count=0),
            swap(r"pitch 3072", "pitch 6144"),
        ),
        "16-bit elements are transposed",
    ),
    "transposed and added to what is there": (
        swap(r"row 0 transposed", "row 0 accumulate transposed"),
        "16-bit elements are transposed",
    ),
    "more columns transposed than there are": (
        swap(r"row 0 transposed", "row 64 transposed"),
        "rows that are staged: 128 of 64",
    ),
    "a tile of other rows than are transposed": (
        both(
            swap(r"!hopper.staging<2x24x64xbf16>", "!hopper.staging<2x32x64xbf16>", count=0),
            swap(r"pitch 3072", "pitch 4096"),
        ),
        "!hopper.fragment<64x24> into !hopper.staging<2x32x64xbf16>",
    ),
    "a warpgroup without an area": (
        swap(r"!hopper.staging<2x24x64xbf16>", "!hopper.staging<1x24x64xbf16>", count=0),
        "warpgroups that stage: 2 of 1",
    ),
    "half a panel transposed": (
        swap(r"row 0 transposed", "row 8 transposed"),
        "whole panels of 64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(IRError, match=re.escape(message)) as error:
        parse_module(change(text_of(PARTS)))
    assert error.value.code in ("GMR-R001", "GMR-R002")


OF_GROUPS = {
    "tiles counted before the wait": (
        moved("hopper.wait_for_grid", "hopper.count_tiles"),
        "hopper.count_tiles before hopper.wait_for_grid: until then no memory may be touched",
    ),
    "the first tile of a group": (
        swap(
            "    hopper.wait_for_grid",
            "hopper.first_tile along_m group 1 if %m or 0 {\n^bb0(%a: index, %b: index):\n}\nhopper.wait_for_grid",
        ),
        "where a group's first tile lies is for memory to say",
    ),
}


@pytest.mark.parametrize("name", OF_GROUPS)
def test_refused_of_groups(name: str) -> None:
    change, message = OF_GROUPS[name]
    text = str(module_of("bf16-counts-stream"))
    assert str(parse_module(text)) == text
    with pytest.raises(IRError, match=re.escape(message)):
        parse_module(change(text))


def test_parts_of_k_are_for_kernels_that_have_some() -> None:
    in_part = "hopper.in_part {\n hopper.sync_warp\n }\n hopper.launch_dependents"
    text = text_of("fp8").replace("hopper.launch_dependents", in_part, 1)
    with pytest.raises(IRError, match="in_part"):
        parse_module(text)
