"""`gemmir.linear` and its gradients: within bounds that follow from the formats, of float64's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

import gemmir
from gemmir.errors import InputError
from tests.linear_bounds import BLOCK_WISE_TYPES, HALF_TYPES, SHAPES, check_block_wise, check_half, results, tensors

recipes = pytest.mark.parametrize("recipe", [None, "block_wise"])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.mark.parametrize("types", HALF_TYPES, ids=str)
@shapes
def test_half(shape: tuple[int, ...], types: tuple[torch.dtype, ...]):
    check_half(tensors(shape, types=types), summing=2**-20)


@pytest.mark.parametrize("types", BLOCK_WISE_TYPES, ids=str)
@shapes
def test_block_wise(shape: tuple[int, ...], types: tuple[torch.dtype, ...]):
    check_block_wise(tensors(shape, types=types), summing=2**-20)


@recipes
def test_what_is_not_needed_is_not_computed(recipe: str | None):
    x, w, b = tensors((5, 64))
    with torch.no_grad():
        plain = gemmir.linear(x, w, b, recipe=recipe)
    assert not plain.requires_grad
    assert torch.equal(gemmir.linear(x, w, b, recipe=recipe), plain)
    frozen = w.detach()
    y = gemmir.linear(x, frozen, recipe=recipe)
    (dx,) = torch.autograd.grad(y.sum(), [x])
    assert dx.shape == x.shape
    with pytest.raises(InputError, match="GMR-I005"):
        torch.autograd.grad(gemmir.linear(x, w, recipe=recipe).float().square().sum(), [x], create_graph=True)


@recipes
def test_no_columns(recipe: str | None):
    x, w, b = tensors((5, 64), n=0)
    y, dx, dw, db = results(gemmir.linear, [x, w, b], torch.empty(5, 0), recipe=recipe)
    assert (y.shape, dw.shape, db.shape) == ((5, 0), (0, 64), (0,))
    assert torch.equal(dx, torch.zeros_like(x))


@recipes
def test_tensors_that_do_not_lie_row_by_row(recipe: str | None):
    x, w, b = tensors((6, 64))
    spread = torch.stack([x.detach(), x.detach()], -1)[..., 0].requires_grad_()
    assert not spread.is_contiguous()
    dy = torch.ones(1).bfloat16().expand(6, 48)
    for got, wanted in zip(
        results(gemmir.linear, [spread, w, b], dy, recipe=recipe),
        results(gemmir.linear, [x, w, b], dy.clone(), recipe=recipe),
        strict=True,
    ):
        assert torch.equal(got, wanted)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch's own making
@pytest.mark.parametrize(("recipe", "rows", "graphs"), [(None, (130, 5, 300), 1), ("block_wise", (130, 300, 5), 2)])
def test_compiled(recipe: str | None, rows: tuple[int, ...], graphs: int):
    """With a recipe torch itself tells one block of rows from more."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(gemmir.linear, backend="aot_eager", fullgraph=True, dynamic=True)
    for m in rows:
        given = tensors((m, 64))
        dy = torch.randn(m, 48)
        found = results(compiled, given, dy, recipe=recipe)
        for got, wanted in zip(found, results(gemmir.linear, given, dy, recipe=recipe), strict=True):
            assert torch.equal(got, wanted)
    assert counters["stats"]["unique_graphs"] == graphs


@recipes
def test_exported(recipe: str | None):
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            _, w, b = tensors((5, 64))
            self.weight, self.bias = torch.nn.Parameter(w.detach()), torch.nn.Parameter(b.detach())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return gemmir.linear(x, self.weight, self.bias, recipe=recipe)

    layer, x = Layer(), torch.randn(4, 6, 64).bfloat16()
    program = torch.export.export(layer, (x,), dynamic_shapes=({1: torch.export.Dim("tokens", max=256)},))
    with pytest.raises(InputError, match="GMR-I005"):  # an exported graph has no backward pass
        program.module()(x)
    with torch.no_grad():
        for tokens in (2, 9):
            x = torch.randn(4, tokens, 64).bfloat16()
            assert torch.equal(program.module()(x), layer(x))


def bad_calls() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    x, w, b = [t.detach() for t in tensors((5, 64))]
    yield "GMR-I009", (x, w, b), {"recipe": "row_wise"}
    yield "GMR-I005", ([1.0], w), {}
    yield "GMR-I001", (x.float(), w), {}
    yield "GMR-I001", (x, w.half()), {}
    yield "GMR-I001", (x.double(), w), {"recipe": "block_wise"}
    yield "GMR-I002", (x, w.t()), {}
    yield "GMR-I002", (x[0, 0], w), {}
    yield "GMR-I002", (x, w[None]), {}
    yield "GMR-I002", (x, w, b[1:]), {}
    yield "GMR-I004", (x, w.to("meta")), {}


@pytest.mark.parametrize(("code", "given", "options"), list(bad_calls()))
def test_bad_calls(code: str, given: tuple[Any, ...], options: dict[str, Any]):
    with pytest.raises(InputError) as raised:
        gemmir.linear(*given, **options)
    assert raised.value.code == code
