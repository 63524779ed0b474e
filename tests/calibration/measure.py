"""
Measures the points of `tests.calibration.points` on a Hopper GPU and writes them as JSON.

    python -m tests.calibration.measure --json OUT [--stream | --ranked N | --points FILE ...] [--budget SECONDS]

With `--stream` those of `tests.calibration.stream_points`, with `--ranked` the N tiles that the model ranks first of
each drawn product and each of the dense table, with `--points` those of data that are there, such as h200-scales.json:
their schedules as they were, measured again. Everything is compiled first, in threads. Then each shape: cuBLAS, and
each of its kernels, whose result must have the bits of the shape's first one. What the passes left open is written as
they chose it; a schedule that comes twice is measured once. When the budget is spent, or at Ctrl-C, what there is is
written.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gemmir.bench.cases import Case, program_text
from gemmir.bench.flush import FLUSH_BYTES
from gemmir.bench.peers import PEERS, Refusal, prepared
from gemmir.bench.timing import kernel_us
from gemmir.cache_files import publish
from gemmir.cli.compile import positive
from gemmir.cli.destinations import check_destination
from gemmir.compiler import compile
from gemmir.errors import GemmirError
from gemmir.kernel import CompiledKernel
from tests.calibration.data import Measurement, Point, Series, load, write
from tests.calibration.points import points, ranked
from tests.calibration.stream_points import stream_points

if TYPE_CHECKING:
    import torch

LAUNCHES = 12
REST_SECONDS = 0.1
SEED = 1


class Bench(Protocol):
    """What measures: one shape at a time, cuBLAS first."""

    def begin(self, case: Case) -> float | None:
        """Data for a shape; microseconds of cuBLAS, None if it refuses."""
        ...

    def us(self, kernel: CompiledKernel) -> float | None:
        """Microseconds of a kernel, None if its result is not that of the shape's first kernel."""
        ...


@dataclass
class Gpu:
    """Times on the current device: the median of `launches` with a cold L2."""

    launches: int
    case: Case | None = None
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    expected: torch.Tensor | None = None

    def begin(self, case: Case) -> float | None:
        from gemmir.backends.reference import random_inputs
        from gemmir.ir_text import parse_module

        self.case, self.expected = case, None
        self.inputs.clear()
        self.inputs |= random_inputs(parse_module(case.text), case.m, SEED, "cuda")
        make = PEERS["cublas"].maker(case.dtype)
        assert make is not None
        try:
            return self._time(prepared(make, self.inputs))
        except Refusal:
            return None

    def us(self, kernel: CompiledKernel) -> float | None:
        import torch

        assert self.case is not None
        tensors = tuple(self.inputs.values())
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[kernel.manifest.output.dtype]
        out = torch.full((self.case.m, self.case.n), torch.nan, dtype=dtype, device="cuda")
        kernel(*tensors, out=out)
        if self.expected is None:
            self.expected = out.clone()
        if out.isnan().any() or not torch.equal(out.view(torch.int16), self.expected.view(torch.int16)):
            return None
        return self._time(lambda: kernel(*tensors, out=out))

    def _time(self, launch: Callable[[], object]) -> float:
        return statistics.median(kernel_us(launch, self.launches, REST_SECONDS))


@dataclass
class Found:
    """What was measured so far, and which points gave other bits than the shape's first."""

    peers: dict[Case, float] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    faults: list[Point] = field(default_factory=list)


def measure(
    kernels: Sequence[tuple[Point, CompiledKernel]], bench: Bench, going: Callable[[], bool], found: Found
) -> None:
    """Fill `found`, shape by shape, while `going()`. Points come with complete schedules, each once."""
    case: Case | None = None
    for point, kernel in kernels:
        if not going():
            return
        if point.case != case:
            case = point.case
            if (peer := bench.begin(case)) is not None:
                found.peers[replace(case, split_k=1)] = peer
        if (us := bench.us(kernel)) is None:
            found.faults.append(point)
        else:
            found.measurements.append(Measurement(point, us))


def compiled(
    wanted: Sequence[Point], compile_one: Callable[[Point], CompiledKernel]
) -> list[tuple[Point, CompiledKernel]]:
    """Each point with its complete schedule and its kernel, duplicates dropped; a refusal is told on stderr."""

    def build(point: Point) -> tuple[Point, CompiledKernel] | None:
        try:
            kernel = compile_one(point)
        except GemmirError as error:
            sys.stderr.write(f"{point}: {error}\n")
            return None
        return Point(point.case, complete(kernel.manifest.schedule)), kernel

    with ThreadPoolExecutor() as pool:
        built = [pair for pair in pool.map(build, wanted) if pair is not None]
    return list({point: (point, kernel) for point, kernel in reversed(built)}.values())[::-1]


def complete(schedule: str) -> str:
    """What stands between the brackets of the schedule that a manifest holds."""
    return schedule.partition("<")[2].rpartition(">")[0]


def compile_point(point: Point) -> CompiledKernel:
    case = point.case
    return compile(program_text(case.n, case.k, case.dtype, point.schedule, case.split_k), m=case.m)


def wanted(args: argparse.Namespace) -> list[Point]:
    """The points that the arguments name, those of one shape together."""
    if args.stream:
        return stream_points()
    if args.ranked is not None:
        return ranked(args.ranked)
    if args.points is None:
        return points()
    again = [m.point for series in load(tuple(args.points)) for m in series.measurements]
    shapes = list(dict.fromkeys(point.case for point in again))
    return sorted(again, key=lambda point: shapes.index(point.case))


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 if a kernel's bits differed. Raises `DeviceError` without a Hopper GPU."""
    from gemmir.bench.measure import machine, require_gpu

    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m tests.calibration.measure", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--stream", action="store_true", help="kernels for few rows")
    which.add_argument("--ranked", type=positive, metavar="N", help="the first N tiles of drawn and dense products")
    which.add_argument("--points", type=Path, nargs="+", metavar="FILE", help="those that were measured before")
    parser.add_argument("--budget", type=float, default=600.0, metavar="SECONDS", help="in all (default: 600)")
    parser.add_argument("--launches", type=positive, default=LAUNCHES, metavar="N")
    args = parser.parse_args(arguments)
    info = require_gpu()
    check_destination(args.json)
    kernels = compiled(wanted(args), compile_point)
    sys.stderr.write(f"{len(kernels)} kernels after {time.monotonic() - began:.0f} s\n")
    found = Found()
    try:
        measure(kernels, Gpu(args.launches), lambda: time.monotonic() - began < args.budget, found)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
    flushed = f"L2 flushed before each by zeroing {FLUSH_BYTES // 1_000_000} MB"
    method = f"torch's profiler, median of {args.launches} launches, {flushed}"
    series = Series(info.name, method, machine(info), found.peers, tuple(found.measurements))
    publish(args.json, write(series).encode())
    sys.stderr.write(f"{len(found.measurements)} of {len(kernels)} measured in {time.monotonic() - began:.0f} s\n")
    for point in found.faults:
        sys.stderr.write(f"OTHER BITS: {point}\n")
    return 1 if found.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
