"""
Drawn products of groups on a Hopper GPU, 300 of each form: every bit against the model, and every byte around.

Every second one has exact data, and the values of the reference to the last bit. The memory in and around the result
holds one byte again and again before each call: what no group writes must hold it after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

import gemmir
from gemmir.backends.reference.data import exact_inputs, random_inputs
from gemmir.backends.reference.groups import Operands, products_of, result_shape, written
from gemmir.backends.reference.interpreter import run as reference
from gemmir.dtypes import BF16, F32, DType
from gemmir.ir_text import parse_module
from gemmir.problem import GemmProblem, Grouping
from gemmir.schedule import Family, Schedule
from gemmir.testing.groups import GROUPINGS
from gemmir.testing.strategies import columns_problem, fp8_problem, half_problem, program_text
from gemmir.testing.torch_model import gemm_model
from tests.gpu.eager import called, operands_of
from tests.gpu.groups import drawn

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
POISON = 0xA5
GUARD = 4096
"""Bytes before and after the result."""
Run = Callable[[GemmProblem, dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
"""Computes a problem from its inputs, in a result that is given."""


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, apart: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory full of poison, and a result in its middle, whose rows have 16 bytes between them where they lie apart."""
    pitch = shape[-1] + (16 // dtype.itemsize if apart else 0)
    rows = torch.Size(shape[:-1]).numel()
    memory = torch.full((2 * GUARD + rows * pitch * dtype.itemsize,), POISON, dtype=torch.uint8, device=DEVICE)
    inner = memory[GUARD : memory.numel() - GUARD].view(dtype).view(*shape[:-1], pitch)
    return memory, inner[..., : shape[-1]]


def eager(problem: GemmProblem, inputs: dict[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    return called(problem.grouping, operands_of(inputs), out)


def modelled(problem: GemmProblem, o: Operands) -> torch.Tensor:
    return gemm_model(problem, o.a, o.b, o.scale_a, o.scale_b, o.c, index=o.index)


def exact_result(module: ModuleOp, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    result = reference(module, list(inputs.values()))
    assert isinstance(result, torch.Tensor)
    return result + 0.0  # sums of kernels are never -0


def check(problem: GemmProblem, m: int, index: Sequence[int], seed: int, apart: bool, run: Run = eager) -> None:
    """
    What `run` computes has the bits of the model, or, with odd seeds, on exact data those of the reference; nothing
    around it has changed.
    """
    problem = replace(problem, m=m)
    module = parse_module(program_text(problem))
    inputs = (exact_inputs if seed % 2 else random_inputs)(module, None, seed, DEVICE)
    if index:
        inputs["index"] = torch.tensor(index, dtype=torch.int32, device=DEVICE)
    o = operands_of(inputs)
    shape = result_shape(problem.grouping, o)
    memory, out = poisoned(shape, getattr(torch, problem.d.torch_name), apart)
    expected = memory.clone()
    inside = expected[GUARD : memory.numel() - GUARD].view(out.dtype).view(*shape[:-1], -1)[..., : shape[-1]]
    mask = written(problem.grouping, o)
    inside[mask] = (exact_result(module, inputs) if seed % 2 else modelled(problem, o))[mask]
    run(problem, inputs, out)
    wrong = (memory != expected).nonzero()
    assert len(wrong) == 0, f"{problem}, {index}: {len(wrong)} bytes differ, first {wrong[0].item() - GUARD}"


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_drawn_products(grouping: Grouping) -> None:
    """Problems, M and groups as hypothesis draws them, no two alike."""
    kernels = drawn(grouping)
    assert sum(len(one.calls) for one in kernels) == 300
    for one in kernels:
        for seed, (m, index) in enumerate(one.calls):
            check(one.problem, m, index, seed, one.apart)


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_result_may_lie_where_c_does(grouping: Grouping, fp8: bool) -> None:
    """`out=c` adds to what is there, and leaves what no group writes."""
    kind = (columns_problem if grouping is Grouping.K_OFFS else fp8_problem) if fp8 else half_problem
    problem = replace(kind(300, 264, 512, d=F32), grouping=grouping, groups=5, has_c=True)
    o = operands_of(random_inputs(parse_module(program_text(problem)), None, 0, DEVICE))
    assert o.c is not None
    wanted = torch.where(written(grouping, o), modelled(problem, o), o.c)
    called(grouping, o, o.c)
    assert torch.equal(o.c.view(torch.int32), wanted.view(torch.int32))


LOOPED = {
    "large": (700, 520, 1408, 6),
    "tiny": (1, 8, 128, 2),
    "tails": (333, 136, 464, 3),
}
"""M (of one matrix where there is one for each group), N, K, groups; tails of N and K in the last."""
TINY_INDEX = {
    Grouping.OFFS: [1, 1],
    Grouping.GROUP_IDS: [1],
    Grouping.COUNTS: [1, 0],
    Grouping.K_OFFS: [128, 128],
}
"""What is drawn for one row is mostly nothing."""


@pytest.mark.parametrize("shape", LOOPED.values(), ids=LOOPED)
@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize(
    ("grouping", "d"), [*((grouping, BF16) for grouping in GROUPINGS), (Grouping.K_OFFS, F32)], ids=str
)
def test_groups_are_a_loop_of_single_products(
    grouping: Grouping, d: DType, fp8: bool, shape: tuple[int, int, int, int]
) -> None:
    """Bit for bit, though each kernel has tiles of its own."""
    m, n, k, groups = shape
    kind = (columns_problem if grouping is Grouping.K_OFFS else fp8_problem) if fp8 else half_problem
    problem = replace(kind(m, n, k, d=d), grouping=grouping, groups=groups)
    inputs = random_inputs(parse_module(program_text(problem)), None, 0, DEVICE)
    if m == 1 and "index" in inputs:
        inputs["index"] = torch.tensor(TINY_INDEX[grouping], dtype=torch.int32, device=DEVICE)
    o = operands_of(inputs)
    dtype, width = (torch.float32, torch.int32) if d is F32 else (torch.bfloat16, torch.int16)
    out = torch.zeros(result_shape(grouping, o), dtype=dtype, device=DEVICE)
    called(grouping, o, out)
    compared = 0
    for group, _, part in products_of(problem, o):
        scale_a = None if part.scale_a is None else gemmir.align_scales(part.scale_a)
        alone = gemmir.matmul(part.a, part.b, scale_a=scale_a, scale_b=part.scale_b, out_dtype=dtype, split_k=1)
        assert torch.equal(out[group.in_result].view(width), alone.view(width))
        compared += alone.numel()
    assert compared == int(written(grouping, o).sum()) > 0


@pytest.mark.parametrize("block_m", [64, 128])
def test_a_number_that_comes_back_in_its_block(block_m: int) -> None:
    """Rows 64 to 127 carry the number of row 0, but another one lies between: they belong to nobody."""
    problem = replace(half_problem(128, 64, 128), grouping=Grouping.GROUP_IDS, groups=6)
    text = program_text(problem, Schedule(family=Family.TILES, block_m=block_m))
    inputs = random_inputs(parse_module(text), None, 0, DEVICE)
    inputs["index"] = torch.tensor([3] * 10 + [5] * 54 + [3] * 64, dtype=torch.int32, device=DEVICE)
    memory, out = poisoned((128, 64), torch.bfloat16, apart=True)
    before = memory.clone()
    gemmir.compile(text)(*inputs.values(), out=out)
    changed = (memory != before).nonzero().flatten() - GUARD
    assert 0 <= changed.min()
    assert changed.max() < 10 * (64 + 8) * 2
