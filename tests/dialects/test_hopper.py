"""The hopper dialect: text that goes round, and IR that is refused."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from gemmir.backends.cuda.target import the_kernel
from gemmir.dialects.hopper import LoadScalesOp, NextScalesOp, StartScalesOp
from gemmir.dialects.hopper.bounds import check_kernel_bounds
from gemmir.errors import IRError
from gemmir.ir_text import parse_module
from gemmir.schedule import SCALES_OF_TILE, Schedule, Split
from gemmir.testing.strategies import split_in_two
from tests.kernels import BF16_SCHEDULE, FP8_SCHEDULE, lowered
from tests.schedules import fp8_problem, half_problem

FP8, BF16 = fp8_problem(None, 7168, 2048), half_problem(None, 7168, 2048)
TURNS = replace(FP8_SCHEDULE, block_n=192, split=Split.ALONG_M, turns=True, num_stages=4)
CHUNKS = replace(TURNS, block_n=128, turns=False, promote_chunk=4)
WHOLE = replace(FP8_SCHEDULE, store_slices=1, num_stages=3)
BATCHES = replace(FP8_SCHEDULE, scale_batch=16)
OWN_WARP = replace(FP8_SCHEDULE, scale_slots=1)
NARROW = replace(FP8_SCHEDULE, block_m=64, block_n=128, split=Split.ALONG_M, math_warpgroups=1, cluster_m=1)
AT_ONCE = replace(NARROW, scale_batch=32, scale_slots=4, num_stages=7)
OF_TILE = replace(NARROW, block_m=128, math_warpgroups=2, promote_chunk=4, scale_slots=SCALES_OF_TILE)
SPLIT = replace(FP8_SCHEDULE, cluster_m=1, num_stages=4)
KERNELS = {
    "fp8": (FP8, FP8_SCHEDULE),
    "whole": (FP8, WHOLE),
    "turns": (FP8, TURNS),
    "chunks": (FP8, CHUNKS),
    "batches": (FP8, BATCHES),
    "a warp for scales": (FP8, OWN_WARP),
    "a warp for scales of several slots": (FP8, AT_ONCE),
    "scales of a whole tile": (FP8, OF_TILE),
    "scales of a whole tile, with a rest": (fp8_problem(None, 7168, 1920), OF_TILE),
    "bf16": (BF16, BF16_SCHEDULE),
    "split": (split_in_two(FP8), SPLIT),
}


def generic(module: object) -> str:
    out = io.StringIO()
    Printer(out, print_generic_format=True).print_op(module)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_round_trip(name: str) -> None:
    module = lowered(*KERNELS[name]).module
    assert str(parse_module(str(module))) == str(module)
    assert str(parse_module(generic(module))) == str(module)


def fp8_text(schedule: Schedule = FP8_SCHEDULE) -> str:
    return str(lowered(FP8, schedule).module)


def test_the_text_says_what_the_kernel_does() -> None:
    text = fp8_text()
    for line in (
        "hopper.kernel @layer cluster <2x1> tile <128x256> columns 7168 depth 2048 threads 384 shared 231584",
        "%ring_a = hopper.ring at 0 : !hopper.ring<4x128x128xf8E4M3FN, b128>",
        "%staging = hopper.staging at 196608 pitch 16384 : !hopper.staging<2x64x128xbf16>",
        "%empty = hopper.barriers at 231520 arrivals 16 : !hopper.barriers<4x1>",
        "hopper.setmaxnreg 232 grow",
        "hopper.k_blocks 0 to 15 {",
        "hopper.wait %full[%ahead] : !hopper.barriers<4x1>",
        "hopper.wait %full[%ahead_1] unless_last : !hopper.barriers<4x1>",
        "hopper.stage_fragment %total1 from 0 -> %staging for %group row 0 : ",
        "hopper.k_blocks 0 to 16 {",
        "hopper.wgmma_wait 0, %partial : !hopper.fragment<64x128>",
        "hopper.warp 1 elected {",
    ):
        assert line in text


def swap(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert len(re.findall(old, text)) >= 1, old
        return re.sub(old, new, text, count=1)

    return change


REFUSED = {
    "a ring that the swizzle does not fit": (swap(r"ring at 65536", "ring at 65544"), "multiples of 1024"),
    "an unaligned barrier": (swap(r"barriers at 231520", "barriers at 231521"), "8-byte aligned"),
    "setmaxnreg off its grid": (swap(r"setmaxnreg 232", "setmaxnreg 233"), "multiples of 8"),
    "a cursor of another ring": (
        swap(r"hopper.cursor : !hopper.cursor<4>", "hopper.cursor : !hopper.cursor<5>"),
        "cursor",
    ),
    "a box that does not fill a slot": (
        swap(r"%map_a: !hopper.tensor_map<128x128x", "%map_a: !hopper.tensor_map<64x128x"),
        "hopper.tensor_map",
    ),
    "a fragment that no WGMMA makes": (
        swap(
            r"%partial = hopper.fragment : !hopper.fragment<64x128>",
            "%partial = hopper.fragment : !hopper.fragment<64x100>",
        ),
        "fragment",
    ),
    "too many stages": (swap(r"!hopper.barriers<4x1>", "!hopper.barriers<9999x1>"), "1..4096"),
    "parameters without binds": (swap(r", #hopper.bind<rows>", ""), "8 parameters, but 7 binds"),
    "an unknown swizzle": (swap(r"f8E4M3FN, b128>", "f8E4M3FN, b256>"), "none"),
    "an unknown order": (swap(r"row_major", "diagonal"), "row_major"),
    "a use before the definition": (swap(r"hopper.init_barriers %full", "hopper.init_barriers %later"), "later"),
    "no last tile outside the tiles": (
        swap(r"hopper.wait %full\[%at\] :", "hopper.wait %full[%at] unless_last :"),
        "unless_last stands in hopper.tiles",
    ),
    "no blocks of K": (swap(r"k_blocks 0 to 16", "k_blocks 0 to 0"), "expected integer >= 1"),
    "no arrivals": (swap(r"arrivals 16", "arrivals 0"), "expected integer >= 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(IRError, match=message) as error:
        parse_module(change(fp8_text()))
    assert error.value.code in ("GMR-R001", "GMR-R002")


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ("0 to 14 step 4", "blocks 0 to 14 of K do not go 4 at a time"),
        ("2 to 16 step 4", "blocks 2 to 16 of K do not go 4 at a time"),
        ("16 to 16 step 4", "blocks 16 to 16 of K do not go 4 at a time"),
        ("0 to 16 step 8", "8 blocks of K at a time; 4 are the most"),
        ("0 to 16 step 0", "expected integer >= 1"),
    ],
)
def test_chunks_divide_a_loop(loop: str, message: str) -> None:
    text = fp8_text(CHUNKS)
    assert "hopper.k_blocks 0 to 16 step 4 {" in text
    with pytest.raises(IRError, match=message):
        parse_module(text.replace("0 to 16 step 4", loop))


@pytest.mark.parametrize(("old", "new"), [("k_blocks 0 to 16", "k_blocks 0 to 0"), ("arrivals 16", "arrivals 0")])
def test_a_fault_is_shown_where_it_is(old: str, new: str) -> None:
    text = fp8_text().replace(old, new, 1)
    with pytest.raises(IRError) as error:
        parse_module(text)
    location = error.value.location
    assert location is not None
    assert new in location.text


OUT_OF_BOUNDS = {
    "more shared memory than there is": (r"shared \d+", "shared 400000", "bytes of shared memory: 400000 of 232448"),
    "threads that no role has": ("threads 384", "threads 512", "the roles have 384 threads"),
    "columns that the result has not": ("columns 7168", "columns 7000", "7000 columns"),
    "a cluster that is not modelled": ("cluster <2x1>", "cluster <16x1>", "CTAs in a cluster: 16 of 4"),
    "a tensor that is not there": ("#hopper.bind<map 0>", "#hopper.bind<map 9>", "map 9 is bound to no tensor"),
    "an address of the result": ("#hopper.bind<pointer 3>", "#hopper.bind<pointer -1>", "cannot be bound to pointer"),
    "a map of other elements": ("#hopper.bind<map 0>", "#hopper.bind<map 2>", "cannot be bound to map"),
    "strides of another tensor": ("#hopper.bind<stride 3 0>", "#hopper.bind<stride 0 0>", "one tensor"),
    "scales past the last lane": ("steps 2 of 128", "steps 99 of 128", "lanes that read a scale: 99 of 32"),
    "scales past the last row": ("k_blocks 0 to 16", "k_blocks 0 to 17", "rows of scales that are read: 17 of 16"),
    "rows past a slot": (r"rows 64 \+ 0", "rows 6400 + 0", "rows of A that a WGMMA reads: 6464 of 128"),
    "rows past the staging area": (r"for %group row 0", "for %group row 64", "rows that are staged: 128 of 64"),
    "a store past the staging area": (r"%staging at 16384", "%staging at 999999", "bytes of the staging areas"),
    "a staging area that is too small": (r"pitch \d+", "pitch 8192", "bytes of a staging area: 16384 of 8192"),
    "scales of a wave that is not there": ("wave 1 step", "wave 7 step", "scales of waves: 8 of 2"),
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_nothing_outside_is_touched(name: str) -> None:
    """IR may come from anywhere: what would read or write outside its storage or tensors is refused."""
    old, new, message = OUT_OF_BOUNDS[name]
    text = fp8_text()
    changed = re.sub(old, new, text)
    assert changed != text
    with pytest.raises(IRError, match=re.escape(message)) as error:
        parse_module(changed)
    assert error.value.code == "GMR-R002"


START = r"hopper.start_scales %scale_b\[(%n0_?\d*)\] strides %scale_b_stride_k, %scale_b_stride_n of 128 blocks 16"
NEXT = r"(hopper.next_scales %batch)\[%k_?\d*\]"
COLUMN = "the tile's first column"
OUTSIDE_A_BATCH = {
    "scales past the last row": (r"of 128 blocks 16", "of 128 blocks 17", "rows of scales that are read: 17 of 16"),
    "k-blocks past the last one": (
        r"hopper.k_blocks 0 to 16",
        "hopper.k_blocks 0 to 17",
        "k-blocks whose scales are used: 17 of 16",
    ),
    "strides of another tensor": ("#hopper.bind<stride 3 0>", "#hopper.bind<stride 0 0>", "one tensor"),
    "columns past the last one": ("columns 7168", "columns 7400", "7400 columns"),
    "a batch that fills no warp": ("scale_batch<16x2>", "scale_batch<32x2>", "a batch of 32 x 2 scales fills no warp"),
    "k that is no k-block's": (NEXT, rf"\1[{COLUMN}]", "hopper.next_scales reads the scales of a k-block"),
    "one thread": (r"hopper.warp 0 \{", "hopper.warp 0 elected {", "takes all lanes of a warp"),
}


@pytest.mark.parametrize("name", OUTSIDE_A_BATCH)
def test_no_batch_reads_outside_its_tensor(name: str) -> None:
    old, new, message = OUTSIDE_A_BATCH[name]
    text = fp8_text(BATCHES)
    start = re.search(START, text)
    assert start is not None
    changed = re.sub(old, new, text).replace(COLUMN, start[1])
    assert changed != text
    with pytest.raises(IRError, match=re.escape(message)) as error:
        parse_module(changed)
    assert error.value.code in ("GMR-R001", "GMR-R002")


@pytest.mark.parametrize(("ahead", "by"), [(1, 4), (2, 5), (3, 4)])
def test_no_block_ahead_is_behind_those_of_a_step(ahead: int, by: int) -> None:
    """Of a loop that does four at a time."""
    text = fp8_text(AT_ONCE)
    assert "hopper.k_blocks 0 to 16 step 4 {" in text
    with pytest.raises(IRError, match=f"block_ahead by {by}: it is for blocks that a loop does at a time"):
        parse_module(re.sub(rf"(block_ahead %k_?\d*) by {ahead}", rf"\1 by {by}", text))


def test_a_block_ahead_is_behind_another_one() -> None:
    with pytest.raises(IRError, match="expected integer >= 1"):
        parse_module(re.sub(r"(block_ahead %k_?\d*) by 1", r"\1 by 0", fp8_text(AT_ONCE)))


def test_blocks_ahead_are_those_of_a_loop_over_k() -> None:
    """Not of the tile's first column, nor of what is ahead already."""
    for stranger in (r"%n0_?\d*", r"%k_?\d*"):
        text = fp8_text(AT_ONCE)
        pattern = r"hopper.start_scales %scale_b\[(" if "n0" in stranger else r"("
        pattern += rf"{stranger})" + ("" if "n0" in stranger else r" = hopper.block_ahead %k_?\d* by 1")
        found = re.search(pattern, text)
        assert found is not None
        changed = re.sub(r"block_ahead %k_?\d* by 2", f"block_ahead {found[1]} by 2", text)
        with pytest.raises(IRError, match="block_ahead by 2: it is for blocks that a loop does at a time"):
            parse_module(changed)


