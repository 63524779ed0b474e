"""
FP8 quantisation: `gemmir.quantize` and `gemmir.dequantize`.

On a GPU a fused kernel computes 1x128 scales; all else is torch, on every device, with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from gemmir.errors import InputError
from gemmir.matmul_rules import MAX_DIM, operand_scale_shape
from gemmir.problem import RECIPES, SCALE_BLOCK, Recipe
from gemmir.scales import align_scales, scale_pitch

if TYPE_CHECKING:
    import torch

LEAST_AMAX = 2.0**-100
"""A block whose largest magnitude is below it is scaled as if it held it: scales are normal numbers, never zero."""

DEFAULT_RECIPE = Recipe.BLOCK_WISE_1X128.torch_name


@dataclass(frozen=True, slots=True)
class Tiling:
    """
    How scales cover a tensor of rank 2 or 3.

    `view` is the shape to see it in (rank 2 or 3), `counts` how many blocks there are along its last two dimensions,
    `block` how many elements of each a block covers. Blocks may reach past the end.
    """

    view: tuple[int, ...]
    counts: tuple[int, int]
    block: tuple[int, int]


def quantize(
    x: torch.Tensor,
    recipe: str = DEFAULT_RECIPE,
    *,
    dtype: torch.dtype | None = None,
    power_of_two: bool = False,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Quantise `x` to FP8: (q, scale) with x ~ q * scale, ready for `gemmir.matmul`.

    `x`: bfloat16, float16 or float32, (M, K) or (G, M, K); elements of K are neighbours, rows may be any distance
    apart. `dtype`: torch.float8_e4m3fn (the default) or torch.float8_e5m2. `q`: the shape of `x`, row-major. `scale`:
    float32 multipliers that decode, in the shape and layout of `scale_a`; both get a leading G where x has one, but for
    the one tensor-wise scale of all groups:

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
    sign. NaN and infinities become the NaN 0x7f, and count for no scale.

    `out`: (q, scale) to write to instead, of exactly these shapes and layouts; `dtype` may then be left out.

    Raises `InputError`: GMR-I001 dtype, GMR-I002 shape, GMR-I004 device, GMR-I005 no tensor or one that requires a
    gradient, GMR-I006 memory layout, GMR-I007 size, GMR-I008 overlap, GMR-I009 recipe.
    """
    scaling = _recipe(recipe)
    _check_operand(x)
    target = _target_dtype(dtype, out)
    shape = tuple(x.shape)
    if out is None:
        out = _new(shape, target, x.device), _new_scale(scaling, shape, x.device)
    else:
        _check_out(x, scaling, target, out)
    _compute(x, tiling(scaling, shape), power_of_two, *out)
    return out


