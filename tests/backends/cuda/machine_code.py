"""The machine code of default kernels of the `tiles` family, by every NVRTC, and what of it hopper IR foretells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from math import prod

from xdsl.ir import Operation

from gemmir.backends.cuda.nvrtc import Compiled, compile_cubin
from gemmir.backends.cuda.sass_words import Instruction, instructions
from gemmir.backends.cuda.target import the_kernel
from gemmir.bench.cases import program_text
from gemmir.compiler import lower
from gemmir.dialects import hopper
from gemmir.dialects.hopper.base import number
from gemmir.target import SM_90A
from tests.backends.cuda.disassembly import InBatches
from tests.backends.cuda.oldest_nvrtc import OLDEST, compile_by_oldest
from tests.gpu.problems import SHAPES, Case

NVRTCS = ["installed", *(["13.0"] if OLDEST else [])]
CASES = [Case(dtype, *shape) for dtype in ("f8E4M3FN", "bf16") for shape in (*SHAPES, (64, 7168, 2048))]
WGMMA_STEMS = ("QGMMA", "HGMMA")
WGMMAS_PER_OP = 4
"""128 bytes of K, 32 an instruction."""

_FP8_WGMMA = re.compile(r"\bQGMMA\.64x(?P<columns>\d+)x32\S* R(?P<first>\d+), gdesc")


@dataclass(frozen=True)
class Code:
    """One kernel compiled: `sass` as nvdisasm prints it, with encodings."""

    kernel: hopper.KernelOp
    compiled: Compiled
    sass: str
    instructions: tuple[Instruction, ...]


@cache
def _lowered(case: Case) -> tuple[hopper.KernelOp, str]:
    found = lower(program_text(case.n, case.k, case.dtype, "family = tiles"), m=case.m)
    return the_kernel(found.module), found.source


@cache
def _by_oldest() -> dict[str, Compiled]:
    """The sources of all cases, compiled at once."""
    return compile_by_oldest(_lowered(case)[1] for case in CASES)


@cache
def _compiled(nvrtc: str, source: str) -> Compiled:
    return compile_cubin(source) if nvrtc == "installed" else _by_oldest()[source]


def _cubin_of(by: tuple[str, str]) -> bytes:
    return _compiled(*by).cubin


@cache
def _sass(nvrtc: str) -> InBatches[tuple[str, str]]:
    """The machine code of all cases by one NVRTC; cases that share a source share all the work."""
    keys = dict.fromkeys((nvrtc, _lowered(case)[1]) for case in CASES)
    return InBatches(_cubin_of, list(keys), encodings=True)


@cache
def _disassembled(nvrtc: str, source: str) -> tuple[str, tuple[Instruction, ...]]:
    sass = _sass(nvrtc)[nvrtc, source]
    return sass, tuple(instructions(sass))


def code_of(nvrtc: str, case: Case) -> Code:
    """The default kernel of `case` in its family."""
    kernel, source = _lowered(case)
    return Code(kernel, _compiled(nvrtc, source), *_disassembled(nvrtc, source))


Events = list[tuple[str, int]]
"""What happens one after the other, and how often in a row."""


def expected_events(kernel: hopper.KernelOp) -> Events:
    """What the math warpgroups must do, in the order of the IR: WGMMA groups, waits, promotion."""
    return _runs(event for op in kernel.walk() for event in _events_of(op))


def _events_of(op: object) -> list[str]:
    if isinstance(op, hopper.WgmmaFenceOp):
        return ["arrive"]
    if isinstance(op, hopper.WgmmaOp):
        return [wgmma_shape(op)] * WGMMAS_PER_OP
    if isinstance(op, hopper.WgmmaCommitOp):
        return ["commit"]
    if isinstance(op, hopper.WgmmaWaitOp):
        return [f"wait {number(op.pending)}"]
    if isinstance(op, hopper.PromoteOp):
        return ["ffma"] * registers(op.partial.type)
    return []


def registers(fragment: object) -> int:
    """f32 registers a thread of a fragment."""
    assert isinstance(fragment, hopper.FragmentType)
    return prod(fragment.dims) // SM_90A.warpgroup_threads


def wgmma_shape(op: hopper.WgmmaOp) -> str:
    a, fragment = op.a.type, op.fragment.type
    assert isinstance(a, hopper.RingType)
    assert isinstance(fragment, hopper.FragmentType)
    rows, columns = fragment.dims
    return f"{'Q' if a.element_bytes == 1 else 'H'}GMMA.{rows}x{columns}x{SM_90A.wgmma_k_bytes // a.element_bytes}"


def found_events(code: Iterable[Instruction]) -> Events:
    """The same out of machine code, in the order of addresses."""
    return _runs(event for instruction in code for event in _events_in(instruction))


def _events_in(instruction: Instruction) -> Iterator[str]:
    text = instruction.text
    if instruction.stem in WGMMA_STEMS:
        yield ".".join(text[text.index(instruction.stem) :].split(".")[:2])
        if closes_group(instruction):
            yield "commit"
    elif instruction.stem == "FFMA":
        yield "ffma"
    elif (found := re.search(r"\bWARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)", text)) is not None:
        yield f"wait {int(found[1], 16)}"
    elif "WARPGROUP.ARRIVE" in text:
        yield "arrive"


def closes_group(instruction: Instruction) -> bool:
    """Whether this WGMMA is the last of its commit group: it carries the scoreboard that waits look at."""
    return instruction.stem in WGMMA_STEMS and "gsb0" in instruction.text


def within_groups(code: Iterable[Instruction]) -> Iterator[list[Instruction]]:
    """For each two neighbouring WGMMAs of a group: the first, and what is issued between them."""
    between: list[Instruction] = []
    for instruction in code:
        if between and instruction.stem in WGMMA_STEMS:
            yield between
            between = []
        if between or instruction.stem in WGMMA_STEMS:
            between = [] if closes_group(instruction) else [*between, instruction]


def staged_beside(kernel: hopper.KernelOp) -> list[tuple[int, bool]]:
    """For each WGMMA group in order: its WGMMAs, and whether the IR stages a total before it next waits for a group."""
    found: list[tuple[int, bool]] = []
    ops = 0
    for op in kernel.walk():
        ops += isinstance(op, hopper.WgmmaOp)
        if isinstance(op, hopper.WgmmaCommitOp):
            found.append((ops * WGMMAS_PER_OP, _stages_before_it_waits(op)))
            ops = 0
    return found


def _stages_before_it_waits(op: Operation | None) -> bool:
    while op is not None and not isinstance(op, hopper.WgmmaWaitOp):
        if isinstance(op, hopper.StageFragmentOp):
            return True
        op = op.next_op
    return False


@dataclass(frozen=True)
class Promoted:
    """An FFMA of a promotion, and the registers that it reads a partial sum and a total from."""

    text: str
    partial: int
    total: int

    @property
    def in_one_bank(self) -> bool:
        """
        Both registers even or both odd: then reading them takes two cycles, and the FFMA does.

        Measured: kernels with such promotions are 5 to 20% slower.
        """
        return self.partial % 2 == self.total % 2


def promotions(code: Iterable[Instruction]) -> Iterator[Promoted]:
    """
    Every FFMA behind a WGMMA. The partial sum is the factor that a WGMMA left, of two in flight any; the other is
    a product of scales, for which a partial sum that has been used may make room.
    """
    partials: set[int] = set()
    for instruction in code:
        if (wgmma := _FP8_WGMMA.search(instruction.text)) is not None:
            first, columns = int(wgmma["first"]), int(wgmma["columns"])
            partials |= set(range(first, first + SM_90A.wgmma_m * columns // SM_90A.warpgroup_threads))
        elif (product := re.search(r"\bFMUL R(\d+),", instruction.text)) is not None:
            partials.discard(int(product[1]))
        elif instruction.stem == "FFMA":
            *factors, total = instruction.sources
            (partial,) = partials & set(factors)
            yield Promoted(instruction.text, partial, total)


def _runs(events: Iterable[str]) -> Events:
    return [(event, len(list(group))) for event, group in groupby(events)]
