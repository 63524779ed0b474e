"""
Why a kernel is as it is: every pass says what it chose, from which numbers, and what came second.

Passes call `record`; whoever wants the explanations collects them:

    with collect() as decisions:
        pipeline.apply(ctx, module)
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

logger = logging.getLogger("gemmir.decisions")


@dataclass(frozen=True, slots=True)
class Decision:
    """
    One choice of one pass.

    `subject` is what was chosen (e.g. "block"), `choice` its value as text, `because` the numbers behind it,
    `runner_up` the next best and what it would have cost, or "" where there was no alternative.
    """

    by: str
    subject: str
    choice: str
    because: str
    runner_up: str = ""

    def __str__(self) -> str:
        second = f"; next best: {self.runner_up}" if self.runner_up else ""
        return f"{self.subject} = {self.choice}: {self.because}{second}"


@dataclass(frozen=True, slots=True)
class Terms:
    """
    How a time was predicted for a tile, `block`.

    `lines` has each term's name with its unit, and its value, in the order in which they are put together.
    """

    block: str
    lines: tuple[tuple[str, str], ...]


_collector: ContextVar[list[Decision] | None] = ContextVar("gemmir_decisions", default=None)


def record(decision: Decision) -> None:
    """Report a decision to the collector in force, if any, and to the log at level INFO."""
    logger.info("%s: %s", decision.by, decision)
    if (collected := _collector.get()) is not None:
        collected.append(decision)


@contextmanager
def collect() -> Generator[list[Decision]]:
    """Collect what is recorded inside the `with` block, in order."""
    decisions: list[Decision] = []
    token = _collector.set(decisions)
    try:
        yield decisions
    finally:
        _collector.reset(token)
