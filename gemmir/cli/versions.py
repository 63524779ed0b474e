"""The versions that decide what becomes of a program: what `gemmir --version` prints. Loads neither xDSL nor torch."""

from __future__ import annotations

import argparse
import ctypes
import platform
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

PACKAGES = ("xdsl", "torch", "cuda-bindings")
"""Distributions with a hand in machine code or in results."""
NOT_FOUND = "not found"


class ShowVersions(argparse.Action):
    """`--version`: the versions are looked up only when they are asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **others: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **others)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        sys.stdout.writelines(f"{name} {version or NOT_FOUND}\n" for name, version in versions().items())
        parser.exit()


def versions() -> dict[str, str | None]:
    """By name, gemmir first; None for what is not there."""
    from gemmir import __version__

    packages = {name: package_version(name) for name in PACKAGES}
    return {"gemmir": __version__, "python": platform.python_version(), **packages, "nvrtc": nvrtc_version()}


def package_version(name: str) -> str | None:
    """The version of a distribution, None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def nvrtc_version() -> str | None:
    """That of the library that would compile, by its own word, so without the bindings; None if there is none."""
    from gemmir.backends.cuda.nvrtc import library_path
    from gemmir.errors import ToolMissingError

    major, minor = ctypes.c_int(), ctypes.c_int()
    try:
        library = ctypes.CDLL(str(library_path()))
        status: int = library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    except (ToolMissingError, OSError, AttributeError):  # no file, none that loads, or none of NVRTC
        return None
    return f"{major.value}.{minor.value}" if status == 0 else None
