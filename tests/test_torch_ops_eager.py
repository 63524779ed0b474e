"""Which calls of `torch.ops.gemmir` go past torch's dispatcher: those that it would do nothing about."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import gemmir
import gemmir.torch_ops
from gemmir import guards, torch_ops_eager
from gemmir.errors import InputError
from tests.torch_forms import FORMS, check_eager

BF16 = torch.bfloat16
A, B = torch.randn(4, 64).to(BF16), torch.randn(16, 64).to(BF16).t()
MATMUL: Any = torch.ops.gemmir.matmul


class DispatchedError(Exception):
    """Torch's dispatcher was asked."""


def refuse(*args: object, **options: object) -> None:
    raise DispatchedError


@pytest.fixture
def no_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FORMS_OF_OPS:
        monkeypatch.setattr(getattr(torch.ops.gemmir, name), "_op", refuse)


FORMS_OF_OPS = [f"{name}{form}" for name in ("matmul", "grouped_matmul", "batched_matmul") for form in ("", "_out")]


def test_guards_see_transforms():
    """If this fails with a new torch, ops are dispatched again: nothing else breaks."""
    assert torch_ops_eager.guards_see_transforms()


@pytest.mark.usefixtures("no_dispatcher")
@pytest.mark.parametrize("form", FORMS)
def test_plain_calls_are_not_dispatched(form: str):
    check_eager(form, (1, 5, 5), "cpu")


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Function(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


def within(context: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with context():
            return MATMUL(A, B)

    return call


def fake() -> Any:
    mode = FakeTensorMode()
    return MATMUL(mode.from_tensor(A), mode.from_tensor(B))


def negated() -> torch.Tensor:
    """A real view of a complex tensor whose sign torch keeps apart from the memory."""
    found = torch.randn(4, 16, dtype=torch.complex64).conj().imag
    assert found.is_neg()
    return found


SEEN: dict[str, Callable[[], Any]] = {
    "a dispatch mode": within(Dispatch),
    "a function mode": within(Function),
    "fake tensors": within(FakeTensorMode),
    "fake tensors out of their mode": fake,
    "a transform": lambda: torch.func.vmap(lambda x: MATMUL(x, B))(A.expand(3, 4, 64)),
    "a transform of another tensor": lambda: torch.func.vmap(lambda x: MATMUL(A, B))(A),
    "a trace": lambda: torch.jit.trace(lambda x: MATMUL(x, B), A),
    "a profiler": within(lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])),
    "a subclass": lambda: MATMUL(A.as_subclass(Subclass), B),
    "no data": lambda: MATMUL(A.to("meta"), B.to("meta")),
    "a gradient": lambda: MATMUL(A.clone().requires_grad_(), B),
    "a sparse tensor": lambda: MATMUL(A.to_sparse(), B),
    "a negated view": lambda: MATMUL(A, B, c=negated(), out_dtype=torch.float32),
    "no tensor": lambda: MATMUL([1], B),
    "an out that it does not take": lambda: MATMUL(A, B, out=torch.empty(4, 16, dtype=BF16)),
    "no out": lambda: torch.ops.gemmir.matmul_out(A, B),
    "one operand": lambda: MATMUL(A),
    "operands by name": lambda: MATMUL(a=A, b=B),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own making
@pytest.mark.usefixtures("no_dispatcher")
@pytest.mark.parametrize("warm", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("what", SEEN)
def test_torch_sees_what_it_has_to(what: str, warm: bool):
    """Also where a plain call with the same tensors was made before."""
    gemmir.ops.forget()
    if warm:
        MATMUL(A, B)
    with pytest.raises(DispatchedError):
        SEEN[what]()


def test_a_mode_sees_the_op():
    seen: list[object] = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    expected = MATMUL(A, B)
    with Noting():
        found = MATMUL(A, B)
    assert MATMUL.default in seen
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("no_dispatcher")
def test_a_captured_gradient_is_no_obstacle_where_none_is_recorded():
    with torch.no_grad():
        assert torch.equal(MATMUL(A.clone().requires_grad_(), B), gemmir.matmul(A, B))


@pytest.mark.usefixtures("no_dispatcher")
def test_errors_are_those_of_the_function():
    with pytest.raises(InputError, match="K is 64 in a"):
        MATMUL(A, A)


def test_without_such_guards_every_call_is_dispatched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guards, "_native", lambda: None)
    torch_ops_eager.guards_see_transforms.cache_clear()
    packet: Any = SimpleNamespace()
    try:
        torch_ops_eager.call_directly(packet, refuse, has_out=False)
    finally:
        torch_ops_eager.guards_see_transforms.cache_clear()
    assert vars(packet) == {}


def test_an_op_is_still_an_op():
    assert isinstance(MATMUL, torch._ops.OpOverloadPacket)
    assert MATMUL.overloads() == ["default"]
    assert str(MATMUL) == "gemmir.matmul"
