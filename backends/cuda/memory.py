"""Running out of a device's memory, said with the bytes that were wanted and those that are free."""

from __future__ import annotations

import torch

from gemmir.backends.cuda import driver
from gemmir.errors import OutOfMemoryError


class TorchOutOfMemoryError(OutOfMemoryError, torch.OutOfMemoryError):
    """Torch's allocator has no memory for something that gemmir allocates; whoever catches torch's error has it."""


def out_of_memory(what: str, wanted: int, device: torch.device, fix: str) -> TorchOutOfMemoryError:
    """
    The error (GMR-D009) for `wanted` bytes that torch did not find for `what` on `device`.

    `DeviceLostError` is raised instead if asking the driver shows that the device is lost.
    """
    index = device.index or 0
    unused = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    held = f"; torch holds {unused} that no tensor uses" if unused else ""
    return TorchOutOfMemoryError(
        "GMR-D009",
        f"{what}: {wanted} bytes on {device}, where {driver.free_memory(driver.primary_context(index))}{held}",
        rule="kernels need no memory of their own, and a new result is one piece",
        fix=f"{fix}, or torch.cuda.empty_cache()" if unused else fix,
    )
