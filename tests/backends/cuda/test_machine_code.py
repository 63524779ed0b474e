"""
What ptxas makes of the default kernels of the `tiles` family, instruction by instruction, against what their IR says.

The expectations are walked out of the hopper IR of each kernel; no count stands here.
"""

from __future__ import annotations

import pytest

from gemmir.backends.cuda.audit import audit_sass
from gemmir.backends.cuda.compiler_log import check_log
from gemmir.backends.cuda.nvrtc import compile_cubin
from gemmir.backends.cuda.printer import print_kernel
from gemmir.backends.cuda.sass import disassemble
from gemmir.backends.cuda.sass_words import INSTRUCTION_BYTES, REGISTER_BITS, Instruction, instructions
from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number
from gemmir.target import SM_90A
from tests.backends.cuda.machine_code import (
    CASES,
    NVRTCS,
    WGMMAS_PER_OP,
    Code,
    code_of,
    expected_events,
    found_events,
    promotions,
    registers,
    staged_beside,
    within_groups,
)
from tests.gpu.ffma_interleaving import text_section
from tests.gpu.problems import Case
from tests.sabotage.kernels import kernel_in, module_of

BETWEEN_WGMMAS = {"UMOV", "ULOP3", "UIADD3", "USHF", "USEL", "UISETP", "UIMAD", "ULEA", "R2UR"} | {
    *("FMUL", "IADD3", "IMAD", "ISETP", "LEA", "LOP3", "MOV", "SEL", "SHF", "NOP")
}
"""Descriptors, the next slot, and products of scales: nothing that waits, branches or touches memory or a fragment."""

BESIDE_STAGING = {"F2FP", "LDC"}
"""And where a total is staged beside the group: it is rounded; and, in a tile's last k-block, is there another tile?"""


@pytest.fixture(
    scope="session", params=[(nvrtc, case) for nvrtc in NVRTCS for case in CASES], ids=lambda p: f"{p[0]}-{p[1]}"
)
def code(request: pytest.FixtureRequest) -> Code:
    nvrtc, case = request.param
    assert isinstance(case, Case)
    return code_of(nvrtc, case)


def test_every_instruction_is_decoded(code: Code):
    """Else what follows would prove nothing: the code section, word by word."""
    offset, size = text_section(code.compiled.cubin)
    words = b"".join(i.word.to_bytes(INSTRUCTION_BYTES, "little") for i in code.instructions)
    assert words == code.compiled.cubin[offset : offset + size]
    assert [i.address for i in code.instructions] == list(range(0, size, INSTRUCTION_BYTES))


def test_nothing_spills(code: Code):
    resources = check_log(code.compiled.log)
    assert resources.spill_stores == resources.spill_loads == resources.stack_bytes == 0
    assert not {"LDL", "STL"} & {i.stem for i in code.instructions}


def test_it_synchronises_as_the_ir_says(code: Code):
    audit_sass(code.kernel, code.sass)


def test_wgmmas_waits_and_promotion_come_in_the_order_of_the_ir(code: Code):
    """
    Each group whole between its fence and its commit, no wait but the IR's (what ptxas serialises has one after each
    WGMMA), and of promotion exactly one FFMA a register of the fragment, after the wait and before the next group.
    """
    assert found_events(code.instructions) == expected_events(code.kernel)


