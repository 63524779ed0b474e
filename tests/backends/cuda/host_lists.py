"""
The tile lists of kernels of groups, as the printed device code makes them, on the CPU.

What a kernel's source says of its list is compiled with the prelude by a host compiler. The lanes of a warp are
coroutines, which meet where they exchange something; a lane that comes alone, or a read outside the index operand, ends
the program.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

COMPILER = shutil.which("g++") or shutil.which("clang++")
needs_host_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++ or clang++")

Listed = tuple[int, int, int, int, int]
"""First row and column, the group, and the first and last of its rows in the tile (or its k-blocks)."""

_HOST = r"""
#include <cstdio>
#include <cstdlib>
#include <ucontext.h>
#include <vector>
#define __device__
#define __forceinline__ inline
struct Place { unsigned x; };
static Place threadIdx, blockIdx, gridDim;
static const int *first_read, *last_read;
[[noreturn]] static void fail(const char* what) { std::fprintf(stderr, "%s\n", what); std::exit(3); }
static int load_index(const int* p) {
    if (p < first_read || p >= last_read) fail("a read outside the index operand");
    return *p;
}
template <class T> static T min(T a, T b) { return b < a ? b : a; }
template <class T> static T max(T a, T b) { return a < b ? b : a; }

static ucontext_t scheduler, lanes[32];
static char stacks[32][1 << 16];
static unsigned held[2][32], turns[32];
static bool ended[32];
static const unsigned* meet(unsigned value) {
    const unsigned lane = threadIdx.x;
    unsigned* all = held[turns[lane]++ % 2];
    all[lane] = value;
    swapcontext(&lanes[lane], &scheduler);
    return all;
}
static int __shfl_sync(unsigned, int value, int from) { return int(meet(value)[from % 32]); }
static int __shfl_up_sync(unsigned, int value, int by) {
    const unsigned* all = meet(value);
    return int(threadIdx.x) >= by ? int(all[threadIdx.x - by]) : value;
}
static unsigned __ballot_sync(unsigned, bool value) {
    const unsigned* all = meet(value);
    unsigned mask = 0;
    for (int lane = 0; lane < 32; ++lane) mask |= all[lane] << lane;
    return mask;
}
static int __reduce_add_sync(unsigned, int value) {
    const unsigned* all = meet(value);
    int sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += int(all[lane]);
    return sum;
}
static int __ffs(unsigned value) { return __builtin_ffs(int(value)); }
static void listed(int m0, int n0, int group, int begin, int end) {
    if (threadIdx.x == 0) std::printf("%d %d %d %d %d;", m0, n0, group, begin, end);
}
"""

_MAIN = r"""
using Kernel = void (*)(const int*, int, int);
static Kernel kernel;
static std::vector<int> index_operand;
static int rows, rank;
static void one_lane() {
    kernel(index_operand.data(), rows, rank);
    ended[threadIdx.x] = true;
}
static void run_warp() {
    for (int lane = 0; lane < 32; ++lane) {
        turns[lane] = 0, ended[lane] = false;
        getcontext(&lanes[lane]);
        lanes[lane].uc_stack.ss_sp = stacks[lane], lanes[lane].uc_stack.ss_size = sizeof stacks[lane];
        lanes[lane].uc_link = &scheduler;
        makecontext(&lanes[lane], one_lane, 0);
    }
    do {
        for (int lane = 0; lane < 32; ++lane) threadIdx.x = lane, swapcontext(&scheduler, &lanes[lane]);
        for (int lane = 1; lane < 32; ++lane)
            if (ended[lane] != ended[0] || turns[lane] != turns[0]) fail("the lanes of a warp part");
    } while (!ended[0]);
}
int main() {
    const Kernel kernels[] = {KERNELS};
    int number, grid, cluster, count;
    while (std::scanf("%d %d %d %d %d", &number, &rows, &grid, &cluster, &count) == 5) {
        index_operand.resize(count);
        for (int& value : index_operand) if (std::scanf("%d", &value) != 1) fail("a number is missing");
        first_read = index_operand.data(), last_read = first_read + count;
        kernel = kernels[number], gridDim.x = grid;
        for (blockIdx.x = 0; blockIdx.x < unsigned(grid); ++blockIdx.x) {
            rank = int(blockIdx.x) % cluster;
            run_warp();
            std::printf("\n");
        }
        std::fflush(stdout);
    }
}
"""

_LINES = re.compile(
    r"^ *(const \w+<.*> groups\{.*\};|const GroupTiles<.*> (\w+)\(groups\);|if \(\w+\.none\(\)\) return;)$", re.M
)
_FIND = re.compile(r"tiles\.find<[^>]*>\([^)]*\);")
_N = re.compile(r"^constexpr int N = \d+;$", re.MULTILINE)


def _kernel(source: str, number: int) -> str:
    """What the source of a kernel says of its list, as a function of host code."""
    lines = list(_LINES.finditer(source))
    assert len(lines) == 3, lines
    ends = "tiles.first_block(), tiles.blocks()" if "KOffs<" in lines[0][0] else "tiles.begin(), tiles.end()"
    found, columns = _FIND.search(source), _N.search(source)
    assert found is not None
    assert columns is not None
    body = "\n".join(line[1] for line in lines)
    return f"""
