"""
Instructions of sm_90 as words of 128 bits: the scheduling that ptxas wrote into them.

NVIDIA does not document the encoding. The field positions are those that microbenchmarks of Volta found (Jia et al.,
"Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", 2018); that they hold here is what
`tests/backends/cuda/test_sass_words.py` shows, which compares every `.reuse` that nvdisasm prints with the bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gemmir.backends.cuda.sass import stem_of

INSTRUCTION_BYTES = 16
STALL_BIT, YIELD_BIT, WRITE_BIT, READ_BIT, WAIT_BIT, REUSE_BIT = 105, 109, 110, 113, 116, 122
REGISTER_BITS = (24, 32, 64)
"""Where the register numbers of source operands stand, in the order of their reuse bits."""

_NO_BARRIER = 7
_BARRIERS = 6
_TWO_WORDS = re.compile(
    r"^(\s*/\*([0-9a-f]{4,})\*/\s+(\S.*?)\s*)/\* 0x([0-9a-f]{16}) \*/\s*\n\s*/\* 0x([0-9a-f]{16}) \*/\s*$", re.MULTILINE
)
"""The line of an instruction up to its encoding, its address, its text, and the low and high half of its word."""


@dataclass(frozen=True, slots=True)
class Control:
    """
    How one instruction is scheduled.

    After it, its warp issues nothing for `stall` cycles. `yield_bit`: set, the scheduler stays with this warp if it
    can; clear, it turns to another one, and what operand caches hold is lost. The instruction signals `write_barrier`
    when its result is there and `read_barrier` when its operands have been read (0 to 5, None: neither), and is not
    issued before all of `waits` are signalled. `reuse`: the first, second and third source operand stays in the
    operand cache for the next instruction.
    """

    stall: int
    yield_bit: bool
    write_barrier: int | None
    read_barrier: int | None
    waits: tuple[int, ...]
    reuse: tuple[bool, bool, bool]

    def __str__(self) -> str:
        """Like `B01----:R-:W2:Y:S04`: waits, read and write barrier, Y for a clear yield bit, stall cycles."""
        waits = "".join(str(i) if i in self.waits else "-" for i in range(_BARRIERS))
        read, write = ("-" if b is None else str(b) for b in (self.read_barrier, self.write_barrier))
        return f"B{waits}:R{read}:W{write}:{'-' if self.yield_bit else 'Y'}:S{self.stall:02}"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction at a byte address in its kernel; `text` is nvdisasm's, `word` its 128 bits."""

    address: int
    text: str
    word: int

    @property
    def stem(self) -> str:
        """The mnemonic up to its first dot: `UTMALDG` for `@P0 UTMALDG.2D`."""
        return stem_of(self.text)

    @property
    def control(self) -> Control:
        return control_of(self.word)

    @property
    def sources(self) -> tuple[int, ...]:
        """The registers of its first to third source operand, for an instruction that has three; 255 is RZ."""
        return tuple(_field(self.word, bit, 8) for bit in REGISTER_BITS)

    @property
    def reused(self) -> tuple[int, ...]:
        """The registers in the operand cache after it, of its first to third source operand; 255 is RZ."""
        return tuple(source for source, reuse in zip(self.sources, self.control.reuse, strict=True) if reuse)


def control_of(word: int) -> Control:
    """The control bits of an instruction of 128 bits."""
    write, read = _field(word, WRITE_BIT, 3), _field(word, READ_BIT, 3)
    waits, reuse = _field(word, WAIT_BIT, _BARRIERS), _field(word, REUSE_BIT, 3)
    return Control(
        stall=_field(word, STALL_BIT, 4),
        yield_bit=bool(_field(word, YIELD_BIT, 1)),
        write_barrier=None if write == _NO_BARRIER else write,
        read_barrier=None if read == _NO_BARRIER else read,
        waits=tuple(i for i in range(_BARRIERS) if waits >> i & 1),
        reuse=(bool(reuse & 1), bool(reuse & 2), bool(reuse & 4)),
    )


def instructions(sass: str) -> Iterator[Instruction]:
    """The instructions of `sass`, which is `disassemble(cubin, encodings=True)`."""
    for found in _TWO_WORDS.finditer(sass):
        yield Instruction(int(found[2], 16), found[3], _word(found))


def annotate(sass: str) -> str:
    """`sass`, as for `instructions`, with each instruction's `Control` in the place of its encoding."""
    return _TWO_WORDS.sub(lambda found: f"{found[1]}/* {control_of(_word(found))} */", sass)


def _word(found: re.Match[str]) -> int:
    return int(found[4], 16) | int(found[5], 16) << 64


def _field(word: int, first: int, bits: int) -> int:
    return word >> first & (1 << bits) - 1
