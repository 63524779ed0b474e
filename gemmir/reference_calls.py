"""Calls that the reference backend computes: those with tensors on the CPU, and those without columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch

from gemmir.calls import Ready
from gemmir.guards import Facts, Guard, guard
from gemmir.records import dataclass

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp


class Reference:
    """The reference backend on the program of a call."""

    def __init__(self, names: Sequence[str], module: ModuleOp):
        self._names = names
        self._module = module

    def ready(self, tensors: Sequence[torch.Tensor], given: bool, overlap: bool, facts: Facts | None) -> Ready:
        """As `gemmir.kernel.CompiledKernel.ready`."""
        from gemmir.backends.cuda.arguments import refuse_gradient

        if tracked := [name for name, tensor in zip(self._names, tensors, strict=False) if tensor.requires_grad]:
            if torch.is_grad_enabled():
                raise refuse_gradient(tracked[0])
        return ReferenceCall(self._module, given, guard(tensors, facts or ()))


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceCall:
    """A call that the reference computes; `given`: its last tensor is the output."""

    module: ModuleOp
    given: bool
    accepts: Guard

    def run(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        from gemmir.backends.reference import run

        out = tensors[-1] if self.given else None
        result = run(self.module, tensors[:-1] if self.given else tensors, out=out)
        return cast("torch.Tensor", result)
