"""How long one run of the CUDA compiler may take: a number of seconds in the environment."""

from __future__ import annotations

import os

from gemmir.errors import InputError

VARIABLE = "GEMMIR_COMPILE_TIMEOUT"
SECONDS = 300
"""A hundred times what the slowest kernel takes."""
MOST_SECONDS = 24 * 3600


def compile_timeout() -> int | None:
    """Seconds: GEMMIR_COMPILE_TIMEOUT, else 300; None, for no limit, if it is 0. `InputError` (GMR-I009) otherwise."""
    if not (text := os.environ.get(VARIABLE, "")):
        return SECONDS
    if text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= MOST_SECONDS:
        return int(text) or None
    rule = f"whole seconds, at most {MOST_SECONDS}; 0 for no limit"
    raise InputError("GMR-I009", f"{VARIABLE}={text:.40}", rule=rule, fix=f"leave it out for {SECONDS}")
