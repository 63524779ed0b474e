"""Lines of C++ with indentation, and names for IR values."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from xdsl.ir import SSAValue

NAMES = frozenset(
    "added ahead all_tiles at batch begin block blocks d d_stride_group d_stride_m drained empty end first "
    "first_block free full granted group group_d group_scale_b index k m m0 map_a map_b map_c16 map_c32 map_c64 "
    "map_d16 map_d32 map_d64 map_scale_a map_scale_b n0 next_scales out overlaps partial partial0 partial1 ring_a "
    "ring_b ring_scale_a ring_scale_b room scale_b scale_b_stride_group scale_b_stride_k scale_b_stride_n scaled "
    "scales scales0 scales1 sent slot staged staging summed sums total0 total1 total2 total3 unscaled unsummed".split()
)
"""Name hints that may appear in source. Anything else in the IR gets a number: no string out of IR reaches CUDA."""


class Writer:
    """Collects lines; `name` mints an identifier for a value, unique among those in scope."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._indent = 0
        self._names: dict[SSAValue, str] = {}
        self._scopes: list[set[str]] = [set()]

    def line(self, text: str = "") -> None:
        self.lines.append("    " * self._indent + text if text else "")

    @contextmanager
    def block(self, head: str) -> Generator[None]:
        """`head {` ... `}`, a scope of its own; an `else` joins the closing brace before it."""
        if head.startswith("else"):
            head = self.lines.pop().strip() + " " + head
        self.line(f"{head} {{")
        with self.scope():
            yield
        self.line("}")

    @contextmanager
    def scope(self) -> Generator[None]:
        self._indent += 1
        self._scopes.append(set())
        yield
        self._scopes.pop()
        self._indent -= 1

    def name(self, value: SSAValue) -> str:
        """Mint the identifier of a new value."""
        hint = value.name_hint
        base = hint if hint in NAMES else "v"
        name, number = base, 0
        while any(name in scope for scope in self._scopes):
            number += 1
            name = f"{base}_{number}"
        self._scopes[-1].add(name)
        self._names[value] = name
        return name

    def alias(self, value: SSAValue, expression: str) -> None:
        """Let a value be printed as `expression`."""
        self._names[value] = expression

    def __getitem__(self, value: SSAValue) -> str:
        """How a value is printed. `KeyError` if it has not been defined yet."""
        return self._names[value]

    def text(self) -> str:
        return "\n".join(self.lines)
