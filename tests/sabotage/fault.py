"""What a planted fault is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.sabotage.kernels import Change

Catcher = Literal["checker", "verifier", "simulator"]
"""
Who must find it: `hopper-check-sync`, the verifiers of the ops, or a run of the kernel on exact data.

The simulator is for faults that are no faults of synchronisation: the kernel runs, and computes something else.
"""


@dataclass(frozen=True)
class Fault:
    """A change of a correct kernel that breaks it. `rule` is what the checker must name, "" for the others."""

    name: str
    kernel: str
    what: str
    caught_by: Catcher
    rule: str
    plant: Change


class Collection:
    """The faults of one file, in order."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def add(self, *kernels: str, rule: str = "", caught_by: Catcher = "checker") -> Callable[[Change], Change]:
        """Plant the decorated function in each of `kernels`; its docstring says what it breaks."""

        def register(plant: Change) -> Change:
            what = (plant.__doc__ or "").strip().rstrip(".")
            assert what, f"{plant.__name__} says nothing"
            name = plant.__name__.replace("_", "-")
            self.faults += [Fault(name, kernel, what, caught_by, rule, plant) for kernel in kernels]
            return plant

        return register
