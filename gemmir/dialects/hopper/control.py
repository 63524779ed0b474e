"""Kernel, roles and loops of the hopper dialect."""

from __future__ import annotations

from typing import TypeVar

from xdsl.dialects.builtin import ArrayAttr, IndexType, SymbolNameConstraint, UnitAttr
from xdsl.ir import Operation
from xdsl.irdl import (
    irdl_op_definition,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
)
from xdsl.traits import IsolatedFromAbove, NoTerminator, SymbolOpInterface
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects.hopper.base import NATURAL, POSITIVE, HopperOperation, number
from gemmir.dialects.hopper.types import (
    BindAttr,
    GroupingAttr,
    PairAttr,
    PointerType,
    RasterAttr,
    TensorAttr,
)
from gemmir.loop_legality import PROMOTE_CHUNKS
from gemmir.problem import Grouping

MAX_K_STEP = max(PROMOTE_CHUNKS)
"""Blocks of K that a loop does at a time."""

TILE_ARGUMENTS = {
    Grouping.NONE: ("row", "column"),
    Grouping.K_OFFS: ("row", "column", "group", "first_block", "blocks"),
}
"""What a loop over tiles knows of a tile."""
ROWS_OF_GROUP = ("row", "column", "group", "begin", "end")

OpT = TypeVar("OpT", bound=Operation)


@irdl_op_definition
class KernelOp(HopperOperation):
    """
    One kernel. Block arguments are its parameters, bound by `binds` to the tensors that it `takes` and `gives`.

    `tile` is the output tile of a CTA; columns `after` so many columns of tiles are computed in tiles of `tail`
    columns, in a loop of their own behind that over all others. `threads` and `shared` (bytes) those of a CTA.
    `columns` and `depth` are N and K; M is a parameter. With `split_k` each tile is computed by so many CTAs, which
    sum a part of K each; the CTAs of a cluster are numbered part by part within a tile. `balanced`: it is launched
    with no more clusters than the rounds of tiles need. With a `grouping` it computes the product of each of `groups`
    groups.
    """

    name = "hopper.kernel"

    body = region_def("single_block")
    sym_name = prop_def(SymbolNameConstraint())
    cluster = prop_def(PairAttr)
    tile = prop_def(PairAttr)
    columns = prop_def(POSITIVE)
    depth = prop_def(NATURAL)
    threads = prop_def(POSITIVE)
    shared = prop_def(POSITIVE)
    inputs = prop_def(ArrayAttr[TensorAttr])
    output = prop_def(TensorAttr)
    binds = prop_def(ArrayAttr[BindAttr])
    balanced = opt_prop_def(UnitAttr)
    tail = opt_prop_def(POSITIVE)
    after = opt_prop_def(POSITIVE)
    grouping = opt_prop_def(GroupingAttr)
    groups = opt_prop_def(POSITIVE)
    split_k = opt_prop_def(POSITIVE)

    traits = traits_def(IsolatedFromAbove(), NoTerminator(), SymbolOpInterface())

    assembly_format = (
        "$sym_name `cluster` $cluster `tile` $tile `columns` $columns `depth` $depth `threads` $threads "
        "`shared` $shared (`split_k` $split_k^)? (`balanced` $balanced^)? (`tail` $tail^ `after` $after)? "
        "(`grouping` $grouping^)? (`groups` $groups^)? `takes` $inputs `gives` $output `binds` $binds $body attr-dict"
    )

    @property
    def parts(self) -> int:
        """Parts of K."""
        return 1 if self.split_k is None else number(self.split_k)

    @property
    def tail_begins(self) -> int:
        """The first column of the narrower tiles; N where there are none."""
        return number(self.columns) if self.after is None else number(self.after) * self.tile.n.data

    @property
    def cluster_ctas(self) -> int:
        """CTAs of a cluster."""
        return self.cluster.m.data * self.cluster.n.data * self.parts

    def verify_(self) -> None:
        if len(self.body.block.args) != len(self.binds):
            raise VerifyException(f"{len(self.body.block.args)} parameters, but {len(self.binds)} binds")
        if (self.grouping is None) != (self.groups is None):
            raise VerifyException("a kernel has both a grouping and a number of groups, or neither")
        if (self.tail is None) != (self.after is None):
            raise VerifyException("a kernel has both narrower tiles and columns of tiles before them, or neither")
        if self.tail is not None and (self.grouping is not None or self.cluster_ctas > 1):
            raise VerifyException("narrower tiles are those of one product, each computed by a CTA of its own")
        if self.tail is not None and not (
            number(self.tail) < self.tile.n.data and self.tail_begins < number(self.columns)
        ):
            raise VerifyException(f"tiles of {number(self.tail)} columns from column {self.tail_begins} on")
        from gemmir.dialects.hopper.bounds import check_kernel_bounds  # which knows every op of the dialect

        check_kernel_bounds(self)


