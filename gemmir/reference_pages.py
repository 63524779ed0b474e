"""
The references of the dialects and of the passes: `python -m gemmir.reference_pages docs/reference` writes them.

What a page says of an operation is its docstring, and what its definition says of operands, properties and syntax.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from xdsl.dialects.utils import EnumAttribute
from xdsl.ir import Attribute, Dialect, Operation

from gemmir.universe import GEMMIR_UNIVERSE, PASSES, class_name

_OPTIONAL, _VARIADIC = re.compile("^Opt"), re.compile("^Var")


def pages() -> dict[str, str]:
    """File name -> text."""
    dialects = [GEMMIR_UNIVERSE.all_dialects[name]() for name in ("gemm", "hopper")]
    return {"ir.md": _ir(dialects), "passes.md": _passes()}


def _ir(dialects: Iterable[Dialect]) -> str:
    head = """\
# IR reference

Made from the dialects by `python -m gemmir.reference_pages`. `gemm` says what is computed, and how far it has been
decided how; `hopper` is a kernel. Optional parts are marked `?`, lists `...`.
"""
    return head + "".join(_dialect(dialect) for dialect in dialects)


def _dialect(dialect: Dialect) -> str:
    operations = sorted(dialect.operations, key=lambda op: op.name)
    attributes = sorted(dialect.attributes, key=lambda attribute: attribute.name)
    parts = [f"\n## {dialect.name}: operations\n", *map(_operation, operations)]
    parts += [f"\n## {dialect.name}: types and attributes\n", *map(_attribute, attributes)]
    return "".join(parts)


def _operation(op: type[Operation]) -> str:
    definition: Any = op.get_irdl_definition()  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]
    rows = [
        ("operands", _names(definition.operands)),
        ("properties", _names(definition.properties.items())),
        ("regions", _names(definition.regions)),
        ("results", _names(definition.results)),
    ]
    listed = "".join(f"- {what}: {names}\n" for what, names in rows if names)
    syntax = f"\n```\n{op.name} {definition.assembly_format}\n```\n" if definition.assembly_format else ""
    return f"\n### `{op.name}`\n\n{_doc(op)}\n{syntax}" + (f"\n{listed}" if listed else "")


def _names(defined: Iterable[tuple[str, Any]]) -> str:
    shown = [(name, type(kind).__name__) for name, kind in defined if name != "operandSegmentSizes"]
    return ", ".join(f"`{name}`{_mark(kind)}" for name, kind in shown)


def _mark(kind: str) -> str:
    return "?" if _OPTIONAL.match(kind) else "..." if _VARIADIC.match(kind) else ""


def _attribute(attribute: type[Attribute]) -> str:
    if issubclass(attribute, EnumAttribute):
        words: Any = attribute.enum_type
        doc = f"{_doc(words)} One of " + ", ".join(f"`{word.value}`" for word in words) + "."
    else:
        doc = _doc(attribute)
    return f"\n### `{attribute.name}`\n\n{doc}\n"


def _passes() -> str:
    head = """\
# Pass reference

Made from the passes by `python -m gemmir.reference_pages`, in the order in which they run. Each by itself:
`gemmir opt FILE -p 'gemm-rasterize{axis=along_m group=8}'`.
"""
    return head + "".join(map(_pass, PASSES))


def _pass(name: str) -> str:
    module = import_module(f"gemmir.passes.{name.replace('-', '_')}")
    kind: Any = getattr(module, class_name(name))
    about = _fenced(_doc(module).replace(f"`{name}`: ", "", 1))
    rows = [f"| `{f.name}` | {str(f.type).replace('|', 'or')} | {f.default} |" for f in dataclasses.fields(kind)]
    table = "\n".join(["", "| option | type | default |", "|---|---|---|", *rows, ""]) if rows else ""
    return f"\n## `{name}`\n\n{about[:1].upper()}{about[1:]}\n\n{_doc(kind)}\n{table}"


_INDENTED = re.compile(r"((?:^    .*\n?|^\n(?=    ))+)", re.MULTILINE)


def _fenced(text: str) -> str:
    """`text` with its indented lines as blocks of IR."""
    return _INDENTED.sub(lambda found: f"```\n{inspect.cleandoc(found[1])}\n```\n", text)


def _doc(thing: object) -> str:
    return inspect.cleandoc(getattr(thing, "__doc__", None) or "")


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
