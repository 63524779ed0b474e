"""What is printed and compiled of narrower tiles for the last columns."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from gemmir.backends.cuda.audit import audit_sass
from gemmir.backends.cuda.compiler_log import check_log
from gemmir.backends.cuda.describe import describe
from gemmir.backends.cuda.nvrtc import Compiled, compile_cubin
from gemmir.backends.cuda.prelude import prelude
from gemmir.backends.cuda.sass import disassemble
from gemmir.schedule import Schedule
from tests.backends.cuda.disassembly import InBatches
from tests.backends.cuda.host_lists import COMPILER, needs_host_compiler
from tests.kernels import Lowered, lowered
from tests.schedules import completed, fp8_problem, half_problem

TURNS = Schedule(block_m=128, block_n=192, turns=True, tail_n=144, tail_after=8)
SLICED = Schedule(block_m=128, block_n=256, cluster_m=1, cluster_n=1, tail_n=128, tail_after=3)
CHUNKED = Schedule(block_m=128, block_n=128, promote_chunk=2, tail_n=96, tail_after=4)


@cache
def compiled(schedule: Schedule, k_blocks: int) -> tuple[Lowered, Compiled]:
    problem = fp8_problem(None, 2112, 128 * k_blocks)
    kernel = lowered(problem, completed(problem, schedule))
    return kernel, compile_cubin(kernel.source)


SASS = InBatches(lambda one: compiled(*one)[1].cubin, [*product((TURNS, SLICED, CHUNKED), (1, 2, 9))])


@pytest.mark.parametrize("schedule", [TURNS, SLICED, CHUNKED], ids=["turns", "slices", "chunks"])
@pytest.mark.parametrize("k_blocks", [1, 2, 9])
def test_fp8_compiles_to_what_its_ir_says(schedule: Schedule, k_blocks: int) -> None:
    kernel, made = compiled(schedule, k_blocks)
    assert check_log(made.log).spill_stores == 0
    audit_sass(kernel.kernel, SASS[schedule, k_blocks])


def test_bf16_compiles_to_what_its_ir_says() -> None:
    problem = half_problem(None, 2112, 640)
    kernel = lowered(problem, completed(problem, Schedule(block_m=128, block_n=256, tail_n=64, tail_after=8)))
    compiled = compile_cubin(kernel.source)
    assert check_log(compiled.log).spill_stores == 0
    audit_sass(kernel.kernel, disassemble(compiled.cubin))


def test_both_loops_are_printed_with_their_own_multiplication() -> None:
    problem = fp8_problem(None, 2112, 1024)
    source = lowered(problem, completed(problem, TURNS)).source
    assert (
        source.count("for (Tiles<128, 192, 1, 1, 1536, ") == source.count("for (TailTiles<128, 144, 1536, 8, N, ") == 3
    )
    assert source.count(", 1, 4> tiles(m);") == 3  # columns of tiles that follow
    first, second = source[source.index("// Math warpgroups") :].split("for (TailTiles<", 2)[:2]
    assert set(re.findall(r"\b(multiply\w*)<", first)) == {"multiply"}
    assert set(re.findall(r"\b(multiply\w*)<", second)) == {"multiply_n144"}
    assert "// The last columns, in narrower tiles." in source


def test_the_grid_counts_both_kinds() -> None:
    problem = fp8_problem(None, 2112, 1024)
    kernel = lowered(problem, completed(problem, TURNS))
    rule = describe(kernel.kernel, kernel.entry, "sm_90a", "").grid_rule
    assert rule.columns == 8 + 4
    assert rule.ctas(128, 132) == 12
    assert kernel.entry == "gemm_e4m3_e4m3_128x192_tail144_cluster1x1_stages4"


PROGRAM = """
#include <cstdio>
#include <initializer_list>
#define __device__
#define __forceinline__ inline
struct Place { unsigned x; };
static Place blockIdx, gridDim;
template <class T> static T min(T a, T b) { return b < a ? b : a; }
PRELUDE
int main() {
    for (int m : {1, 128, 700, 1300})
        for (unsigned ctas : {1u, 2u, 5u, 7u, 23u, 132u}) {
            gridDim.x = ctas;
            for (blockIdx.x = 0; blockIdx.x < ctas; ++blockIdx.x) {
                int m0, n0;
                for (Tiles<128, 192, 1, 1, 768, 3, true, 1, 5> tiles(m); !tiles.done(); tiles.next()) {
                    tiles.origin(0, m0, n0);
                    std::printf("%d %u %u 0 %d %d %d\\n", m, ctas, blockIdx.x, m0, n0, tiles.last());
                }
                for (TailTiles<128, 48, 768, 4, 1000, 3, true> tiles(m); !tiles.done(); tiles.next()) {
                    tiles.origin(0, m0, n0);
                    std::printf("%d %u %u 1 %d %d %d\\n", m, ctas, blockIdx.x, m0, n0, tiles.last());
                }
            }
        }
}
"""


@needs_host_compiler
def test_the_printed_loops_deal_every_tile_out_once(tmp_path: Path) -> None:
    """In turn, wide ones first; the last one of a CTA is told, whichever kind it is."""
    assert COMPILER is not None
    source = tmp_path / "tiles.cpp"
    source.write_text(PROGRAM.replace("PRELUDE", prelude({"types", "Tiles", "TailTiles"}).replace("__host__", "")))
    program = tmp_path / "tiles"
    subprocess.run([COMPILER, "-std=c++17", "-o", str(program), str(source)], check=True, capture_output=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    rows = [tuple(map(int, line.split())) for line in printed.splitlines()]
    for m, ctas in sorted({row[:2] for row in rows}):
        mine = [row[2:] for row in rows if row[:2] == (m, ctas)]
        places = sorted((tail, m0, n0) for _, tail, m0, n0, _ in mine)
        tall = range(0, m, 128)
        wide = [(0, m0, n0) for m0 in tall for n0 in range(0, 768, 192)]
        assert places == wide + [(1, m0, n0) for m0 in tall for n0 in range(768, 1000, 48)]
        for cta in range(min(ctas, len(mine))):
            own = [row for row in mine if row[0] == cta]
            assert len(own) in (len(mine) // ctas, len(mine) // ctas + 1)
            assert [row[-1] for row in own if row[1] == 0 or row is own[-1]][:-1].count(1) == 0
            assert own[-1][-1] == 1
