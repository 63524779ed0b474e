"""
What the deciding passes share: they read a problem and its schedule off the module, and fill open choices in.
"""

from __future__ import annotations

from enum import Enum
from typing import NoReturn, TypeVar

from xdsl.dialects.builtin import ModuleOp

from gemmir.dialects.gemm import ProductOp, problem_of, schedule_of, set_schedule, the_matmul
from gemmir.errors import InputError, ScheduleError
from gemmir.legality import check_schedule
from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule

Named = TypeVar("Named", bound=Enum)

TILE = ("block_m", "block_n", "math_warpgroups", "split")
"""The choices that say what a tile is and who computes it."""


def read_schedule(module: ModuleOp) -> tuple[ProductOp, GemmProblem, Schedule]:
    """The product of a module, what it computes and what is chosen about it so far."""
    matmul = the_matmul(module)
    return matmul, problem_of(matmul), schedule_of(matmul)


def write_schedule(matmul: ProductOp, problem: GemmProblem, schedule: Schedule) -> None:
    """Attach `schedule`; `ScheduleError` with the arithmetic if it breaks a rule."""
    check_schedule(problem, schedule)
    if schedule != schedule_of(matmul):
        set_schedule(matmul, schedule)


def need_tile(pass_name: str, schedule: Schedule, rule: str) -> None:
    """`ScheduleError` (GMR-S005) if the tile, or who computes it, is still open, which `rule` says is needed."""
    if missing := [name for name in TILE if getattr(schedule, name) is None]:
        raise ScheduleError(
            "GMR-S005",
            f"{pass_name}: {', '.join(missing)} open",
            rule=rule,
            fix="run gemm-select-blocks before",
        )


def named_option(pass_name: str, option: str, value: str, kind: type[Named]) -> Named:
    """The member of `kind` that an option of a pass names as the IR does; `InputError` (GMR-I009) if there is none."""
    names = [member.value for member in kind]
    if value not in names:
        bad_option(pass_name, option, value, f"one of {', '.join(names)}")
    return kind(value)


def bad_option(pass_name: str, option: str, value: object, rule: str) -> NoReturn:
    """Refuse an option of a pass: `InputError` (GMR-I009)."""
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    raise InputError("GMR-I009", f"{pass_name}: {option}={shown[:40]}", rule=rule, fix=f"leave {option} out")
