"""
Many kernels taken apart at once: nvdisasm takes half a second to start, and hardly more for a dozen kernels.

Their code is put side by side into one ELF file, which goes the way of any cubin. The text of each is what it is alone,
but for the names of kernels and labels, and of what relocations point to.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from gemmir.backends.cuda.sass import disassemble
from gemmir.errors import GemmirError
from tests.gpu.ffma_interleaving import text_section

Key = TypeVar("Key", bound=Hashable)

_ELF_BYTES = 64
_SECTION, _SYMBOL = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
_PROGBITS, _SYMTAB, _STRTAB = 1, 2, 3
_ALLOCATED_CODE = 2 | 4
_GLOBAL_FUNCTION, _ENTRY = 0x12, 0x10
_LABEL = re.compile(r"\.L_x_\d+")
_BEGIN = re.compile(r"^//-+ \.text\.k\d+ +-+$", re.MULTILINE)


def disassemble_all(cubins: Sequence[bytes], *, encodings: bool = False) -> list[str]:
    """The SASS of each of some cubins, of one kernel each."""
    _, *texts = _BEGIN.split(disassemble(_together(cubins), encodings=encodings))
    assert len(texts) == len(cubins)
    return [_renumbered(text) for text in texts]


def _renumbered(text: str) -> str:
    """Labels counted in the order in which they occur: equal code has equal labels, wherever it stands."""
    numbers: dict[str, int] = {}
    return _LABEL.sub(lambda found: f".L_x_{numbers.setdefault(found[0], len(numbers))}", text)


def _together(cubins: Sequence[bytes]) -> bytes:
    """An ELF file with the code sections of all of them, in order, as .text.k0, .text.k1 and so on."""
    names = [f"k{number}".encode() for number in range(len(cubins))]
    codes = [cubin[start : start + size] for cubin in cubins for start, size in (text_section(cubin),)]
    first = 4  # after the empty one, two string tables and the symbols
    symbols = [_SYMBOL.pack(0, 0, 0, 0, 0, 0)]
    for number, (name, code) in enumerate(zip(names, codes, strict=True)):
        at = _place(names, name)
        symbols.append(_SYMBOL.pack(at, _GLOBAL_FUNCTION, _ENTRY, first + number, 0, len(code)))
    titles = [b".shstrtab", b".strtab", b".symtab", *(b".text." + name for name in names)]
    sections = [
        (_STRTAB, 0, _strings(titles), 0, 0, 1, 0),
        (_STRTAB, 0, _strings(names), 0, 0, 1, 0),
        (_SYMTAB, 0, b"".join(symbols), 2, 1, 8, _SYMBOL.size),
        *((_PROGBITS, _ALLOCATED_CODE, code, 3, number, 128, 0) for number, code in enumerate(codes, 1)),
    ]
    file, table = bytearray(cubins[0][:_ELF_BYTES]), bytearray(_SECTION.size)
    for title, (kind, flags, data, link, info, alignment, entry) in zip(titles, sections, strict=True):
        file += bytes(-len(file) % alignment)
        place = _place(titles, title)
        table += _SECTION.pack(place, kind, flags, 0, len(file), len(data), link, info, alignment, entry)
        file += data
    file += bytes(-len(file) % 8)
    struct.pack_into("<QQ", file, 0x20, 0, len(file))
    struct.pack_into("<HHHHHH", file, 0x34, _ELF_BYTES, 0, 0, _SECTION.size, 1 + len(sections), 1)
    return bytes(file + table)


def _strings(names: Sequence[bytes]) -> bytes:
    return b"\0" + b"".join(name + b"\0" for name in names)


def _place(names: Sequence[bytes], name: bytes) -> int:
    """Where a name begins in `_strings(names)`."""
    return _strings(names).index(b"\0" + name + b"\0") + 1


class InBatches(Generic[Key]):
    """
    The SASS of each of some kernels, taken apart `size` at a time when the first of them is asked for.

    What is wrong with one kernel is told to whoever asks for it, and to nobody else.
    """

    def __init__(
        self, cubin_of: Callable[[Key], bytes], keys: Sequence[Key], *, encodings: bool = False, size: int = 12
    ):
        self.cubin_of = cubin_of
        self.keys = tuple(keys)
        self.encodings = encodings
        self.size = size
        self.found: dict[Key, str] = {}

    def __getitem__(self, key: Key) -> str:
        if key not in self.found:
            first = self.keys.index(key) // self.size * self.size
            cubins = {key: self.cubin_of(key)}
            for other in self.keys[first : first + self.size]:
                with suppress(GemmirError):
                    cubins[other] = cubins[other] if other in cubins else self.cubin_of(other)
            self.found |= zip(cubins, disassemble_all([*cubins.values()], encodings=self.encodings), strict=True)
        return self.found[key]
