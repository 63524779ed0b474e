"""Dataclasses of shared methods behave as the standard library's, and are defined in a fraction of the time."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from typing import Any

import pytest

from gemmir import records
from gemmir.manifest import PointerParam, TensorMapParam, TensorSpec

SPEC = TensorSpec("x", "bf16", (None, 64), (0, 1))


def both(**options: bool) -> list[Any]:
    """One class of each kind, alike but for who defined it."""

    def define(dataclass: Callable[..., Any]) -> Any:
        @dataclass(**options)
        class Point:
            x: int
            y: int = 2
            seen: list[int] = field(default_factory=list[int], compare=False, repr=False)

        return Point

    return [define(records.dataclass), define(dataclasses.dataclass)]


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("eq", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_instances_behave_as_the_standard_librarys(frozen: bool, eq: bool, slots: bool):
    ours, theirs = both(frozen=frozen, eq=eq, slots=slots)
    seen = []
    for Point in (ours, theirs):
        one, same, other = Point(1), Point(x=1, y=2, seen=[3]), Point(1, 3)
        moved = dataclasses.replace(one, x=5)
        named = [f.name for f in dataclasses.fields(Point)]
        hashed = Point.__hash__ is not None and (hash(one) == hash(same)) is eq
        facts = [repr(one), one == same, one == other, one != other, one == (1, 2), hashed, repr(moved), named]
        match one:
            case Point(1, y=y):
                facts.append(y)
            case _:
                facts.append("no match")
        seen.append([*facts, dataclasses.asdict(one), hasattr(one, "__dict__"), str(inspect.signature(Point))])
    mine, standard = seen
    assert mine[:-1] == standard[:-1]
    assert mine[-1] == "(x: 'int', y: 'int' = 2, seen: 'list[int]' = Ellipsis)"


@pytest.mark.parametrize("arguments", [((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 2}), ((1,), {"z": 2})])
def test_wrong_arguments_are_refused_as_there(arguments: tuple[tuple[Any, ...], dict[str, Any]]):
    values, named = arguments
    for Point in both(frozen=True, slots=True):
        with pytest.raises(TypeError, match="argument"):
            Point(*values, **named)


def test_what_is_frozen_stays_as_it_is():
    with pytest.raises(FrozenInstanceError, match="'name'"):
        SPEC.name = "y"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(FrozenInstanceError, match="'name'"):
        del SPEC.name
    assert SPEC.name == "x"
    assert PointerParam(1) != TensorMapParam(1, (64, 64), 128)
    assert len({SPEC, TensorSpec("x", "bf16", (None, 64), (0, 1))}) == 1


def test_copies_are_equal():
    for copied in (copy.copy(SPEC), copy.deepcopy(SPEC), pickle.loads(pickle.dumps(SPEC))):
        assert copied == SPEC
        assert copied is not SPEC


def test_a_factory_makes_one_for_each_instance_and_post_init_runs():
    @records.dataclass(slots=True)
    class Sums:
        values: list[int] = field(default_factory=list[int])
        total: int = 0

        def __post_init__(self) -> None:
            self.total = sum(self.values)

    one, two = Sums(), Sums([1, 2])
    assert (one.total, two.total) == (0, 3)
    one.values.append(1)
    assert Sums().values == []
    two.total = 7
    assert two.total == 7
    assert Sums.__doc__ == "Sums"


def seconds(define: Callable[[], object]) -> float:
    """Processor time of the fastest of several tries."""
    times: list[float] = []
    for _ in range(9):
        start = time.process_time()
        for _ in range(20):
            define()
        times.append(time.process_time() - start)
    return min(times)


def test_a_definition_takes_less_than_half_of_the_standard_librarys():
    def by(dataclass: Callable[..., Any]) -> Callable[[], object]:
        def define() -> object:
            @dataclass(frozen=True, slots=True)
            class Box:
                tensor: int
                box: tuple[int, int]
                swizzle: int
                addend: bool = False

            return Box

        return define

    assert seconds(by(records.dataclass)) < 0.5 * seconds(by(dataclasses.dataclass))


def test_what_finds_and_launches_a_kernel_defines_none_of_the_standard_librarys():
    program = """
import dataclasses, json, sys, torch
slow, real = [], dataclasses.dataclass
def dataclass(cls=None, **options):
    def define(cls):
        if options.get("init", True) and cls.__module__.startswith("gemmir"):
            slow.append(f"{cls.__module__}.{cls.__qualname__}")
        return real(**options)(cls)
    return define if cls is None else define(cls)
dataclasses.dataclass = dataclass
import gemmir.ops, gemmir.compiler, gemmir.backends.cuda.launch, gemmir.backends.cuda.nvrtc
print(json.dumps(slow))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
