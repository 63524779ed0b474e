"""What the commands of docs/tutorial.md print: `python -m tests.tutorial_page` writes it into the page."""

from __future__ import annotations

import difflib
import re
from functools import cache
from pathlib import Path

from gemmir.errors import GemmirError
from gemmir.ir_text import parse_module
from gemmir.pipeline import parse_pipeline, run_passes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
FILE = "examples/01_down_proj.mlir"
SHOWN = 24
"""Lines of a kernel."""
WIDTH = 116
KERNEL = (
    "gemm-canonicalize,gemm-select-family,gemm-select-blocks,gemm-fit-tail,gemm-rasterize,gemm-balance,gemm-plan-pipeline,"
    "gemm-lower-to-hopper"
)

_SCHEDULE = re.compile(r"schedule <(.*)>$", re.MULTILINE)
_MARKER = re.compile(
    r"<!-- (?P<kind>diff|head|refused|broken)(?: from (?P<before>\S+))?: (?P<what>.+?) -->\n(?:\n```\w*\n.*?\n```\n)*",
    re.DOTALL,
)


@cache
def after(pipeline: str) -> str:
    """The IR of the example after some passes."""
    module = parse_module((ROOT / FILE).read_text(), FILE)
    run_passes(module, parse_pipeline(pipeline) if pipeline else ())
    return str(module)


def refreshed(page: str) -> str:
    """The page with what its commands print now."""
    last = ""

    def fill(marker: re.Match[str]) -> str:
        nonlocal last
        kind, what = marker["kind"], marker["what"]
        comment = marker[0].split("-->")[0] + "-->\n"
        if kind == "broken":
            return comment + _block("", _refusal_of_a_kernel(what))
        command = _block("", f"gemmir opt {FILE} -p \\\n    '{what}'")
        if kind == "refused":
            return comment + command + _block("", _refusal(what))
        if kind == "head":
            return comment + command + _block("", "\n".join(_cut(after(what).splitlines()[:SHOWN])))
        before, last = marker["before"] or last, what
        return comment + command + _block("diff", _diff(after(before), after(what)))

    return _MARKER.sub(fill, page)


def _block(language: str, text: str) -> str:
    return f"\n```{language}\n{text}\n```\n"


def _diff(before: str, now: str) -> str:
    old, new = (_SCHEDULE.sub(_entries, text).splitlines() for text in (before, now))
    lines = [*difflib.unified_diff(old, new, lineterm="", n=1)][3:]
    return "\n".join(_cut([line for line in lines if not line.startswith("@@")]))


def _entries(schedule: re.Match[str]) -> str:
    """A schedule with each entry on a line of its own."""
    return "schedule <\n" + "".join(f"            {entry}\n" for entry in schedule[1].split(", ")) + "        >"


def _cut(lines: list[str]) -> list[str]:
    """Lines that fit a page."""
    return [line if len(line) <= WIDTH else line[: WIDTH - 4].rstrip() + " ..." for line in lines]


def _refusal(pipeline: str) -> str:
    try:
        after(pipeline)
    except GemmirError as error:
        return "\n".join(line for line in str(error).splitlines() if not re.match(r"\s*(-->|\d* *\|)", line))
    raise AssertionError(f"{pipeline} is not refused")


def _refusal_of_a_kernel(op: str) -> str:
    """What `hopper-check-sync` says of the kernel without the first line that has `op`."""
    lines = after(KERNEL).splitlines()
    at = next(i for i, line in enumerate(lines) if f"{op} " in line)
    module = parse_module("\n".join([*lines[:at], *lines[at + 1 :]]))
    try:
        run_passes(module, parse_pipeline("hopper-check-sync"))
    except GemmirError as error:
        text = [line for line in str(error).splitlines() if not re.match(r"\s*(-->|\d* *\|)", line)]
        return "\n".join([f"-{_cut([lines[at]])[0]}", *_cut(text)])
    raise AssertionError(f"a kernel without {op} is right")


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text()))
