"""The strategies of `gemmir.testing.strategies`, under the name by which the tests know them."""

from gemmir.testing.strategies import (
    completed,
    fp8_problem,
    half_problem,
    legal_schedules,
    nearly_legal_schedules,
    placed_schedules,
    problems,
    sliced_schedules,
)

__all__ = [
    "completed",
    "fp8_problem",
    "half_problem",
    "legal_schedules",
    "nearly_legal_schedules",
    "placed_schedules",
    "problems",
    "sliced_schedules",
]
