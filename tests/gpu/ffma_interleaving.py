"""
An experiment: does it help to set the yield bits of the promotion's FFMAs by hand?

    python -m tests.gpu.ffma_interleaving [--json out.json] [--rounds 3]      times on a Hopper GPU
    python -m tests.gpu.ffma_interleaving --statistics [--nvrtc FOLDER]       what ptxas chose; needs no GPU

DeepGEMM 1 did so after the compiler: in long runs of FFMAs it cleared every other yield bit and the reuse bits beside
it, so that the other warpgroup gets a chance to issue its WGMMAs in between. Here each variant is a function of an
FFMA's place in its run. Variants must give the same bits, and are timed in turn with the kernel as compiled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gemmir
from gemmir.backends.cuda import nvrtc
from gemmir.backends.cuda.sass import disassemble
from gemmir.backends.cuda.sass_words import INSTRUCTION_BYTES, REUSE_BIT, YIELD_BIT, Instruction, instructions
from tests.gpu.problems import SHAPES, Case

MIN_RUN = 8
"""Shorter runs of FFMAs are left alone."""

OPCODE_MASK, FFMA = 0x1FF, 0x023
"""Low bits of a word: the operation, whatever kinds of operands the three bits above say."""

_REUSE_MASK = 0b1111 << REUSE_BIT

Pattern = Callable[[int, int], bool]
"""(place in its run, length of the run) -> whether that FFMA's yield bit is set."""

PATTERNS: dict[str, Pattern] = {
    "all set": lambda i, length: True,
    "all clear": lambda i, length: False,
    "every other": lambda i, length: i % 2 == 1,
    "every other, 9/16": lambda i, length: i % 2 == 1 or i >= length * 9 // 16,
}
"""A clear bit asks the scheduler to turn to another warp (see `sass_words.Control`). The last: in 9/16 of each run."""

AS_COMPILED = "as compiled"


def flip_ffma_yield(cubin: bytes, pattern: Pattern) -> bytes:
    """
    `cubin` with the yield bits of all FFMAs in runs of at least `MIN_RUN` as `pattern` says; pure.

    Where a bit changes, the instruction's reuse bits are cleared: operand caches do not outlive a change of warp.
    """
    patched = bytearray(cubin)
    for run in ffma_runs(cubin):
        for place, offset in enumerate(run):
            word = _word(cubin, offset)
            if bool(word >> YIELD_BIT & 1) is not pattern(place, len(run)):
                word = (word ^ 1 << YIELD_BIT) & ~_REUSE_MASK
            patched[offset : offset + INSTRUCTION_BYTES] = word.to_bytes(INSTRUCTION_BYTES, "little")
    return bytes(patched)


def ffma_runs(cubin: bytes) -> Iterator[range]:
    """File offsets of FFMAs that follow each other without anything between, at least `MIN_RUN` of them."""
    start, size = text_section(cubin)
    first = start
    for offset in range(start, start + size + 1, INSTRUCTION_BYTES):
        if offset < start + size and _word(cubin, offset) & OPCODE_MASK == FFMA:
            continue
        if offset - first >= MIN_RUN * INSTRUCTION_BYTES:
            yield range(first, offset, INSTRUCTION_BYTES)
        first = offset + INSTRUCTION_BYTES


def text_section(cubin: bytes) -> tuple[int, int]:
    """Offset and size in bytes of the one code section of a 64-bit ELF file; ValueError if there is no such section."""
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    # name, type, flags, address, offset, size
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * entry_size) for i in range(count)]
    names = headers[names_index][4]
    found = [(offset, size) for name, *_, offset, size in headers if cubin.startswith(b".text.", names + name)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} code sections")
    return found[0]


def _word(cubin: bytes, offset: int) -> int:
    return int.from_bytes(cubin[offset : offset + INSTRUCTION_BYTES], "little")


def promotions_in(code: Iterable[Instruction]) -> list[list[Instruction]]:
    """The FFMAs of each promotion: those between one WGMMA and the next."""
    found: list[list[Instruction]] = [[]]
    for instruction in code:
        if instruction.stem == "QGMMA" and found[-1]:
            found.append([])
        if instruction.stem == "FFMA":
            found[-1].append(instruction)
    return [ffmas for ffmas in found if ffmas]


