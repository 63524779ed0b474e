"""compute-sanitizer finds nothing in one small product per kind of kernel."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.sanitized import KERNELS

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {
    # The bindings probe for entry points that the driver does not have, which memcheck would report.
    "memcheck": ["--report-api-errors", "no"],
    "synccheck": [],
    "racecheck": ["--racecheck-report", "all"],
}


def sanitizer() -> str | None:
    """The wheel's compute-sanitizer (`nvidia-cuda-sanitizer-api`), which is newer, else the toolkit's."""
    folders = [*site.getsitepackages(), *sys.path]
    found = (p for f in folders for p in Path(f or ".").glob("nvidia/cu13/**/compute-sanitizer") if p.is_file())
    return str(next(found, "")) or shutil.which("compute-sanitizer")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", KERNELS)
def test_nothing_is_found(name: str, tool: str) -> None:
    program = sanitizer()
    assert program is not None, 'compute-sanitizer is not installed: pip install "nvidia-cuda-sanitizer-api"'
    command = [program, "--tool", tool, *TOOLS[tool], sys.executable, "-m", "tests.gpu.sanitized", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    report = done.stdout + done.stderr
    assert "right" in done.stdout, report[-3000:]
    assert "ERROR SUMMARY: 0 errors" in report or "RACECHECK SUMMARY: 0 hazards" in report, report[-3000:]
