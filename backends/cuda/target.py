"""`xdsl-opt -t cuda`: print the hopper kernel of a module as CUDA C++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.target import Target

from gemmir.backends.cuda.printer import print_kernel
from gemmir.dialects.hopper import KernelOp
from gemmir.errors import IRError


def the_kernel(module: ModuleOp) -> KernelOp:
    """The only hopper kernel of a module; `IRError` (GMR-R004) if there is none or there are more."""
    kernels = [op for op in module.body.block.ops if isinstance(op, KernelOp)]
    if len(kernels) == 1:
        return kernels[0]
    raise IRError(
        "GMR-R004",
        f"{len(kernels)} hopper kernels in the module",
        rule="CUDA is printed for exactly one",
        fix="run gemm-lower-to-hopper first",
    )


@dataclass(frozen=True)
class CudaTarget(Target):
    """CUDA C++ source for sm_90a."""

    name = "cuda"

    def emit(self, ctx: Context, module: ModuleOp, output: IO[str]) -> None:
        output.write(print_kernel(the_kernel(module)).source)
