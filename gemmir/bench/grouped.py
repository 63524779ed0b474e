"""Products of several groups: a case of them, and the named sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemmir.bench.cases import Case, GroupedShape, program_text
from gemmir.dtypes import DTYPES, F8E4M3FN
from gemmir.problem import GROUP_ALIGNMENT, SCALE_BLOCK, Grouping

if TYPE_CHECKING:
    from gemmir.expression import Expression, Input
    from gemmir.program import Options, Program
    from gemmir.schedule import Schedule

GROUPINGS = tuple(form.value for form in Grouping if form is not Grouping.NONE)


@dataclass(frozen=True, slots=True)
class GroupedCase:
    """
    One product for each of `groups` groups of exactly `rows` rows, for A of `dtype` as in `Case`.

    `grouping`, one of `GROUPINGS`, says how the groups lie (see `gemmir.problem.Grouping`). With `counts` all rows that
    there are count; with `group_ids` each group is padded to a multiple of 128 rows. With `k_offs` every group has all
    `rows` and `k` elements of K of its own; the result is f32, and FP8 operands have scales 1x128 both.
    """

    dtype: str
    grouping: str
    groups: int
    rows: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.dtype}-{self.grouping}-{self.label}"

    @property
    def form(self) -> Grouping:
        return Grouping(self.grouping)

    @property
    def label(self) -> str:
        """Its sizes, as they are written."""
        return f"{self.groups}x{self.rows}x{self.n}x{self.k}"

    @property
    def kind(self) -> str:
        """What one table of a report holds."""
        return f"{self.dtype}, groups by {self.grouping}"

    @property
    def dimensions(self) -> str:
        return "G x M x N x K"

    @property
    def all_rows(self) -> int:
        """Rows of A that are multiplied."""
        return self.groups * self.rows

    @property
    def along_k(self) -> bool:
        return self.form is Grouping.K_OFFS

    @property
    def depth(self) -> int:
        """K of the operands: of all groups where K is divided."""
        return self.groups * self.k if self.along_k else self.k

    @property
    def result_dtype(self) -> str:
        if self.along_k:
            return "f32"
        return "bf16" if DTYPES[self.dtype].is_fp8 else self.dtype

    @property
    def weights(self) -> int:
        """Matrices B."""
        return self.groups

    @property
    def pitch(self) -> int:
        """Rows from where a group begins to where the next one does."""
        if self.form is Grouping.GROUP_IDS:
            return -(-self.rows // GROUP_ALIGNMENT) * GROUP_ALIGNMENT
        return self.rows

    @property
    def m(self) -> int:
        """M of the operands: all rows, padding included, where those of the groups are contiguous, else a group's."""
        return self.groups * self.pitch if self.form.contiguous else self.rows

    @property
    def outer(self) -> tuple[int, ...]:
        """What stands before M in the shape of A: G, or nothing."""
        return () if self.form.contiguous or self.along_k else (self.groups,)

    @property
    def result_shape(self) -> tuple[int, ...]:
        return (*((self.groups,) if self.form.stacked else ()), self.m, self.n)

    @property
    def index(self) -> tuple[int, ...]:
        """What the index operand holds; nothing for a batch."""
        match self.form:
            case Grouping.OFFS:
                return tuple(self.rows * (group + 1) for group in range(self.groups))
            case Grouping.GROUP_IDS:
                padding = (-1,) * (self.pitch - self.rows)
                return tuple(number for group in range(self.groups) for number in (group,) * self.rows + padding)
            case Grouping.COUNTS:
                return (self.rows,) * self.groups
            case Grouping.K_OFFS:
                return tuple(self.k * (group + 1) for group in range(self.groups))
            case _:
                return ()

    @property
    def text(self) -> str:
        """The product as IR, for any M."""
        return self.program().text

    def program(self, schedule: Schedule | None = None, split_k: int = 1) -> Program:
        """
        The product for any M, its schedule chosen for this one: arguments x, xs, w, ws, index, as far as needed.

        `InputError` (GMR-I009) where K is to be in parts: the products of groups sum it as a whole.
        """
        from gemmir.program import Program

        p, a = Program("layer"), DTYPES[self.dtype]
        blocks_k, blocks_n = -(-self.depth // SCALE_BLOCK), -(-self.n // SCALE_BLOCK)
        own = () if self.along_k else (self.groups,)
        options: Options = {"expected_m": self.m, "schedule": schedule, "split_k": split_k}
        x = p.input("x", (*self.outer, None, self.depth), a.name)
        if a.is_fp8:
            options["recipe"] = ("block_wise_1x128", "block_wise_1x128" if self.along_k else "block_wise_128x128")
            options["scale_a"] = p.input("xs", (*self.outer, None, blocks_k), "f32")
        w = p.input("w", (*own, self.depth, self.n), F8E4M3FN.name if a.is_fp8 else a.name)
        if a.is_fp8:
            options["scale_b"] = p.input("ws", (*own, blocks_k, self.n if self.along_k else blocks_n), "f32")
        p.output(self._product(p, x, w, options).cast(self.result_dtype))
        return p

    def _product(self, p: Program, x: Input, w: Input, options: Options) -> Expression:
        match self.form:
            case Grouping.OFFS | Grouping.K_OFFS:
                return p.grouped_matmul(x, w, offs=p.input("index", (self.groups,), "i32"), **options)
            case Grouping.GROUP_IDS:
                return p.grouped_matmul(x, w, group_ids=p.input("index", (None,), "i32"), **options)
            case Grouping.COUNTS:
                return p.grouped_matmul(x, w, counts=p.input("index", (self.groups,), "i32"), **options)
            case _:
                return p.batched_matmul(x, w, **options)


AnyCase = Case | GroupedCase


@dataclass(frozen=True, slots=True)
class GroupedSet:
    """Shapes that are measured with one grouping, and the types of A that they are for unless others are asked for."""

    grouping: Grouping
    dtypes: tuple[str, ...]
    shapes: tuple[GroupedShape, ...]


GROUPED_SETS: dict[str, GroupedSet] = {
    "contiguous": GroupedSet(
        Grouping.OFFS,
        ("f8E4M3FN", "bf16"),
        (
            (4, 8192, 4096, 7168),
            (4, 8192, 7168, 2048),
            (8, 4096, 4096, 7168),
            (8, 4096, 7168, 2048),
            (8, 256, 4096, 7168),
            (32, 128, 7168, 2048),
        ),
    ),
    "masked": GroupedSet(
        Grouping.COUNTS,
        ("f8E4M3FN",),
        (
            (1, 1024, 4096, 7168),
            (1, 1024, 7168, 2048),
            (2, 512, 4096, 7168),
            (2, 512, 7168, 2048),
            (4, 256, 4096, 7168),
            (4, 256, 7168, 2048),
            (32, 20, 4096, 7168),
            (32, 192, 7168, 2048),
        ),
    ),
    "k-grouped": GroupedSet(
        Grouping.K_OFFS,
        ("f8E4M3FN", "bf16"),
        (
            (4, 4096, 7168, 8192),
            (8, 7168, 2048, 4096),
        ),
    ),
}
ALL_GROUPED = "grouped"
"""The name of all those sets together."""

DENSE_WITH_GROUPS: dict[str, GroupedSet] = {
    "decode": GroupedSet(Grouping.COUNTS, ("f8E4M3FN",), ((32, 20, 4096, 7168),)),
}
"""Groups that a set of dense products has beside them, by its name; in no other types than these."""


def grouped_sets(name: str) -> tuple[GroupedSet, ...]:
    """The sets of groups alone that a name stands for; none for that of a set of dense products."""
    if name == ALL_GROUPED:
        return tuple(GROUPED_SETS.values())
    return (GROUPED_SETS[name],) if name in GROUPED_SETS else ()


def case_from(data: dict[str, Any]) -> AnyCase:
    """A case out of its fields; `TypeError` if they are none of a case's."""
    return GroupedCase(**data) if "grouping" in data else Case(**data)


def schedule_from(text: str, case: GroupedCase) -> Schedule | None:
    """
    What stands between the brackets of `schedule <...>`; None for nothing. It is read in a dense product of these N, K.

    Raises `IRError` if it is no schedule, `ScheduleError` if it breaks a limit of the hardware.
    """
    if not text:
        return None
    from gemmir.dialects.gemm import schedule_of, the_matmul
    from gemmir.ir_text import parse_module

    return schedule_of(the_matmul(parse_module(program_text(case.n, case.k, case.dtype, text))))
