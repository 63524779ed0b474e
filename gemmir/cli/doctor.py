"""`gemmir doctor`: what gemmir needs, what of it is here, and how to get the rest."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from gemmir.errors import GemmirError
from gemmir.target import SM_90A

HELP = "check this machine: versions, NVRTC, driver, GPU, tools, cache"

MISSING = 3
OLDEST_CUDA = 13
"""A driver loads cubins of its own major version of CUDA and of older ones."""

DRIVER_FIX = "install an NVIDIA driver, R580 or newer; compiling works without one"
GPU_FIX = "use a Hopper GPU (H100, H200, GH200); `gemmir run --backend reference` works without one"


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
    from gemmir.backends.cuda.sass import find_tool

    try:
        return Check(name, True, str(find_tool(name)), "looking")
    except GemmirError as error:
        return Check(name, False, error.what, "looking", error.fix or "")


def driver() -> Check:
    from gemmir.backends.cuda.driver import bindings, checked

    try:
        number: int = checked(bindings().cuDriverGetVersion(), "cuDriverGetVersion")
    except GemmirError as error:
        return Check("driver", False, error.what, "running", DRIVER_FIX)
    major, minor = number // 1000, number % 1000 // 10
    new_enough = major >= OLDEST_CUDA
    return Check("driver", new_enough, f"for CUDA {major}.{minor}", "running", "" if new_enough else DRIVER_FIX)


def gpu() -> Check:
    from gemmir.backends.cuda.driver import bindings, checked, device_info

    try:
        count: int = checked(bindings().cuDeviceGetCount(), "cuDeviceGetCount")
        devices = [device_info(index) for index in range(count)]
    except GemmirError:
        devices = []
    found = ", ".join("{} (sm_{}{})".format(d.name, *d.compute_capability) for d in devices)
    ok = any(d.compute_capability == SM_90A.compute_capability for d in devices)
    return Check("gpu", ok, found or "none", "running", "" if ok else GPU_FIX)


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
