"""DeepGEMM's settings of a process."""

from __future__ import annotations

from dataclasses import dataclass

from gemmir.errors import DeviceError, InputError, UnsupportedError
from gemmir.sm_limit import limit, limit_sms


@dataclass(slots=True)
class _Settings:
    pdl: bool = False
    tc_util: int = 100


settings = _Settings()


def set_num_sms(new_num_sms: int) -> None:
    """Let kernels take at most so many SMs (`gemmir.limit_sms`); 0 for all of them."""
    limit_sms(new_num_sms or None)


def get_num_sms() -> int:
    """How many SMs kernels take at most: what was set, or those of torch's current device."""
    if limit.sms is not None:
        return limit.sms
    import torch

    if not torch.cuda.is_available():
        raise DeviceError("GMR-D001", "torch cannot use CUDA", rule="a device has SMs", fix="call set_num_sms first")
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def set_pdl(new_enable_pdl: bool) -> None:
    """Let kernels that wait by themselves start while the one before ends: `overlap=True`, for groups too."""
    settings.pdl = bool(new_enable_pdl)


def get_pdl() -> bool:
    """What `set_pdl` set; False at first."""
    return settings.pdl


def set_tc_util(new_tc_util: int) -> None:
    """Kept for `get_tc_util`; as in DeepGEMM, kernels for Hopper do not depend on it."""
    if not isinstance(new_tc_util, int) or not 0 <= new_tc_util <= 100:  # pyright: ignore
        raise InputError("GMR-I009", f"tc_util = {new_tc_util}", rule="a percentage", fix="pass 100")
    settings.tc_util = new_tc_util


def get_tc_util() -> int:
    """What `set_tc_util` set; 100 at first."""
    return settings.tc_util


def set_ignore_compile_dims(new_value: bool) -> None:
    """Nothing: a kernel of gemmir serves every M, and is compiled for N and K."""


def set_block_size_multiple_of(new_value: int | tuple[int, int]) -> None:
    """Blocks are chosen by gemmir's passes: only (1, 1), which asks for nothing."""
    if new_value not in (1, (1, 1)):
        what = f"blocks that are multiples of {new_value}"
        fix = "fix the block in the schedule of a gemmir.Program"
        raise UnsupportedError("GMR-U001", what, rule="passes choose the blocks", fix=fix)
