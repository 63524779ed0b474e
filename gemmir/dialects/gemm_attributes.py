"""Attributes of the gemm dialect: thin wrappers of plain data, printed as people write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Literal, TypeVar

from xdsl.dialects.builtin import DYNAMIC_INDEX
from xdsl.ir import Data
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from gemmir.problem import Grouping, Recipe
from gemmir.schedule import SCALES_OF_TILE, Evict, Family, RasterAxis, Schedule, Split, least

E = TypeVar("E", bound=Enum)


def _parse_enum(parser: AttrParser, kind: type[E]) -> E:
    spellings = {member.value: member for member in kind}
    return spellings[parser.parse_keyword_in(tuple(spellings))]


def _parse_positive(parser: AttrParser) -> int:
    return parser.parse_integer(allow_boolean=False, allow_negative=False)


def _parse_optional(parser: AttrParser) -> int | None:
    """A number, or `?` for a choice that is open."""
    return None if parser.parse_optional_punctuation("?") else _parse_positive(parser)


def _parse_dims(parser: AttrParser, count: int) -> tuple[int | None, ...]:
    """`count` dimensions, e.g. `128x?x128`, where `?` is a choice that is open."""
    start = parser.pos
    dims = parser.parse_dimension_list()
    if len(dims) != count:
        parser.raise_error(f"expected {count} sizes joined by 'x', got {len(dims)}", start, parser.pos)
    return tuple(None if d == DYNAMIC_INDEX else d for d in dims)


def _dims_text(*dims: int | None) -> str:
    return "x".join("?" if d is None else str(d) for d in dims)


def _known_dims_text(*dims: int | None) -> str | None:
    """None where all of them are open."""
    return None if all(d is None for d in dims) else _dims_text(*dims)


def parse_recipe(parser: AttrParser) -> Recipe:
    """`tensor`, `row`, `1x128` or `128x128`."""
    words = (Recipe.TENSOR_WISE.value, Recipe.ROW_WISE.value)
    if (word := parser.parse_optional_keyword_in(words)) is not None:
        return Recipe(word)
    start = parser.pos
    text = "x".join(map(str, parser.parse_dimension_list()))
    if text not in (Recipe.BLOCK_WISE_1X128.value, Recipe.BLOCK_WISE_128X128.value):
        parser.raise_error("expected a scaling recipe: tensor, row, 1x128 or 128x128", start, parser.pos)
    return Recipe(text)


@irdl_attr_definition
class RecipeAttr(Data[tuple[Recipe, Recipe]]):
    """How A and B are scaled: `#gemm.recipe<1x128, 128x128>`."""

    name = "gemm.recipe"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> tuple[Recipe, Recipe]:
        with parser.in_angle_brackets():
            a = parse_recipe(parser)
            parser.parse_punctuation(",")
            return a, parse_recipe(parser)

    def print_parameter(self, printer: Printer) -> None:
        printer.print_string(f"<{self.data[0].value}, {self.data[1].value}>")


GROUP_WORDS = tuple(g.value for g in Grouping if g not in (Grouping.NONE, Grouping.BATCH))


def parse_grouping(parser: AttrParser) -> Grouping:
    """`offs`, `group_ids`, `counts` or `k_offs`: what the index operand of a grouped product holds."""
    return Grouping(parser.parse_keyword_in(GROUP_WORDS))


@irdl_attr_definition
class GroupingAttr(Data[Grouping]):
    """How the groups of a product are told apart: `#gemm.grouping<offs>`."""

    name = "gemm.grouping"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Grouping:
        with parser.in_angle_brackets():
            return parse_grouping(parser)

    def print_parameter(self, printer: Printer) -> None:
        printer.print_string(f"<{self.data.value}>")

    def verify(self) -> None:
        if self.data.value not in GROUP_WORDS:
            raise VerifyException(f"groups by {self.data.value}: one of {', '.join(GROUP_WORDS)}")


@dataclass(frozen=True, slots=True)
class Layout:
    """Which dimension's elements are neighbours in memory: `a` is "k" or "m", `b` "k" or "n"."""

    a: str = "k"
    b: str = "k"


