"""
Inputs for a module: random ones as in practice, and ones on which every kernel must be exact to the last bit.

Both are made for the arguments of the module's only function and returned by argument name, in the memory layouts that
the GPU backend wants: k-major operands have strides (K, 1) for A and (1, K) for B, and the 1x128 scales of A are laid
out by `gemmir.scales.align_scales`. An operand with a matrix for each group is made matrix by matrix. Index operands
are valid; some groups are empty, and some rows or elements of K belong to none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from xdsl.dialects.builtin import DYNAMIC_INDEX, ModuleOp
from xdsl.ir import BlockArgument, SSAValue

from gemmir.backends.reference.checks import torch_dtype
from gemmir.backends.reference.index_data import DRAWN_PER_GROUP, draw_index
from gemmir.backends.reference.values import element_dtype, tensor_type
from gemmir.dialects.gemm import ProductOp, argument_names, problem_of, the_function
from gemmir.dtypes import DType
from gemmir.errors import InputError
from gemmir.groups import K_ALIGNMENT_BYTES, Extent
from gemmir.matmul_rules import is_block_wise, operand_scale_shape, scale_shape
from gemmir.problem import SCALE_BLOCK, Recipe
from gemmir.scales import align_scales

FP8_LARGEST = {"f8E4M3FN": 448.0, "f8E5M2": 57344.0}
EXACT_LIMIT = 4
"""Largest magnitude of the integers in exact data."""


@dataclass(frozen=True, slots=True)
class Operand:
    """What the data of a product's A or B depend on; their matrices are seen as outer x K."""

    op: ProductOp
    is_a: bool

    @property
    def value(self) -> SSAValue:
        return self.op.a if self.is_a else self.op.b

    @property
    def scale(self) -> SSAValue | None:
        return self.op.scale_a if self.is_a else self.op.scale_b

    @property
    def recipe(self) -> Recipe:
        return self.op.scale_a_recipe if self.is_a else self.op.scale_b_recipe

    @property
    def k_major(self) -> bool:
        return (self.op.a_major if self.is_a else self.op.b_major) == "k"

    def lay_out(self, values: torch.Tensor) -> torch.Tensor:
        """(G x) outer x K values as the operand, in its memory layout."""
        stored = values.contiguous() if self.k_major else values.transpose(-1, -2).contiguous().transpose(-1, -2)
        return stored if self.is_a else stored.transpose(-1, -2)

    def lay_out_scale(self, scale: torch.Tensor) -> torch.Tensor:
        """The scale of a (G x) outer x K operand as the scale operand."""
        if self.is_a:
            return align_scales(scale) if self.recipe is Recipe.BLOCK_WISE_1X128 else scale
        return scale.transpose(-1, -2).contiguous() if scale.dim() >= 2 else scale


@dataclass(frozen=True, slots=True)
class Source:
    """Where numbers come from: a run-time M, a generator and its device."""

    m: int | None
    generator: torch.Generator

    @property
    def device(self) -> torch.device:
        return self.generator.device

    def shape(self, value: SSAValue) -> tuple[int, ...]:
        """The shape of a tensor value with M put in for `?`."""
        dims = tensor_type(value).get_shape()
        if self.m is None and DYNAMIC_INDEX in dims:
            raise InputError("GMR-I005", f"M is unknown in {value.type}", fix="give m, the number of rows")
        return tuple(self.m if d == DYNAMIC_INDEX and self.m is not None else d for d in dims)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def integers(self, limit: int, *shape: int) -> torch.Tensor:
        """Float32 integers from -limit to limit."""
        return torch.randint(-limit, limit + 1, shape, generator=self.generator, device=self.device).float()


Make = Callable[[Operand, Source, int, int], tuple[torch.Tensor, torch.Tensor | None]]
"""Makes the values, outer x K, and the scale of one matrix of an operand."""


