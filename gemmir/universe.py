"""
Makes gemmir's dialects, passes and targets known to stock `xdsl-opt`, through the entry point `xdsl.universe`.

Every factory imports what it returns only when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from xdsl.universe import Universe

from gemmir.passes import PASSES


def class_name(pass_name: str) -> str:
    """`gemm-select-blocks` is the class `GemmSelectBlocksPass`."""
    return "".join(word.capitalize() for word in pass_name.split("-")) + "Pass"


def _attribute(module: str, name: str) -> Callable[[], Any]:
    return lambda: getattr(import_module(module), name)


def _pass(name: str) -> Callable[[], Any]:
    return _attribute(f"gemmir.passes.{name.replace('-', '_')}", class_name(name))


GEMMIR_UNIVERSE = Universe(
    all_dialects={
        "gemm": _attribute("gemmir.dialects.gemm", "Gemm"),
        "hopper": _attribute("gemmir.dialects.hopper", "Hopper"),
    },
    all_passes={name: _pass(name) for name in PASSES},
    all_targets={"cuda": _attribute("gemmir.backends.cuda.target", "CudaTarget")},
)
