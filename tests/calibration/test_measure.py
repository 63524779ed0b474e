"""The measuring script without a GPU: what is compiled, measured, told, and written when the budget ends."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gemmir.bench.cases import Case
from gemmir.errors import DeviceError
from gemmir.kernel import CompiledKernel
from gemmir.legality import is_legal
from gemmir.passes.block_search import search
from gemmir.schedule import Family, Schedule
from tests.calibration.data import Measurement, Point, Series, write
from tests.calibration.measure import Found, compile_point, compiled, complete, main, measure, wanted
from tests.calibration.points import first_tiles

SMALL, OTHER = Case("f8E4M3FN", 64, 256, 256), Case("bf16", 64, 256, 256)
TILE = "block = 64x64x128, warpgroups = 1 along m"


@dataclass
class Counting:
    """A bench whose kernels take as many microseconds as were measured before; `wrong` of them differ."""

    wrong: tuple[int, ...] = ()
    begun: list[Case] = field(default_factory=list)
    timed: int = 0

    def begin(self, case: Case) -> float | None:
        self.begun.append(case)
        return 2.0 if case == SMALL else None

    def us(self, kernel: CompiledKernel) -> float | None:
        self.timed += 1
        return None if self.timed in self.wrong else float(self.timed)


@pytest.fixture(scope="module")
def kernels() -> list[tuple[Point, CompiledKernel]]:
    wanted = [
        Point(SMALL, TILE),
        Point(SMALL, TILE + ", cluster = 1x1"),
        Point(SMALL, TILE + ", stages = 2"),
        Point(OTHER, "block = 64x64x64"),
    ]
    return compiled(wanted, compile_point)


def test_schedules_are_completed_and_duplicates_dropped(kernels: list[tuple[Point, CompiledKernel]]):
    assert [point.case for point, _ in kernels] == [SMALL, SMALL, OTHER]
    for point, kernel in kernels:
        problem, schedule = point.parsed()
        assert schedule.complete
        assert is_legal(problem, schedule)
        assert complete(kernel.manifest.schedule) == point.schedule
    assert kernels[1][0].parsed()[1].num_stages == 2


def test_a_refusal_is_told_and_left_out(capsys: pytest.CaptureFixture[str]):
    assert compiled([Point(SMALL, "block = 64x64x64")], compile_point) == []
    assert "64x256x256: block = 64x64x64: GMR-S003" in capsys.readouterr().err


def test_each_shape_begins_once_and_other_bits_are_no_measurement(kernels: list[tuple[Point, CompiledKernel]]):
    bench, found = Counting(wrong=(2,)), Found()
    measure(kernels, bench, lambda: True, found)
    points = [point for point, _ in kernels]
    assert bench.begun == [SMALL, OTHER]
    assert found.peers == {SMALL: 2.0}
    assert found.measurements == [Measurement(points[0], 1.0), Measurement(points[2], 3.0)]
    assert found.faults == [points[1]]


def test_what_was_measured_before_the_budget_ended_stays(kernels: list[tuple[Point, CompiledKernel]]):
    going: Iterator[bool] = iter([True, True, False])
    found = Found()
    measure(kernels, Counting(), lambda: next(going), found)
    assert [m.us for m in found.measurements] == [1.0, 2.0]


def test_points_that_were_measured_before_are_the_same_ones_again(tmp_path: Path):
    once = [Point(OTHER, "block = 64x64x64"), Point(SMALL, TILE), Point(OTHER, "block = 128x64x64")]
    old = Series("NVIDIA H200", "", {}, {}, tuple(Measurement(point, 1.0) for point in once))
    (file := tmp_path / "old.json").write_text(write(old))
    assert wanted(Namespace(stream=False, ranked=None, points=[file])) == [once[0], once[2], once[1]]


def test_what_is_ranked_first_comes_first():
    points = list(first_tiles(SMALL, 3))
    blocks = [(s.block_m, s.block_n) for _, s in (point.parsed() for point in points)]
    assert len(set(blocks)) == len(blocks) == 3
    best = search(Point(SMALL, "").parsed()[0], Schedule(family=Family.TILES)).best.schedule
    assert blocks[0] == (best.block_m, best.block_n)


def test_without_a_gpu_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch):
    def refuse(device: int) -> None:
        raise DeviceError("GMR-D001", "no GPU")

    monkeypatch.setattr("gemmir.backends.cuda.driver.require_hopper", refuse)
    with pytest.raises(DeviceError):
        main(["--json", "out.json"])