@irdl_attr_definition
class LayoutAttr(Data[Layout]):
    """`#gemm.layout<a = m, b = n>`; either may be left out."""

    name = "gemm.layout"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Layout:
        values: dict[str, str] = {}

        def entry() -> None:
            key = _new_key(parser, ("a", "b"), values)
            values[key] = parser.parse_keyword_in(("k", "m" if key == "a" else "n"))

        parser.parse_comma_separated_list(parser.Delimiter.ANGLE, entry)
        return Layout(**values)

    def print_parameter(self, printer: Printer) -> None:
        printer.print_string(f"<a = {self.data.a}, b = {self.data.b}>")


@dataclass(frozen=True, slots=True)
class Numerics:
    """
    What a product says of its arithmetic: see `gemmir.numerics.NumericsSpec`.

    `promote_every` is "default" where it is left to the scaling recipe.
    """

    promote_every: int | Literal["default"] | None = "default"
    split_k: int = 1


@irdl_attr_definition
class NumericsAttr(Data[Numerics]):
    """`#gemm.numerics<promote_every = 128, split_k = 2>`; either may be left out, and 128 may be `none`."""

    name = "gemm.numerics"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Numerics:
        values: dict[str, Any] = {}

        def entry() -> None:
            key = _new_key(parser, ("promote_every", "split_k"), values)
            never = key == "promote_every" and parser.parse_optional_keyword("none") is not None
            values[key] = None if never else _parse_positive(parser)

        parser.parse_comma_separated_list(parser.Delimiter.ANGLE, entry)
        return Numerics(**values)

    def print_parameter(self, printer: Printer) -> None:
        every, parts = self.data.promote_every, self.data.split_k
        entries = [] if every == "default" else [f"promote_every = {'none' if every is None else every}"]
        entries += [f"split_k = {parts}"] if parts != 1 else []
        printer.print_string(f"<{', '.join(entries)}>")


@irdl_attr_definition
class EpilogueKindsAttr(Data[tuple[str, ...]]):
    """How each epilogue operand spreads over the result: `#gemm.by<column, row>`."""

    name = "gemm.by"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> tuple[str, ...]:
        return tuple(parser.parse_comma_separated_list(parser.Delimiter.ANGLE, lambda: parse_epilogue_kind(parser)))

    def print_parameter(self, printer: Printer) -> None:
        printer.print_string(f"<{', '.join(self.data)}>")


def parse_epilogue_kind(parser: AttrParser) -> str:
    return parser.parse_keyword_in(("column", "row", "element", "scalar"))


def _new_key(parser: AttrParser, keys: tuple[str, ...], seen: dict[str, Any]) -> str:
    """`key =`, each at most once."""
    start = parser.pos
    key = parser.parse_keyword_in(keys)
    if key in seen:
        parser.raise_error(f"'{key}' is given twice", start, start + len(key))
    parser.parse_punctuation("=")
    return key


def _parse_family(parser: AttrParser) -> dict[str, object]:
    return {"family": _parse_enum(parser, Family)}


def _parse_block(parser: AttrParser) -> dict[str, object]:
    return dict(zip(("block_m", "block_n", "block_k"), _parse_dims(parser, 3), strict=True))


def _parse_warpgroups(parser: AttrParser) -> dict[str, object]:
    count = _parse_optional(parser)
    split = _parse_enum(parser, Split) if parser.parse_optional_keyword("along") else None
    return {"math_warpgroups": count, "split": split}


def _parse_turns(parser: AttrParser) -> dict[str, object]:
    return {"turns": parser.parse_boolean()}


def _parse_chunk(parser: AttrParser) -> dict[str, object]:
    return {"promote_chunk": _parse_positive(parser)}


def _parse_cluster(parser: AttrParser) -> dict[str, object]:
    return dict(zip(("cluster_m", "cluster_n"), _parse_dims(parser, 2), strict=True))


def _parse_tail(parser: AttrParser) -> dict[str, object]:
    if parser.parse_optional_keyword("none"):
        return {"tail_n": 0, "tail_after": 0}
    tail_n = _parse_optional(parser)
    parser.parse_keyword("after")
    return {"tail_n": tail_n, "tail_after": _parse_optional(parser)}


def _parse_raster(parser: AttrParser) -> dict[str, object]:
    return {"raster_axis": _parse_enum(parser, RasterAxis)}


def _parse_group(parser: AttrParser) -> dict[str, object]:
    return {"raster_group": _parse_positive(parser)}


def _parse_evict(parser: AttrParser) -> dict[str, object]:
    return {"evict": _parse_enum(parser, Evict)}


