"""`gemmir doctor`: what gemmir needs, what of it is here, and how to get the rest."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from gemmir.errors import GemmirError

HELP = "check this machine: versions, NVRTC, driver, GPU, tools, cache"

MISSING = 3
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line: `needed_for` is "everything", "compiling", "running" or "looking", `fix` is empty where all is well."""

    name: str
    ok: bool
    found: str
    needed_for: str
    fix: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def execute(args: argparse.Namespace) -> int:
    """0 if programs can be compiled here, 3 if something for that is missing; a GPU is not needed for that."""
    checks = [check() for check in CHECKS]
    if args.json:
        sys.stdout.write(json.dumps({check.name: asdict(check) for check in checks}, indent=2) + "\n")
    else:
        sys.stdout.write("".join(line(check) for check in checks))
    broken = any(not check.ok and check.needed_for in ("everything", "compiling") for check in checks)
    return MISSING if broken else 0


def line(check: Check) -> str:
    text = f"{'ok' if check.ok else 'missing':8} {check.name:13} {check.found}"
    return text + (f"\n{'':22} for {check.needed_for}: {check.fix}\n" if check.fix else "\n")


def python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, platform.python_version(), "everything", "" if ok else "install Python 3.11 or newer")


def package(name: str, requirement: str) -> Check:
    """Whether a distribution is installed; pip has checked the version."""
    try:
        return Check(name, True, version(name), "everything")
    except PackageNotFoundError:
        return Check(name, False, "not installed", "everything", f'pip install "{requirement}"')


def nvrtc() -> Check:
    from gemmir.backends.cuda import nvrtc

    try:
        major, minor = nvrtc.version()
        return Check("nvrtc", True, f"{major}.{minor}  {nvrtc.library_path()}", "compiling")
    except GemmirError as error:
        return Check("nvrtc", False, error.what, "compiling", error.fix or "")


def tool(name: str) -> Check:
    from gemmir.backends.cuda.tools import find_tool

    try:
        return Check(name, True, str(find_tool(name)), "looking")
    except GemmirError as error:
        return Check(name, False, error.what, "looking", error.fix or "")


def cuda_library() -> ctypes.CDLL | None:
    """The driver's library, initialised; None if there is none that works."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return library if library.cuInit(0) == 0 else None


def driver() -> Check:
    fix = "install an NVIDIA driver, R580 or newer; compiling works without"
    library = cuda_library()
    if library is None:
        return Check("driver", False, "no libcuda.so.1 that starts", "running", fix)
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    major, minor = number.value // 1000, number.value % 1000 // 10
    return Check("driver", major >= 13, f"for CUDA {major}.{minor}", "running", "" if major >= 13 else fix)


def gpu() -> Check:
    fix = "use a Hopper GPU; `gemmir run --backend reference` works without"
    library = cuda_library()
    if library is None:
        return Check("gpu", False, "none", "running", fix)
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    found = [describe(library, index) for index in range(count.value)]
    ok = any("sm_90" in text for text in found)
    return Check("gpu", ok, ", ".join(found) or "none", "running", "" if ok else fix)


def describe(library: ctypes.CDLL, index: int) -> str:
    """Name and architecture of one device."""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(100)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    capability = [ctypes.c_int(), ctypes.c_int()]
    for value, attribute in zip(capability, (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR), strict=True):
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return f"{name.value.decode(errors='replace')} (sm_{capability[0].value}{capability[1].value})"


def cache() -> Check:
    from gemmir.cache import Cache

    if os.environ.get("GEMMIR_CACHE") == "0":
        return Check("cache", True, "switched off by GEMMIR_CACHE=0", "looking")
    try:
        kept = Cache(required=True)
    except GemmirError as error:
        return Check("cache", False, error.what, "looking", error.fix or "")
    return Check("cache", True, f"{kept.directory}  {len(kept.entries())} kernels", "looking")


CHECKS: tuple[Callable[[], Check], ...] = (
    python,
    lambda: package("gemmir", "gemmir"),
    lambda: package("xdsl", "xdsl~=0.74.0"),
    lambda: package("torch", "torch>=2.8"),
    lambda: package("cuda-bindings", "cuda-python>=13.3,<14"),
    nvrtc,
    driver,
    gpu,
    lambda: tool("nvdisasm"),
    lambda: tool("cuobjdump"),
    cache,
)
