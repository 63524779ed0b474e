"""What the launcher asks of torch: types, devices and streams. Torch is imported when it is first asked."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from gemmir.dtypes import DTYPES
from gemmir.errors import DeviceError, InputError

if TYPE_CHECKING:
    import torch


@cache
def torch_dtype(name: str) -> Any:
    """Torch's type for MLIR's name of one."""
    import torch

    return getattr(torch, DTYPES[name].torch_name)


@cache
def raw_stream() -> Any:
    """Torch's getter of a device's current stream as an integer, without building a Stream object around it."""
    import torch

    if (getter := getattr(torch._C, "_cuda_getCurrentRawStream", None)) is not None:
        return getter
    return lambda device: torch.cuda.current_stream(device).cuda_stream  # pyright: ignore[reportUnknownLambdaType]


def device_index(device: torch.device | str | int | None) -> int:
    """Number of a CUDA device that torch can use; None is its current one. `DeviceError` (GMR-D001) if it has none."""
    import torch

    if not torch.cuda.is_available():
        raise DeviceError("GMR-D001", f"torch {torch.__version__} cannot use CUDA", fix="install torch with CUDA")
    torch.cuda.init()
    if device is None:
        return torch.cuda.current_device()
    if isinstance(device, int):
        return device
    wanted = torch.device(device)
    if wanted.type != "cuda":
        raise InputError("GMR-I004", f"device {wanted}", rule="kernels run on CUDA devices", fix="use 'cuda'")
    return torch.cuda.current_device() if wanted.index is None else wanted.index
