"""
Writes docs/errors.md from the table of codes and the classes: `python -m gemmir.errors_page docs/errors.md`.

The page is made, not edited; a test compares it with what this makes.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from gemmir import errors
from gemmir.error_codes import ERROR_CODES, ErrorCode

LINE_LENGTH = 120

_HEAD = """\
# Errors

<!-- Made by `python -m gemmir.errors_page docs/errors.md` from gemmir/error_codes.py. -->

Everything that gemmir raises on purpose is a `gemmir.errors.GemmirError` and carries a stable code, what was found, the
rule that it breaks, the cheapest fix and, for IR text, the line and column. The command prints the same text:

```
error[GMR-R001]: ...
  --> layer.mlir:3:23
  |
3 |   %y = gemm.matmul %x %w
  |                       ^^
  rule: ...
  fix: ...
```

`gemmir errors GMR-R001` prints what this page says of a code, `gemmir errors` lists them all.

| letter | class | what failed | `gemmir` exits with |
|---|---|---|---|
"""

_EXITS = """
Wrong usage of the command itself exits with 2, an interrupted run with 130. Tracebacks appear only with `--debug` or
`GEMMIR_DEBUG=1`.
"""

_FAILED = {
    "I": "an argument of a call",
    "U": "legal, but not implemented for this stage, backend or target",
    "R": "IR text, IR, or a pass pipeline",
    "S": "a schedule that breaks a limit of the hardware; the message has the arithmetic",
    "Y": "the synchronisation of a kernel could not be proven",
    "C": "the CUDA compiler; a tool that is missing",
    "K": "the kernel cache, where the user asked for the cache itself",
    "B": "a bundle that is written or loaded",
    "D": "the driver, the GPU, or a CUDA call",
}
"""By the letter of the codes."""


def page() -> str:
    """The text of docs/errors.md."""
    classes = "".join(_letter_row(letter, what) for letter, what in _FAILED.items())
    rows = "".join(f"| `{code}` | {entry.title} | {entry.fix} |\n" for code, entry in ERROR_CODES.items())
    table = f"\n## Codes\n\n| code | meaning | usual way out |\n|---|---|---|\n{rows}"
    sections = "".join(_section(code, entry) for code, entry in ERROR_CODES.items())
    return f"{_HEAD}{classes}{_EXITS}{table}\n## Each code\n{sections}"


def _letter_row(letter: str, what: str) -> str:
    names = dict.fromkeys(e.raised_as for code, e in ERROR_CODES.items() if code.startswith(f"GMR-{letter}"))
    exits = {name: vars(errors)[name].exit_code for name in names}
    usual = next(iter(exits.values()))
    shown = str(usual) + "".join(f"; {code} for `{name}`" for name, code in exits.items() if code != usual)
    return f"| {letter} | {', '.join(f'`{name}`' for name in names)} | {what} | {shown} |\n"


def _section(code: str, entry: ErrorCode) -> str:
    said = textwrap.fill(f"`{entry.raised_as}`: {entry.title}. {entry.cause}", LINE_LENGTH)
    return f"\n### {code}\n\n{said}\n\nUsual way out: {entry.fix}.\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
