"""
Fits the constants of the model of the `stream` family to measurements, and says how well it does.

    python -m tests.calibration.fit_stream [FILE ...]

As `tests.calibration.fit`: least squares of log(predicted / measured), pulled towards round numbers. DRAM is that of
the device that was measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from gemmir.bench.cases import Case
from gemmir.passes.cost_model import predict_stream
from gemmir.passes.stream_model import STREAM, StreamConstants
from gemmir.passes.stream_search import rank
from tests.calibration.data import STREAM_FILES, Measurement, Series, load
from tests.calibration.fit import PULL, least_squares, target_of

FITTED = {
    "load_bytes_per_clock": 60.0,
    "l2_bytes_per_clock": 4000.0,
    "load_latency": 1500.0,
    "least_instruction_columns": 32.0,
    "promoted_chain": 150.0,
    "promoted_chain_per_row": 1.5,
    "promoted_wave_order": 1.0,
    "in_place_chain": 60.0,
    "overlap_order": 2.0,
    "load_order": 4.0,
    "tile_clocks": 800.0,
    "leaving_clocks_per_element": 0.2,
    "gather_clocks": 500.0,
    "gather_clocks_per_element": 0.3,
    "again_clocks": 80.0,
    "crowded_share": 0.2,
    "uneven_share": 0.1,
    "dram_efficiency": 0.9,
    "dram_order": 4.0,
    "launch_seconds": 3.5e-6,
}
"""Constants that the data can tell, and where the search for them begins."""


NEAR, FAR = 1.15, 0.4
"""How much slower than the fastest is near it, and how much a point counts that is not."""


def errors(data: Sequence[Series], constants: StreamConstants = STREAM) -> np.ndarray:
    """log(predicted / measured) of each point of each series."""
    found = [
        predict_stream(*m.parsed(), target, constants).microseconds / m.us
        for series in data
        for target in (target_of(series.device),)
        for m in series.measurements
    ]
    return np.log(np.array(found))


def weights_of(data: Sequence[Series]) -> np.ndarray:
    """What is `NEAR` the fastest point of its shape counts whole, the rest `FAR`: it only has to stay behind."""
    fastest: dict[tuple[str, Case], float] = {}
    for series in data:
        for m in series.measurements:
            key = (series.device, replace(m.point.case, split_k=1))
            fastest[key] = min(m.us, fastest.get(key, m.us))
    near = [
        m.us < NEAR * fastest[series.device, replace(m.point.case, split_k=1)]
        for series in data
        for m in series.measurements
    ]
    return np.where(near, 1.0, FAR)


def fitted(data: Sequence[Series], start: Mapping[str, float] = FITTED) -> StreamConstants:
    begin = np.log(np.array(list(start.values())))

    def at(x: np.ndarray) -> StreamConstants:
        return replace(STREAM, **dict(zip(start, np.exp(x).tolist(), strict=True)))

    weights = weights_of(data)

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.concatenate([weights * errors(data, at(x)), PULL * (x - begin)])

    return at(least_squares(residuals, begin))


@cache
def fitted_to(paths: tuple[Path, ...]) -> StreamConstants:
    """The constants that all of the measurements in some files give, found once."""
    return fitted(load(paths))


def regrets(data: Sequence[Series], constants: StreamConstants = STREAM) -> dict[tuple[str, Case], float]:
    """By how much the point that the model ranks first takes longer than the fastest, for each case on each device."""
    groups: dict[tuple[str, Case], list[tuple[float, Measurement]]] = {}
    for series in data:
        target = target_of(series.device)
        for m in series.measurements:
            us = predict_stream(*m.parsed(), target, constants).microseconds
            groups.setdefault((series.device, m.point.case), []).append((us, m))
    return {
        group: first_of(points).us / min(m.us for _, m in points) - 1
        for group, points in groups.items()
        if len(points) > 1
    }


def first_of(points: Sequence[tuple[float, Measurement]]) -> Measurement:
    """What the search ranks first of some points, of which each comes with its predicted microseconds."""
    best = min(us for us, _ in points)
    return min(points, key=lambda p: rank(*p[1].parsed(), p[0] / best - 1))[1]


def report(data: Sequence[Series], found: StreamConstants) -> str:
    lines = [f"{name:28s} {getattr(STREAM, name):12.4g} -> {getattr(found, name):12.4g}" for name in FITTED]
    for label, constants in (("old", STREAM), ("new", found)):
        off = np.expm1(errors(data, constants))
        worst = f"worst {off.min():+.1%} and {off.max():+.1%}"
        lines.append(f"{len(off)} points, {label}: mean error {np.mean(np.abs(off)):.2%}, {worst}")
    found_regrets = regrets(data, found)
    lines += [f"regret {regret:6.2%} {device}, {case}" for (device, case), regret in found_regrets.items() if regret]
    values = list(found_regrets.values())
    return "\n".join([*lines, f"regret: mean {np.mean(values):.2%}, worst {max(values):.2%}"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.calibration.fit_stream", description=__doc__)
    help_ = "default: the committed ones"
    parser.add_argument("files", nargs="*", type=Path, default=STREAM_FILES, metavar="FILE", help=help_)
    files = tuple(parser.parse_args(arguments).files)
    sys.stdout.write(report(load(files), fitted_to(files)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
