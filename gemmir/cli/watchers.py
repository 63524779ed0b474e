"""What `gemmir compile` shows of a program's way down: each of these is told of every pass."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from difflib import unified_diff
from pathlib import Path
from time import perf_counter

from xdsl.passes import ModulePass

from gemmir.cli.destinations import write_whole
from gemmir.cli.diagnostics import BOLD, CYAN, GREEN, RED, RESET, say, wants_colour
from gemmir.pipeline import Observer
from gemmir.universe import PASSES

KERNEL = ("cu", "ptx", "cubin", "sass", "log")
"""What follows the passes: suffixes of its files, in the order of their numbers."""
COLOURS = (("---", BOLD), ("+++", BOLD), ("@@", CYAN), ("-", RED), ("+", GREEN))
"""Of the lines of a diff, by how they begin; the first that fits."""
INPUT = "input"
_NUMBERED = re.compile(rf"[0-9]{{2}}-(?:(?:{'|'.join((INPUT, *PASSES))})\.mlir|kernel\.(?:{'|'.join(KERNEL)}))")


class Several(Observer):
    """Tells several, in order."""

    def __init__(self, watchers: Sequence[Observer]):
        self.watchers = tuple(watchers)

    def starts(self, passes: tuple[ModulePass, ...], text: str) -> None:
        for watcher in self.watchers:
            watcher.starts(passes, text)

    def ran(self, pass_: ModulePass, text: str, seconds: float) -> None:
        for watcher in self.watchers:
            watcher.ran(pass_, text, seconds)

    def printed(self, source: str, seconds: float) -> None:
        for watcher in self.watchers:
            watcher.printed(source, seconds)


class Times(Observer):
    """
    Where the time went: reading, each pass (the proof is one of them), printing, the compiler; the rest, the total.

    The rest is importing, printing IR and writing results. The total runs from when this object was made.
    """

    def __init__(self):
        self.began = perf_counter()
        self.rows: list[tuple[str, float]] = []

    def ran(self, pass_: ModulePass, text: str, seconds: float) -> None:
        self.rows.append((pass_.name, seconds))

    def printed(self, source: str, seconds: float) -> None:
        self.rows.append(("printing CUDA", seconds))

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time what is done inside, also if it fails."""
        began = perf_counter()
        try:
            yield
        finally:
            self.rows.append((name, perf_counter() - began))

    def table(self) -> str:
        """A line for each stage in the order in which they ran: its name, milliseconds, and its part of the total."""
        total = perf_counter() - self.began
        rest = total - sum(seconds for _, seconds in self.rows)
        rows = [*self.rows, ("rest", rest), ("total", total)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}} {1e3 * t:10.2f} ms {100 * t / total:6.1f} %" for name, t in rows)


class IRPrinter(Observer):
    """Prints the IR after each pass on stderr."""

    def ran(self, pass_: ModulePass, text: str, seconds: float) -> None:
        say(f"// ----- after {pass_.name}\n{text.rstrip()}\n")


class IRFolder(Observer):
    """
    Writes the IR into a folder: 00-input.mlir, a numbered file for each pass, and for what the kernel becomes.

    They are written as they are made, so that those before a failure are there. What an earlier run left is removed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.count = 0

    def starts(self, passes: tuple[ModulePass, ...], text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / f"00-{INPUT}.mlir").exists():
            self._clear()
        self._write(INPUT, text)

    def ran(self, pass_: ModulePass, text: str, seconds: float) -> None:
        self._write(pass_.name, text)

    def printed(self, source: str, seconds: float) -> None:
        self.keep("cu", source.encode())

    def keep(self, suffix: str, data: bytes) -> None:
        """Write one of KERNEL, once the passes have run; its number is the same whether those before it are made."""
        write_whole(self.folder / f"{self.count + KERNEL.index(suffix):02}-kernel.{suffix}", data)

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if _NUMBERED.fullmatch(path.name):
                path.unlink()

    def _write(self, name: str, text: str) -> None:
        write_whole(self.folder / f"{self.count:02}-{name}.mlir", (text.rstrip("\n") + "\n").encode())
        self.count += 1


class Diffs(Observer):
    """Prints what each pass changed as a unified diff on stderr; nothing for a pass that changed nothing."""

    def __init__(self):
        self.by, self.text = "input", ""

    def starts(self, passes: tuple[ModulePass, ...], text: str) -> None:
        self.text = text

    def ran(self, pass_: ModulePass, text: str, seconds: float) -> None:
        lines = unified_diff(self.text.splitlines(), text.splitlines(), self.by, pass_.name, lineterm="")
        colour = wants_colour(sys.stderr)
        if shown := [coloured(line) if colour else line for line in lines]:
            say("\n".join(shown) + "\n")
            self.by, self.text = pass_.name, text


def coloured(line: str) -> str:
    """A line of a diff in the colour that says what it is."""
    found = next((colour for start, colour in COLOURS if line.startswith(start)), "")
    return f"{found}{line}{RESET}" if found else line
