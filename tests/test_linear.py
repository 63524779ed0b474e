"""`gemmir.linear` and its gradients: within bounds that follow from the formats, of float64's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch._dynamo.utils import counters

import gemmir
from gemmir.errors import InputError

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = [(5, 64), (64,), (2, 3, 64), (0, 64), (1, 64), (130, 256), (3, 0)]
recipes = pytest.mark.parametrize("recipe", [None, "block_wise"])


def tensors(
    shape: tuple[int, ...], n: int = 48, types: tuple[torch.dtype, ...] = (BF16, BF16, BF16), device: str = "cpu"
) -> list[torch.Tensor]:
    """x of `shape`, weight and bias, of these types."""
    generator = torch.Generator().manual_seed(sum(shape) + n)
    shapes = (shape, (n, shape[-1]), (n,))
    made = [torch.randn(s, generator=generator).to(device, t) for s, t in zip(shapes, types, strict=True)]
    return [tensor.requires_grad_() for tensor in made]


def results(function: Any, given: list[torch.Tensor], dy: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    """The result, and the gradients of x, weight and bias."""
    y = function(*given, **options)
    return [y.detach(), *torch.autograd.grad(y, given, dy.to(y.dtype))]


def exact(given: list[torch.Tensor], dy: torch.Tensor) -> list[torch.Tensor]:
    return results(F.linear, [t.detach().double().requires_grad_() for t in given], dy)


def magnitudes(given: list[torch.Tensor], dy: torch.Tensor) -> list[torch.Tensor]:
    """The sums of the magnitudes of what each result adds up."""
    return exact([t.detach().abs().requires_grad_() for t in given], dy.abs())


def rounding(dtype: torch.dtype) -> float:
    """Twice the unit roundoff, for what is rounded twice, and a little for float32."""
    return torch.finfo(dtype).eps + 2**-18


def check(got: torch.Tensor, wanted: torch.Tensor, bound: torch.Tensor, name: str) -> None:
    excess = (got.double() - wanted).abs() - bound - torch.finfo(got.dtype).smallest_normal
    assert not excess.numel() or excess.max() <= 0, f"{name}: {excess.max():.3g} over the bound"


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_half(shape: tuple[int, ...], dtype: torch.dtype):
    """Each is rounded once, the result with a bias twice; float32 sums of up to 256 products are well below that."""
    given = tensors(shape, types=(dtype, dtype, dtype))
    dy = torch.randn(*shape[:-1], 48).to(dtype)
    found = zip(
        results(gemmir.linear, given, dy), exact(given, dy), magnitudes(given, dy), "y dx dw db".split(), strict=True
    )
    for got, wanted, magnitude, name in found:
        assert (got.shape, got.dtype) == (wanted.shape, dtype)
        check(got, wanted, magnitude * rounding(dtype), name)


def quantisation(t: torch.Tensor) -> torch.Tensor:
    """
    How far what is quantised may be from each element: half a unit of 3 bits, or of the smallest numbers, whose scale
    is at most that of the largest element of all.
    """
    if not t.numel():
        return t.double()
    return t.double().abs() * (2**-4 + 2**-20) + t.double().abs().max() / 448 * 2**-9


@pytest.mark.parametrize("types", [(BF16, BF16, BF16), (BF16, F32, F32), (F16, BF16, F16)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_block_wise(shape: tuple[int, ...], types: tuple[torch.dtype, ...]):
    """(a + e)(b + f) is within |a|f + e|b| + ef of ab."""
    given = tensors(shape, types=types)
    dy = torch.randn(*shape[:-1], 48).to(types[0])
    x, w, _ = [t.detach().double().abs() for t in given]
    rows, dys = x.reshape(-1, shape[-1]) if x.numel() else x, dy.double().abs().reshape(-1, 48)
    errors = [
        product_error(rows, w.t()).reshape(dy.shape) if x.numel() else torch.zeros(()),
        product_error(dys, w).reshape(x.shape) if x.numel() else torch.zeros(()),
        product_error(dys.t(), rows) if x.numel() else torch.zeros(()),
        torch.zeros(()),
    ]
    found = results(gemmir.linear, given, dy, recipe="block_wise")
    dtypes = (types[0], *types)
    for got, wanted, magnitude, error, dtype in zip(
        found, exact(given, dy), magnitudes(given, dy), errors, dtypes, strict=True
    ):
        assert (got.shape, got.dtype) == (wanted.shape, dtype)
        check(got, wanted, error * 1.02 + magnitude * rounding(dtype), str(dtype))


def product_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    e, f = quantisation(a), quantisation(b)
    return a @ f + e @ b + e @ f


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
    with torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes=({1: torch.export.Dim("tokens", max=256)},))
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
