"""The patch of the FFMA experiment, taken apart again: it changes what it should and nothing else."""

from __future__ import annotations

import pytest

from gemmir.backends.cuda.sass_words import REUSE_BIT, YIELD_BIT, Instruction, instructions
from gemmir.dialects import hopper
from gemmir.dialects.hopper.control import enclosing
from tests.backends.cuda.disassembly import disassemble_all
from tests.backends.cuda.machine_code import NVRTCS, code_of, registers
from tests.gpu.ffma_interleaving import (
    MIN_RUN,
    PATTERNS,
    ffma_runs,
    flip_ffma_yield,
    promotions_in,
    statistics_of,
    text_section,
)
from tests.gpu.problems import SHAPES, Case

CASES = [Case("f8E4M3FN", *shape) for shape in SHAPES]
TWO_WAVES, ONE_WAVE = Case("f8E4M3FN", 4096, 7168, 2048), Case("f8E4M3FN", 4096, 2112, 7168)
REUSE = 0b1111 << REUSE_BIT


def addresses_of_runs(code: tuple[Instruction, ...]) -> list[list[int]]:
    """Addresses of FFMAs in a row, by nvdisasm's mnemonics."""
    runs: list[list[int]] = [[]]
    for instruction in code:
        if instruction.stem == "FFMA":
            runs[-1].append(instruction.address)
        else:
            runs.append([])
    return [run for run in runs if len(run) >= MIN_RUN]


@pytest.mark.parametrize("nvrtc", NVRTCS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_runs_are_those_that_nvdisasm_shows(case: Case, nvrtc: str):
    code = code_of(nvrtc, case)
    start, _ = text_section(code.compiled.cubin)
    found = [[offset - start for offset in run] for run in ffma_runs(code.compiled.cubin)]
    assert found == addresses_of_runs(code.instructions)
    promotions = [op for op in code.kernel.walk() if isinstance(op, hopper.PromoteOp)]
    promoted = promotions_in(code.instructions)
    wanted = [registers(op.partial.type) for op in promotions]
    if len({op.partial for op in promotions}) > 1:
        assert sum(map(len, promoted)) == sum(wanted), "promotions of a chunk follow one another"
        return
    assert [len(ffmas) for ffmas in promoted] == wanted
    for ffmas, op in zip(promoted, promotions, strict=True):
        own = [run for run in found if ffmas[0].address <= run[0] <= ffmas[-1].address]
        found = found[len(own) :]
        assert {address for run in own for address in run} <= {i.address for i in ffmas}
        looped = enclosing(op, hopper.KBlocksOp) is not None
        assert len(own) <= (3 if looped else 4), "in straight-line code more things go in between"
        assert sum(map(len, own)) >= (0.9 if looped else 0.65) * len(ffmas)
    assert found == []


def test_waves_of_the_loop_and_of_the_peeled_block_are_promotions_of_their_own():
    """Two waves a k-block, in the loop and behind it; one wave a k-block, all in the loop."""
    for case, promotions in ((TWO_WAVES, 4), (ONE_WAVE, 1)):
        assert len(promotions_in(code_of("installed", case).instructions)) == promotions


@pytest.mark.parametrize("case", [TWO_WAVES, ONE_WAVE], ids=str)
@pytest.mark.parametrize("name", PATTERNS)
def test_only_ffma_control_bits_change(case: Case, name: str):
    """From the kernel as compiled to the opposite of the pattern, and from there, which changes every FFMA, to it."""
    code, pattern = code_of("installed", case), PATTERNS[name]
    opposite = flip_ffma_yield(code.compiled.cubin, lambda i, length: not pattern(i, length))
    runs = addresses_of_runs(code.instructions)
    wanted = {address: pattern(i, len(run)) for run in runs for i, address in enumerate(run)}
    compare(code.compiled.cubin, opposite, {address: not bit for address, bit in wanted.items()})
    assert compare(opposite, flip_ffma_yield(opposite, pattern), wanted) == len(wanted)


def compare(before: bytes, after: bytes, wanted: dict[int, bool]) -> int:
    """How many words differ, all of them by the yield bit that is `wanted` at their address, and reuse bits cleared."""
    start, size = text_section(before)
    assert (after[:start], after[start + size :]) == (before[:start], before[start + size :])
    old, new = map(list, map(instructions, disassemble_all([before, after], encodings=True)))
    changed = 0
    for one, other in zip(old, new, strict=True):
        assert other.text.replace(".reuse", "") == one.text.replace(".reuse", "")
        if one.control.yield_bit is wanted.get(one.address, one.control.yield_bit):
            assert other == one
            continue
        assert other.word == (one.word ^ 1 << YIELD_BIT) & ~REUSE
        changed += 1
    return changed


def test_it_can_be_undone_but_for_reuse():
    cubin = code_of("installed", ONE_WAVE).compiled.cubin
    clear = flip_ffma_yield(cubin, PATTERNS["all clear"])
    again = flip_ffma_yield(clear, PATTERNS["all set"])
    assert flip_ffma_yield(again, PATTERNS["all set"]) == again
    assert flip_ffma_yield(again, PATTERNS["all clear"]) == clear
    assert statistics_of(again)[0]["reuse"] <= statistics_of(cubin)[0]["reuse"] - len(next(ffma_runs(cubin))) // 2


def test_statistics_add_up():
    for found in statistics_of(code_of("installed", TWO_WAVES).compiled.cubin):
        assert found["ffmas"] == found["yield set"] + found["yield clear"] == sum(found["stalls"].values())
    flipped = flip_ffma_yield(code_of("installed", ONE_WAVE).compiled.cubin, PATTERNS["every other"])
    (found,) = statistics_of(flipped)
    in_runs = sum(map(len, runs := list(ffma_runs(flipped))))
    assert found["yield set"] + found["yield clear"] == found["ffmas"]
    assert in_runs >= 0.9 * found["ffmas"]
    assert abs(2 * found["yield clear"] - in_runs) <= len(runs) + 2 * (found["ffmas"] - in_runs)


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x01" + bytes(100), b"no cubin at all"])
def test_what_is_no_cubin(data: bytes):
    with pytest.raises(ValueError, match="not a 64-bit ELF"):
        flip_ffma_yield(data, PATTERNS["all set"])
