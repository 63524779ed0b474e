"""How far `gemmir.linear` and its gradients may be from float64's: bounds that follow from the formats."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import gemmir

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
HALF_TYPES = [(BF16, BF16, BF16), (F16, F16, F16)]
BLOCK_WISE_TYPES = [(BF16, BF16, BF16), (BF16, F32, F32), (F16, BF16, F16)]
"""Of x, weight and bias."""

SHAPES = [(5, 64), (64,), (2, 3, 64), (0, 64), (1, 64), (130, 256), (3, 0)]


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


def check(got: torch.Tensor, wanted: torch.Tensor, bound: torch.Tensor) -> None:
    excess = (got.double() - wanted).abs() - bound - torch.finfo(got.dtype).smallest_normal
    assert not excess.numel() or excess.max() <= 0, f"{got.dtype} {tuple(got.shape)}: {excess.max():.3g} over the bound"


def random_like(given: list[torch.Tensor]) -> torch.Tensor:
    """A gradient of the result."""
    x, weight, _ = given
    generator = torch.Generator().manual_seed(x.numel())
    return torch.randn((*x.shape[:-1], weight.shape[0]), generator=generator).to(x.device, x.dtype)


def check_half(given: list[torch.Tensor], summing: float) -> None:
    """Each is rounded once, the result with a bias twice. `summing`: error of a sum, of that of the magnitudes."""
    dy = random_like(given)
    found = results(gemmir.linear, given, dy)
    for got, wanted, magnitude in zip(found, exact(given, dy), magnitudes(given, dy), strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, given[0].dtype)
        check(got, wanted, magnitude * (rounding(got.dtype) + summing))


def check_block_wise(given: list[torch.Tensor], summing: float) -> None:
    """(a + e)(b + f) is within |a|f + e|b| + ef of ab."""
    dy = random_like(given)
    x, weight, bias = given
    rows, columns = x.detach().reshape(dy.numel() // dy.shape[-1], x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    errors = [
        product_error(rows, weight.t()).reshape(dy.shape),
        product_error(columns, weight).reshape(x.shape),
        product_error(columns.t(), rows),
        torch.zeros_like(bias),
    ]
    found = results(gemmir.linear, given, dy, recipe="block_wise")
    dtypes = [t.dtype for t in (x, *given)]
    wanted_all = zip(exact(given, dy), magnitudes(given, dy), errors, dtypes, strict=True)
    for got, (wanted, magnitude, error, dtype) in zip(found, wanted_all, strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, dtype)
        check(got, wanted, error * (1 + summing) + magnitude * (rounding(dtype) + summing))


def quantisation(t: torch.Tensor) -> torch.Tensor:
    """
    How far what is quantised may be from each element: half a unit of 3 bits, or of the smallest numbers, whose scale
    is at most that of the largest element of all.
    """
    t = t.detach().double().abs()
    return t * (2**-4 + 2**-20) + (t.max() / 448 * 2**-9 if t.numel() else 0.0)


def product_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    e, f = quantisation(a), quantisation(b)
    a, b = a.detach().double().abs(), b.detach().double().abs()
    return a @ f + e @ b + e @ f
