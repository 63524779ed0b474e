"""Calls that were made before: found by the addresses of their tensors, and never for tensors of another kind."""

import threading
from typing import Any

import pytest
import torch

from gemmir import calls, guards
from gemmir.calls import Calls
from gemmir.guards import facts_of, guard

BF16, F32 = torch.bfloat16, torch.float32
BASE = torch.arange(4096, dtype=F32)


class Made:
    """What was made ready for tensors of one kind; running it says for which."""

    def __init__(self, tensors: Any, facts: Any):
        self.accepts = guard(tensors, facts)
        self.facts = facts

    def run(self, tensors: Any) -> Any:
        return self.facts


def counting() -> tuple[Calls, list[object]]:
    """Calls, and the facts of those that had to be made ready."""
    found: list[object] = []

    def resolve(tensors: Any, options: object, facts: Any) -> Any:
        found.append(facts)
        return Made(tensors, facts)

    return Calls(resolve), found


OTHERS = {
    "shape": lambda: BASE.as_strided((8, 4), (8, 1)),
    "rank": lambda: BASE.as_strided((4, 8, 1), (8, 1, 1)),
    "strides": lambda: BASE.as_strided((4, 8), (1, 4)),
    "dtype": lambda: BASE.view(torch.int32).as_strided((4, 8), (8, 1)),
}


@pytest.fixture(params=["torch's", "our own"])
def guarded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's comparison, and with the one that serves where torch has none."""
    if request.param == "our own":
        monkeypatch.setattr(guards, "_native", lambda: None)


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("what", OTHERS)
def test_tensors_of_another_kind_at_the_same_address_are_told_apart(what: str):
    known, found = counting()
    first, other = BASE.as_strided((4, 8), (8, 1)), OTHERS[what]()
    assert first.data_ptr() == other.data_ptr()
    for tensor in (first, first, other, other, first):
        assert known.call([tensor, BASE], (True,)) == facts_of([tensor, BASE])
    assert found == [facts_of([tensor, BASE]) for tensor in (first, other, first)]


@pytest.mark.usefixtures("guarded")
def test_what_autograd_would_follow_is_told_apart():
    known, found = counting()
    weight = torch.ones(4, 4, requires_grad=True)
    with torch.no_grad():
        assert [known.call([weight], ()), known.call([weight], ())] == [facts_of([weight])] * 2
    assert known.call([weight], ())[0][-1] is True
    assert [facts[0][-1] for facts in found] == [False, True]


@pytest.mark.usefixtures("guarded")
def test_options_and_the_number_of_tensors_are_part_of_a_call():
    known, found = counting()
    for tensors, options in (([BASE], (None,)), ([BASE, BASE], (None,)), ([BASE], (3,)), ([BASE], (False,))):
        for _ in range(2):
            known.call(tensors, options)
    assert len(found) == 4


def test_torch_has_a_comparison_of_its_own_here():
    assert guards._native() is not None


def test_a_comparison_that_overlooks_something_is_not_used(monkeypatch: pytest.MonkeyPatch):
    def lazy(tensors: Any) -> Any:
        shapes = [tensor.shape for tensor in tensors]
        return lambda *given: [tensor.shape for tensor in given] == shapes

    assert not guards._tells_apart(lazy)
    assert not guards._tells_apart(lambda tensors: lambda *given: True)
    assert not guards._tells_apart(lambda tensors: lambda *given: False)
    assert guards._tells_apart(
        lambda tensors: (lambda facts: lambda *given: facts_of(given) == facts)(facts_of(tensors))
    )


@pytest.mark.parametrize("strange", [None, 3, "x", torch.eye(3).to_sparse()], ids=["None", "int", "str", "sparse"])
def test_what_is_no_tensor_with_data_is_resolved_each_time(strange: Any):
    asked: list[object] = []

    def refuse(tensors: Any, options: object, facts: Any) -> Any:
        asked.append(facts)
        raise ValueError("refused")

    known = Calls(refuse)
    for _ in range(2):
        with pytest.raises(ValueError, match="refused"):
            known.call([BASE, strange], ())
    assert (asked, len(known)) == ([None, None], 0)


def test_options_that_cannot_be_compared_are_resolved_each_time():
    known, found = counting()
    known._resolve = lambda tensors, options, facts: Made(tensors, facts_of(tensors))
    known.call([BASE], ([],))
    assert (found, len(known)) == ([], 0)


def test_only_the_last_calls_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calls, "MAX_CALLS", 3)
    known, found = counting()
    for number in (1, 2, 3, 4, 4, 3, 1, 4):
        known.call([BASE], (number,))
    assert len(known) == 3
    assert len(found) == 5, "1 to 4, and 1 again"
    known.forget()
    assert len(known) == 0


def test_threads_share_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calls, "MAX_CALLS", 2)
    known, _ = counting()
    parts = [BASE[i : i + 8] for i in range(5)]
    wrong: list[object] = []

    def work() -> None:
        for i in range(2000):
            tensor = parts[i % 5]
            if known.call([tensor], ()) != facts_of([tensor]):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, len(known) <= 2) == ([], True)
