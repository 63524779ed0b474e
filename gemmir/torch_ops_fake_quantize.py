"""What `torch.ops.gemmir.quantize` returns and refuses where its tensor holds no data; see `gemmir.torch_ops_fake`."""

from __future__ import annotations

import torch

from gemmir.backends.cuda.arguments import refuse_gradient
from gemmir.problem import Recipe
from gemmir.quantization_checks import (
    DEFAULT_RECIPE,
    PLAIN,
    check_device,
    check_dtype,
    check_neighbours,
    check_rank,
    is_tracked,
    recipe_named,
    target_dtype,
)
from gemmir.scale_blocks import scale_layout
from gemmir.torch_ops_fake import outline_of


def fake_quantize(
    x: torch.Tensor,
    recipe: str = DEFAULT_RECIPE,
    *,
    dtype: torch.dtype | None = None,
    power_of_two: bool = False,
    saturate: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    scaling = _checked(x, recipe)
    target = target_dtype(dtype, None)
    shape, strides = scale_layout(scaling, tuple(x.shape))
    return x.new_empty(x.shape, dtype=target), x.new_empty_strided(shape, strides, dtype=torch.float32)


def fake_quantize_out(
    x: torch.Tensor,
    recipe: str = DEFAULT_RECIPE,
    *,
    dtype: torch.dtype | None = None,
    power_of_two: bool = False,
    saturate: bool = False,
    q: torch.Tensor,
    scale: torch.Tensor,
) -> None:
    _checked(x, recipe)
    target = target_dtype(dtype, (q, scale))
    check_dtype(q.dtype, "out[0]", (str(target).removeprefix("torch."),))
    check_dtype(scale.dtype, "out[1]", ("float32",))
    for name, tensor in (("out[0]", q), ("out[1]", scale)):
        check_device(tensor, name, x)


def _checked(x: torch.Tensor, recipe: str) -> Recipe:
    scaling = recipe_named(recipe)
    check_dtype(x.dtype, "x", PLAIN)
    check_rank(x, "x")
    if (outline := outline_of(x)) is not None:
        check_neighbours(outline.shape, outline.strides)
    if is_tracked(x):
        raise refuse_gradient("x")
    return scaling
