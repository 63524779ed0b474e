"""
gemmir: a GEMM compiler for NVIDIA Hopper.

    p = gemmir.Program("down_proj")
    ...
    kernel = gemmir.compile(p)
    y = kernel(x, xs, w.t(), ws)

or in one call, compiled on first use:

    y = gemmir.matmul(x, w.t(), scale_a=xs, scale_b=ws)

Importing gemmir loads neither xDSL, torch, NumPy nor CUDA; each name below loads what it needs when first used: torch,
where tensors are what it takes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemmir import errors, torch_ops
    from gemmir.bundle import load_bundle
    from gemmir.compiler import compile
    from gemmir.decode import decode_split_k
    from gemmir.device_sync import synchronize
    from gemmir.kernel import CompiledKernel
    from gemmir.linear_layer import linear
    from gemmir.ops import batched_matmul, grouped_matmul, matmul
    from gemmir.preparing import prepare
    from gemmir.program import Program
    from gemmir.quantization import dequantize, quantize
    from gemmir.scales import align_scales
    from gemmir.sm_limit import limit_sms

__version__ = "0.1.0"
__all__ = [
    "CompiledKernel",
    "Program",
    "__version__",
    "align_scales",
    "batched_matmul",
    "compile",
    "decode_split_k",
    "dequantize",
    "errors",
    "grouped_matmul",
    "limit_sms",
    "linear",
    "load_bundle",
    "matmul",
    "prepare",
    "quantize",
    "synchronize",
    "torch_ops",
]

_MODULES = ("errors", "torch_ops")
_HOMES = {
    "CompiledKernel": "gemmir.kernel",
    "Program": "gemmir.program",
    "align_scales": "gemmir.scales",
    "batched_matmul": "gemmir.ops",
    "compile": "gemmir.compiler",
    "decode_split_k": "gemmir.decode",
    "dequantize": "gemmir.quantization",
    "grouped_matmul": "gemmir.ops",
    "limit_sms": "gemmir.sm_limit",
    "linear": "gemmir.linear_layer",
    "load_bundle": "gemmir.bundle",
    "matmul": "gemmir.ops",
    "prepare": "gemmir.preparing",
    "quantize": "gemmir.quantization",
    "synchronize": "gemmir.device_sync",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"gemmir.{name}")
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module 'gemmir' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
