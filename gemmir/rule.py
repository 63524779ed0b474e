"""What a rule about schedules is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule
from gemmir.target import Target


@dataclass(frozen=True, slots=True)
class Violation:
    """What breaks a rule, with its arithmetic, the rule and the cheapest fix."""

    code: str
    what: str
    rule: str
    fix: str


Rule = Callable[[GemmProblem, Schedule, Target], Violation | None]


def missing(schedule: Schedule, *names: str) -> bool:
    """Whether a choice among `names` is still open."""
    return any(getattr(schedule, name) is None for name in names)
