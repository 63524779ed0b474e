"""
`gemmir.linear`: torch.nn.functional.linear by gemmir's kernels, with its backward pass, in 16 bits or in FP8.

Its gradients are products too, of operands as they lie in memory:

    dX = dY @ W        dW = dY.t() @ X        db = the sum of dY's rows
"""

from __future__ import annotations

from typing import Any

import torch

from gemmir.errors import InputError
from gemmir.ops import matmul
from gemmir.problem import SCALE_BLOCK
from gemmir.quantization import quantize

RECIPES = (None, "block_wise")
HALF = (torch.bfloat16, torch.float16)
PLAIN = (*HALF, torch.float32)
ROW_SCALES, BLOCK_SCALES = "block_wise_1x128", "block_wise_128x128"


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, recipe: str | None = None
) -> torch.Tensor:
    """
    x @ weight.t() + bias, differentiable once by each of the three.

    `x`: (..., K), of any rank from 1 on; `weight`: (N, K); `bias`: (N,); result: (..., N), row-major, of the type of
    `x`. On a GPU K and N are multiples of 8, or of 16 with a recipe. `x`, and the gradient that comes in, are copied
    where they are not row-major.

    `recipe=None`: all three are bfloat16, or all float16. Each product is summed in float32 and rounded once, to that
    type; the bias is added to what was rounded, and the sum is rounded again. The bias's gradient is summed by torch,
    in float32. `weight` may be the transpose of a row-major tensor.

    `recipe="block_wise"`: `x`, `weight` and `bias` are bfloat16, float16 or float32, each of its own type, which its
    gradient has too. The operands of all products are float8_e4m3fn, quantised by `gemmir.quantize`; 128 elements at a
    time are summed as the tensor cores do, then scaled and added in float32:

    - result: X with one scale for 128 elements of K, W with one for 128 x 128;
    - dX: dY with one scale for 128 elements of N, and the same W, transposed;
    - dW: dY and X, each with one scale for 128 rows of one column. Rows of zeros make it a multiple of 128.

    The quantisation itself is passed through: gradients are as if it changed nothing. `weight` is row-major.

    dW is summed over the rows of x: a kernel is compiled for each number of rows, or of 128 rows with a recipe. Where
    few rows are multiplied, K is summed in parts as by `gemmir.matmul` without options.

    Raises `InputError`: GMR-I001 dtype, GMR-I002 shape, GMR-I004 device, GMR-I005 no tensor, or a second derivative,
    GMR-I009 recipe; and what `gemmir.matmul` and `gemmir.quantize` raise.
    """
    _check(x, weight, bias, recipe)
    rows = (x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)).contiguous()
    tracked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if recipe is None:
        y = _call(_Half, tracked, rows, weight, bias)
    else:
        y = _call(_BlockWise, tracked, rows, weight, bias)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _call(function: Any, tracked: bool, *tensors: torch.Tensor | None) -> torch.Tensor:
    """With what is needed for a backward pass, or without."""
    return function.apply(*tensors) if tracked else function.result(*tensors)[0]


class _Half(torch.autograd.Function):
    """Operands of 16 bits, which kernels read in either order."""

    @staticmethod
    def result(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return _add(matmul(x, weight.t()), bias), x, weight

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y, *saved = _Half.result(x, weight, bias)
        ctx.save_for_backward(*saved)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = grads[0].contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dx = matmul(dy, weight) if needs_x else None
        dw = matmul(dy.t(), x) if needs_weight else None
        return dx, dw, _sum(dy, ctx.bias_dtype) if needs_bias else None


class _BlockWise(torch.autograd.Function):
    """FP8 operands, which kernels read along the summed dimension only: each is quantised once for each such."""

    @staticmethod
    def result(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        qx, x_scale = quantize(x, ROW_SCALES)
        qw, w_scale = quantize(weight, BLOCK_SCALES)
        y = matmul(qx, qw.t(), scale_a=x_scale, scale_b=w_scale.t(), out_dtype=x.dtype)
        return _add(y, bias), x, qw, w_scale

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y, *saved = _BlockWise.result(x, weight, bias)
        ctx.save_for_backward(*saved)
        ctx.weight_dtype = weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, qw, w_scale = ctx.saved_tensors
        dy = grads[0].contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dx, dw = None, None
        if needs_x:
            qdy, dy_scale = quantize(dy, ROW_SCALES)
            w = qw.t().contiguous().t()
            dx = matmul(qdy, w, scale_a=dy_scale, scale_b=w_scale, out_dtype=x.dtype)
        if needs_weight:
            qdy, dy_scale = quantize(_columns(dy), ROW_SCALES)
            qx, x_scale = quantize(_columns(x), ROW_SCALES)
            dw = matmul(qdy, qx.t(), scale_a=dy_scale, scale_b=x_scale.t(), out_dtype=ctx.weight_dtype)
        return dx, dw, _sum(dy, ctx.bias_dtype) if needs_bias else None


def _columns(rows: torch.Tensor) -> torch.Tensor:
    """The transpose, as a row-major tensor; zeros are added so that TMA can read it and few kernels serve all sizes."""
    missing = -rows.shape[0] % SCALE_BLOCK
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)).t().contiguous()


def _add(y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if bias is None:
        return y
    # Neither in place nor by a conversion that does nothing: of a result that was changed, or is another one's alias,
    # torch 2.11 compiles gradients that are zero.
    total = y + bias
    return total if total.dtype == y.dtype else total.to(y.dtype)


def _sum(dy: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return dy.sum(0, dtype=torch.float32).to(dtype)


def _check(x: Any, weight: Any, bias: Any, recipe: object) -> None:
    if recipe not in RECIPES:
        rule = "one of None and 'block_wise'"
        raise InputError("GMR-I009", f"recipe {str(recipe)[:40]!r}", rule=rule, fix="use 'block_wise'")
    given = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, tensor in given.items():
        _check_tensor(name, tensor, HALF if recipe is None else PLAIN)
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        what = f"x: shape is {tuple(x.shape)}; weight: shape is {tuple(weight.shape)}"
        raise InputError("GMR-I002", what, rule="x is (..., K) and weight (N, K)", fix="pass a weight of shape (N, K)")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        what = f"bias: shape is {tuple(bias.shape)}"
        raise InputError("GMR-I002", what, rule="bias is (N,)", fix=f"pass one of shape ({weight.shape[0]},)")
    for name, tensor in given.items():
        _check_alike(name, tensor, x, recipe)


def _check_tensor(name: str, tensor: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(tensor, torch.Tensor):
        rule, fix = "arguments are torch tensors", "pass torch.as_tensor(...)"
        raise InputError("GMR-I005", f"{name}: {type(tensor).__name__}", rule=rule, fix=fix)
    if tensor.dtype not in dtypes:
        rule = "one of " + ", ".join(str(dtype) for dtype in dtypes)
        raise InputError("GMR-I001", f"{name}: dtype is {tensor.dtype}", rule=rule, fix=f"pass {name}.bfloat16()")


def _check_alike(name: str, tensor: torch.Tensor, x: torch.Tensor, recipe: object) -> None:
    if tensor.device != x.device:
        what, rule = f"{name}: is on {tensor.device}, x on {x.device}", "all tensors are on one device"
        raise InputError("GMR-I004", what, rule=rule, fix=f"pass {name}.to('{x.device}')")
    if recipe is None and tensor.dtype != x.dtype:
        what, rule = f"{name}: dtype is {tensor.dtype}", f"without a recipe it is that of x, {x.dtype}"
        raise InputError("GMR-I001", what, rule=rule, fix=f"pass {name}.to({x.dtype})")