@irdl_op_definition
class RolesOp(HopperOperation):
    """The warpgroups of a CTA, in order of their threads. Holds only `hopper.warpgroups`."""

    name = "hopper.roles"
    body = region_def("single_block")
    traits = traits_def(NoTerminator())
    assembly_format = "$body attr-dict"

    def verify_(self) -> None:
        if any(not isinstance(op, WarpgroupsOp) for op in self.body.block.ops):
            raise VerifyException("hopper.roles holds only hopper.warpgroups")


@irdl_op_definition
class WarpgroupsOp(HopperOperation):
    """What the next `number` warpgroups do. The block argument is the warpgroup's number among them."""

    name = "hopper.warpgroups"
    body = region_def("single_block")
    number = prop_def(POSITIVE)
    traits = traits_def(NoTerminator())
    assembly_format = "$number $body attr-dict"


@irdl_op_definition
class WarpOp(HopperOperation):
    """What warp `index` of the enclosing warpgroup does; `elected`: only its first lane."""

    name = "hopper.warp"
    body = region_def("single_block")
    index = prop_def(NATURAL)
    elected = opt_prop_def(UnitAttr)
    traits = traits_def(NoTerminator())
    assembly_format = "$index (`elected` $elected^)? $body attr-dict"


@irdl_op_definition
class SetMaxRegistersOp(HopperOperation):
    """`setmaxnreg`: registers per thread of this warpgroup from now on, `grow` or shrink."""

    name = "hopper.setmaxnreg"
    registers = prop_def(POSITIVE)
    grow = opt_prop_def(UnitAttr)
    assembly_format = "$registers (`grow` $grow^)? attr-dict"

    def verify_(self) -> None:
        registers = self.registers.value.data
        if registers % 8 or not 24 <= registers <= 256:
            raise VerifyException(f"setmaxnreg takes multiples of 8 from 24 to 256, not {registers}")


@irdl_op_definition
class CountTilesOp(HopperOperation):
    """
    Count the tiles of all groups, from the index operand on the device (`batch` has none), and deal them out to CTAs.

    A CTA without a tile ends here. What every warp counts is the same. `per_cluster`: tiles are counted and dealt out
    by the cluster, as many neighbours of one group at a time as it has CTAs; some may lie behind the group's rows. A
    list then depends on the cluster's number and the index operand, and on nothing else: the CTAs of a cluster have
    tiles of the same groups with the same k-blocks, equally many, and end here together or not at all.
    """

    name = "hopper.count_tiles"
    index = opt_operand_def(PointerType)
    per_cluster = opt_prop_def(UnitAttr)
    result = result_def(IndexType)
    assembly_format = "(`per_cluster` $per_cluster^)? ($index^ `:` type($index))? attr-dict"

    def verify_(self) -> None:
        kernel = self.parent_op()
        if not isinstance(kernel, KernelOp) or kernel.grouping is None:
            raise VerifyException("hopper.count_tiles stands at the top of a kernel with a grouping")
        if any(isinstance(op, CountTilesOp) and op is not self for op in kernel.body.block.ops):
            raise VerifyException("the roles of a kernel go through one list of tiles: they are counted once")
        if self.per_cluster is not None and kernel.cluster.m.data * kernel.cluster.n.data == 1:
            raise VerifyException("tiles are dealt out per cluster where its CTAs have tiles of their own")
        if (self.index is None) != (kernel.grouping.meaning is Grouping.BATCH):
            raise VerifyException(f"grouping {kernel.grouping.data}: an index operand is for all but batch")