def test_the_scales_of_a_wave_are_multiplied_once(code: Code):
    """Two rows a thread and wave, by each column step of the fragment."""
    promoted = [op for op in code.kernel.walk() if isinstance(op, hopper.PromoteOp)]
    wanted = sum(2 * op.partial.type.dims[1] // number(op.step) for op in promoted)
    assert sum(i.stem == "FMUL" for i in code.instructions) == wanted


NEXT_SCALES = {"LDS", "VOTEU", "PLOP3"}
"""
While the waves of a chunk are being issued, its scales are read, slots given back by one lane of a warp, and, in the
last wave, it is asked whether another chunk follows.
"""


def chunked(code: Code) -> bool:
    """Whether a warpgroup has two partial sums, for two k-blocks in flight."""
    return len({op.partial for op in code.kernel.walk() if isinstance(op, hopper.PromoteOp)}) > 1


def test_nothing_holds_up_the_wgmmas_of_a_group(code: Code):
    staged = [beside for wgmmas, beside in staged_beside(code.kernel) for _ in range(wgmmas - 1)]
    for (first, *between), beside in zip(within_groups(code.instructions), staged, strict=True):
        allowed = BETWEEN_WGMMAS | (BESIDE_STAGING if beside else set()) | (NEXT_SCALES if chunked(code) else set())
        assert {i.stem for i in between} <= allowed, f"after {first.address:#x}"


def test_wgmmas_are_issued_faster_than_they_run(code: Code):
    """
    The cycles between two of a group, which the encoding fixes, are no more than the tensor core needs for one.

    Of fewer than 64 columns they run for 16 cycles or less, and wait for their issue: half as long again at most, or,
    where a chunk's other work lies between them, one and a quarter as long again. A wider chunk may take an eighth as
    long again for one of them (256x7168x2048 in 128x112, whose 14 scales a wave are read there: 63 cycles of 56): those
    before it still run, since a group as a whole is issued faster than it runs.
    """
    columns = {op.fragment.type.dims[1] for op in code.kernel.walk() if isinstance(op, hopper.WgmmaOp)}
    clocks = min(columns) * SM_90A.tensor_clocks_per_column
    distances = [sum(i.control.stall for i in group) for group in within_groups(code.instructions)]
    assert len(distances) > 0
    wide, narrow = (1.125, 2.25) if chunked(code) else (1.0, 1.5)
    waiting = wide if min(columns) >= 64 else narrow
    assert max(distances) <= waiting * clocks
    between = WGMMAS_PER_OP - 1
    whole = [sum(distances[first : first + between]) for first in range(0, len(distances), between)]
    assert max(whole) <= between * clocks * (1.0 if min(columns) >= 64 else narrow)


def test_promotions_read_two_register_banks(code: Code):
    found = list(promotions(code.instructions))
    wanted = sum(registers(op.partial.type) for op in code.kernel.walk() if isinstance(op, hopper.PromoteOp))
    assert len(found) == wanted
    assert [ffma.text for ffma in found if ffma.in_one_bank] == []


@pytest.mark.parametrize(("factors", "total", "same"), [((24, 99), 210, True), ((99, 25), 210, False)])
def test_a_promotion_in_one_bank_is_seen(factors: tuple[int, int], total: int, same: bool):
    """An FFMA as it was compiled, with other registers; the second one's scales lie where a partial sum was."""
    word = 0x000FE200000000D3_0000006318D37223
    for bit, register in zip(REGISTER_BITS, (*factors, total), strict=True):
        word = word & ~(0xFF << bit) | register << bit
    ffma = Instruction(0, "FFMA R211, ...", word)
    wgmma = Instruction(0, "QGMMA.64x192x32.F32.E4M3.E4M3 R24, gdesc[UR12], RZ, !UPT ;", 0)
    scales = Instruction(0, "FMUL R99, R203, R204 ;", 0)
    (found,) = promotions([wgmma, scales, ffma])
    assert (found.partial, found.total, found.in_one_bank) == (min(factors), total, same)


def test_what_is_staged_beside_a_group():
    """Ahead of the loop and in it nothing is; in the last k-block of a tile, each wave while the next one runs."""
    assert staged_beside(kernel_in(module_of("fp8"))) == [*[(4, False)] * 3, *[(4, True)] * 2]
    assert staged_beside(kernel_in(module_of("fp8-waves-2x1"))) == [*[(4, False)] * 4, *[(4, True)] * 3]
    assert staged_beside(kernel_in(module_of("fp8-whole"))) == [(4, False)] * 3
    assert staged_beside(kernel_in(module_of("bf16"))) == [(4, False)] * 2


def test_a_wait_after_each_wgmma_is_seen():
    kernel = kernel_in(module_of("fp8"))
    source = print_kernel(kernel).source
    call = source.index("wgmma_m64", source.index("void multiply("))
    serial = source[:call] + "wgmma_commit(), wgmma_wait<0>(), " + source[call:]
    for text, same in ((source, True), (serial, False)):
        found = found_events(instructions(disassemble(compile_cubin(text).cubin, encodings=True)))
        assert (found == expected_events(kernel)) is same
