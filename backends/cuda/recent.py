"""The last launches of this process: what is to be looked at when the device is lost, which is told only later."""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeAlias

KEPT = 8


class Told(Protocol):
    """What was launched."""

    def told(self, stream: int) -> str:
        """The kernel, the shapes and the place of a launch on the stream of that handle, in one line."""
        ...


Launched: TypeAlias = "tuple[Told, int]"
"""What was launched, and the handle of the stream; made once where launches are many."""

launched: deque[Launched] = deque(maxlen=KEPT)
"""The last launches, oldest first. Adding one is atomic, and takes 20 ns."""


def lines() -> list[str]:
    """The last launches for people, newest first; nothing if there were none."""
    told = [f"  {what.told(stream)}" for what, stream in reversed(list(launched))]
    return [f"gemmir's last {len(told)} launches, newest first:", *told] if told else []
