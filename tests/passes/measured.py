"""
What gemmir's own kernels take on an H200 SXM, as data.

GPU time by torch's profiler, median of 20 calls, L2 flushed before each by zeroing 512 MB; one GPU, one run, compiled
by NVRTC 13.0.88. Blocks, warpgroups, split, turns and cluster were fixed by options of `gemm-select-blocks`; the tile
order was chosen by `gemm-rasterize`, the stages are the most that fit. Runs differ by 1 to 2%.
"""

from __future__ import annotations

from dataclasses import dataclass

from gemmir.schedule import Family, Schedule, Split

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Measurement:
    """M x N x K, a schedule, and the microseconds that its kernel takes."""

    shape: Shape
    schedule: Schedule
    microseconds: float

    def __str__(self) -> str:
        s, (m, n, k) = self.schedule, self.shape
        assert s.split is not None
        return f"{m}x{n}x{k}-{s.block_m}x{s.block_n}-{s.math_warpgroups}{s.split.value}-{s.cluster_m}x{s.cluster_n}"


FP8_TILES = (
    (128, 256, "n", False),
    (256, 128, "m", False),
    (128, 192, "m", True),
    (128, 160, "m", True),
    (128, 128, "m", True),
)
"""block_m, block_n, split, turns; two math warpgroups, block_k = 128."""

CLUSTERS = ((1, 1), (2, 1), (1, 2))

FP8_MICROSECONDS: dict[Shape, tuple[tuple[float | None, ...], ...]] = {
    (4096, 2112, 7168): (
        (121.8, 124.8, 126.6),
        (123.0, None, 124.8),
        (92.5, 94.0, 94.1),
        (112.6, 111.6, 111.8),
        (112.0, 113.8, 115.6),
    ),
    (4096, 24576, 1536): (
        (226.0, 230.0, 230.6),
        (230.5, None, 232.5),
        (224.3, 224.6, 218.8),
        (234.2, 234.6, 234.8),
        (242.4, 242.5, 240.2),
    ),
    (4096, 32768, 512): (
        (122.8, 129.1, 128.1),
        (133.3, None, 127.9),
        (119.8, 120.4, 120.7),
        (125.6, 125.9, 124.2),
        (131.5, 130.7, 127.9),
    ),
    (4096, 7168, 16384): (
        (642.0, 650.7, 660.2),
        (649.4, None, 653.3),
        (680.7, 681.4, 693.4),
        (681.4, 688.4, 751.3),
        (750.0, 745.0, 740.3),
    ),
    (4096, 4096, 7168): (
        (168.2, 171.7, 171.9),
        (166.9, None, 171.3),
        (182.0, 183.2, 185.9),
        (190.9, 192.9, 194.1),
        (191.2, 193.1, 182.6),
    ),
    (4096, 7168, 2048): (
        (89.9, 91.4, 91.0),
        (91.3, None, 91.6),
        (91.3, 92.6, 97.1),
        (94.4, 93.9, 101.8),
        (96.9, 98.4, 96.3),
    ),
    (8192, 8192, 8192): (
        (750.0, 766.0, 763.8),
        (758.0, None, 761.9),
        (726.2, 732.5, 777.5),
        (817.8, 817.1, 832.6),
        (858.1, 876.1, 832.0),
    ),
    (2048, 2112, 7168): (
        (81.4, 83.0, 83.7),
        (81.6, None, 83.4),
        (60.6, 61.2, 61.3),
        (56.5, 55.3, 55.2),
        (69.9, 70.0, 69.6),
    ),
    (1024, 7168, 16384): (
        (182.7, 186.9, 189.0),
        (183.9, None, 187.6),
        (198.4, 201.6, 204.7),
        (182.2, 186.1, 189.1),
        (211.6, 215.6, 220.9),
    ),
    (512, 4096, 7168): (
        (44.4, 45.2, 45.6),
        (43.5, None, 45.1),
        (33.5, 33.2, 33.9),
        (32.1, 31.4, 32.4),
        (31.3, 32.8, 32.8),
    ),
}
"""For each shape one row a tile of `FP8_TILES`, one column a cluster of `CLUSTERS`. E4M3, scales 1x128 x 128x128."""

BF16_MICROSECONDS: tuple[tuple[Shape, tuple[int, int, int, str, int, int], float], ...] = (
    ((4096, 2112, 7168), (192, 176, 3, "m", 1, 2), 158.1),
    ((4096, 24576, 1536), (256, 144, 2, "m", 1, 2), 395.8),
    ((4096, 32768, 512), (256, 144, 2, "m", 1, 2), 205.5),
    ((4096, 7168, 16384), (128, 256, 2, "m", 2, 1), 1188.0),
    ((4096, 4096, 7168), (128, 256, 2, "m", 2, 1), 297.1),
    ((4096, 7168, 2048), (128, 256, 2, "m", 2, 1), 154.8),
    ((4096, 7168, 2048), (256, 128, 2, "m", 1, 2), 161.3),
    ((4096, 7168, 2048), (256, 192, 2, "m", 1, 2), 219.0),
    ((4096, 7168, 2048), (256, 144, 2, "m", 1, 2), 173.8),
)
"""block_m, block_n, math warpgroups, split and cluster; accumulated in place. The sixth took 153.3 in another run."""


def fp8_measurements() -> list[Measurement]:
    """All that was measured with FP8."""
    return [
        Measurement(shape, Schedule(Family.TILES, bm, bn, 128, 2, Split(split), turns, *cluster), time)
        for shape, rows in FP8_MICROSECONDS.items()
        for (bm, bn, split, turns), times in zip(FP8_TILES, rows, strict=True)
        for cluster, time in zip(CLUSTERS, times, strict=True)
        if time is not None
    ]


def bf16_measurements() -> list[Measurement]:
    """All that was measured with BF16."""
    return [
        Measurement(shape, Schedule(Family.TILES, bm, bn, 64, groups, Split(split), False, cm, cn), time)
        for shape, (bm, bn, groups, split, cm, cn), time in BF16_MICROSECONDS
    ]