def statistics_of(cubin: bytes) -> list[dict[str, Any]]:
    """For each promotion in the order of the code: FFMAs, their stalls, how many have which bits."""
    return [
        {
            "ffmas": len(ffmas),
            "stalls": dict(Counter(i.control.stall for i in ffmas)),
            "yield set": sum(i.control.yield_bit for i in ffmas),
            "yield clear": sum(not i.control.yield_bit for i in ffmas),
            "reuse": sum(any(i.control.reuse) for i in ffmas),
        }
        for ffmas in promotions_in(instructions(disassemble(cubin, encodings=True)))
    ]


def kernel_us(launch: Callable[[], object]) -> float:
    """Median GPU time of `launch` in microseconds."""
    from gemmir.bench import timing

    return statistics.median(timing.kernel_us(launch))


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Every variant of one default kernel: its bits compared, its times as compiled and changed taken in turn."""
    import torch

    from gemmir.backends.reference.data import random_inputs
    from gemmir.ir_text import parse_module

    kernel = gemmir.compile(case.text, m=case.m)
    cubins = {name: flip_ffma_yield(kernel.cubin, pattern) for name, pattern in PATTERNS.items()}
    variants = {AS_COMPILED: kernel} | {name: dataclasses.replace(kernel, cubin=c) for name, c in cubins.items()}
    inputs = list(random_inputs(parse_module(case.text), case.m, 1, "cuda").values())
    out = kernel(*inputs)
    wanted = out.view(torch.int16).clone()
    for name, variant in variants.items():
        variant(*inputs, out=out.zero_())
        if not torch.equal(out.view(torch.int16), wanted):
            raise AssertionError(f"{case}: {name} changes the result")
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            times[name].append(kernel_us(lambda variant=variant: variant(*inputs, out=out)))
    changed = {
        name: sum(a != b for a, b in zip(_words(kernel.cubin), _words(c), strict=True)) for name, c in cubins.items()
    }
    return {
        "case": str(case),
        "kernel": kernel.manifest.entry,
        "us": times,
        "changed": changed,
        "promotion": statistics_of(kernel.cubin),
    }


def _words(cubin: bytes) -> list[int]:
    start, size = text_section(cubin)
    return [_word(cubin, offset) for offset in range(start, start + size, INSTRUCTION_BYTES)]


def row(found: dict[str, Any]) -> str:
    """One line: the time as compiled, its spread over the rounds, and by how much each variant is faster (above 1)."""
    times = {name: statistics.median(us) for name, us in found["us"].items()}
    base, rounds = times.pop(AS_COMPILED), found["us"][AS_COMPILED]
    spread = (max(rounds) - min(rounds)) / base
    ratios = "  ".join(f"{name} x{base / us:.4f}" for name, us in times.items())
    return f"{found['case']:26} {base:8.2f} us +-{spread / 2:.2%}  {ratios}  {found['kernel']}"


def cases() -> list[Case]:
    return [Case("f8E4M3FN", *shape) for shape in SHAPES]


def print_statistics() -> None:
    """One line a distinct default FP8 kernel, as a Markdown table."""
    rows: dict[str, None] = {}
    for case in cases():
        kernel = gemmir.compile(case.text, m=case.m)
        for wave, found in enumerate(statistics_of(kernel.cubin)):
            stalls = ", ".join(f"{count} of {stall}" for stall, count in sorted(found["stalls"].items()))
            counts = " | ".join(str(found[key]) for key in ("ffmas", "yield set", "yield clear", "reuse"))
            rows[f"| {kernel.manifest.entry} | {wave} | {counts} | {stalls} |"] = None
    sys.stdout.write("\n".join([f"NVRTC {nvrtc.version()}", *rows]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="series of 20 launches a variant")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--nvrtc", type=Path, metavar="FOLDER", help="of libnvrtc.so.13, instead of the installed one")
    parser.add_argument("--statistics", action="store_true")
    args = parser.parse_args()
    if args.nvrtc is not None:
        nvrtc.preload(args.nvrtc)
    if args.statistics:
        print_statistics()
        return
    results = []
    for case in cases():
        results.append(measure(case, args.rounds))
        sys.stdout.write(row(results[-1]) + "\n")
        sys.stdout.flush()
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
