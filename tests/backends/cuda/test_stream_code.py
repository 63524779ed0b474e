"""What ptxas makes of the default kernels for few rows: whole groups of WGMMAs, waits as in the IR, promotion once."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from gemmir.backends.cuda.audit import audit_sass
from gemmir.backends.cuda.compiler_log import check_log
from gemmir.backends.cuda.nvrtc import Compiled, compile_cubin
from gemmir.backends.cuda.sass_words import instructions
from gemmir.backends.cuda.target import the_kernel
from gemmir.bench.cases import DECODE, Case
from gemmir.compiler import Lowered, lower
from gemmir.decode import decode_split_k
from gemmir.dialects import hopper
from tests.backends.cuda.disassembly import InBatches
from tests.backends.cuda.machine_code import expected_events, found_events, registers
from tests.backends.cuda.oldest_nvrtc import OLDEST, compile_by_oldest

SHAPES = DECODE[:5] + DECODE[7:9]
CASES = [Case(dtype, m, n, k, decode_split_k(n, k, dtype)) for dtype in ("f8E4M3FN", "bf16") for m, n, k in SHAPES]


@cache
def printed(case: Case) -> Lowered:
    return lower(case.text, m=case.m)


@cache
def by_oldest() -> dict[str, Compiled]:
    return compile_by_oldest(printed(case).source for case in CASES)


@cache
def compiled(nvrtc: str, case: Case) -> Compiled:
    source = printed(case).source
    return compile_cubin(source) if nvrtc == "installed" else by_oldest()[source]


NVRTCS = ["installed", *(["13.0"] if OLDEST else [])]
SASS = InBatches(
    lambda by: compiled(*by).cubin, [(nvrtc, case) for nvrtc in NVRTCS for case in CASES], encodings=True, size=14
)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("nvrtc", NVRTCS)
def test_machine_code_is_what_the_ir_says(nvrtc: str, case: Case) -> None:
    kernel = the_kernel(printed(case).module)
    resources = check_log(compiled(nvrtc, case).log)
    assert resources.spill_stores == resources.spill_loads == resources.stack_bytes == 0
    sass = SASS[nvrtc, case]
    audit_sass(kernel, sass)
    code = tuple(instructions(sass))
    promoted = [op for op in kernel.walk() if isinstance(op, hopper.PromoteBlockOp)]
    stems = Counter(i.stem for i in code)
    assert stems["FFMA"] == sum(registers(op.partial.type) for op in promoted)
    assert stems["FMUL"] == sum(registers(op.partial.type) // 2 for op in promoted)
    # ptxas lets some of a promotion wait for the next sum, which none of it reads.
    of_order = [event for event in found_events(code) if event[0] != "ffma"]
    assert of_order == [event for event in expected_events(kernel) if event[0] != "ffma"]
