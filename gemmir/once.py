"""Making something for a key once, whatever number of threads ask for it at once."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Once(Generic[K, V]):
    """
    `make` with its results kept, those of the `limit` keys that were asked for last.

    A thread that asks for a key while another makes its value waits for that one; other keys do not wait. What `make`
    raises is raised to whoever made it, and the next one makes it again.
    """

    def __init__(self, make: Callable[[K], V], limit: int):
        self._make = make
        self._limit = limit
        self._made: OrderedDict[K, V] = OrderedDict()
        os.register_at_fork(after_in_child=self._unlock)
        self._unlock()

    def _unlock(self) -> None:
        """Forget who makes what: in a forked child, threads that hold locks are not there to release them."""
        self._lock = threading.Lock()
        self._making: WeakValueDictionary[K, threading.Lock] = WeakValueDictionary()

    def __call__(self, key: K) -> V:
        """The value of `key`, made now if it is not kept."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
            alone = self._making.get(key)
            if alone is None:
                alone = self._making[key] = threading.Lock()
        with alone:
            with self._lock:
                if key in self._made:
                    return self._made[key]
            value = self._make(key)
            with self._lock:
                self._made[key] = value
                while len(self._made) > self._limit:
                    self._made.popitem(last=False)
            return value

    def cache_clear(self) -> None:
        """Make everything again."""
        with self._lock:
            self._made.clear()
