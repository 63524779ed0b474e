"""Kernels that wait for those before them read no memory until then, in machine code, too."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest

from gemmir.backends.cuda.describe import describe
from gemmir.backends.cuda.nvrtc import compile_cubin
from gemmir.compiler import lower
from gemmir.dialects import hopper
from gemmir.passes.sync.check import check_kernel
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Family, Schedule
from gemmir.testing.strategies import fp8_problem, half_problem, program_text
from tests.backends.cuda.disassembly import InBatches
from tests.backends.cuda.oldest_nvrtc import OLDEST, compile_by_oldest
from tests.sabotage.kernels import TEXTS, Ir, change, erase, kernel_in, module_of, one

GROUPS = 7
PROBLEMS = {"fp8": fp8_problem(None, 512, 1024), "bf16": half_problem(None, 512, 1024)}
WAIT = "ACQBULK"
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)")
READS = ("LDG", "LD.", "LDGSTS", "UTMALDG", "UBLKCP", "ATOM", "RED")
"""What reads global memory, for itself or into shared memory; LDC, of parameters, and ULDC are no such ops."""


def of_groups(problem: GemmProblem, grouping: Grouping) -> str:
    groups = replace(problem, grouping=grouping, groups=GROUPS)
    return program_text(groups, Schedule(family=Family.STREAM, block_m=16))


SOURCES = {name: text for name, text in TEXTS.items() if "family = stream" in text} | {
    f"{name}-{grouping.value}": of_groups(problem, grouping)
    for name, problem in PROBLEMS.items()
    for grouping in (Grouping.OFFS, Grouping.COUNTS, Grouping.BATCH)
}


@cache
def source_of(name: str) -> str:
    return lower(SOURCES[name], m=64).source


@cache
def by_oldest() -> dict[str, bytes]:
    compiled = compile_by_oldest(source_of(name) for name in SOURCES)
    return {source: made.cubin for source, made in compiled.items()}


@cache
def cubin_of(by: tuple[str, str]) -> bytes:
    nvrtc, name = by
    source = source_of(name)
    return compile_cubin(source).cubin if nvrtc == "installed" else by_oldest()[source]


NVRTCS = ["installed", *(["13.0"] if OLDEST else [])]
SASS = InBatches(cubin_of, [(nvrtc, name) for nvrtc in NVRTCS for name in SOURCES])


@pytest.mark.parametrize("nvrtc", NVRTCS)
@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_read_before_the_wait(name: str, nvrtc: str) -> None:
    found = INSTRUCTION.findall(SASS[nvrtc, name])
    assert found.count(WAIT) == 1
    assert [op for op in found[: found.index(WAIT)] if op.startswith(READS)] == []
    # Loads that need not be coherent are for what nobody writes while the kernel runs: it may have started before.
    assert [op for op in found if op.startswith("LDG") and "CONSTANT" in op] == []
    assert any(op.startswith("UTMALDG") for op in found)


def test_a_kernel_without_the_wait_is_not_launched_before_others_end() -> None:
    """Whatever the caller asks for: the manifest says so."""
    kernel = kernel_in(module_of("bf16-stream"))
    assert describe(kernel, "k", "sm_90a", "").waits
    erase(next(op for op in kernel.body.block.ops if isinstance(op, hopper.WaitForGridOp)))
    kernel.verify()
    assert not describe(kernel, "k", "sm_90a", "").waits


def test_any_operand_may_be_asked_of_l2() -> None:
    """A request to L2 before the wait moves no data that the kernel before could still change."""
    ir = Ir(kernel_in(module_of("bf16-stream")))
    prefetch = one(ir.frame, hopper.TmaPrefetchOp)
    for map_ in (one(ir.producer, hopper.TmaLoadOp).map, one(ir.store, hopper.TmaStoreOp).map):
        change(prefetch, prefetch.map, map_)
        ir.kernel.verify()
        check_kernel(ir.kernel)
