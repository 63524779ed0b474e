"""The oldest NVRTC that kernels must compile with, where `GEMMIR_NVRTC_13_0` names its folder."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from gemmir.backends.cuda.nvrtc import Compiled

ROOT = Path(__file__).resolve().parents[3]
OLDEST = os.environ.get("GEMMIR_NVRTC_13_0")
needs_oldest_nvrtc = pytest.mark.skipif(not OLDEST, reason="GEMMIR_NVRTC_13_0 names no folder of NVRTC 13.0")

_PROGRAM = """
import base64, json, sys
from pathlib import Path
from gemmir.backends.cuda import nvrtc
nvrtc.preload(Path(sys.argv[1]))
assert nvrtc.version() == (13, 0), nvrtc.version()
done = [nvrtc.compile_cubin(source) for source in json.load(sys.stdin)]
print(json.dumps([(base64.b64encode(one.cubin).decode(), one.log) for one in done]))
"""


def compile_by_oldest(sources: Iterable[str]) -> dict[str, Compiled]:
    """What it makes of each source, in a process of its own: one process has one NVRTC."""
    assert OLDEST
    unique = list(dict.fromkeys(sources))
    command = [sys.executable, "-c", _PROGRAM, str(Path(OLDEST) / "nvidia/cu13/lib")]
    run = subprocess.run(command, cwd=ROOT, input=json.dumps(unique), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    made = [Compiled(base64.b64decode(cubin), log) for cubin, log in json.loads(run.stdout)]
    return dict(zip(unique, made, strict=True))
