"""What `gemmir.quantize` and `gemmir.dequantize` accept; each check raises an `InputError`."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

from gemmir.errors import InputError
from gemmir.matmul_rules import MAX_DIM
from gemmir.problem import RECIPES, SCALING_TYPES, Recipe
from gemmir.scale_blocks import scale_shape
from gemmir.scales import align_scales
from gemmir.tracing import is_traced

if TYPE_CHECKING:
    import torch

DEFAULT_RECIPE = Recipe.BLOCK_WISE_1X128.torch_name
PLAIN = ("bfloat16", "float16", "float32")
FP8 = ("float8_e4m3fn", "float8_e5m2")


def recipe_named(value: object) -> Recipe:
    """A recipe by its name, as a member of torch's `ScalingType`, or itself."""
    name = name_of(value)
    if (found := RECIPES.get(name) or SCALING_TYPES.get(name)) is not None and found is not Recipe.NONE:
        return found
    rule = "one of " + ", ".join(known for known, recipe in RECIPES.items() if recipe is not Recipe.NONE)
    raise InputError("GMR-I009", f"recipe {name[:40]!r}", rule=rule, fix=f"use {DEFAULT_RECIPE!r}")


def name_of(recipe: object) -> str:
    """What names a recipe, if it is one."""
    return recipe.torch_name if isinstance(recipe, Recipe) else str(getattr(recipe, "name", recipe))


def check_operand(x: torch.Tensor) -> None:
    from gemmir.backends.cuda.arguments import refuse_gradient

    check_tensor(x, "x", PLAIN)
    check_rank(x, "x")
    if x.device.type not in ("cpu", "cuda"):
        rule = "tensors are quantised on CUDA devices or on the CPU"
        raise InputError("GMR-I004", f"x: is on {x.device.type}", rule=rule, fix="pass a tensor on a GPU")
    check_neighbours(tuple(x.shape), x.stride())
    if max(x.shape) > MAX_DIM:
        raise InputError("GMR-I007", f"x: shape is {tuple(x.shape)}", rule=f"dimensions are at most {MAX_DIM}")
    if is_tracked(x):
        raise refuse_gradient("x")


def check_neighbours(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    if shape[-1] > 1 and strides[-1] != 1:
        what = f"x: strides are {tuple(strides)}"
        raise InputError("GMR-I006", what, rule="elements of the last dimension are neighbours", fix="x.contiguous()")


def is_tracked(x: torch.Tensor) -> bool:
    import torch

    return x.requires_grad and torch.is_grad_enabled()


def check_tensor(tensor: Any, name: str, dtypes: tuple[str, ...]) -> None:
    """A dense tensor that holds data, of one of `dtypes`; one that is traced holds none, and torch knows its layout."""
    from gemmir.backends.cuda.arguments import describe

    if not is_traced(tensor):
        describe(tensor, name)
    check_dtype(tensor.dtype, name, dtypes)


def check_dtype(dtype: Any, name: str, dtypes: tuple[str, ...]) -> None:
    if str(dtype) in [f"torch.{known}" for known in dtypes]:
        return
    rule = "one of " + ", ".join(f"torch.{known}" for known in dtypes)
    raise InputError("GMR-I001", f"{name}: dtype is {str(dtype)[:40]}", rule=rule, fix=f"use torch.{dtypes[0]}")


def check_rank(tensor: torch.Tensor, name: str) -> None:
    if tensor.dim() not in (2, 3):
        what = f"{name}: shape is {tuple(tensor.shape)}"
        raise InputError("GMR-I002", what, rule="(M, K), or (G, M, K) for groups", fix="reshape it to rank 2")


def check_shape(tensor: torch.Tensor, name: str, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        what = f"{name}: shape is {tuple(tensor.shape)}"
        raise InputError("GMR-I002", what, rule=f"it has the shape {wanted}", fix="use what gemmir.quantize returns")


def check_device(tensor: torch.Tensor, name: str, other: torch.Tensor) -> None:
    if tensor.device != other.device:
        what = f"{name}: is on {tensor.device}, not on {other.device}"
        raise InputError("GMR-I004", what, rule="all tensors are on one device", fix=f"{name}.to('{other.device}')")


def target_dtype(dtype: torch.dtype | None, out: Any) -> torch.dtype:
    import torch

    if out is not None and (not isinstance(out, tuple | list) or len(out) != 2):
        raise InputError("GMR-I005", f"out: {type(out).__name__}", rule="out is (q, scale)", fix="leave out out")
    given: Any = torch.float8_e4m3fn if out is None else getattr(out[0], "dtype", None)
    target: Any = given if dtype is None else dtype
    check_dtype(target, "dtype" if out is None or dtype is not None else "out[0]", FP8)
    return target


def check_out(x: torch.Tensor, recipe: Recipe, dtype: torch.dtype, out: tuple[torch.Tensor, torch.Tensor]) -> None:
    """What is given to be written to has the shapes and layouts of what would be made."""
    q, scale = out
    shape = tuple(x.shape)
    wanted = (("out[0]", q, str(dtype), shape), ("out[1]", scale, "torch.float32", scale_shape(recipe, shape)))
    for name, tensor, type_, extents in wanted:
        check_tensor(tensor, name, (type_.removeprefix("torch."),))
        check_shape(tensor, name, extents)
        check_device(tensor, name, x)
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
    for one, other in combinations(seen, 2):
        if one.span[0] < other.span[1] and other.span[0] < one.span[1]:
            rule = "inputs are read while outputs are written"
            raise InputError("GMR-I008", f"{other.name}: overlaps {one.name}", rule=rule, fix="pass another tensor")
