"""How many SMs kernels may take: a number for the process, such as communication beside them asks for."""

from __future__ import annotations

from gemmir.errors import InputError
from gemmir.records import dataclass


@dataclass(slots=True)
class SmLimit:
    """`sms`: at most so many SMs for a launch; None for all. No result depends on it."""

    sms: int | None = None


limit = SmLimit()


def limit_sms(sms: int | None) -> None:
    """
    Let kernels that are launched from now on take at most `sms` SMs of a device, or all of them if None.

    A kernel whose CTAs form a cluster takes one cluster at least. A graph keeps what it was captured with.
    `InputError` (GMR-I009) unless it is a positive integer.
    """
    if sms is not None and (not isinstance(sms, int) or isinstance(sms, bool) or sms < 1):  # pyright: ignore
        raise InputError("GMR-I009", f"{sms!r:.40} SMs", rule="a positive number of SMs", fix="pass None for all")
    if sms != limit.sms:
        limit.sms = sms
        from gemmir.ops import forget

        forget()  # calls that are ready have their grids