def test_scales_are_read_by_the_number_of_a_k_block() -> None:
    """In a chunk from the loop's number on, behind the chunks from that of the first k-block that is left over."""
    text = str(lowered(*KERNELS["scales of a whole tile, with a rest"]).module)
    for block in ("%k + 0", "%k + 3", "%rest + 0", "%rest + 2"):
        assert re.search(
            rf"load_scales %ring_scale_a, %ring_scale_b\[%scales\] row {re.escape(block)} -> %scales", text
        )
    assert "row %rest + 3" not in text


ROWS, OF_SLOTS = "rows of scales that are read", "without the number of a k-block"
OUTSIDE_A_TILE = {
    "a k-block past the slot": (r"row (%k\w*) \+ 3", r"row \1 + 8", f"{ROWS}: 17 of 16"),
    "a k-block of the rest past the slot": (r"row %rest \+ 2", "row %rest + 4", f"{ROWS}: 17 of 16"),
    "one that is far ahead": (r"row (%k\w*) \+ 3", r"row \1 + 4096", f"{ROWS}: 4105 of 16"),
    "the number of a warpgroup": (r"row %k\w* \+ 0", "row %group + 0", "takes the number of a k-block"),
    "no number": (r" row %k\w* \+ 0", "", OF_SLOTS),
    "no number of the rest": (r" row %rest \+ 0", "", OF_SLOTS),
    "a k-block without how far ahead": (r"row (%k\w*) \+ 0", r"row \1", "Expected '+'"),
    "a k-block that is behind": (r"row (%k\w*) \+ 0", r"row \1 + -1", "expected integer >= 0"),
    "rows of the next k-block": (r"(-> %scales0 for %group rows) 64", r"\1 65", "row scales that are read: 129 of 128"),
    "columns of the next k-block": (r"(-> %scales0 .* steps) 0", r"\1 1", "column scales that are read: 2 of 1"),
}


