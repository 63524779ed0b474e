"""The strategies of `gemmir.testing.strategies`, under the name by which the tests know them."""

from gemmir.testing.strategies import (
    fp8_problem,
    half_problem,
    legal_schedules,
    nearly_legal_schedules,
    placed_schedules,
    problems,
)

__all__ = [
    "fp8_problem",
    "half_problem",
    "legal_schedules",
    "nearly_legal_schedules",
    "placed_schedules",
    "problems",
]