static void kernel_{number}(const int* index, int m, int rank) {{
{columns[0]}
{body}
for (auto tiles = {lines[1][2]}; !tiles.done(); tiles.next()) {{
{found[0]}
listed(tiles.m0, tiles.n0, tiles.group, {ends});
auto after = tiles;
after.next();
if (after.done() != tiles.last()) fail("last() does not say which tile is the last one");
}}
}}"""


_LOAD_INDEX = "DEVICE int load_index(const int* p) { return *p; }\n"
"""In its place the host has one that ends the program where it reads outside."""


class HostLists:
    """The lists of kernels, given by their sources and the prelude that they share; `folder` is for what is built."""

    def __init__(self, sources: Sequence[str], prelude: str, folder: Path):
        kernels = "".join(_kernel(source, number) for number, source in enumerate(sources))
        names = ", ".join(f"kernel_{number}" for number in range(len(sources)))
        assert _LOAD_INDEX in prelude
        text = _HOST + prelude.replace(_LOAD_INDEX, "") + kernels + _MAIN.replace("KERNELS", names)
        program = folder / "lists"
        folder.joinpath("lists.cpp").write_text(text)
        assert COMPILER is not None
        command = [COMPILER, "-std=c++17", "-O1", "-w", "-o", str(program), str(folder / "lists.cpp")]
        subprocess.run(command, check=True)
        self.command = [str(program)]
        self.running: subprocess.Popen[str] | None = None

    def lists(self, number: int, m: int, grid: int, cluster: int, index: Sequence[int]) -> list[list[Listed]]:
        """The tiles of each CTA of a grid, in order, for kernel `number`; by one process, until it fails."""
        if self.running is None:
            pipe = subprocess.PIPE
            self.running = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self.running.stdin is not None
        assert self.running.stdout is not None
        print(number, m, grid, cluster, len(index), *index, file=self.running.stdin, flush=True)
        lines = [self.running.stdout.readline() for _ in range(grid)]
        if not all(line.endswith("\n") for line in lines):
            self.close()
            raise AssertionError(f"the lists of {grid} CTAs end early: {lines}")
        return [[_tile(text) for text in line.strip().split(";") if text] for line in lines]

    def close(self) -> None:
        """End the process, which must have been content with all that it was asked."""
        if self.running is None:
            return
        left, errors = self.running.communicate()
        code, self.running = self.running.returncode, None
        assert (code, left, errors) == (0, "", "")


def _tile(text: str) -> Listed:
    row, column, group, begin, end = map(int, text.split())
    return row, column, group, begin, end
