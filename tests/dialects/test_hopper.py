"""The hopper dialect: text that goes round, and IR that is refused."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from xdsl.printer import Printer

from gemmir.errors import IRError
from gemmir.ir_text import parse_module
from gemmir.schedule import Schedule, Split
from tests.kernels import BF16_SCHEDULE, FP8_SCHEDULE, lowered
from tests.schedules import fp8_problem, half_problem

FP8, BF16 = fp8_problem(None, 7168, 2048), half_problem(None, 7168, 2048)
TURNS = replace(FP8_SCHEDULE, block_n=192, split=Split.ALONG_M, turns=True, num_stages=4)
KERNELS = {"fp8": (FP8, FP8_SCHEDULE), "turns": (FP8, TURNS), "bf16": (BF16, BF16_SCHEDULE)}


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
        "hopper.kernel @layer cluster <2x1> tile <128x256> columns 7168 depth 2048 threads 384 shared 214656",
        "%ring_a = hopper.ring at 0 : !hopper.ring<3x128x128xf8E4M3FN, b128>",
        "%empty = hopper.barriers at 214600 arrivals 16 : !hopper.barriers<3x1>",
        "hopper.setmaxnreg 232 grow",
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
    "a ring that the swizzle does not fit": (swap(r"ring at 49152", "ring at 49160"), "multiples of 1024"),
    "an unaligned barrier": (swap(r"barriers at 214600", "barriers at 214601"), "8-byte aligned"),
    "setmaxnreg off its grid": (swap(r"setmaxnreg 232", "setmaxnreg 233"), "multiples of 8"),
    "a cursor of another ring": (
        swap(r"hopper.cursor : !hopper.cursor<3>", "hopper.cursor : !hopper.cursor<4>"),
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
    "too many stages": (swap(r"!hopper.barriers<3x1>", "!hopper.barriers<9999x1>"), "1..4096"),
    "parameters without binds": (swap(r", #hopper.bind<rows>", ""), "8 parameters, but 7 binds"),
    "an unknown swizzle": (swap(r"f8E4M3FN, b128>", "f8E4M3FN, b256>"), "none"),
    "an unknown order": (swap(r"row_major", "diagonal"), "row_major"),
    "a use before the definition": (swap(r"hopper.init_barriers %full", "hopper.init_barriers %later"), "later"),
    "no blocks of K": (swap(r"k_blocks 0 to 16", "k_blocks 0 to 0"), "expected integer >= 1"),
    "no arrivals": (swap(r"arrivals 16", "arrivals 0"), "expected integer >= 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(IRError, match=message) as error:
        parse_module(change(fp8_text()))
    assert error.value.code in ("GMR-R001", "GMR-R002")


@pytest.mark.parametrize(("old", "new"), [("k_blocks 0 to 16", "k_blocks 0 to 0"), ("arrivals 16", "arrivals 0")])
def test_a_fault_is_shown_where_it_is(old: str, new: str) -> None:
    text = fp8_text().replace(old, new, 1)
    with pytest.raises(IRError) as error:
        parse_module(text)
    location = error.value.location
    assert location is not None
    assert new in location.text
