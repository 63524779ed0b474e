"""The parts of tensors that belong to one group: each product of several groups is a few products of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from gemmir.errors import InputError
from gemmir.groups import K_ALIGNMENT_BYTES, Extent, Span, first_fault, spans
from gemmir.matmul_rules import is_block_wise
from gemmir.problem import SCALE_BLOCK, GemmProblem, Grouping, Recipe


@dataclass(frozen=True, slots=True)
class Group:
    """Some rows and K of one group; its `of_...` methods give views of the operands of the whole product."""

    grouping: Grouping
    span: Span

    @property
    def depth(self) -> slice:
        return slice(self.span.k_first, self.span.k_last)

    @property
    def in_result(self) -> tuple[slice | int, ...]:
        """What of the result, and of all that has its shape, belongs to the group."""
        rows = slice(self.span.first, self.span.last)
        return (self.span.number, rows) if self.grouping.stacked else (rows,)

    def of_result(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[self.in_result]

    def of_a(self, a: torch.Tensor) -> torch.Tensor:
        return a[:, self.depth] if self.grouping is Grouping.K_OFFS else a[self.in_result]

    def of_b(self, b: torch.Tensor) -> torch.Tensor:
        if self.grouping is Grouping.NONE:
            return b
        return b[self.depth] if self.grouping is Grouping.K_OFFS else b[self.span.number]

    def of_scale_a(self, scale: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        if recipe is Recipe.TENSOR_WISE:
            return scale
        if self.grouping is Grouping.K_OFFS:
            return scale[:, self._blocks] if is_block_wise(recipe) else scale
        return scale[self.in_result]

    def of_scale_b(self, scale: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        if recipe is Recipe.TENSOR_WISE or self.grouping is Grouping.NONE:
            return scale
        if self.grouping is Grouping.K_OFFS:
            return scale[self._blocks] if is_block_wise(recipe) else scale
        return scale[self.span.number]

    def of_epilogue(self, operand: torch.Tensor, kind: str) -> torch.Tensor:
        if kind == "scalar" or (kind == "column" and self.grouping is Grouping.NONE):
            return operand
        return operand[self.span.number] if kind == "column" else operand[self.in_result]

    @property
    def _blocks(self) -> slice:
        """The block-wise scales along K, whose blocks begin with the group's K."""
        return slice(self.span.k_first // SCALE_BLOCK, -(-self.span.k_last // SCALE_BLOCK))


@dataclass(frozen=True, slots=True)
class Operands:
    """The tensors of one product, as `gemmir.matmul_rules.DIMS` gives their shapes; `index` is int32."""

    a: torch.Tensor
    b: torch.Tensor
    scale_a: torch.Tensor | None = None
    scale_b: torch.Tensor | None = None
    c: torch.Tensor | None = None
    index: torch.Tensor | None = None

    def of(self, group: Group, recipe_a: Recipe, recipe_b: Recipe) -> Operands:
        """The operands of one group, as of a product by itself."""
        return Operands(
            group.of_a(self.a),
            group.of_b(self.b),
            None if self.scale_a is None else group.of_scale_a(self.scale_a, recipe_a),
            None if self.scale_b is None else group.of_scale_b(self.scale_b, recipe_b),
            None if self.c is None else group.of_result(self.c),
        )

    def extent(self, grouping: Grouping) -> Extent:
        """The sizes that the index divides."""
        return Extent(self.groups(grouping), *self.a.shape[-2:], K_ALIGNMENT_BYTES // self.a.element_size())

    def groups(self, grouping: Grouping) -> int:
        """How many groups there are; of a single product nothing that is used."""
        by_index = grouping is Grouping.K_OFFS and self.index is not None
        return (self.index if by_index else self.b).shape[0]


def groups_of(grouping: Grouping, operands: Operands, *, validate: bool = False) -> list[Group]:
    """
    The groups that are computed; one for a single product. Reads the index, wherever it is.

    With `validate`, `InputError` (GMR-I009) names the first entry of the index that is invalid; else what it stands
    for is left out.
    """
    index = [] if operands.index is None else operands.index.tolist()
    extent = operands.extent(grouping)
    if validate and (fault := first_fault(grouping, index, extent)) is not None:
        raise InputError("GMR-I009", fault, rule="see gemmir.problem.Grouping", fix="correct the index operand")
    return [Group(grouping, span) for span in spans(grouping, index, extent)]


def products_of(problem: GemmProblem, operands: Operands) -> Iterator[tuple[Group, GemmProblem, Operands]]:
    """Each group of `problem`, with the problem and the operands that it is by itself."""
    for group in groups_of(problem.grouping, operands):
        part = operands.of(group, problem.scale_a, problem.scale_b)
        m, k = part.a.shape
        yield group, replace(problem, m=m, k=k, grouping=Grouping.NONE, groups=1), part


def result_shape(grouping: Grouping, operands: Operands) -> tuple[int, ...]:
    """M x N, or G x M x N."""
    m, n = operands.a.shape[-2], operands.b.shape[-1]
    return (operands.groups(grouping), m, n) if grouping.stacked else (m, n)


def written(grouping: Grouping, operands: Operands) -> torch.Tensor:
    """Which elements of the result a kernel writes: bool, of the result's shape."""
    mask = torch.zeros(result_shape(grouping, operands), dtype=torch.bool, device=operands.a.device)
    for group in groups_of(grouping, operands):
        mask[group.in_result] = True
    return mask