def _parse_balanced(parser: AttrParser) -> dict[str, object]:
    return {"balanced": parser.parse_boolean()}


def _parse_scale_batch(parser: AttrParser) -> dict[str, object]:
    return {"scale_batch": _parse_positive(parser)}


_OF_TILE = "tile"
"""`scale_slots` of `SCALES_OF_TILE`."""


def _parse_scale_slots(parser: AttrParser) -> dict[str, object]:
    of_tile = parser.parse_optional_keyword(_OF_TILE) is not None
    return {"scale_slots": SCALES_OF_TILE if of_tile else _parse_positive(parser)}


def _parse_slices(parser: AttrParser) -> dict[str, object]:
    return {"store_slices": _parse_positive(parser)}


def _parse_stages(parser: AttrParser) -> dict[str, object]:
    return {"num_stages": _parse_positive(parser)}


_SCHEDULE_ENTRIES: dict[str, Callable[[AttrParser], dict[str, object]]] = {
    "family": _parse_family,
    "block": _parse_block,
    "warpgroups": _parse_warpgroups,
    "turns": _parse_turns,
    "chunk": _parse_chunk,
    "cluster": _parse_cluster,
    "tail": _parse_tail,
    "raster": _parse_raster,
    "group": _parse_group,
    "evict": _parse_evict,
    "balanced": _parse_balanced,
    "scale_batch": _parse_scale_batch,
    "scale_slots": _parse_scale_slots,
    "slices": _parse_slices,
    "stages": _parse_stages,
}


def schedule_text(s: Schedule) -> str:
    """The choices that are made, e.g. `block = 128x?x128, stages = 3`; "" where none is."""
    along = "" if s.split is None else f" along {s.split.value}"
    warpgroups = f"{_dims_text(s.math_warpgroups)}{along}"
    entries = {
        "family": None if s.family is None else s.family.value,
        "block": _known_dims_text(s.block_m, s.block_n, s.block_k),
        "warpgroups": None if warpgroups == "?" else warpgroups,
        "turns": None if s.turns is None else str(s.turns).lower(),
        "chunk": s.promote_chunk,
        "cluster": _known_dims_text(s.cluster_m, s.cluster_n),
        "tail": _tail_text(s.tail_n, s.tail_after),
        "raster": None if s.raster_axis is None else s.raster_axis.value,
        "group": s.raster_group,
        "evict": None if s.evict is None else s.evict.value,
        "balanced": None if s.balanced is None else str(s.balanced).lower(),
        "scale_batch": s.scale_batch,
        "scale_slots": _OF_TILE if s.scale_slots == SCALES_OF_TILE else s.scale_slots,
        "slices": s.store_slices,
        "stages": s.num_stages,
    }
    return ", ".join(f"{name} = {value}" for name, value in entries.items() if value is not None)


def _tail_text(tail_n: int | None, after: int | None) -> str | None:
    if tail_n is None and after is None:
        return None
    return "none" if tail_n == after == 0 else f"{_dims_text(tail_n)} after {_dims_text(after)}"


@irdl_attr_definition
class ScheduleAttr(Data[Schedule]):
    """
    The choices made so far; what is left out or `?` is open.

    `#gemm.schedule<family = tiles, block = 128x256x128, warpgroups = 2 along n, turns = false, chunk = 1,
    cluster = 1x1, tail = 128 after 8, raster = along_m, group = 8, evict = neither, balanced = true, scale_batch = 1,
    scale_slots = 1, slices = 2, stages = 4>`
    """

    name = "gemm.schedule"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Schedule:
        seen: dict[str, dict[str, Any]] = {}

        def entry() -> None:
            key = _new_key(parser, tuple(_SCHEDULE_ENTRIES), seen)
            seen[key] = _SCHEDULE_ENTRIES[key](parser)

        parser.parse_comma_separated_list(parser.Delimiter.ANGLE, entry)
        schedule = Schedule()
        for choices in seen.values():
            schedule = replace(schedule, **choices)
        return schedule

    def print_parameter(self, printer: Printer) -> None:
        printer.print_string(f"<{schedule_text(self.data)}>")

    def verify(self) -> None:
        for field in fields(self.data):
            value = getattr(self.data, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < (lowest := least(field.name)):
                raise VerifyException(f"schedule: {field.name} = {value}; sizes and counts are at least {lowest}")
