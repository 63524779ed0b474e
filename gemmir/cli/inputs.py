"""Tensors for `gemmir run` from a file, and the result into one."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.cli.destinations import write_whole
from gemmir.cli.diagnostics import UsageError
from gemmir.errors import InputError, ToolMissingError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from xdsl.dialects.func import FuncOp

    from gemmir.dialects.gemm import ProductOp
    from gemmir.dtypes import DType


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of the function; `shape` has None where M stands, `role` is what the product uses it as."""

    name: str
    dtype: DType
    shape: tuple[int | None, ...]
    role: str


def function_of(op: ProductOp) -> FuncOp:
    """The function around `op`."""
    from xdsl.dialects.func import FuncOp

    function = op.parent_op()
    if not isinstance(function, FuncOp):
        raise UsageError("the product is not directly inside a function")
    return function


def arguments_of(op: ProductOp) -> tuple[Argument, ...]:
    """The arguments of the function around `op` (from `the_matmul`), in order."""
    from gemmir.dialects.gemm import argument_names, tensor_info

    roles = {"a": op.a, "b": op.b, "scale_a": op.scale_a, "scale_b": op.scale_b, "c": op.c, "index": op.index}
    found: list[Argument] = []
    function = function_of(op)
    for name, value in zip(argument_names(function), function.args, strict=True):
        role = next((role for role, operand in roles.items() if operand is value), "epilogue")
        info = tensor_info(name, value)
        found.append(Argument(name, info.dtype, info.shape, role))
    return tuple(found)


def load_inputs(path: Path, arguments: tuple[Argument, ...]) -> dict[str, torch.Tensor]:
    """
    The tensors of a .npz or .safetensors file, by argument name.

    NumPy has no FP8 and no BF16: such arrays hold the raw bits as uint8 or uint16. Raises InputError if a name is
    missing (GMR-I005) or a dtype is wrong (GMR-I001), ToolMissingError (GMR-C004) without the package safetensors.
    """
    if path.suffix == ".npz":
        tensors = _load_npz(path, arguments)
    elif path.suffix == ".safetensors":
        tensors = _load_safetensors(path)
    else:
        raise UsageError(f"{path}: inputs are .npz or .safetensors files")
    missing = [argument.name for argument in arguments if argument.name not in tensors]
    if missing:
        raise InputError(
            "GMR-I005",
            f"{path}: no tensor called {', '.join(missing)}",
            rule=f"the program takes {', '.join(argument.name for argument in arguments)}",
            fix="store each input under its argument's name",
        )
    return {argument.name: tensors[argument.name] for argument in arguments}


def _load_npz(path: Path, arguments: tuple[Argument, ...]) -> dict[str, torch.Tensor]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {argument.name: file[argument.name] for argument in arguments if argument.name in file}
    except ValueError as error:
        raise InputError("GMR-I005", f"{path}: not an .npz file of plain arrays ({error})") from error
    dtypes = {argument.name: argument.dtype for argument in arguments}
    return {name: _from_array(name, array, dtypes[name]) for name, array in arrays.items()}


def _from_array(name: str, array: np.ndarray, dtype: DType) -> torch.Tensor:
    import torch

    raw = {8: "uint8", 16: "uint16", 32: dtype.torch_name}[dtype.bits]
    accepted = (raw, "float16") if dtype.name == "f16" else (raw,)
    if str(array.dtype) not in accepted:
        raise InputError(
            "GMR-I001",
            f"{name}: the array holds {array.dtype}",
            rule=f"{dtype} is stored in an .npz as {' or '.join(accepted)}",
            fix="store the raw bits, e.g. tensor.view(torch.uint8).numpy(), or use a .safetensors file",
        )
    tensor = torch.from_numpy(array.copy(order="K"))
    return tensor.view(getattr(torch, dtype.torch_name))


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ToolMissingError(
            "GMR-C004", f"{path}: the package safetensors is not installed", fix="pip install safetensors"
        ) from error
    return load_file(path)


def save_output(path: Path, result: torch.Tensor) -> None:
    """Write the result as array `output` of an .npz file; BF16 as its raw bits in uint16."""
    import numpy as np
    import torch

    result = result.cpu().contiguous()
    plain = result.view(torch.uint16) if result.dtype == torch.bfloat16 else result
    file = BytesIO()
    np.savez(file, output=plain.numpy())
    write_whole(path, file.getvalue())