def dequantize(
    q: torch.Tensor, scale: torch.Tensor, recipe: str = DEFAULT_RECIPE, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """
    What `q` and `scale` stand for: a new row-major tensor of `dtype`, of the shape of `q`.

    `q`: FP8, (M, K) or (G, M, K), any strides; `scale`: float32 of the shape that `gemmir.quantize` gives it for
    `recipe`, any strides. Each element is q * scale rounded to float32, then to `dtype`: float32 (the default),
    bfloat16 or float16. Raises `InputError` as `gemmir.quantize` does.
    """
    import torch

    scaling = _recipe(recipe)
    _check_tensor(q, "q", FP8)
    _check_tensor(scale, "scale", ("float32",))
    target = torch.float32 if dtype is None else dtype
    _check_dtype(target, "dtype", PLAIN)
    _check_rank(q, "q")
    _check_shape(scale, "scale", scale_shape(scaling, tuple(q.shape)))
    _check_device(scale, "scale", q)
    tiles = tiling(scaling, tuple(q.shape))
    blocked = _blocked(q.float(), tiles)
    product = blocked * _spread(scale.reshape(*tiles.view[:-2], *tiles.counts))
    return _unblocked(product, tiles).reshape(q.shape).to(target).contiguous()


def scale_shape(recipe: Recipe, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of a tensor of `shape`, (M, K) or (G, M, K)."""
    found = operand_scale_shape(recipe, shape, k_axis=1)
    return tuple(0 if extent is None else extent for extent in found)


def tiling(recipe: Recipe, shape: tuple[int, ...]) -> Tiling:
    """How the scales of `recipe` cover a tensor of `shape`."""
    if recipe is Recipe.TENSOR_WISE:
        count = prod(shape)
        return Tiling((1, count), (1, 1), (1, max(1, count)))
    row_blocks, k_blocks = scale_shape(recipe, shape)[-2:]
    rows = SCALE_BLOCK if recipe is Recipe.BLOCK_WISE_128X128 else 1
    columns = max(1, shape[-1]) if recipe is Recipe.ROW_WISE else SCALE_BLOCK
    return Tiling(shape, (row_blocks, k_blocks), (rows, columns))


def _compute(x: torch.Tensor, tiles: Tiling, power_of_two: bool, q: torch.Tensor, scale: torch.Tensor) -> None:
    """`quantize` in torch's own operations."""
    import torch

    blocked = _blocked(x.float(), tiles)
    finite = blocked.isfinite()
    amax = torch.where(finite, blocked.abs(), 0.0).amax((-3, -1)).clamp(min=LEAST_AMAX)
    # NOTE: on a GPU torch divides by a Python number as it multiplies by its reciprocal, which rounds twice.
    largest = torch.full_like(amax, torch.finfo(q.dtype).max)
    found = amax / largest
    inverse = largest / amax
    if power_of_two:
        found = _next_power_of_two(found)
        inverse = torch.ones_like(found) / found
    values = (blocked * _spread(inverse)).clamp(-torch.finfo(q.dtype).max, torch.finfo(q.dtype).max)
    values = torch.where(finite, values, float("nan"))
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


def _new(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    import torch

    return torch.empty(shape, dtype=dtype, device=device)


def _new_scale(recipe: Recipe, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """New memory for scales, in the layout that kernels read."""
    import torch

    wanted = scale_shape(recipe, shape)
    if recipe is not Recipe.BLOCK_WISE_1X128:
        return _new(wanted, torch.float32, device)
    *groups, rows, k_blocks = wanted
    return _new((*groups, k_blocks, scale_pitch(rows)), torch.float32, device).transpose(-1, -2)[..., :rows, :]


PLAIN = ("bfloat16", "float16", "float32")
FP8 = ("float8_e4m3fn", "float8_e5m2")


def _recipe(name: Any) -> Recipe:
    if isinstance(name, str) and (found := RECIPES.get(name, Recipe.NONE)) is not Recipe.NONE:
        return found
    rule = "one of " + ", ".join(known for known, recipe in RECIPES.items() if recipe is not Recipe.NONE)
    raise InputError("GMR-I009", f"recipe {str(name)[:40]!r}", rule=rule, fix=f"use {DEFAULT_RECIPE!r}")


def _check_operand(x: torch.Tensor) -> None:
    from gemmir.backends.cuda.arguments import refuse_gradient

    _check_tensor(x, "x", PLAIN)
    _check_rank(x, "x")
    if x.device.type not in ("cpu", "cuda"):
        rule = "tensors are quantised on CUDA devices or on the CPU"
        raise InputError("GMR-I004", f"x: is on {x.device.type}", rule=rule, fix="pass a tensor on a GPU")
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        what = f"x: strides are {tuple(x.stride())}"
        raise InputError("GMR-I006", what, rule="elements of the last dimension are neighbours", fix="x.contiguous()")
    if max(x.shape) > MAX_DIM:
        raise InputError("GMR-I007", f"x: shape is {tuple(x.shape)}", rule=f"dimensions are at most {MAX_DIM}")
    if _tracked(x):
        raise refuse_gradient("x")


def _tracked(x: torch.Tensor) -> bool:
    import torch

    return x.requires_grad and torch.is_grad_enabled()


def _check_tensor(tensor: Any, name: str, dtypes: tuple[str, ...]) -> None:
    """A dense tensor that holds data, of one of `dtypes`."""
    from gemmir.backends.cuda.arguments import describe

    describe(tensor, name)
    _check_dtype(tensor.dtype, name, dtypes)


def _check_dtype(dtype: Any, name: str, dtypes: tuple[str, ...]) -> None:
    if str(dtype) in [f"torch.{known}" for known in dtypes]:
        return
    rule = "one of " + ", ".join(f"torch.{known}" for known in dtypes)
    raise InputError("GMR-I001", f"{name}: dtype is {str(dtype)[:40]}", rule=rule, fix=f"use torch.{dtypes[0]}")


def _check_rank(tensor: torch.Tensor, name: str) -> None:
    if tensor.dim() not in (2, 3):
        what = f"{name}: shape is {tuple(tensor.shape)}"
        raise InputError("GMR-I002", what, rule="(M, K), or (G, M, K) for groups", fix="reshape it to rank 2")


def _check_shape(tensor: torch.Tensor, name: str, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        what = f"{name}: shape is {tuple(tensor.shape)}"
        raise InputError("GMR-I002", what, rule=f"it has the shape {wanted}", fix="use what gemmir.quantize returns")


def _check_device(tensor: torch.Tensor, name: str, other: torch.Tensor) -> None:
    if tensor.device != other.device:
        what = f"{name}: is on {tensor.device}, not on {other.device}"
        raise InputError("GMR-I004", what, rule="all tensors are on one device", fix=f"{name}.to('{other.device}')")


def _target_dtype(dtype: torch.dtype | None, out: Any) -> torch.dtype:
    import torch

    if out is not None and (not isinstance(out, tuple | list) or len(out) != 2):
        raise InputError("GMR-I005", f"out: {type(out).__name__}", rule="out is (q, scale)", fix="leave out out")
    given: Any = torch.float8_e4m3fn if out is None else getattr(out[0], "dtype", None)
    target: Any = given if dtype is None else dtype
    _check_dtype(target, "dtype" if out is None or dtype is not None else "out[0]", FP8)
    return target


def _check_out(x: torch.Tensor, recipe: Recipe, dtype: torch.dtype, out: tuple[torch.Tensor, torch.Tensor]) -> None:
    """What is given to be written to has the shapes and layouts of what would be made."""
    q, scale = out
    shape = tuple(x.shape)
    wanted = (("out[0]", q, str(dtype), shape), ("out[1]", scale, "torch.float32", scale_shape(recipe, shape)))
    for name, tensor, type_, extents in wanted:
        _check_tensor(tensor, name, (type_.removeprefix("torch."),))
        _check_shape(tensor, name, extents)
        _check_device(tensor, name, x)
    if not q.is_contiguous():
        raise _wrong_layout(q, "out[0]", "q is row-major")
    if recipe is Recipe.BLOCK_WISE_1X128:
        if scale.numel() and align_scales(scale) is not scale:
            raise _wrong_layout(scale, "out[1]", "1x128 scales lie as gemmir.align_scales lays them out")
    elif not scale.is_contiguous():
        raise _wrong_layout(scale, "out[1]", "the scales are row-major")
    _check_overlaps({"x": x, "out[0]": q, "out[1]": scale})


def _wrong_layout(tensor: torch.Tensor, name: str, rule: str) -> InputError:
    what = f"{name}: strides are {tuple(tensor.stride())}"
    return InputError("GMR-I006", what, rule=rule, fix="use what gemmir.quantize returns")


def _check_overlaps(tensors: dict[str, torch.Tensor]) -> None:
    from gemmir.backends.cuda.arguments import describe

    seen = [describe(tensor, name) for name, tensor in tensors.items()]
    for number, one in enumerate(seen):
        for other in seen[:number]:
            if one.span[0] < other.span[1] and other.span[0] < one.span[1]:
                rule = "inputs are read while outputs are written"
                raise InputError("GMR-I008", f"{one.name}: overlaps {other.name}", rule=rule, fix="pass another tensor")