@irdl_op_definition
class TilesOp(HopperOperation):
    """
    For each tile of this CTA: block arguments are the tile's first row and column in D.

    Tiles are visited in groups of `group` cluster rows (or columns, along_n); consecutive clusters take consecutive
    tiles. `tail`: the narrower tiles of the last columns, which are numbered behind the others; each warp that goes
    through tiles goes through both kinds, in this order. In a kernel with a grouping they are `count` tiles, those of
    one segment of rows after another (see `gemmir.segments`), and there are three more arguments: the group, and
    which rows of the tile, from `begin` up to `end`, are the group's: it starts at a multiple of 8 rows, and one of a
    cluster's tiles may have none, where `end` is not above `begin`. Where K is divided (`k_offs`) those are the
    group's first k-block and how many it has: where it has none, one that lies outside. All lanes of a warp find a
    tile together.
    """

    name = "hopper.tiles"
    count = opt_operand_def(IndexType)
    body = region_def("single_block")
    raster = prop_def(RasterAttr)
    group = prop_def(POSITIVE)
    tail = opt_prop_def(UnitAttr)
    traits = traits_def(NoTerminator())
    assembly_format = "($count^ `of`)? $raster `group` $group (`tail` $tail^)? $body attr-dict"

    def verify_(self) -> None:
        kernel = enclosing(self, KernelOp)
        names = tile_arguments(None if kernel is None else kernel.grouping, self.count is not None)
        if [a.type for a in self.body.block.args] != [IndexType()] * len(names):
            raise VerifyException(f"hopper.tiles takes {len(names)} index arguments here: {', '.join(names)}")
        if kernel is not None and (kernel.grouping is None) != (self.count is None):
            raise VerifyException("tiles are counted in a kernel with a grouping, and only there")
        if self.count is not None and not isinstance(self.count.owner, CountTilesOp):
            raise VerifyException("tiles are counted by hopper.count_tiles")
        if kernel is not None and kernel.tail is None and self.tail is not None:
            raise VerifyException("hopper.tiles tail in a kernel without narrower tiles")
        warp = enclosing(self, WarpOp)
        if self.count is not None and warp is not None and warp.elected is not None:
            raise VerifyException("the lanes of a warp find the tiles of groups together")


@irdl_op_definition
class KBlocksOp(HopperOperation):
    """
    For each block of K from `first` to `last` (exclusive): the block argument is its number.

    With a `step` the body does that many blocks at a time, and the argument is the number of the first. Blocks that
    are left over are for the ops after the loop. Where each tile has its own number of blocks, they go up to `less`
    blocks before `count`.
    """

    name = "hopper.k_blocks"
    count = opt_operand_def(IndexType)
    body = region_def("single_block")
    first = prop_def(NATURAL)
    last = opt_prop_def(POSITIVE)
    less = opt_prop_def(NATURAL)
    step = opt_prop_def(POSITIVE)
    traits = traits_def(NoTerminator())
    assembly_format = "$first (`to` $last^)? (`over` $count^ `less` $less)? (`step` $step^)? $body attr-dict"

    def end(self, count: int) -> int:
        """Where it ends in a tile of `count` blocks."""
        return count - number(self.less) if self.less is not None else number(self.last) if self.last is not None else 0

    @property
    def blocks(self) -> int:
        """Blocks of K that the body does."""
        return 1 if self.step is None else number(self.step)

    def verify_(self) -> None:
        if [a.type for a in self.body.block.args] != [IndexType()]:
            raise VerifyException("hopper.k_blocks takes one index argument")
        if (self.last is None) != (self.count is not None) or (self.less is None) != (self.count is None):
            raise VerifyException("blocks of K go to a number, or over a count less a number")
        first, last = number(self.first), 0 if self.last is None else number(self.last)
        if self.count is not None and self.blocks > 1:
            raise VerifyException("blocks of K whose number is not known go one at a time")
        if self.blocks > MAX_K_STEP:
            raise VerifyException(f"{self.blocks} blocks of K at a time; {MAX_K_STEP} are the most")
        if self.blocks > 1 and (first >= last or (last - first) % self.blocks):
            raise VerifyException(f"blocks {first} to {last} of K do not go {self.blocks} at a time")


def tile_arguments(grouping: GroupingAttr | None, counted: bool) -> tuple[str, ...]:
    """Names of the arguments of a loop over tiles."""
    if not counted:
        return TILE_ARGUMENTS[Grouping.NONE]
    return ROWS_OF_GROUP if grouping is None else TILE_ARGUMENTS.get(grouping.meaning, ROWS_OF_GROUP)


def enclosing(op: Operation, kind: type[OpT]) -> OpT | None:
    """The innermost op of `kind` that `op` is in, if any."""
    parent = op.parent_op()
    while parent is not None and not isinstance(parent, kind):
        parent = parent.parent_op()
    return parent
