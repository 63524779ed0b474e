"""Files that results are written to: what cannot be written is refused before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

from gemmir.cli.diagnostics import UsageError


def check_destination(path: Path, option: str = "--json") -> None:
    """UsageError, before minutes of work, if nothing can be written to `path`, which `option` named."""
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: must be a file in a folder that exists and can be written to")
