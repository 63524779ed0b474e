"""Decoding the scheduling bits of machine code, against what nvdisasm prints and what must hold in any kernel."""

from __future__ import annotations

import re

import pytest

from gemmir.backends.cuda.sass import disassemble
from gemmir.backends.cuda.sass_words import Control, annotate, control_of, instructions
from tests.backends.cuda.machine_code import NVRTCS, Code, code_of
from tests.gpu.problems import Case

CASES = [Case("f8E4M3FN", 4096, 7168, 2048), Case("f8E4M3FN", 4096, 2112, 7168), Case("bf16", 4096, 7168, 2048)]
RZ = 255
NO_REUSE = (False, False, False)

SASS = """
.text.k:
        /*0000*/                   S2R R4, SR_TID.X ;                     /* 0x0000000000047919 */
                                                                          /* 0x000e620000002100 */
.L_x_0:
        /*0010*/              @!P0 SHF.R.U32.HI R0, RZ, 0x5, R4 ;         /* 0x00000005ff007819 */
                                                                          /* 0x002fe40000011604 */
        /*0020*/                   FFMA R211, R24, R99.reuse, R211 ;      /* 0x0000006318d37223 */
                                                                          /* 0x080fe200000000d3 */
        /*0030*/                   FFMA R20, R25, R99, R20 ;              /* 0x0000006319147223 */
                                                                          /* 0x000fc20000000014 */
"""


@pytest.fixture(
    scope="module", params=[(nvrtc, case) for nvrtc in NVRTCS for case in CASES], ids=lambda p: f"{p[0]}-{p[1]}"
)
def code(request: pytest.FixtureRequest) -> Code:
    return code_of(*request.param)


def test_fields():
    s2r, shift, first, second = instructions(SASS)
    assert (s2r.address, s2r.text, s2r.stem) == (0, "S2R R4, SR_TID.X ;", "S2R")
    assert s2r.control == Control(1, True, 1, None, (), NO_REUSE)
    assert shift.stem == "SHF"
    assert shift.control == Control(2, True, None, None, (1,), NO_REUSE)
    assert first.control == Control(1, True, None, None, (), (False, True, False))
    assert first.reused == (99,)
    assert second.control == Control(1, False, None, None, (), NO_REUSE)
    assert second.word == 0x000FC20000000014_0000006319147223


def test_all_fields_at_once():
    word = 0b101 << 122 | 0b100010 << 116 | 3 << 113 | 2 << 110 | 1 << 109 | 11 << 105
    control = control_of(word)
    assert control == Control(11, True, 2, 3, (1, 5), (True, False, True))
    assert str(control) == "B-1---5:R3:W2:-:S11"
    assert str(control_of(7 << 113 | 7 << 110 | 4 << 105)) == "B------:R-:W-:Y:S04"


def test_a_line_an_instruction():
    lines = annotate(SASS).splitlines()
    assert [line for line in lines if "0x0000" in line] == []
    assert lines[2].split("/* ")[-1] == "B------:R-:W1:-:S01 */"
    assert lines[3] == ".L_x_0:"
    assert lines[4].split("/* ")[-1] == "B-1----:R-:W-:-:S02 */"
    assert lines[6].split("/* ")[-1] == "B------:R-:W-:Y:S01 */"


def test_annotating_changes_nothing_else(code: Code):
    cubin = code.compiled.cubin
    plain, encoded = disassemble(cubin), disassemble(cubin, encodings=True)
    lines = [re.sub(r"\s*/\* B\S+ \*/$", "", line) for line in annotate(encoded).splitlines()]
    assert lines == [line.rstrip() for line in plain.splitlines()]


def test_every_reuse_that_is_printed_is_decoded(code: Code):
    """The same registers, and no bit without a `.reuse`, in every instruction of the kernel."""
    count = 0
    for instruction in code.instructions:
        printed = re.findall(r"\bR(\d+|Z)\.reuse", instruction.text)
        assert sorted(RZ if r == "Z" else int(r) for r in printed) == sorted(instruction.reused), instruction.text
        count += len(printed)
    assert count > 0


def test_shared_loads_are_signalled_in_order(code: Code):
    """They come back in the order of issue: one without a barrier comes before one with, its result is used later."""
    loads = 0
    pending: list[str] = []
    for instruction in code.instructions:
        if pending:
            assert not set(pending) & set(re.findall(r"\bR\d+\b", instruction.text)), instruction.text
            assert instruction.stem not in ("BRA", "EXIT", "WARPSYNC"), instruction.text
        if instruction.stem == "LDS":
            loads += 1
            (target,) = re.findall(r"LDS\S* (R\d+),", instruction.text)
            pending = [] if instruction.control.write_barrier is not None else [*pending, target]
    assert pending == []
    assert (loads > 0) is any(i.stem == "FFMA" for i in code.instructions), "scales, which only promotion reads"


def test_barriers_are_signalled_and_waited_for(code: Code):
    """What takes an unknown time signals a barrier, arithmetic of fixed latency none, and none is awaited in vain."""
    for instruction in code.instructions:
        control = instruction.control
        signalled = control.write_barrier is not None or control.read_barrier is not None
        if instruction.stem in ("LDG", "S2R", "SHFL"):
            assert control.write_barrier is not None, instruction.text
        if instruction.stem in ("FFMA", "FMUL", "IADD3", "UIADD3", "ULOP3", "ISETP"):
            assert not signalled, instruction.text
            assert control.stall >= 1, instruction.text
    controls = [i.control for i in code.instructions]
    signalled_ever = {b for c in controls for b in (c.write_barrier, c.read_barrier)}
    waited_ever = {b for c in controls for b in c.waits}
    assert len(waited_ever) >= 2
    assert waited_ever <= signalled_ever
