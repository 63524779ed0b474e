"""Kernels for the simulator's tests, their data, and what they should compute."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from xdsl.dialects.builtin import ModuleOp

from gemmir.backends.reference import random_inputs
from gemmir.backends.simulator import simulate_bits
from gemmir.compiler import lower, module_of
from gemmir.dialects.gemm import the_matmul
from gemmir.dialects.hopper import KernelOp
from gemmir.tensor_core import raw_bits
from gemmir.testing import model_of
from tests.gpu.problems import Case, fp8_text, plain_text


def program(dtype: str, n: int, k: int, schedule: str) -> str:
    """A product for any M; `schedule` as in `schedule <...>`."""
    text = fp8_text(n, k, dtype) if dtype.startswith("f8") else plain_text(Case(dtype, 0, n, k))
    return text.replace(" : (", f" schedule <{schedule}> : (", 1)


@cache
def _module(text: str) -> ModuleOp:
    return lower(text, until="hopper").module


def kernel_of(text: str) -> KernelOp:
    """A hopper kernel of one's own."""
    return next(op for op in _module(text).body.block.ops if isinstance(op, KernelOp)).clone()


@dataclass(frozen=True)
class Example:
    """A program with data for it and the bits that it should compute."""

    text: str
    m: int
    tensors: tuple[torch.Tensor, ...]
    expected: np.ndarray

    @staticmethod
    @cache
    def of(text: str, m: int) -> "Example":
        module = module_of(text)
        tensors = tuple(random_inputs(module, m, 1).values())
        return Example(text, m, tensors, raw_bits(model_of(the_matmul(module), tensors)))

    def run(self, change: Callable[[KernelOp], None] | None = None, seed: int = 0, clusters: int = 1) -> np.ndarray:
        """The bits of the simulated kernel, after `change` was made to it."""
        kernel = kernel_of(self.text)
        if change is not None:
            change(kernel)
        return simulate_bits(kernel, self.tensors, self.m, seed=seed, clusters=clusters)
