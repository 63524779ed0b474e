"""Types and attributes of the hopper dialect: the storage that a kernel works on, and how it is bound to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import (
    I32,
    ArrayAttr,
    BFloat16Type,
    Float8E4M3FNType,
    Float8E5M2Type,
    Float16Type,
    Float32Type,
    IntAttr,
    StringAttr,
    TensorType,
)
from xdsl.dialects.utils import EnumAttribute
from xdsl.ir import Attribute, ParametrizedAttribute, SpacedOpaqueSyntaxAttribute, TypeAttribute
from xdsl.irdl import irdl_attr_definition, param_def
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException
from xdsl.utils.hints import isa
from xdsl.utils.str_enum import StrEnum

from gemmir.layouts import SWIZZLES, Swizzle
from gemmir.problem import Grouping
from gemmir.target import WARP_LANES

Element = Float8E4M3FNType | Float8E5M2Type | BFloat16Type | Float16Type | Float32Type
MAX_EXTENT = 1 << 20


class SwizzleName(StrEnum):
    """Names of `gemmir.layouts.Swizzle` in IR."""

    NONE = "none"
    B32 = "b32"
    B64 = "b64"
    B128 = "b128"


class OrderName(StrEnum):
    """
    How a tensor lies in memory.

    `row_major`: the last dimension is fastest; `column_major`: the first is; `strided`: any strides will do.
    """

    ROW_MAJOR = "row_major"
    COLUMN_MAJOR = "column_major"
    STRIDED = "strided"


class AxisName(StrEnum):
    """An axis of the output: M (rows) or N (columns)."""

    M = "m"
    N = "n"


class EvictName(StrEnum):
    """Which of the lines that a load brings into L2 leave it `first`, or `last`, when others need the room."""

    FIRST = "first"
    LAST = "last"


class RasterName(StrEnum):
    """See `gemmir.schedule.RasterAxis`."""

    ALONG_M = "along_m"
    ALONG_N = "along_n"


class GroupingName(StrEnum):
    """See `gemmir.problem.Grouping`."""

    OFFS = "offs"
    GROUP_IDS = "group_ids"
    COUNTS = "counts"
    BATCH = "batch"
    K_OFFS = "k_offs"


@irdl_attr_definition
class GroupingAttr(EnumAttribute[GroupingName], SpacedOpaqueSyntaxAttribute):
    name = "hopper.grouping"

    @property
    def meaning(self) -> Grouping:
        return Grouping(self.data.value)


@irdl_attr_definition
class AxisAttr(EnumAttribute[AxisName], SpacedOpaqueSyntaxAttribute):
    name = "hopper.axis"


@irdl_attr_definition
class EvictAttr(EnumAttribute[EvictName], SpacedOpaqueSyntaxAttribute):
    name = "hopper.evict"


@irdl_attr_definition
class RasterAttr(EnumAttribute[RasterName], SpacedOpaqueSyntaxAttribute):
    name = "hopper.raster"


@irdl_attr_definition
class PairAttr(ParametrizedAttribute):
    """Two extents along M and N, `#hopper.pair<128x256>`."""

    name = "hopper.pair"

    m: IntAttr = param_def(converter=IntAttr.get)
    n: IntAttr = param_def(converter=IntAttr.get)

    def verify(self) -> None:
        if not (0 < self.m.data <= MAX_EXTENT and 0 < self.n.data <= MAX_EXTENT):
            raise VerifyException(f"extents {self.m.data}x{self.n.data} are not positive")

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            dims = parser.parse_dimension_list()
        if len(dims) != 2:
            parser.raise_error("expected two extents")
        return [IntAttr(d) for d in dims]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_dimension_list((self.m.data, self.n.data))


@irdl_attr_definition
class TensorAttr(ParametrizedAttribute):
    """A tensor that the kernel takes or gives: `#hopper.tensor<"x", tensor<?x2048xf8E4M3FN>, row_major>`."""

    name = "hopper.tensor"

    label: StringAttr
    type: TensorType
    order: StringAttr

    def __init__(self, label: str, type: TensorType, order: OrderName):
        super().__init__(StringAttr(label), type, StringAttr(order.value))

    def verify(self) -> None:
        if self.order.data not in OrderName.__members__.values():
            raise VerifyException(f"order {self.order.data[:20]!r} is not one of {', '.join(OrderName)}")

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            label = parser.parse_str_literal()
            parser.parse_punctuation(",")
            type_ = parser.parse_type()
            parser.parse_punctuation(",")
            order = parser.parse_str_enum(OrderName)
        if not isa(type_, TensorType):
            parser.raise_error("expected a tensor type")
        return [StringAttr(label), type_, StringAttr(order.value)]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string_literal(self.label.data)
            printer.print_string(", ")
            printer.print_attribute(self.type)
            printer.print_string(f", {self.order.data}")


class BindName(StrEnum):
    """What a kernel parameter holds of a tensor."""

    MAP = "map"
    ADDEND = "addend"
    POINTER = "pointer"
    STRIDE = "stride"
    ROWS = "rows"
    OVERLAPS = "overlaps"


@irdl_attr_definition
class BindAttr(ParametrizedAttribute):
    """
    What a parameter of the kernel is bound to, `#hopper.bind<map 0>`.

    `map T`: a tensor map over tensor T (-1: the output), `addend T`: one over operand C, which may lie where the output
    does, `pointer T`: T's address, `stride T D`: its stride along dimension D in elements, `rows`: M, `overlaps`:
    1 if the launch overlaps with that of the kernel before, else 0. A map over a tensor of rank 3 has its first
    dimension, the groups, as third coordinate.
    """

    name = "hopper.bind"

    kind: StringAttr
    tensor: IntAttr = param_def(converter=IntAttr.get)
    dimension: IntAttr = param_def(converter=IntAttr.get)

    def __init__(self, kind: BindName, tensor: int = 0, dimension: int = 0):
        super().__init__(StringAttr(kind.value), IntAttr(tensor), IntAttr(dimension))

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            kind = parser.parse_str_enum(BindName)
            tensor = 0 if kind in (BindName.ROWS, BindName.OVERLAPS) else parser.parse_integer()
            dimension = parser.parse_integer() if kind is BindName.STRIDE else 0
        return [StringAttr(kind.value), IntAttr(tensor), IntAttr(dimension)]

    def print_parameters(self, printer: Printer) -> None:
        numbers = {
            BindName.ROWS: (),
            BindName.OVERLAPS: (),
            BindName.STRIDE: (self.tensor.data, self.dimension.data),
        }.get(BindName(self.kind.data), (self.tensor.data,))
        with printer.in_angle_brackets():
            printer.print_string(" ".join([self.kind.data, *map(str, numbers)]))


@dataclass(frozen=True, init=False)  # else xDSL compares its types by their names alone
class _ShapedStorage(ParametrizedAttribute, TypeAttribute):
    """Shared behaviour of types printed as `<4x128x64xbf16, b128>`."""

    shape: ArrayAttr[IntAttr]
    element: Element
    swizzle: StringAttr

    RANK: ClassVar[int]

    def __init__(self, shape: Sequence[int], element: Element, swizzle: Swizzle = Swizzle.NONE):
        super().__init__(ArrayAttr(IntAttr(d) for d in shape), element, StringAttr(swizzle.ir_name))

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(d.data for d in self.shape)

    @property
    def swizzle_mode(self) -> Swizzle:
        return SWIZZLES[self.swizzle.data]

    @property
    def element_bytes(self) -> int:
        return self.element.bitwidth // 8

    def verify(self) -> None:
        if len(self.dims) != self.RANK:
            raise VerifyException(f"{self.name} has rank {len(self.dims)}, expected {self.RANK}")
        if any(not 0 < d <= MAX_EXTENT for d in self.dims):
            raise VerifyException(f"{self.name} has an extent out of 1..{MAX_EXTENT}")
        if self.swizzle.data not in SWIZZLES:
            raise VerifyException(f"swizzle {self.swizzle.data[:20]!r} is not one of {', '.join(SWIZZLES)}")

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            dims, element = parser.parse_ranked_shape()
            swizzle = SwizzleName.NONE
            if parser.parse_optional_punctuation(",") is not None:
                swizzle = parser.parse_str_enum(SwizzleName)
        return [ArrayAttr(IntAttr(d) for d in dims), element, StringAttr(swizzle.value)]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_dimension_list(self.dims)
            printer.print_string("x")
            printer.print_attribute(self.element)
            if self.swizzle_mode is not Swizzle.NONE:
                printer.print_string(f", {self.swizzle.data}")


@irdl_attr_definition
class TensorMapType(_ShapedStorage):
    """A TMA tensor map that moves boxes of rows x columns, `!hopper.tensor_map<128x128xf8E4M3FN, b128>`."""

    name = "hopper.tensor_map"
    RANK: ClassVar[int] = 2


@irdl_attr_definition
class RingType(_ShapedStorage):
    """Staged shared memory, stages x rows x columns: `!hopper.ring<3x128x128xf8E4M3FN, b128>`."""

    name = "hopper.ring"
    RANK: ClassVar[int] = 3

    @property
    def stages(self) -> int:
        return self.dims[0]

    @property
    def slot_bytes(self) -> int:
        return self.dims[1] * self.dims[2] * self.element_bytes


@irdl_attr_definition
class StagingType(_ShapedStorage):
    """Shared memory for the outgoing tile, warpgroups x rows x columns: `!hopper.staging<2x64x192xbf16>`."""

    name = "hopper.staging"
    RANK: ClassVar[int] = 3


@irdl_attr_definition
class PointerType(ParametrizedAttribute, TypeAttribute):
    """A global address, `!hopper.pointer<f32>`. Integers are index operands."""

    name = "hopper.pointer"
    element: Element | I32


@dataclass(frozen=True, init=False)
class _Extents(ParametrizedAttribute, TypeAttribute):
    """Shared behaviour of types printed as `<2x1>`."""

    extents: ArrayAttr[IntAttr]
    RANK: ClassVar[int]

    def __init__(self, *extents: int):
        super().__init__(ArrayAttr(IntAttr(d) for d in extents))

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(d.data for d in self.extents)

    def verify(self) -> None:
        if len(self.dims) != self.RANK or any(not 0 < d <= 4096 for d in self.dims):
            raise VerifyException(f"{self.name} expects {self.RANK} extents of 1..4096, got {self.dims}")

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            dims = parser.parse_dimension_list()
        return [ArrayAttr(IntAttr(d) for d in dims)]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_dimension_list(self.dims)


@irdl_attr_definition
class BarriersType(_Extents):
    """mbarriers in shared memory, stages x groups: `!hopper.barriers<3x1>`."""

    name = "hopper.barriers"
    RANK: ClassVar[int] = 2


@irdl_attr_definition
class CursorType(_Extents):
    """A position in a ring: stage number and phase parity, `!hopper.cursor<3>`."""

    name = "hopper.cursor"
    RANK: ClassVar[int] = 1


@irdl_attr_definition
class FragmentType(_Extents):
    """f32 accumulators of a warpgroup for rows x columns, `!hopper.fragment<64x128>`. Storage, not a value."""

    name = "hopper.fragment"
    RANK: ClassVar[int] = 2


@irdl_attr_definition
class ScaleBatchType(_Extents):
    """
    A producer warp's registers for weight scales, k-blocks x lanes of each: `!hopper.scale_batch<16x2>`. Storage.

    They fill a warp; the next batch is on its way while one is used.
    """

    name = "hopper.scale_batch"
    RANK: ClassVar[int] = 2

    def verify(self) -> None:
        super().verify()
        if self.dims[0] * self.dims[1] != WARP_LANES:
            raise VerifyException(f"a batch of {self.dims[0]} x {self.dims[1]} scales fills no warp")


@irdl_attr_definition
class ScalesType(_Extents):
    """Registers for the scales of one stage, waves x column steps: `!hopper.scales<2x1>`. Storage, not a value."""

    name = "hopper.scales"
    RANK: ClassVar[int] = 2
