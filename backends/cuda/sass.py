"""
Machine code as text, for looking at a kernel and for checking what the compiler made of it.

Disassemblers take apart only what was just compiled here: they are no judges of foreign files.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from gemmir.errors import CompileError, ToolMissingError

TIMEOUT_SECONDS = 120.0
_STEM = r"(?:\{\s*)?(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_]*)"
_INSTRUCTION = re.compile(rf"^\s*(?:\.L_x_\w+:)?\s*/\*[0-9a-f]{{4,}}\*/\s+{_STEM}", re.MULTILINE)


def find_tool(name: str) -> Path:
    """
    The program `name`, e.g. nvdisasm or cuobjdump.

    Looked for in NVIDIA's wheels, in Triton's, in `$CUDA_HOME` and along `PATH`; `ToolMissingError` (GMR-C004).
    """
    for find in (_in_wheels, _in_triton, _in_toolkit, shutil.which):
        if (found := find(name)) is not None:
            return Path(found)
    raise ToolMissingError(
        "GMR-C004",
        f"{name} was not found in the NVIDIA wheels, Triton, $CUDA_HOME or PATH",
        rule="machine code is read with NVIDIA's own tools",
        fix='pip install "gemmir[tools]"',
    )


def disassemble(cubin: bytes, *, encodings: bool = False) -> str:
    """
    The SASS of `cubin`, one instruction a line; `CompileError` (GMR-C001) if nvdisasm refuses it.

    With `encodings` there are two lines an instruction, each ending in 64 bits of its word (see `sass_words`).
    """
    with tempfile.TemporaryDirectory(prefix="gemmir-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        # -ndf: no search for where indirect branches lead. There are none, and it takes a quarter of the time.
        command = [str(find_tool("nvdisasm")), "-c", "-ndf", *(["-hex"] if encodings else []), str(path)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise CompileError("GMR-C001", f"nvdisasm took over {TIMEOUT_SECONDS:g} seconds") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").replace(str(path), path.name).strip()
        raise CompileError("GMR-C001", f"nvdisasm failed: {said[:400]}", rule="a cubin for sm_90a")
    return done.stdout.decode(errors="replace")


def count_opcodes(sass: str) -> Counter[str]:
    """How often each instruction occurs in `sass`, by the stem of its mnemonic: `UTMALDG` for `UTMALDG.2D`."""
    return Counter(_INSTRUCTION.findall(sass))


def stem_of(instruction: str) -> str:
    """The stem of one instruction's mnemonic, whatever predicate guards it; "" if there is none."""
    found = re.match(_STEM, instruction)
    return "" if found is None else found[1]


def _in_wheels(name: str) -> str | None:
    try:
        pathfinder: Any = importlib.import_module("cuda.pathfinder")
    except ImportError:
        return None
    if name not in pathfinder.SUPPORTED_BINARY_UTILITIES:
        return None
    found: str | None = pathfinder.find_nvidia_binary_utility(name)
    return found


def _in_triton(name: str) -> str | None:
    found = importlib.util.find_spec("triton")  # found, not imported: that would take seconds
    if found is None or found.origin is None:
        return None
    return shutil.which(name, path=os.path.join(os.path.dirname(found.origin), "backends", "nvidia", "bin"))


def _in_toolkit(name: str) -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which(name, path=os.path.join(home, "bin")) if home else None
