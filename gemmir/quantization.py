"""
FP8 quantisation: `gemmir.quantize` and `gemmir.dequantize`.

On a GPU fused kernels quantise by blocks, in one pass; all else is torch's own operations, with the same bits.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from typing import TYPE_CHECKING, Any

from gemmir.calls import remember
from gemmir.problem import Recipe
from gemmir.quantization_checks import (
    DEFAULT_RECIPE,
    FP8,
    PLAIN,
    check_device,
    check_dtype,
    check_operand,
    check_out,
    check_rank,
    check_shape,
    check_tensor,
    is_tracked,
    name_of,
    recipe_named,
    target_dtype,
)
from gemmir.scale_blocks import Tiling, scale_layout, scale_shape, tiling
from gemmir.tracing import is_traced, traced_quantize

if TYPE_CHECKING:
    import torch

    from gemmir.backends.cuda.quantize import Launch

LEAST_AMAX = 2.0**-100
"""A block whose largest magnitude is below it is scaled as if it held it: scales are normal numbers, never zero."""

FUSED = (Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_128X128)
"""Recipes that GPUs have kernels for."""

SCALE_ALIGNMENT = 16
"""Bytes, of the first of the scales that a caller has memory for."""

MAX_PLANS = 1024
"""Kinds of calls that are remembered."""


def quantize(
    x: torch.Tensor,
    recipe: object = DEFAULT_RECIPE,
    *,
    dtype: torch.dtype | None = None,
    power_of_two: bool = False,
    saturate: bool = False,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Quantise `x` to FP8: (q, scale) with x ~ q * scale, ready for `gemmir.matmul`.

    `x`: bfloat16, float16 or float32, (M, K) or (G, M, K); elements of K are neighbours, rows may be any distance
    apart. `dtype`: torch.float8_e4m3fn (the default) or torch.float8_e5m2. `q`: the shape of `x`, row-major. `scale`:
    float32 multipliers that decode, in the shape and layout of `scale_a`; both get a leading G where x has one, but for
    the one tensor-wise scale of all groups. `recipe`, by its name or as a member of torch's `ScalingType`:
    - "block_wise_1x128": (M, ceil(K/128)), one for 128 elements of a row, as `gemmir.align_scales` lays them out: M
      fastest, blocks of K a multiple of 4 floats apart.
    - "block_wise_128x128": (ceil(M/128), ceil(K/128)), row-major.
    - "row_wise": (M, 1), row-major.
    - "tensor_wise": (), a tensor of rank 0.

    A weight w (N, K) is quantised the same way, and enters as its transpose, with that of its scales:

        qx, sx = gemmir.quantize(x)
        qw, sw = gemmir.quantize(w, "block_wise_128x128")
        y = gemmir.matmul(qx, qw.t(), scale_a=sx, scale_b=sw.t())

    The arithmetic, the same on CPU and GPU, bit for bit; every operation is rounded to nearest even in float32. With
    `largest` the largest finite number of `dtype` (448 or 57344) and `amax` the largest magnitude among the finite
    elements of a block, or 2^-100 if that is larger (so zeros have a scale too):

        scale = amax / largest          inverse = largest / amax
        q     = x * inverse, clamped to -largest .. largest, rounded to nearest even in `dtype`

    `power_of_two`: the scale is raised to the next power of two, and inverse = 1 / scale, exactly. Zeros keep their
    sign. Nothing finite overflows: the scale is made of it. NaN and infinities count for no scale, and become the NaN
    0x7f; with `saturate` infinities become the largest finite number of their sign instead.

    `out`: (q, scale) to write to instead, of exactly these shapes and layouts; `dtype` may then be left out.
    Raises `InputError`: GMR-I001 dtype, GMR-I002 shape, GMR-I004 device, GMR-I005 no tensor or one that requires a
    gradient, GMR-I006 memory layout, GMR-I007 size, GMR-I008 overlap, GMR-I009 recipe. With block-wise recipes on a GPU
    also `DeviceError` if it is no Hopper GPU, and `CaptureError` if the first call with these types is being captured.
    """
    if is_traced(x):
        return traced_quantize(x, name_of(recipe), out, dtype=dtype, power_of_two=power_of_two, saturate=saturate)
    try:
        tensors = (x,) if out is None else (x, *out)
        key = (recipe, dtype, power_of_two, saturate, *[(t.shape, t.stride(), t.dtype, t.device) for t in tensors])
        plan, addresses = _plans.get(key), [tensor.data_ptr() for tensor in tensors]
    except (AttributeError, TypeError, RuntimeError):  # something is no tensor, or none that holds data: found below
        plan, key, addresses = None, None, []
    if plan is None or not plan.accepts(x, addresses):
        plan = _planned(x, recipe, dtype, How(bool(power_of_two), bool(saturate)), out)
        if key is not None:
            with _lock:
                remember(_plans, key, plan, MAX_PLANS)
    made = plan.new() if out is None else out
    plan.run(x, *made)
    return made


