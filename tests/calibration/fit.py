"""
Fits the constants of the cost model to measurements, and says how well it does.

    python -m tests.calibration.fit [FILE ...]

Least squares of log(predicted / measured), by Gauss-Newton with damping from round numbers. A weak pull towards them
leaves alone what the data say nothing about; where the search begins does not depend on the constants that are there,
so that the same data give the same constants. Machines differ: DRAM as `gemmir.target` says, the rest by one factor for
each, fitted too; an H200 is 1. Prints old and new constants, errors, and the regret of each shape.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np

from gemmir.bench.cases import Case
from gemmir.legality import most_stages
from gemmir.passes import l2_model
from gemmir.passes.cost_constants import DEFAULT, Constants
from gemmir.passes.cost_model import predict
from gemmir.passes.scale_slots import scale_slots_of, with_scales_at_once
from gemmir.target import PEAK_DRAM_BYTES_PER_SECOND, SM_90A, Target
from gemmir.tile import fitting_stages
from tests.calibration.data import FILES, Measurement, Series, load

REFERENCE = "NVIDIA H200"
"""The device whose constants these are."""

FITTED = {
    "wave_latency": 260.0,
    "in_place_bubble": 1000.0,
    "in_place_wave": 0.05,
    "in_place_three": 1.02,
    "in_place_shallow": 0.02,
    "chunk_bubble": 800.0,
    "three_warpgroups": 1.2,
    "operand_order": 6.0,
    "spread_a": 0.08,
    "spread_b": 0.16,
    "l2_efficiency": 1.04,
    "overlap_order": 20.0,
    "hinted_loads": 0.8,
    "fill_clocks": 2.5,
    "in_place_fill_clocks": 4.0,
    "scales_by_producer": 100.0,
    "scales_by_warp": 80.0,
    "scales_at_once": 40.0,
    "scales_of_tile": 20.0,
    "dram_overlap_order": 4.0,
    "l2_reuse_bytes": 40e6,
    "l2_reuse_order": 2.5,
    "l2_dirty_bytes": 15e6,
    "store_row_clocks": 3.0,
    "sliced_store_exposed": 0.2,
    "in_place_store_exposed": 0.5,
    "in_place_slice_exposed": 0.15,
    "cold_seconds_per_byte": 6e-14,
    "launch_seconds": 4e-6,
    "l2_drop_hz": 50e6,
    "dram_drop_hz": 0.05e9,
    "sustained_drop_hz": 30e6,
}
"""Constants that the data can tell, and where the search for them begins; positive, fitted as logarithms."""

PULL = 0.08
"""Moving a constant by e costs as much as so much error of one point."""

STEP = 1e-3
"""Of a logarithm, for differences."""

LARGEST_MOVE = 0.5
"""Of a logarithm in one iteration."""

ENOUGH = 1e-6
"""A gain of this share of the sum of squares ends the fit."""

FEW_ROWS, FILLED = 256, 0.2
"""
Up to how many rows a point of 16-bit operands counts so much whose last tile TMA fills up with zeros: what such rows
cost is seen in the errors, but no term says it well, and the other family computes these products.
"""

Group = tuple[str, Case, bool]
"""Device, product, and whether it was measured since a schedule says who fills in scales."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Constants, and by which factor each device takes longer than an H200."""

    constants: Constants
    machines: dict[str, float]


@dataclass(frozen=True, slots=True)
class Choice:
    """
    Of the measured schedules of a shape: the one that the model ranks first, and the fastest. `regret` is by how much
    the first takes longer.
    """

    group: Group
    chosen: Measurement
    fastest: Measurement

    @property
    def regret(self) -> float:
        return self.chosen.us / self.fastest.us - 1


def target_of(device: str) -> Target:
    """`SM_90A` with the DRAM of a device in `gemmir.target`."""
    share = PEAK_DRAM_BYTES_PER_SECOND[device] / PEAK_DRAM_BYTES_PER_SECOND[REFERENCE]
    return replace(SM_90A, dram_bytes_per_second=SM_90A.dram_bytes_per_second * share)


def predictions(series: Series, fit: Fit) -> np.ndarray:
    """Microseconds of each measured point."""
    target, factor = target_of(series.device), fit.machines.get(series.device, 1.0)
    costs = [predict(*m.parsed(), target, fit.constants) for m in series.measurements]
    return factor * np.array([cost.microseconds for cost in costs])


def errors(data: Sequence[Series], fit: Fit) -> np.ndarray:
    """log(predicted / measured) of each point of each series."""
    measured = np.array([m.us for series in data for m in series.measurements])
    return np.log(np.concatenate([predictions(series, fit) for series in data]) / measured)


def weights_of(data: Sequence[Series]) -> np.ndarray:
    """How much each point counts: see `FILLED`."""
    weights: list[float] = []
    for measurement in (m for series in data for m in series.measurements):
        problem, schedule = measurement.parsed()
        few = not problem.promoted and problem.group_rows <= FEW_ROWS
        weights.append(FILLED if few and problem.group_rows % (schedule.block_m or 1) else 1.0)
    return np.array(weights)


