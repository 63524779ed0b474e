"""
The tensors that a case is measured on: random data, quantised as in practice, laid out as kernels take it.

By the names of the program's arguments, in their order: x, xs, w, ws, index, as far as the case has them.
"""

from __future__ import annotations

import torch

from gemmir.backends.reference import random_inputs
from gemmir.bench.grouped import AnyCase, GroupedCase
from gemmir.ir_text import parse_module

Inputs = dict[str, torch.Tensor]


def inputs_of(case: AnyCase, seed: int, device: str | torch.device) -> Inputs:
    """
    The same for the same case, seed and kind of device.

    Every group has the stated rows; padding holds data like any other, which must not show.
    """
    inputs = random_inputs(parse_module(case.text), case.m, seed, device)
    if isinstance(case, GroupedCase) and case.index:
        inputs["index"] = torch.tensor(case.index, dtype=torch.int32, device=device)
    return inputs