@pytest.mark.parametrize("name", OUTSIDE_A_TILE)
def test_no_scales_of_another_tile_are_read(name: str) -> None:
    old, new, message = OUTSIDE_A_TILE[name]
    text = str(lowered(*KERNELS["scales of a whole tile, with a rest"]).module)
    changed = re.sub(old, new, text)
    assert changed != text
    with pytest.raises(IRError, match=re.escape(message)) as error:
        parse_module(changed)
    assert error.value.code in ("GMR-R001", "GMR-R002")


@pytest.mark.parametrize("missing", ["number", "how far ahead"])
def test_scales_of_a_tile_take_a_number_and_how_far_ahead(missing: str) -> None:
    """No text lacks one of them; IR that is built may."""
    module = lowered(FP8, OF_TILE).module
    load = next(op for op in module.walk() if isinstance(op, LoadScalesOp))
    if missing == "number":
        load.operands = load.operands[:-1]
    else:
        del load.properties["ahead"]
    with pytest.raises(VerifyException, match="takes the number of a k-block and how far ahead of it, or neither"):
        check_kernel_bounds(the_kernel(module))


def test_a_batch_goes_on_from_where_it_was_started() -> None:
    """An argument of the loop over tiles is no batch, whatever its type."""
    module = lowered(FP8, BATCHES).module
    (follows,) = (op for op in module.walk() if isinstance(op, NextScalesOp))
    start = follows.batch.owner
    assert isinstance(start, StartScalesOp)
    tile = start.parent_block()
    assert tile is not None
    stranger = tile.insert_arg(start.result.type, 2)
    start.result.replace_all_uses_with(stranger)
    with pytest.raises(VerifyException, match=r"goes on with what hopper\.start_scales has started"):
        check_kernel_bounds(the_kernel(module))


