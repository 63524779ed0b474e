"""Waiting for a device: what went wrong in kernels is heard then, and said by gemmir."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def synchronize(device: torch.device | str | int | None = None) -> None:
    """
    Wait until a device (torch's current one) has done all that this process has asked of it.

    As `torch.cuda.synchronize`, but for what it raises where a kernel failed, or the device: `DeviceLostError`
    (GMR-D004, GMR-D007, GMR-D010) with what was launched last and what watchdogs reported, also if torch has raised its
    own error before. `DeviceError` (GMR-D001) without a driver, `InputError` (GMR-I004) for a device that is none.
    """
    from gemmir.backends.cuda import driver, from_torch

    driver.refuse_if_unusable()
    cuda = driver.bindings()
    with driver.in_context(driver.primary_context(from_torch.device_index(device))):
        driver.checked(cuda.cuCtxSynchronize(), "cuCtxSynchronize")
