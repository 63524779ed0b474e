"""
Eager calls of `torch.ops.gemmir` past torch's dispatcher.

The dispatcher takes longer than all that gemmir does for a warm call. Where nothing stands between the call and the
kernel (no mode, transform, subclass, gradient, profiler or compiler), the function behind an op is called directly; in
every other case torch dispatches as ever. The same tensors at the same addresses are known to be of that kind, because
the guard of a call that was made before refuses them where anything of it has changed (see `gemmir.guards`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch._ops import OpOverloadPacket
from torch.autograd import profiler
from torch.compiler import is_compiling

from gemmir.guards import facts_of, guard

if TYPE_CHECKING:
    from gemmir.calls import Calls, Options, Ready


_PLAIN = torch.Tensor, torch.nn.Parameter
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack  # pyright: ignore
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack  # pyright: ignore


class DispatchError(Exception):
    """Raised, and caught here, where torch has to dispatch a call."""


class EagerPacket(OpOverloadPacket[..., Any]):
    """An op of `torch.ops.gemmir`; `direct` is called instead where that comes to the same."""

    direct: Callable[..., Any]
    has_out: bool

    def __call__(self, /, *args: Any, **options: Any) -> Any:
        # Guards do not see modes of torch's own, as that of fake tensors.
        watched = _function_modes() or _dispatch_modes() or profiler._is_profiler_enabled  # pyright: ignore[reportPrivateUsage]
        if not watched and len(args) == 2 and type(args[0]) in _PLAIN and ("out" in options) is self.has_out:
            try:
                result = self.direct(*args, **options)
            except DispatchError:
                pass
            else:
                return None if self.has_out else result
        return self._op(*args, **options)


def call_directly(packet: Any, product: FunctionType, has_out: bool) -> None:
    """Let eager calls of an op be made by `product`, the function of `gemmir.ops` that takes what the op takes."""
    if not guards_see_transforms():
        return
    packet.__class__ = EagerPacket
    packet.direct, packet.has_out = _asking_first(product), has_out


def _asking_first(product: FunctionType) -> Callable[..., Any]:
    """`product` with `resolved_if_plain` by default: a `partial` would merge dictionaries in each call."""
    made = FunctionType(product.__code__, product.__globals__, product.__name__)
    made.__kwdefaults__ = (product.__kwdefaults__ or {}) | {"_make_ready": resolved_if_plain}
    return made


def resolved_if_plain(
    calls: Calls, tensors: Sequence[torch.Tensor], options: Options, key: Options | None = None
) -> Ready:
    """`calls.resolved`; `DispatchError` if torch has to see the call."""
    if not _plain(tensors):
        raise DispatchError
    return calls.resolved(tensors, options, key)


def _plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether torch would do nothing about such tensors but call the kernel."""
    if is_compiling() or torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore
        return False
    return all(map(_is_plain, tensors))


def _is_plain(tensor: torch.Tensor) -> bool:
    if type(tensor) not in _PLAIN or tensor.device.type not in ("cpu", "cuda"):
        return False
    if tensor.layout is not torch.strided or tensor.is_neg():
        return False
    return not (tensor.requires_grad and torch.is_grad_enabled())


@cache
def guards_see_transforms() -> bool:
    """Whether a guard refuses within a transform what it accepts elsewhere; tried, not assumed."""
    tensors = [torch.empty(2, 3), torch.empty(3, 4)]
    inside: list[bool] = []
    try:
        accepts = guard(tensors, facts_of(tensors))

        def transformed(x: torch.Tensor) -> torch.Tensor:
            inside.append(accepts(*tensors))
            return x

        torch.func.vmap(transformed)(tensors[0])
        return accepts(*tensors) and inside == [False]
    except (AttributeError, TypeError, RuntimeError):
        return False
