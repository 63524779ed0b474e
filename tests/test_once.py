"""What many threads ask for at once is made once; and products that they call at once are compiled once each."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import gemmir
from gemmir import ops
from gemmir.once import Once

THREADS = 8


def at_once(*work: Callable[[], object]) -> None:
    """Run all of it in threads that start together."""
    start, faults = threading.Barrier(len(work)), []

    def run(part: Callable[[], object]) -> None:
        start.wait(30)
        try:
            part()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(part,)) for part in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert faults == []


def test_one_makes_it_and_the_others_wait_for_that_one():
    made: list[int] = []
    others = threading.Event()

    def make(key: int) -> object:
        made.append(key)
        if key == 1:
            assert others.wait(30), "another key does not wait for this one"
        return object()

    once = Once(make, 10)
    found: list[object] = []

    def ask_for_another() -> None:
        once(2)
        others.set()

    at_once(*[lambda: found.append(once(1))] * THREADS, ask_for_another)
    assert sorted(made) == [1, 2]
    assert len(found) == THREADS
    assert len({id(value) for value in found}) == 1


def test_what_failed_is_made_again():
    tries: list[int] = []

    def make(key: int) -> int:
        tries.append(key)
        if len(tries) < 3:
            raise ValueError(key)
        return 10 * key

    once = Once(make, 10)
    refused: list[int] = []

    def ask() -> None:
        try:
            assert once(4) == 40
        except ValueError:
            refused.append(1)

    at_once(*[ask] * THREADS)
    assert (len(tries), len(refused)) == (3, 2)


def test_as_many_are_kept_as_were_asked_for_last():
    made: list[int] = []
    once = Once(lambda key: made.append(key), 2)
    for key in (1, 2, 1, 3, 1, 2):
        once(key)
    assert made == [1, 2, 3, 2]
    once.cache_clear()
    once(1)
    assert made == [1, 2, 3, 2, 1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent():
    begun, end = threading.Event(), threading.Event()

    def make(key: int) -> int:
        if os.getpid() == parent:
            begun.set()
            assert end.wait(30)
        return key

    parent, once = os.getpid(), Once(make, 10)
    thread = threading.Thread(target=once, args=(7,))
    thread.start()
    assert begun.wait(30)
    if (child := os.fork()) == 0:
        os._exit(0 if once(7) == 7 else 1)
    _, status = os.waitpid(child, 0)
    end.set()
    thread.join(30)
    assert status == 0


def test_products_that_threads_call_at_once_are_compiled_once_each(monkeypatch: pytest.MonkeyPatch):
    """The same product, and others, of several M, by threads of which none has called it: all bits are right."""
    a, b = torch.randn(40, 64).bfloat16(), torch.randn(3, 64, 16).bfloat16()
    ends = torch.tensor([10, 20, 40], dtype=torch.int32)
    calls: list[Callable[[], torch.Tensor]] = [
        lambda: gemmir.matmul(a, b[0]),
        lambda: gemmir.matmul(a[:7], b[1]),
        lambda: gemmir.matmul(a, b[0], out_dtype=torch.float32),
        lambda: gemmir.grouped_matmul(a, b, offs=ends),
        lambda: gemmir.batched_matmul(a.expand(3, 40, 64), b),
    ]
    wanted = [call() for call in calls]
    made: list[Any] = []
    make = ops._reference._make
    monkeypatch.setattr(ops._reference, "_make", lambda call: (made.append(call), make(call))[1])
    ops._reference.cache_clear()
    ops.forget()
    wrong: list[int] = []

    def work(first: int) -> None:
        for number in range(3 * len(calls)):
            turn = (first + number) % len(calls)
            if not torch.equal(calls[turn](), wanted[turn]):
                wrong.append(turn)

    at_once(*[lambda first=first: work(first // 2) for first in range(THREADS)])
    assert wrong == []
    assert len(made) == len(set(made)) == 5, "the two M have a kernel each: up to 16 rows, and up to 64"