def random_inputs(
    module: ModuleOp, m: int | None, seed: int, device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """
    Standard normal data, quantised by each operand's recipe as in practice: the largest magnitude of a block becomes
    the largest FP8 number. `m` is the size of dimensions that are `?`. The same seed and kind of device give the same.

    Raises `InputError` GMR-I005 if `m` is needed but None.
    """
    return _inputs(module, _source(m, seed, device), _random_operand, lambda source, shape: source.normal(*shape))


def exact_inputs(
    module: ModuleOp, m: int | None, seed: int, device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """
    Small integers and power-of-two scales: every partial sum of every kernel is exact, so results must equal those of
    the reference bit for bit, whatever the order of the sums.

    An FP8 accumulator is exact up to 2^14, a float32 one up to 2^24: the integers are at most 4, and smaller or with
    zeros between them where K is so large that a sum could exceed that. Epilogue operands and C are integers from -8 to
    8. This holds for products of arguments, not for a product of another one's result. Arguments and errors as in
    `random_inputs`.
    """
    return _inputs(module, _source(m, seed, device), _exact_operand, lambda source, shape: source.integers(8, *shape))


def _source(m: int | None, seed: int, device: str | torch.device) -> Source:
    if m is not None and m < 0:
        raise InputError("GMR-I002", f"m: {m}", rule="a number of rows is not negative")
    return Source(m, torch.Generator(device).manual_seed(seed))


def _inputs(
    module: ModuleOp, source: Source, make: Make, other: Callable[[Source, tuple[int, ...]], torch.Tensor]
) -> dict[str, torch.Tensor]:
    function = the_function(module)
    made: dict[SSAValue, torch.Tensor] = {}
    for op in function.body.block.ops:
        for operand in (Operand(op, True), Operand(op, False)) if isinstance(op, ProductOp) else ():
            _make_operand(operand, source, make, made)
        if isinstance(op, ProductOp) and op.index is not None and op.index not in made:
            made[op.index] = _make_index(op, source)
    arguments = function.body.block.args
    for value in arguments:
        if value not in made:
            made[value] = other(source, source.shape(value)).to(torch_dtype(element_dtype(value)))
    return {name: made[value] for name, value in zip(argument_names(function), arguments, strict=True)}


def _make_index(op: ProductOp, source: Source) -> torch.Tensor:
    problem = problem_of(op)
    extent = Extent(problem.groups, source.shape(op.a)[-2], problem.k, K_ALIGNMENT_BYTES // problem.a.bytes)
    drawn = torch.rand(DRAWN_PER_GROUP * problem.groups, generator=source.generator, device=source.device)
    index = draw_index(problem.grouping, extent, drawn.tolist())
    return torch.tensor(index, dtype=torch.int32, device=source.device)


def _make_operand(operand: Operand, source: Source, make: Make, made: dict[SSAValue, torch.Tensor]) -> None:
    """Make an operand and its scale, as far as they are arguments that nothing has been made for."""
    value, scale = operand.value, operand.scale
    factors = None
    if isinstance(value, BlockArgument) and value not in made:
        values, factors = _make_matrices(operand, source, make)
        made[value] = operand.lay_out(values)
    if isinstance(scale, BlockArgument) and scale not in made:
        factors = _powers_of_two(operand, source, _outer_shape(operand, source), 1) if factors is None else factors
        made[scale] = operand.lay_out_scale(factors)


def _make_matrices(operand: Operand, source: Source, make: Make) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Values, (G x) outer x K, and their scales: those of each matrix are made by itself, unless all have one."""
    *groups, outer, k = _outer_shape(operand, source)
    if not groups:
        return make(operand, source, outer, k)
    if operand.recipe in (Recipe.NONE, Recipe.TENSOR_WISE):
        values, scale = make(operand, source, groups[0] * outer, k)
        return values.view(*groups, outer, k), scale
    made = [make(operand, source, outer, k) for _ in range(groups[0])]
    scales = [scale for _, scale in made if scale is not None]
    return torch.stack([values for values, _ in made]), torch.stack(scales)


def _outer_shape(operand: Operand, source: Source) -> tuple[int, ...]:
    """The shape of an operand, K last."""
    *groups, rows, columns = source.shape(operand.value)
    return (*groups, rows, columns) if operand.is_a else (*groups, columns, rows)


def _random_operand(operand: Operand, source: Source, outer: int, k: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    values = source.normal(outer, k)
    dtype = element_dtype(operand.value)
    if operand.scale is None:
        return values.to(torch_dtype(dtype)), None
    return quantise(values, operand.recipe, dtype)


def quantise(values: torch.Tensor, recipe: Recipe, dtype: DType) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Quantise float32 values (outer, K) to FP8: the largest magnitude under each scale becomes the type's largest number.

    Returns the FP8 values (outer, K) and the float32 scales that decode them, always positive, in the recipe's shape.
    """
    outer, k = values.shape
    rows, columns = {
        Recipe.TENSOR_WISE: (max(1, outer), max(1, k)),
        Recipe.ROW_WISE: (1, max(1, k)),
        Recipe.BLOCK_WISE_1X128: (1, SCALE_BLOCK),
        Recipe.BLOCK_WISE_128X128: (SCALE_BLOCK, SCALE_BLOCK),
    }[recipe]
    if values.numel() == 0:
        shape = [size or 0 for size in scale_shape(recipe, outer, k, k_axis=1)]
        return values.to(torch_dtype(dtype)), values.new_ones(shape)
    padded = torch.nn.functional.pad(values, (0, -k % columns, 0, -outer % rows))
    groups = padded.view(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    limit = FP8_LARGEST[dtype.name]
    largest = groups.abs().amax((1, 3), keepdim=True)
    scale = torch.where(largest == 0, 1.0, largest / limit)
    quantised = (groups / scale).clamp_(-limit, limit).to(torch_dtype(dtype)).view(padded.shape)[:outer, :k]
    return quantised, scale.reshape(()) if recipe is Recipe.TENSOR_WISE else scale.reshape(scale.shape[0], -1)


def _exact_operand(operand: Operand, source: Source, outer: int, k: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    op = operand.op
    budget = exact_budget(k, op.info().numerics.promote_every, fp8=op.info().a.dtype.is_fp8, block_wise=_block_wise(op))
    values = source.integers(budget.largest, outer, k)
    if operand.is_a and budget.step > 1:
        row, column = torch.arange(outer, device=source.device), torch.arange(k, device=source.device)
        values.masked_fill_((row[:, None] + column) % budget.step != 0, 0.0)
    factors = None if operand.scale is None else _powers_of_two(operand, source, (outer, k), budget.scale_exponent)
    return values.to(torch_dtype(element_dtype(operand.value))), factors


def _block_wise(op: ProductOp) -> bool:
    return is_block_wise(op.scale_a_recipe) or is_block_wise(op.scale_b_recipe)


def _powers_of_two(operand: Operand, source: Source, of: tuple[int, ...], exponent: int) -> torch.Tensor:
    """Random scales of an operand of shape `of`, (G x) outer x K, from 2^-exponent to 2^exponent."""
    shape = [size or 0 for size in operand_scale_shape(operand.recipe, of, k_axis=1)]
    powers = torch.tensor([2.0**e for e in range(-exponent, exponent + 1)], device=source.device)
    return powers[source.integers(exponent, *shape).long() + exponent]


@dataclass(frozen=True, slots=True)
class ExactBudget:
    """
    Data on which sums are exact: integers up to `largest`, only every `step`-th element of a row of A not zero, scales
    from 2^-scale_exponent to 2^scale_exponent.
    """

    largest: int
    step: int
    scale_exponent: int


def exact_budget(k: int, promote_every: int | None, *, fp8: bool, block_wise: bool) -> ExactBudget:
    """
    The widest data whose sums over `k` elements are exact in the worst case.

    An accumulator holds integers up to 2^14 (FP8) or 2^24; it sums `promote_every` elements of K, or all. The total is
    a float32: with block-wise scales, multiples of 2^-2x up to 2^2x times the integer sum, which leaves 23 - 4x bits.
    """
    stretch = max(1, min(k, promote_every or k))
    room = min((1 << 14 if fp8 else 1 << 23) / stretch, (1 << 23) / max(1, k))
    largest = max(1, min(EXACT_LIMIT, math.isqrt(int(room))))
    step = 1 if room >= 1 else math.ceil(1 / room)
    if not block_wise:
        return ExactBudget(largest, step, 2)
    spare = math.floor(math.log2((1 << 23) / (max(1, k) * largest * largest / step)))
    return ExactBudget(largest, step, max(0, min(2, spare // 4)))
