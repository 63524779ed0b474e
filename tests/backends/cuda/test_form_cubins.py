"""What NVRTC makes of the forms of a dense product: no serialised WGMMA, no spill, the ops that the IR asks for."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest

from gemmir.backends.cuda.audit import audit_sass
from gemmir.backends.cuda.compiler_log import check_log
from gemmir.backends.cuda.nvrtc import Compiled, compile_cubin
from gemmir.dtypes import F32
from gemmir.schedule import Evict, Schedule, Split
from gemmir.testing.strategies import columns_problem, half_problem
from tests.backends.cuda.disassembly import InBatches
from tests.gpu.forms import KINDS
from tests.kernels import Lowered, lowered

WIDE = Schedule(block_m=128, block_n=256, math_warpgroups=2, split=Split.ALONG_N, promote_chunk=1)
ALIKE = ("fp8-columns-c", "fp8-columns-f32", "bf16-mn")
"""Compiled where there is a GPU: each has the ops of others here, in other pairs."""
NAMES = [name for name in KINDS if name not in ALIKE]
TURNS = Schedule(block_m=128, block_n=128, math_warpgroups=2, split=Split.ALONG_M, promote_chunk=1, turns=True)


@pytest.mark.parametrize("k_blocks", [1, 2, 3, 16])
@pytest.mark.parametrize("schedule", [WIDE, replace(WIDE, store_slices=1), TURNS], ids=["sliced", "whole", "turns"])
def test_column_scales_are_not_serialised(schedule: Schedule, k_blocks: int) -> None:
    """Sums that sink below the next wave would be: seen where a tile has one k-block, or one before the last."""
    resources = check_log(compile_cubin(lowered(columns_problem(None, 512, 128 * k_blocks), schedule).source).log)
    assert resources.spill_stores == 0


@cache
def printed(name: str, schedule: Schedule) -> Lowered:
    kind = KINDS[name]
    return lowered(replace(kind, m=None, n=520, k=5 * kind.block_k), schedule)


@cache
def compiled(name: str, schedule: Schedule) -> Compiled:
    return compile_cubin(printed(name, schedule).source)


HINTED = {
    name: Schedule(cluster_m=1, cluster_n=1, evict=(Evict.WEIGHTS, Evict.BOTH)[number % 2])
    for number, name in enumerate(NAMES)
}
SASS = InBatches(lambda one: compiled(*one).cubin, [*((name, Schedule()) for name in NAMES), *HINTED.items()])


@pytest.mark.parametrize("name", NAMES)
def test_every_form_compiles_to_what_its_ir_says(name: str) -> None:
    assert check_log(compiled(name, Schedule()).log).spill_stores == 0
    audit_sass(printed(name, Schedule()).kernel, SASS[name, Schedule()])


@pytest.mark.parametrize("name", NAMES)
def test_hints_reach_every_load_of_an_operand(name: str) -> None:
    """In every memory order: those of A and B are `first` and `last` as the schedule says."""
    kernel = printed(name, HINTED[name])
    loads = re.findall(r"tma_load\w*?(?:_hinted<(\w+)>)?\(ring_(a|b|scale_a|scale_b) ", kernel.source)
    last = "EVICT_LAST" if HINTED[name].evict is Evict.WEIGHTS else "EVICT_FIRST"
    assert {operand for _, operand in loads} >= {"a", "b"}
    assert all(hint == ("EVICT_FIRST" if operand.endswith("b") else last) for hint, operand in loads)
    audit_sass(kernel.kernel, SASS[name, HINTED[name]])


@pytest.mark.parametrize("columns", [64, 256])
def test_c_leaves_the_store_thread_enough_registers(columns: int) -> None:
    """As many boxes as there may be: a tile of f32 in slices."""
    groups = 1 if columns == 64 else 2
    tile = Schedule(block_m=128, block_n=columns, math_warpgroups=groups, split=Split.ALONG_N, store_slices=2)
    problem = replace(half_problem(None, 1000, 704, d=F32), has_c=True)
    assert check_log(compile_cubin(lowered(problem, tile).source).log).spill_stores == 0