def follows_the_rule(measurement: Measurement) -> bool:
    """Whether scales are loaded as the passes would have it: by a rule, which the model is not asked about."""
    problem, schedule = measurement.parsed()
    left_open = replace(schedule, scale_batch=None, scale_slots=None, num_stages=None)
    if (at_once := with_scales_at_once(problem, left_open).scale_slots) is not None:
        return schedule.scale_slots == at_once
    stages = min(fitting_stages(problem, left_open), most_stages(left_open))
    return (schedule.scale_slots or 0) == scale_slots_of(problem, left_open, stages)[0]


def choices(data: Sequence[Series], fit: Fit) -> list[Choice]:
    """
    One for each group with more than one schedule: what the model ranks first of those whose scales are loaded as the
    passes would have it (of older ones: of all), against the fastest of all.
    """
    groups: dict[Group, list[tuple[float, Measurement]]] = {}
    for series in data:
        for us, m in zip(predictions(series, fit), series.measurements, strict=True):
            since = "scale_slots" in m.point.schedule
            groups.setdefault((series.device, m.point.case, since), []).append((float(us), m))
    found: list[Choice] = []
    for group, points in groups.items():
        ranked = [point for point in points if not group[-1] or follows_the_rule(point[1])]
        if ranked and len(points) > 1:
            fastest = min((m for _, m in points), key=lambda m: m.us)
            found.append(Choice(group, min(ranked, key=lambda p: p[0])[1], fastest))
    return found


def fitted(
    data: Sequence[Series],
    start: Mapping[str, float] = FITTED,
    constants: Constants = DEFAULT,
    iterations: int = 40,
    near: Fit | None = None,
) -> Fit:
    """
    `constants`, but those in `start`, and a factor for each device but `REFERENCE`, as they meet the data best.

    `near`: where the search begins instead of at `start`, to which constants are pulled all the same.
    """
    devices = sorted({series.device for series in data} - {REFERENCE})
    begin = np.array([*(np.log(value) for value in start.values()), *(0.0 for _ in devices)])
    first = begin
    if near is not None:
        first = np.log([*(getattr(near.constants, name) for name in start), *(near.machines[d] for d in devices)])

    def at(x: np.ndarray) -> Fit:
        values = {name: float(np.exp(v)) for name, v in zip(start, x, strict=False)}
        factors = dict(zip(devices, np.exp(x[len(start) :]).tolist(), strict=True))
        return Fit(replace(constants, **values), factors)

    weights = weights_of(data)

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.concatenate([weights * errors(data, at(x)), PULL * (x - begin)])

    with waves_counted_once():
        return at(least_squares(residuals, first, iterations))


@contextmanager
def waves_counted_once() -> Generator[None]:
    """What waves of tiles read depends on no constant, and counting it is most of what a prediction takes."""
    count = l2_model._waves
    counted = cache(lambda *order: tuple(count(*order)))
    with patch.object(l2_model, "_waves", counted):
        yield


def least_squares(residuals: Callable[[np.ndarray], np.ndarray], begin: np.ndarray, iterations: int = 40) -> np.ndarray:
    """Where the sum of squares of `residuals` is least, by Gauss-Newton with damping from `begin`, in logarithms."""
    x, residual, damping = begin, residuals(begin), 1e-2
    if not x.size:
        return x
    for _ in range(iterations):
        steps = np.eye(len(x)) * STEP
        jacobian = np.stack([(residuals(x + step) - residual) / STEP for step in steps], axis=1)
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ residual
        before = residual @ residual
        for _ in range(10):
            move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
            there = x + np.clip(move, -LARGEST_MOVE, LARGEST_MOVE)
            found = residuals(there)
            if found @ found < before:
                x, residual, damping = there, found, damping / 3
                break
            damping *= 4
        if before - residual @ residual < ENOUGH * before:
            break
    return x


def report(data: Sequence[Series], old: Fit, new: Fit) -> str:
    """Constants before and after, errors by device, and the regret of each shape with the new ones."""
    lines = [
        f"{name:24s} {getattr(old.constants, name):12.4g} -> {getattr(new.constants, name):12.4g}" for name in FITTED
    ]
    lines += [f"{device}: times x {factor:.3f}" for device, factor in new.machines.items()]
    for series in data:
        for label, fit in (("old", old), ("new", new)):
            off = np.expm1(errors([series], fit))
            lines.append(
                f"{series.device}, {len(off)} points, {label}: mean error {np.mean(np.abs(off)):.2%}, "
                f"worst {off.min():+.1%} and {off.max():+.1%}"
            )
    for choice in choices(data, new):
        device, case, _ = choice.group
        lines.append(f"regret {choice.regret:6.2%} {device}, {case}: {choice.chosen.point.schedule}")
        if choice.regret > 0:
            lines.append(f"              fastest: {choice.fastest.point.schedule}")
    regrets = [choice.regret for choice in choices(data, new)]
    lines.append(f"regret: mean {np.mean(regrets):.2%}, worst {max(regrets):.2%}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.calibration.fit", description=__doc__)
    parser.add_argument(
        "files", nargs="*", type=Path, default=FILES, metavar="FILE", help="default: the committed ones"
    )
    parser.add_argument("--keep", action="store_true", help="keep the constants, fit the machines' factors only")
    args = parser.parse_args(arguments)
    data = load(tuple(args.files))
    old = fitted(data, {})
    sys.stdout.write(report(data, old, old if args.keep else fitted(data)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
