"""One finding of `gemmir doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "limited", "missing"]
Need = Literal["everything", "compiling", "running", "looking", "completion"]


@dataclass(frozen=True, slots=True)
class Check:
    """
    What was looked at, how it is, and what was found.

    "limited": it is there and works, but not for all that it is for. `needed_for`: what fails without it. `fix` is
    empty where all is well.
    """

    name: str
    status: Status
    value: str
    needed_for: Need
    fix: str = ""

    @property
    def stops_compiling(self) -> bool:
        return self.status == "missing" and self.needed_for in ("everything", "compiling")