def test_all_scales_of_a_batch_are_outside_where_there_are_none() -> None:
    """A matrix whose scales have fewer columns than it has blocks of columns."""
    text = fp8_text(BATCHES).replace("tensor<16x56xf32>", "tensor<16x55xf32>")
    with pytest.raises(IRError, match="columns of scales that are read: 56 of 55"):
        parse_module(text)


SEND = r"hopper.send_sums %total0 registers 0, 32 "
OF_A_SPLIT = {
    "sums in a kernel that does not split K": (r" split_k 2", "", "does not split K among the CTAs of a cluster"),
    "more parts than CTAs of a cluster": (
        r" split_k 2",
        " split_k 3",
        "to a peer in a kernel that splits K among 3 CTAs",
    ),
    "parts and a cluster": (r"cluster <1x1>", "cluster <2x1>", "CTAs in a cluster: 4 of 3"),
    "registers that a fragment has not": (SEND, SEND.replace("0, 32", "64, 32"), "registers 64 to 96 of"),
    "registers that are no quads": (SEND, SEND.replace("0, 32", "2, 32"), "registers 2 to 34 of"),
    "more sums than a slot holds": (SEND, SEND.replace("0, 32", "0, 64"), "bytes of sums in a slot: 65536 of 32768"),
    "scales past the last row": (
        r"part_block (%k_?\d*) of 8",
        r"part_block \1 of 9",
        "rows of scales that are read: 17",
    ),
    "waves that are not swapped": (r"rows 64 \+ 0 columns", "rows 32 + 0 columns", "two waves are swapped"),
    "a slot of two barriers": (
        r"barriers<4x1>",
        "barriers<4x2>",
        "the slots of a ring have one barrier each",
    ),
}


@pytest.mark.parametrize("name", OF_A_SPLIT)
def test_exchanges_stay_inside(name: str) -> None:
    old, new, message = OF_A_SPLIT[name]
    text = str(lowered(split_in_two(FP8), SPLIT).module)
    changed = re.sub(old, new, text)
    assert changed != text
    with pytest.raises(IRError, match=re.escape(message)):
        parse_module(changed)
