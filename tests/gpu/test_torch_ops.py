"""`torch.ops.gemmir` and `gemmir.linear` on a Hopper GPU: the same bits, compiled, captured, and with gradients."""

from __future__ import annotations

import pytest
import torch

import gemmir
import gemmir.torch_ops
from tests.linear_bounds import (
    BLOCK_WISE_TYPES,
    HALF_TYPES,
    SHAPES,
    check_block_wise,
    check_half,
    random_like,
    results,
    tensors,
)
from tests.torch_forms import FORMS, check_compiled, check_eager, direct

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),  # of torch's own making
]

DEVICE = "cuda"
ROWS = (304, 8, 136)
"""Multiples of 8: with groups along K, neighbours in A are rows."""

forms = pytest.mark.parametrize("form", FORMS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@forms
def test_bits_are_those_of_the_function(form: str) -> None:
    check_eager(form, ROWS, DEVICE)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own making
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@forms
def test_one_graph_for_every_m(form: str, backend: str) -> None:
    check_compiled(form, backend, ROWS, DEVICE)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_cuda_graphs_of_inductor() -> None:
    """It records a graph for each M, and replays it for the second one of each."""
    check_compiled("fp8", "inductor", (136, 136, 136, 8, 8, 8), DEVICE, options={"triton.cudagraphs": True})


@forms
def test_a_captured_op_reads_new_operands(form: str) -> None:
    name, (a, b), options = call = FORMS[form](136, DEVICE)
    options.pop("validate", None)  # it waits for the device
    out = torch.zeros_like(direct(call))
    op = getattr(torch.ops.gemmir, f"{name}_out")
    op(a, b, **options, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op(a, b, **options, out=out)
    for step in range(3):
        a.copy_(a.float().roll(step + 1, -1).to(a.dtype))
        out.fill_(-77.0)
        graph.replay()
        assert torch.equal(out, direct(call))


@pytest.mark.parametrize("types", HALF_TYPES, ids=str)
@shapes
def test_half(shape: tuple[int, ...], types: tuple[torch.dtype, ...]) -> None:
    """Tensor cores truncate what they add to a sum, at 2^-22 of the largest part of it or below."""
    check_half(tensors(shape, types=types, device=DEVICE), summing=2**-13)


@pytest.mark.parametrize("types", BLOCK_WISE_TYPES, ids=str)
@shapes
def test_block_wise(shape: tuple[int, ...], types: tuple[torch.dtype, ...]) -> None:
    """Of FP8 they do at 2^-13, four times in 128 elements."""
    check_block_wise(tensors(shape, types=types, device=DEVICE), summing=2**-10)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch's own making
@pytest.mark.parametrize("recipe", [None, "block_wise"])
def test_compiled_gradients(recipe: str | None) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(gemmir.linear, backend="aot_eager", fullgraph=True, dynamic=True)
    for m in ROWS:
        given = tensors((m, 64), device=DEVICE)
        found = results(compiled, given, random_like(given), recipe=recipe)
        for got, wanted in zip(found, results(gemmir.linear, given, random_like(given), recipe=recipe), strict=True):
            assert torch.equal(got, wanted)
