"""The host's C and C++ compilers, and where `cuda.h` is. What is missing fails a test; it is never skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")
STANDARDS = {"c": "-std=c11", "c++": "-std=c++17"}
_COMPILERS = {"c": ("cc", "gcc", "clang"), "c++": ("c++", "g++", "clang++")}


def compiler(language: str) -> str:
    """The path of a compiler of "c" or "c++"."""
    found = next(filter(None, map(shutil.which, _COMPILERS[language])), None)
    assert found is not None, f"no {language} compiler: install one of {', '.join(_COMPILERS[language])}"
    return found


def cuda_include() -> Path:
    """The folder of `cuda.h`: of the wheel nvidia-cuda-runtime, triton's, or a toolkit."""
    packages = Path(sysconfig.get_path("purelib"))
    toolkits = [Path(home) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    folders = [
        packages / "nvidia" / "cu13" / "include",
        packages / "triton" / "backends" / "nvidia" / "include",
        *toolkits,
        *sorted(Path("/usr/local").glob("cuda*/include")),
    ]
    found = next((folder for folder in folders if (folder / "cuda.h").is_file()), None)
    assert found is not None, "no cuda.h: pip install nvidia-cuda-runtime"
    return found


def build(language: str, source: Path, output: Path, *options: str) -> Path:
    """Compile and link `source` to `output` under every warning; a failure shows what the compiler said."""
    command = [compiler(language), STANDARDS[language], *STRICT, "-isystem", str(cuda_include()), str(source)]
    done = subprocess.run([*command, "-o", str(output), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output