@dataclass(frozen=True, slots=True)
class How:
    """The options of the arithmetic: scales that are powers of two, and infinities as the largest finite numbers."""

    power_of_two: bool
    saturate: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How tensors of some shapes, strides, types and devices are quantised, once they have been checked.

    `scale_layout`: shape and strides. `reach`: bytes that x, q and scale span. `launch`: the kernel, where there is one
    and something to do.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    scale_layout: tuple[tuple[int, ...], tuple[int, ...]]
    reach: tuple[int, int, int]
    tiles: Tiling
    how: How
    launch: Launch | None

    def accepts(self, x: torch.Tensor, addresses: Sequence[int]) -> bool:
        """Whether such tensors may lie at `addresses`: x, or x, q and scale. False where one has to look closer."""
        if is_tracked(x):
            return False
        spans = [(at, at + reach) for at, reach in zip(addresses, self.reach, strict=False)]
        apart = all(one[1] <= other[0] or other[1] <= one[0] for one, other in combinations(spans, 2))
        return apart and all(at % SCALE_ALIGNMENT == 0 for at in addresses[2:])

    def new(self) -> tuple[torch.Tensor, torch.Tensor]:
        """New memory for q and scale; `OutOfMemoryError` (GMR-D009) if there is none."""
        import torch

        shape, strides = self.scale_layout
        try:
            q = torch.empty(self.shape, dtype=self.dtype, device=self.device)
            return q, torch.empty_strided(shape, strides, dtype=torch.float32, device=self.device)
        except torch.OutOfMemoryError as error:
            from gemmir.backends.cuda.memory import out_of_memory

            wanted = prod(self.shape) + 4 * (1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)))
            raise out_of_memory("q and scale", wanted, self.device, "pass out=, or quantise parts") from error

    def run(self, x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
        if self.launch is None:
            _compute(x, self.tiles, self.how, q, scale)
        else:
            self.launch.run(x.data_ptr(), q.data_ptr(), scale.data_ptr())


_plans: OrderedDict[object, Plan] = OrderedDict()
_lock = threading.Lock()


def dequantize(
    q: torch.Tensor, scale: torch.Tensor, recipe: object = DEFAULT_RECIPE, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """
    What `q` and `scale` stand for: a new row-major tensor of `dtype`, of the shape of `q`.

    `q`: FP8, (M, K) or (G, M, K), any strides; `scale`: float32 of the shape that `gemmir.quantize` gives it for
    `recipe`, any strides. Each element is q * scale rounded to float32, then to `dtype`: float32 (the default),
    bfloat16 or float16. Raises `InputError` as `gemmir.quantize` does.
    """
    import torch

    scaling = recipe_named(recipe)
    check_tensor(q, "q", FP8)
    check_tensor(scale, "scale", ("float32",))
    target = torch.float32 if dtype is None else dtype
    check_dtype(target, "dtype", PLAIN)
    check_rank(q, "q")
    check_shape(scale, "scale", scale_shape(scaling, tuple(q.shape)))
    check_device(scale, "scale", q)
    tiles = tiling(scaling, tuple(q.shape))
    blocked = _blocked(q.float(), tiles)
    product = blocked * _spread(scale.reshape(*tiles.view[:-2], *tiles.counts))
    return _unblocked(product, tiles).reshape(q.shape).to(target).contiguous()


def _compute(x: torch.Tensor, tiles: Tiling, how: How, q: torch.Tensor, scale: torch.Tensor) -> None:
    """`quantize` in torch's own operations."""
    import torch

    blocked = _blocked(x.float(), tiles)
    finite = blocked.isfinite()
    amax = torch.where(finite, blocked.abs(), 0.0).amax((-3, -1)).clamp(min=LEAST_AMAX)
    # NOTE: on a GPU torch divides by a Python number as it multiplies by its reciprocal, which rounds twice.
    largest = torch.full_like(amax, torch.finfo(q.dtype).max)
    found = amax / largest
    inverse = largest / amax
    if how.power_of_two:
        found = _next_power_of_two(found)
        inverse = torch.ones_like(found) / found
    values = (blocked * _spread(inverse)).clamp(-torch.finfo(q.dtype).max, torch.finfo(q.dtype).max)
    values = torch.where(~blocked.isnan() if how.saturate else finite, values, float("nan"))
    q.copy_(_unblocked(values, tiles).reshape(q.shape))
    scale.copy_(found.reshape(scale.shape))


def _next_power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """Positive normal numbers, raised to powers of two: a significand above 1 carries into the exponent."""
    import torch

    return ((scale.view(torch.int32) + 0x7FFFFF) & -0x800000).view(torch.float32)


def _blocked(x: torch.Tensor, tiles: Tiling) -> torch.Tensor:
    """`x` as (..., row blocks, rows, column blocks, columns); what blocks have past its end is zero."""
    import torch

    seen = x.reshape(tiles.view)
    missing = [n * b - extent for n, b, extent in zip(tiles.counts, tiles.block, tiles.view[-2:], strict=True)]
    if any(missing):
        seen = torch.nn.functional.pad(seen, (0, missing[1], 0, missing[0]))
    (row_blocks, k_blocks), (rows, columns) = tiles.counts, tiles.block
    return seen.reshape(*tiles.view[:-2], row_blocks, rows, k_blocks, columns)


def _unblocked(blocked: torch.Tensor, tiles: Tiling) -> torch.Tensor:
    """The reverse of `_blocked`."""
    (row_blocks, k_blocks), (rows, columns) = tiles.counts, tiles.block
    whole = blocked.reshape(*tiles.view[:-2], row_blocks * rows, k_blocks * columns)
    return whole[..., : tiles.view[-2], : tiles.view[-1]]


def _spread(scale: torch.Tensor) -> torch.Tensor:
    """One number for each block, to be multiplied with blocks."""
    return scale[..., :, None, :, None]


def _planned(x: Any, recipe: object, dtype: Any, how: How, out: Any) -> Plan:
    """Check a call and prepare it."""
    from gemmir.backends.cuda.arguments import describe

    scaling = recipe_named(recipe)
    check_operand(x)
    shape, target = tuple(x.shape), target_dtype(dtype, out)
    if out is not None:
        check_out(x, scaling, target, out)
    layout = scale_layout(scaling, shape)
    plan = Plan(shape, target, x.device, layout, (0, 0, 0), tiling(scaling, shape), how, None)
    q, scale = plan.new() if out is None else out
    spans = [describe(tensor, "").span for tensor in (x, q, scale)]
    x_reach, q_reach, scale_reach = (end - start for start, end in spans)
    plan = replace(plan, reach=(x_reach, q_reach, scale_reach))
    if x.device.type != "cuda" or scaling not in FUSED or x.numel() == 0:
        return plan
    from gemmir.backends.cuda.quantize import prepare

    launch = prepare(scaling, x, q, scale, least=LEAST_AMAX, power_of_two=how.power_of_two, saturate=how.saturate)
    return replace(plan, launch=launch)
