"""
Finding again what computes a call.

The first call with tensors of some kind is checked and prepared, and what comes of that is kept under their addresses.
The same call again costs a look at each address and one comparison of all else (see `gemmir.guards`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from gemmir.guards import Facts, Guard, facts_of

if TYPE_CHECKING:
    import torch

Options: TypeAlias = "tuple[object, ...]"

MAX_CALLS = 4096
"""Calls that are remembered; the oldest goes first."""


class Ready(Protocol):
    """A call that only has to be made."""

    @property
    def accepts(self) -> Guard:
        """Whether tensors at the same addresses are still of the kind that was checked."""
        ...

    def run(self, tensors: Sequence[torch.Tensor], /) -> torch.Tensor: ...


Resolve: TypeAlias = "Callable[[Sequence[torch.Tensor], Options, Facts | None], Ready]"
"""Checks and prepares a call; without facts, something is no tensor, or none that holds data."""

MakeReady: TypeAlias = "Callable[[Calls, Sequence[torch.Tensor], Options, Options | None], Ready]"
"""What makes a call ready that was not made before: `Calls.resolved`, but for `torch.ops`."""


class Calls:
    """All calls of one function that were made, with their tensors in one order and options of one length."""

    def __init__(self, resolve: Resolve):
        self._resolve = resolve
        self.ready: OrderedDict[Options, Ready] = OrderedDict()
        """Calls by their addresses and options."""
        self._lock = threading.Lock()

    def resolved(self, tensors: Sequence[torch.Tensor], options: Options, key: Options | None = None) -> Ready:
        """The call, checked and prepared as if for the first time, and remembered under `key`."""
        try:
            [tensor.data_ptr() for tensor in tensors]  # raises where there is no data to have an address
            facts = facts_of(tensors)
        except (AttributeError, TypeError, RuntimeError):
            facts = None
        ready = self._resolve(tensors, options, facts)
        if key is not None and facts is not None:
            with self._lock:
                remember(self.ready, key, ready, MAX_CALLS)
        return ready

    def call(
        self,
        tensors: Sequence[torch.Tensor],
        options: Options,
        make_ready: MakeReady = resolved,
    ) -> torch.Tensor:
        """Make a call, whether or not it was made before; `make_ready` is what is done if it was not."""
        try:
            key = (*options, *[tensor.data_ptr() for tensor in tensors])
            ready = self.ready.get(key)
            known = ready is not None and ready.accepts(*tensors)
        except (AttributeError, TypeError, RuntimeError):
            key, ready, known = None, None, False
        if ready is None or not known:
            ready = make_ready(self, tensors, options, key)
        return ready.run(tensors)

    def __len__(self) -> int:
        return len(self.ready)

    def forget(self) -> None:
        """Check and prepare every call again."""
        with self._lock:
            self.ready.clear()


def remember(table: OrderedDict[Any, Any], key: object, value: object, limit: int) -> None:
    """Add to a table of bounded size, under its lock; a lookup needs none."""
    while len(table) >= limit and key not in table:
        table.popitem(last=False)
    table[key] = value
