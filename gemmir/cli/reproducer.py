"""
`--crash-reproducer`: when a pass fails, a file that fails again on its own.

Comment lines say what failed, with which versions, and how to run it again; then comes the IR before the failing pass.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from xdsl.passes import ModulePass

from gemmir import __version__
from gemmir.cache_keys import xdsl_version
from gemmir.cli.cache_facts import printable
from gemmir.cli.destinations import PRIVATE, write_whole
from gemmir.cli.diagnostics import say
from gemmir.errors import GemmirError
from gemmir.pipeline import Observer


class Reproducer(Observer):
    """Keeps the IR and the passes that are still to run on it, and writes them to `file` if one fails."""

    def __init__(self, file: Path):
        self.file = file
        self.left: tuple[ModulePass, ...] = ()
        self.text: str | None = None

    def starts(self, passes: tuple[ModulePass, ...], text: str) -> None:
        self.left, self.text = passes, text

    def ran(self, pass_: ModulePass, text: str, seconds: float) -> None:
        self.left, self.text = self.left[1:], text

    @contextmanager
    def guarding(self) -> Generator[None]:
        """Write the file if what is done inside fails once there is IR; the failure goes on."""
        try:
            yield
        except OSError:  # of whoever else writes down what the passes do: they themselves touch no file
            raise
        except Exception as error:
            if self.text is not None:
                self._write(self.text, error)
            raise

    def _write(self, text: str, error: Exception) -> None:
        lines = [f"// {printable(line)}\n" for line in self._header(error)]
        try:
            write_whole(self.file, ("".join(lines) + text.rstrip("\n") + "\n").encode(), PRIVATE)
        except OSError as refusal:  # the failure itself matters more
            say(f"error: --crash-reproducer {self.file}: {refusal.strerror}")
            return
        say(f"wrote {self.file}: {self._command()}")

    def _header(self, error: Exception) -> list[str]:
        said = error.render() if isinstance(error, GemmirError) else f"{type(error).__name__}: {error}"
        return [
            f"failed: {self.left[0].name if self.left else 'verifying or printing the kernel'}",
            *(f"  {line}" for line in said.splitlines()),
            f"passes left: {self._pipeline() or 'none'}",
            f"versions: gemmir {__version__}, xdsl {xdsl_version()}, Python {platform.python_version()}",
            f"run again: {self._command()}",
        ]

    def _pipeline(self) -> str:
        return ",".join(str(pass_.pipeline_pass_spec()) for pass_ in self.left)

    def _command(self) -> str:
        file = shlex.quote(str(self.file))
        if not self.left:
            return f"gemmir compile {file}"
        kind = "" if self.file.suffix == ".mlir" else " -f mlir"  # by its name the parser tells what is in a file
        return f"gemmir opt {file}{kind} -p {shlex.quote(self._pipeline())}"
