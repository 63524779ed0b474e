"""
An experiment: what could a kernel of masked groups gain that took another tile for each group, by its count of rows?

    python -m tests.calibration.group_switch --json OUT      on a Hopper GPU

FP8, 32 groups with room for 128 rows each. Tiles of the `stream` family are pinned and timed with counts that are all
the same. A switch is then predicted to take, of each group, the share that the tile takes which is fastest with all
groups alike: a bound, for it knows no cost of the switch itself, or of imbalance. Beside it stand the fastest single
tile and what gemmir chooses, knowing the room alone or the mean of the counts. All must give the same bits.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from gemmir.bench.grouped import GroupedCase
from gemmir.bench.timing import kernel_us
from gemmir.compiler import compile
from gemmir.kernel import CompiledKernel
from gemmir.program import Program
from gemmir.schedule import Family, Schedule, Split

GROUPS, ROOM = 32, 128
SHAPES = ((4096, 7168), (7168, 2048))
"""N, K."""
ALIKE = (1, 20, 64, 128)
TILES = ((8, 64), (8, 128), (16, 64), (16, 128), (32, 64), (32, 128), (64, 64), (64, 128), (128, 64))
"""Rows and weights, all that are legal: 128 x 128 does not fit the registers."""
LAUNCHES, REST_SECONDS, SEED, DEVICE = 8, 0.05, 20261126, "cuda"

Tile = tuple[int, int]
Times = Mapping[int, float]
"""Microseconds by the count that all groups have."""


def vectors() -> dict[str, tuple[int, ...]]:
    """The counts that are timed, by name; the same every time."""
    source = random.Random(SEED)
    found = {f"all {count}": (count,) * GROUPS for count in ALIKE}
    found["drawn"] = tuple(source.randint(1, ROOM) for _ in range(GROUPS))
    return found | {"one 128": (ROOM, *(1,) * (GROUPS - 1))}


def mean(counts: Sequence[int]) -> int:
    return round(statistics.fmean(counts))


def tile_us(rows: int, times: Times, count: int) -> float:
    """
    Microseconds where all groups have `count` rows, in tiles of `rows`.

    Linear in the number of tiles between what was timed; of counts that make equally many tiles, by the fastest.
    """
    known: dict[int, float] = {}
    for timed, us in times.items():
        known[-(-timed // rows)] = min(us, known.get(-(-timed // rows), us))
    if (tiles := -(-count // rows)) in known:
        return known[tiles]
    below, over = next((a, b) for a, b in pairwise(sorted(known)) if a < tiles < b)
    return known[below] + (tiles - below) / (over - below) * (known[over] - known[below])


def switch_us(times: Mapping[Tile, Times], counts: Sequence[int]) -> float:
    """Microseconds of a switch that gives each group its fastest tile."""
    return statistics.fmean(min(tile_us(rows, us, count) for (rows, _), us in times.items()) for count in counts)


def pinned(tile: Tile) -> Schedule:
    block = Schedule(family=Family.STREAM, block_m=tile[0], block_n=tile[1], block_k=128, split=Split.ALONG_N)
    return block.filled(math_warpgroups=tile[1] // 64)


def kernels(n: int, k: int) -> dict[Tile | int, CompiledKernel]:
    """By tile, and, as the passes choose, by the rows of each group that are expected."""
    expected = {ROOM, *map(mean, vectors().values())}
    cases = {rows: GroupedCase("f8E4M3FN", "counts", GROUPS, rows, n, k) for rows in expected}
    programs: dict[Tile | int, Program] = {tile: cases[ROOM].program(pinned(tile)) for tile in TILES}
    programs |= {rows: case.program() for rows, case in cases.items()}
    with ThreadPoolExecutor() as pool:
        return dict(zip(programs, pool.map(compile, programs.values()), strict=True))


def measure(n: int, k: int, found: Mapping[Tile | int, CompiledKernel]) -> dict[str, Any]:
    """Microseconds of every kernel with every vector of counts. AssertionError where bits differ."""
    import torch

    from gemmir.bench.inputs import inputs_of

    inputs = inputs_of(GroupedCase("f8E4M3FN", "counts", GROUPS, ROOM, n, k), SEED, DEVICE)
    tensors, out = [*inputs.values()][:-1], torch.zeros((GROUPS, ROOM, n), dtype=torch.bfloat16, device=DEVICE)

    def us(kernel: CompiledKernel, counts: torch.Tensor, wanted: torch.Tensor) -> float:
        kernel(*tensors, counts, out=out.zero_())
        assert torch.equal(out.view(torch.int16), wanted), f"{kernel.manifest.entry} has other bits"
        return statistics.median(kernel_us(lambda: kernel(*tensors, counts, out=out), LAUNCHES, REST_SECONDS))

    times: dict[Tile, dict[str, float]] = {tile: {} for tile in TILES}
    rows: dict[str, dict[str, Any]] = {}
    for name, values in vectors().items():
        counts = torch.tensor(values, dtype=torch.int32, device=DEVICE)
        found[ROOM](*tensors, counts, out=out.zero_())
        wanted = out.view(torch.int16).clone()
        for tile in TILES:
            times[tile][name] = us(found[tile], counts, wanted)
        mine = [(us(found[rows], counts, wanted), found[rows].manifest.entry) for rows in (ROOM, mean(values))]
        single = min((times[tile][name], "{}x{}".format(*tile)) for tile in TILES)
        rows[name] = {"by room": mine[0], "by mean": mine[1], "fastest tile": single}
    alike = {tile: {count: each[f"all {count}"] for count in ALIKE} for tile, each in times.items()}
    for name, values in vectors().items():
        rows[name]["switch"] = switch_us(alike, values)
    return {"n": n, "k": k, "tiles": {"{}x{}".format(*tile): each for tile, each in times.items()}, "rows": rows}


def text(found: dict[str, Any]) -> str:
    """The times of a shape as Markdown: pinned tiles, then what is chosen and, above 1, how much a switch would win."""
    lines = [f"{GROUPS} x {ROOM}, {found['n']} x {found['k']}", f"| tile | {' | '.join(vectors())} |"]
    lines += [f"| {tile} | {' | '.join(f'{x:.1f}' for x in each.values())} |" for tile, each in found["tiles"].items()]
    lines.append("| counts | by room | by mean | fastest tile | switch | room / switch | mean / switch |")
    for name, row in found["rows"].items():
        cells = [f"{us:.1f} {kernel}" for us, kernel in (row[how] for how in ("by room", "by mean", "fastest tile"))]
        ratios = [f"{row[how][0] / row['switch']:.3f}" for how in ("by room", "by mean")]
        lines.append(" | ".join([f"| {name}", *cells, f"{row['switch']:.1f}", *ratios]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    from gemmir.bench.measure import machine, require_gpu

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    args = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(require_gpu()), "shapes": []}
    for n, k in SHAPES:
        found["shapes"].append(measure(n, k, kernels(n, k)))
        sys.stdout.write(text(found["shapes"][-1]))
        sys.stdout.flush()
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
