"""
sm_90a as data: what one Hopper GPU and one of its SMs can hold and do.

Every limit that a verifier, a search or a cost model needs is here and nowhere else. Rates are of an H200 SXM;
those marked "measured" come from docs/performance.md.
"""

from __future__ import annotations

from gemmir.errors import UnsupportedError
from gemmir.records import dataclass

MOST_EXTENT = 2**31 - 2**16
"""
M, N and K of a kernel, and its tiles, are at most so many. Coordinates are 32-bit integers, and those of the last tile,
of the last cluster and of the tile after a CTA's last one lie behind the end.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU architecture. Sizes in bytes, rates per clock cycle, bandwidths in bytes per second."""

    name: str
    compute_capability: tuple[int, int]
    sms: int
    """Streaming multiprocessors of the full part; the run time asks the device."""
    shared_bytes: int
    """Most dynamic shared memory that one block may have."""
    registers: int
    """32-bit registers of an SM."""
    max_registers_per_thread: int
    warpgroup_threads: int
    max_cluster: int
    """Portable cluster size."""
    clusters_of_four: int
    """That run at once: GPCs whose number of SMs is no multiple of four leave some idle (asked of an H200's driver)."""
    max_named_barriers: int
    max_tma_box: int
    """Most elements of a TMA box in one dimension."""
    tma_alignment: int
    """Global addresses and strides that TMA takes are multiples of this."""
    shared_alignment: int
    """Operand tiles in the 128-byte swizzle start at multiples of this."""
    wgmma_m: int
    wgmma_n_step: int
    wgmma_n_max: int
    wgmma_k_bytes: int
    """One WGMMA reduces this many bytes of K: 32 elements of FP8, 16 of BF16."""
    tensor_clocks_per_column: float
    """Tensor-core cycles of one m64nNk(32 bytes) instruction, divided by N."""
    shared_bytes_per_clock: int
    l2_bytes: int
    l2_bytes_per_clock_per_sm: float
    """Measured: L2 to SM, at the clock of a busy GPU."""
    store_bytes_per_clock_per_sm: float
    """Measured: SM to L2, whatever the path."""
    dram_bytes_per_second: float
    """Measured: device-to-device copy, read plus written."""
    clock_hz: float
    """Measured: the SM clock under a full-rate FP8 kernel."""

    def tensor_flops_per_clock(self, element_bytes: int) -> float:
        """Multiplications and additions that an SM's tensor cores do in a clock: FP8 8192, 16-bit types 4096."""
        return 2 * self.wgmma_m * (self.wgmma_k_bytes // element_bytes) / self.tensor_clocks_per_column


SM_90A = Target(
    name="sm_90a",
    compute_capability=(9, 0),
    sms=132,
    shared_bytes=232_448,
    registers=65_536,
    max_registers_per_thread=255,
    warpgroup_threads=128,
    max_cluster=8,
    clusters_of_four=30,
    max_named_barriers=16,
    max_tma_box=256,
    tma_alignment=16,
    shared_alignment=1024,
    wgmma_m=64,
    wgmma_n_step=8,
    wgmma_n_max=256,
    wgmma_k_bytes=32,
    tensor_clocks_per_column=0.5,
    shared_bytes_per_clock=128,
    l2_bytes=50 << 20,
    l2_bytes_per_clock_per_sm=48.0,
    store_bytes_per_clock_per_sm=32.0,
    dram_bytes_per_second=4.3e12,
    clock_hz=1.6e9,
)

WARP_LANES = 32
WARPS_PER_GROUP = SM_90A.warpgroup_threads // WARP_LANES
TMA_SHARED_ALIGNMENT = 128
"""TMA writes boxes to multiples of so many bytes of shared memory."""

BARRIER_BYTES = 8
"""An mbarrier, in shared memory."""

DATASHEET_CLOCK_HZ = 1.83e9
"""The SM clock of the data sheets' tensor rates: 132 SMs x 8192 x 1.83 GHz = 1979 TFLOP/s of FP8, dense."""

PEAK_DRAM_BYTES_PER_SECOND: dict[str, float] = {
    "NVIDIA H200": 4.8e12,
    "NVIDIA H100 80GB HBM3": 3.35e12,
}
"""By the name that the driver gives a GPU, from the data sheets of the SXM parts."""

TARGETS: dict[str, Target] = {SM_90A.name: SM_90A}


def find_target(name: str) -> Target:
    """The target called `name`; `UnsupportedError` (GMR-U002) names those that exist."""
    if (target := TARGETS.get(name)) is not None:
        return target
    hint = "sm_90a: WGMMA and setmaxnreg exist only with the `a`" if name == "sm_90" else ", ".join(TARGETS)
    raise UnsupportedError(
        "GMR-U002",
        f"target {name[:40]!r}",
        rule="gemmir makes kernels for " + ", ".join(TARGETS),
        fix=f"use {hint}",
    )


def balanced_clusters(tiles: int, resident: int) -> int:
    """The fewest clusters, of `resident` that run at once, which compute `tiles` cluster tiles in as few rounds."""
    rounds = -(-tiles // resident)
    return -(-tiles // max(1, rounds))


def columns_of_tiles(n: int, width: int, tail_n: int, after: int) -> tuple[int, int]:
    """Columns of (cluster) tiles `width` wide, and of those `tail_n` wide behind `after` of them; 0: there are none."""
    if not tail_n or not after or after * width >= n:
        return -(-n // width), 0
    return after, -(-(n - after * width) // tail_n)


def launch_registers(threads: int) -> int:
    """Registers per thread of a block at launch: the register file over all threads, in steps of 8, at most 255."""
    return min(SM_90A.registers // threads // 8 * 8, SM_90A.max_registers_per_thread)


def setmaxnreg_split(math_warpgroups: int) -> tuple[int, int]:
    """
    Registers per thread of (service warpgroup, math warpgroups) after setmaxnreg.

    The sum over all warpgroups must not exceed what the block got at launch: 65536 / threads, rounded down to 8.
    24 registers spill in a producer that does more than TMA (measured), 40 fit.
    """
    return {1: (40, 232), 2: (40, 232), 3: (32, 160)}[math_warpgroups]
