"""
Dataclasses that take a tenth of the time to define.

`dataclasses.dataclass` writes the methods of every class as text and compiles it, up to a millisecond a class: most of
what a process paid that only looked its kernel up and launched it. Here all classes share one set of methods. Making an
instance takes some microseconds more, so what passes and the simulator make by the thousand stays with the standard
library. All else is as there: `replace`, `fields`, `asdict`, `match`, `copy`, `pickle`, `inspect.signature`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import MISSING, FrozenInstanceError
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from inspect import Signature
else:

    def dataclass(cls=None, /, *, frozen=False, slots=False, eq=True):
        """As `dataclasses.dataclass` with these arguments; no field may be a ClassVar, an InitVar or keyword-only."""

        def define(cls):
            return _define(cls, frozen, slots, eq)

        return define if cls is None else define(cls)


def _define(cls: type, frozen: bool, slots: bool, eq: bool) -> type:
    methods: dict[str, Any] = {"__init__": _init, "__repr__": _repr, "__signature__": _SIGNATURE}
    if eq:
        methods |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
    if frozen:
        methods |= {"__setattr__": _refuse, "__delattr__": _refuse, "__reduce__": _reduce}
    for name, method in methods.items():
        if name not in vars(cls):
            setattr(cls, name, method)
    if cls.__doc__ is None:
        cls.__doc__ = cls.__name__  # or the standard library would ask for the signature, which is slow
    define: Callable[[type], type] = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots)
    return define(cls)


def _init(self: Any, /, *values: object, **named: object) -> None:
    names, fields = self.__match_args__, self.__dataclass_fields__
    if len(values) > len(names):
        raise TypeError(f"{_name(self)}() takes {len(names)} arguments but {len(values)} were given")
    given = dict(zip(names, values, strict=False))
    for name, value in named.items():
        if name in given or name not in fields:
            wrong = "multiple values for" if name in given else "an unexpected keyword"
            raise TypeError(f"{_name(self)}() got {wrong} argument {name!r}")
        given[name] = value
    for name in names:
        object.__setattr__(self, name, given[name] if name in given else _default(self, fields[name]))
    if (finish := getattr(self, "__post_init__", None)) is not None:
        finish()


def _default(self: Any, field: dataclasses.Field[Any]) -> object:
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    raise TypeError(f"{_name(self)}() misses argument {field.name!r}")


def _name(self: object) -> str:
    return type(self).__qualname__


def _compared(self: Any) -> Iterator[object]:
    return (getattr(self, name) for name, field in self.__dataclass_fields__.items() if field.compare)


def _eq(self: object, other: object) -> bool:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return tuple(_compared(self)) == tuple(_compared(other))


def _hash(self: object) -> int:
    return hash(tuple(_compared(self)))


def _repr(self: Any) -> str:
    shown = [f"{name}={getattr(self, name)!r}" for name, field in self.__dataclass_fields__.items() if field.repr]
    return f"{_name(self)}({', '.join(shown)})"


def _refuse(self: object, name: str, *_: object) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to or delete field {name!r}")


def _reduce(self: Any) -> tuple[type, tuple[object, ...]]:
    """For `copy` and `pickle`, which would else assign to the fields."""
    return type(self), tuple(getattr(self, name) for name in self.__match_args__)


class _OfFields:
    """A class's signature, made when it is asked for: few processes do."""

    def __get__(self, instance: object, owner: Any) -> Signature:
        from inspect import Parameter, Signature

        def parameter(field: dataclasses.Field[Any]) -> Parameter:
            factory = field.default_factory is not MISSING
            default = Parameter.empty if field.default is MISSING and not factory else field.default
            kind, annotation = Parameter.POSITIONAL_OR_KEYWORD, field.type
            return Parameter(field.name, kind, default=... if factory else default, annotation=annotation)

        return Signature([parameter(field) for field in owner.__dataclass_fields__.values()])


_SIGNATURE = _OfFields()
