"""Many kernels taken apart at once are each what they are alone."""

from __future__ import annotations

import re
from functools import cache

import pytest

from gemmir.backends.cuda.nvrtc import compile_cubin
from gemmir.backends.cuda.printer import print_kernel
from gemmir.backends.cuda.sass import count_opcodes, disassemble
from gemmir.backends.cuda.sass_words import instructions
from gemmir.errors import CompileError
from tests.backends.cuda.disassembly import InBatches, disassemble_all
from tests.sabotage.kernels import kernel_in, module_of

NAMES = ("fp8", "fp8-split", "bf16-counts-1x2", "bf16-stream-2")


@cache
def cubin_of(name: str) -> bytes:
    return compile_cubin(print_kernel(kernel_in(module_of(name))).source).cubin


def plain(text: str) -> str:
    """An instruction without labels, and without what relocations point to."""
    return re.sub(r"`\(\S+\)|\S*@\S*|\b0x0\b", "?", text)


@pytest.mark.parametrize("encodings", [True, False])
def test_each_has_the_code_that_it_has_alone(encodings: bool) -> None:
    together = disassemble_all([cubin_of(name) for name in NAMES], encodings=encodings)
    assert len(set(together)) == len(NAMES)
    for name, text in zip(NAMES, together, strict=True):
        alone = disassemble(cubin_of(name), encodings=encodings)
        assert count_opcodes(text) == count_opcodes(alone)
        found, wanted = list(instructions(text)), list(instructions(alone))
        assert [(i.address, i.word, plain(i.text)) for i in found] == [
            (i.address, i.word, plain(i.text)) for i in wanted
        ]
        assert bool(wanted) is encodings


def test_they_are_taken_apart_a_batch_at_a_time() -> None:
    asked: list[str] = []

    def asked_for(name: str) -> bytes:
        asked.append(name)
        return cubin_of(name)

    batches = InBatches(asked_for, NAMES, size=3)
    assert count_opcodes(batches["fp8-split"]) == count_opcodes(disassemble(cubin_of("fp8-split")))
    assert set(asked) == set(NAMES[:3])
    assert count_opcodes(batches["fp8"]) == count_opcodes(disassemble(cubin_of("fp8")))
    assert set(asked) == set(NAMES[:3])


def test_what_is_wrong_with_one_is_told_of_that_one() -> None:
    def refused(name: str) -> bytes:
        if name == "fp8":
            raise CompileError("GMR-C001", "made up")
        return cubin_of(name)

    batches = InBatches(refused, NAMES)
    assert count_opcodes(batches["bf16-stream-2"])["HGMMA"] > 0
    with pytest.raises(CompileError, match="made up"):
        batches["fp8"]
