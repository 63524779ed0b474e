"""`gemmir doctor`: what gemmir needs, what of it is here, and how to get the rest."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict

from gemmir.cli.doctor_check import Check, Need, Status
from gemmir.cli.versions import package_version
from gemmir.errors import GemmirError
from gemmir.target import SM_90A

HELP = "check this machine: versions, NVRTC, driver, GPU, tools, cache"

MISSING = 3
OLDEST_CUDA = 13
"""A driver loads cubins of its own major version of CUDA and of older ones."""

DRIVER_FIX = "install an NVIDIA driver, R580 or newer; compiling works without one"
GPU_FIX = "use a Hopper GPU (H100, H200, GH200); `gemmir run --backend reference` works without one"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def execute(args: argparse.Namespace) -> int:
    """0 if programs can be compiled here, 3 if something for that is missing; a GPU is not needed for that."""
    from gemmir.cli.doctor_settings import cache_checks, variable_checks

    checks = [*(check() for check in CHECKS), *cache_checks(), *variable_checks()]
    code = MISSING if any(check.stops_compiling for check in checks) else 0
    if args.json:
        found = {"exit_code": code, "checks": [asdict(check) for check in checks]}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        sys.stdout.write("".join(line(check) for check in checks))
    return code


def line(check: Check) -> str:
    value = check.value.replace("\n", "\n" + " " * 22)
    text = f"{check.status:8} {check.name:16} {value}"
    return text + (f"\n{'':25} for {check.needed_for}: {check.fix}\n" if check.fix else "\n")


def state(ok: bool) -> Status:
    return "ok" if ok else "missing"


def python() -> Check:
    ok = sys.version_info >= (3, 11)
    fix = "" if ok else "install Python 3.11 or newer"
    return Check("python", state(ok), platform.python_version(), "everything", fix)


def package(name: str, requirement: str, needed_for: Need = "everything") -> Check:
    """Whether a distribution is installed; pip has checked the version."""
    if (version := package_version(name)) is None:
        return Check(name, "missing", "not installed", needed_for, f'pip install "{requirement}"')
    return Check(name, "ok", version, needed_for)


def nvrtc() -> Check:
    from gemmir.backends.cuda import nvrtc

    try:
        major, minor = nvrtc.version()
        return Check("nvrtc", "ok", f"{major}.{minor}  {nvrtc.library_path()}", "compiling")
    except GemmirError as error:
        return Check("nvrtc", "missing", error.what, "compiling", error.fix or "")


def tool(name: str) -> Check:
    from gemmir.backends.cuda.sass import find_tool

    try:
        return Check(name, "ok", str(find_tool(name)), "looking")
    except GemmirError as error:
        return Check(name, "missing", error.what, "looking", error.fix or "")


def driver() -> Check:
    from gemmir.backends.cuda.driver import bindings, checked

    try:
        number: int = checked(bindings().cuDriverGetVersion(), "cuDriverGetVersion")
    except GemmirError as error:
        return Check("driver", "missing", error.what, "running", DRIVER_FIX)
    major, minor = number // 1000, number % 1000 // 10
    new_enough = major >= OLDEST_CUDA
    return Check("driver", state(new_enough), f"for CUDA {major}.{minor}", "running", "" if new_enough else DRIVER_FIX)


def gpu() -> Check:
    from gemmir.backends.cuda.driver import bindings, checked, device_info

    try:
        count: int = checked(bindings().cuDeviceGetCount(), "cuDeviceGetCount")
        devices = [device_info(index) for index in range(count)]
    except GemmirError:
        devices = []
    found = ", ".join("{} (sm_{}{})".format(d.name, *d.compute_capability) for d in devices)
    ok = any(d.compute_capability == SM_90A.compute_capability for d in devices)
    return Check("gpu", state(ok), found or "none", "running", "" if ok else GPU_FIX)


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
    lambda: package("shtab", "gemmir[completion]", "completion"),
)
