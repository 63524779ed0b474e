"""Whether kernels are watched while they run, and how long they may wait: an option of compiling, off by default."""

from __future__ import annotations

import os

from gemmir.errors import InputError

VARIABLE = "GEMMIR_WATCHDOG_MS"
MOST_MS = 600_000


def watchdog_limit(asked: int | None = None) -> int | None:
    """
    Milliseconds after which a wait inside a kernel is taken for a hang; None: nothing watches.

    `asked` counts, or where it is None GEMMIR_WATCHDOG_MS; 0 switches it off. `InputError` (GMR-I009) unless it is a
    whole number of at most ten minutes.
    """
    if asked is not None:
        return _checked(asked, f"watchdog_ms = {asked!r:.40}")
    if not (text := os.environ.get(VARIABLE, "")):
        return None
    short = text.isascii() and text.isdecimal() and len(text) <= len(str(MOST_MS))
    return _checked(int(text) if short else -1, f"{VARIABLE}={text:.40}")


def _checked(value: object, what: str) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_MS:
        rule = f"milliseconds that a wait may last, at most {MOST_MS}; 0 for no watchdog"
        raise InputError("GMR-I009", what, rule=rule, fix="1000 is far longer than any kernel waits")
    return value or None
