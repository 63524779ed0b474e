"""The PTX wrappers that a kernel may use: read from `FILES`, emitted with what they need and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

FILES = ("prelude.cuh", "prelude_stream.cuh", "prelude_groups.cuh", "prelude_split_k.cuh", "prelude_watchdog.cuh")
"""Where wrappers are; those of a later file may need those of an earlier one."""

WATCHED = "watched_"
"""What the name of a wait of the watchdog begins with; the rest is that of the wait whose place it takes."""

_HEADER = re.compile(r"^//@ (\w+):(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Section:
    """One wrapper: its text and the names of the sections that it needs."""

    name: str
    needs: tuple[str, ...]
    text: str


@cache
def sections() -> dict[str, Section]:
    """All sections in file order, by name."""
    folder = files("gemmir.backends.cuda")
    source = "\n".join(folder.joinpath(name).read_text(encoding="ascii") for name in FILES)
    headers = list(_HEADER.finditer(source))
    ends = [h.start() for h in headers[1:]] + [len(source)]
    return {
        h[1]: Section(h[1], tuple(h[2].split()), source[h.end() : end].strip())
        for h, end in zip(headers, ends, strict=True)
    }


def prelude(used: Iterable[str], watched: bool = False) -> str:
    """
    The text of the sections named in `used` and of what they need, in file order. `KeyError` for an unknown name.

    `watched`: with the waits of the watchdog in the place of those that may wait for ever.
    """
    known = sections()
    wanted: set[str] = set()
    pending = list(used)
    while pending:
        name = pending.pop()
        if watched and f"{WATCHED}{name}" in known:
            name = f"{WATCHED}{name}"
        if name in wanted:
            continue
        wanted.add(name)
        pending += known[name].needs
    return "\n\n".join(section.text for name, section in known.items() if name in wanted)
