"""
Reading ptxas: each complaint is provoked in a small kernel, with every NVRTC at hand.

The oldest supported NVRTC is used where `GEMMIR_NVRTC_13_0` names its folder.
"""

import json
import subprocess
import sys
from functools import cache

import pytest

from gemmir.backends.cuda.compiler_log import Resources, check_log, read_log
from gemmir.errors import CompileError
from tests.backends.cuda.oldest_nvrtc import OLDEST, ROOT

FOLDERS = ["installed", *([OLDEST] if OLDEST else [])]

REGISTERS = ", ".join(f"%{i}" for i in range(32))
OPERANDS = ", ".join(f'"+f"(d[{i}])' for i in range(32))
WGMMA = f"""
__device__ __forceinline__ void wgmma(float (&d)[32], unsigned long long a, unsigned long long b) {{
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {{{REGISTERS}}}, %32, %33, 1, 1, 1;"
                 : {OPERANDS} : "l"(a), "l"(b));
}}
__device__ __forceinline__ void fence() {{ asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }}
__device__ __forceinline__ void commit() {{ asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }}
__device__ __forceinline__ void wait() {{ asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }}
"""
LOOP = """
extern "C" __global__ void __launch_bounds__(128, 1) k(float* out, unsigned long long a, unsigned long long b, int n) {
    float d[32], sum[32];
    for (int i = 0; i < 32; ++i) d[i] = sum[i] = 0;
    for (int i = 0; i < n; ++i) { BODY }
    for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i] + sum[i];
}
"""
SPILL = """
extern "C" __global__ void __launch_bounds__(1024, 1) k(float* x, int n) {
    float v[120];
    #pragma unroll
    for (int i = 0; i < 120; ++i) v[i] = x[i * 1024 + threadIdx.x];
    for (int j = 0; j < n; ++j) {
        #pragma unroll
        for (int i = 0; i < 120; ++i) v[i] = v[i] * v[(i * 7 + 1) % 120] + x[j];
    }
    #pragma unroll
    for (int i = 0; i < 120; ++i) x[i * 1024 + threadIdx.x] = v[i];
}
"""
STACK = """
extern "C" __global__ void __launch_bounds__(128, 1) k(float* x, int n) {
    float v[100];
    for (int i = 0; i < n; ++i) v[(i * i) % 100] = x[i];
    x[n] = v[n % 100];
}
"""
SHARED = """
extern "C" __global__ void __launch_bounds__(128, 1) small(float* x) { x[0] = 1; }
extern "C" __global__ void __launch_bounds__(128, 1) k(float* x) {
    __shared__ float s[32];
    s[threadIdx.x % 32] = x[0]; __syncthreads(); x[1] = s[3];
}
"""
SOURCES = {
    "clean": WGMMA + LOOP.replace("BODY", "fence(); wgmma(d, a + i, b + i); commit(); wait();"),
    # Another instruction reads the accumulators of a group in flight.
    "C7514": WGMMA + LOOP.replace("BODY", "fence(); wgmma(d, a, b); commit(); out[i] = d[3]; wgmma(d, b, a); wait();"),
    # A group in flight around the loop whose result the loop reads: ptxas adds the wait itself.
    "C7517": WGMMA
    + LOOP.replace("BODY", "for (int j = 0; j < 32; ++j) sum[j] += d[j]; fence(); wgmma(d, a, b); commit();"),
    # A pipeline stage that calls a function.
    "C7510": WGMMA.replace("__forceinline__ void wgmma", "__noinline__ void wgmma")
    + LOOP.replace("BODY", "fence(); wgmma(d, a + i, b + i); commit(); wait();"),
    # No launch bounds, so the registers at entry are not known.
    "C7508": 'extern "C" __global__ void k(int* x) { asm volatile("setmaxnreg.inc.sync.aligned.u32 232;"); x[0] = 1; }',
    "spill": SPILL,
    "stack": STACK,
    "shared": SHARED,
}
PROGRAM = """
import json, sys
from pathlib import Path
from gemmir.backends.cuda import nvrtc
if sys.argv[1] != "installed":
    nvrtc.preload(Path(sys.argv[1]) / "nvidia/cu13/lib")
sources = json.load(sys.stdin)
logs = {name: nvrtc.compile_cubin(source).log for name, source in sources.items()}
json.dump({"version": nvrtc.version(), "logs": logs}, sys.stdout)
"""


@cache
def compiled(folder: str) -> dict[str, dict[str, str]]:
    """The version of the NVRTC in `folder`, and its logs of all sources."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder],
        input=json.dumps(SOURCES),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(params=FOLDERS)
def logs(request: pytest.FixtureRequest) -> dict[str, str]:
    return compiled(request.param)["logs"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_version_is_the_one_meant(folder: str):
    version = compiled(folder)["version"]
    assert version == [13, 0] if folder == OLDEST else version[0] == 13


def test_a_clean_kernel(logs: dict[str, str]):
    assert "C75" not in logs["clean"]
    used = check_log(logs["clean"])
    assert used == Resources(used.registers, 0, 0, 0, 0, 0)
    assert 64 <= used.registers <= 128


@pytest.mark.parametrize("code", ["C7508", "C7510", "C7514", "C7517"])
def test_complaints(logs: dict[str, str], code: str):
    with pytest.raises(CompileError) as error:
        check_log(logs[code])
    assert error.value.code == "GMR-C002"
    assert code in error.value.what.splitlines()[0]
    assert f"({code})" in error.value.what


def test_spills(logs: dict[str, str]):
    used = read_log(logs["spill"])
    assert min(used.spill_stores, used.spill_loads, used.stack_bytes) > 0
    assert used.registers == 64
    with pytest.raises(
        CompileError, match=f"GMR-C002: ptxas spilled: {used.spill_stores} bytes stored, {used.spill_loads}"
    ):
        check_log(logs["spill"])
    assert check_log(logs["spill"], may_spill=True) == used


def test_a_stack(logs: dict[str, str]):
    used = read_log(logs["stack"])
    assert (used.spill_stores, used.stack_bytes) == (0, 400)
    with pytest.raises(CompileError, match=r"GMR-C002.*400 bytes of stack"):
        check_log(logs["stack"])


def test_the_largest_of_several_kernels(logs: dict[str, str]):
    used = check_log(logs["shared"])
    assert (used.shared_bytes, used.barriers) == (128, 1)


@pytest.mark.parametrize("number", [8, *range(10, 21)])
def test_every_complaint_of_the_family(number: int):
    """Most cannot be provoked in a few lines; their codes are one family."""
    line = f"ptxas info    : (C75{number:02}) Potential Performance Loss: wgmma.mma_async instructions are serialized\n"
    log = compiled("installed")["logs"]["clean"]
    with pytest.raises(CompileError, match=f"GMR-C002: ptxas reported C75{number:02}\n"):
        check_log(line + log)


def test_complaints_are_listed_once():
    log = compiled("installed")["logs"]["C7517"]
    with pytest.raises(CompileError) as error:
        check_log(log + log)
    lines = error.value.what.splitlines()
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("log", ["", "ptxas info    : 0 bytes gmem\n", "ptxas info    : Used 8 registers\n"])
def test_a_log_without_numbers_proves_nothing(log: str):
    with pytest.raises(CompileError, match="GMR-C002: the compiler's log reports no resource usage"):
        check_log(log)
