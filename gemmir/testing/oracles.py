"""
Is a kernel right? Three judges, none with a tuned tolerance.

`check_exact` (T0): data whose every partial sum is exact, so any order of sums gives the same numbers. `check_bits`
(T1): random data against the bit model of the arithmetic. `check_bound` (T2): random data within the derived bound,
for programs without a bit model, such as those with an epilogue.

What no group writes is not compared.

A kernel is anything that is called with one tensor per argument of the program and returns the result: a
`CompiledKernel`, or what `simulated` makes of a program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeAlias

import torch

from gemmir.errors import UnsupportedError
from gemmir.tensor_core import gemm_model as numpy_model
from gemmir.tensor_core import raw_bits
from gemmir.testing import torch_model

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp
    from xdsl.ir import SSAValue

    from gemmir.compiler import Source
    from gemmir.dialects.gemm import ProductOp
    from gemmir.problem import GemmProblem

Kernel: TypeAlias = Callable[..., torch.Tensor]


def simulated(
    program: Source, *, seed: int = 0, clusters: int | None = None, pipeline: str | None = None, m: int | None = None
) -> Kernel:
    """
    The kernel that gemmir makes of `program`, run by the simulator on the CPU.

    `seed` and `clusters` as in `gemmir.backends.simulator.simulate`, `pipeline` and `m` as in `gemmir.compile`.
    """
    from gemmir.backends.simulator import simulate
    from gemmir.compiler import lower
    from gemmir.dialects.hopper import KernelOp

    module = lower(program, pipeline=pipeline, m=m, until="hopper").module
    kernels = [op for op in module.body.block.ops if isinstance(op, KernelOp)]
    if len(kernels) != 1:
        raise UnsupportedError("GMR-U001", f"{len(kernels)} kernels", rule="the simulator runs one")

    def kernel(*tensors: torch.Tensor) -> torch.Tensor:
        return simulate(kernels[0], tensors, _rows(kernels[0], tensors), seed=seed, clusters=clusters)

    return kernel


def _rows(kernel: object, tensors: Sequence[torch.Tensor]) -> int:
    """M: the rows of (a matrix of) the tensor that the kernel's first tensor map is of, A."""
    from gemmir.dialects.hopper import KernelOp
    from gemmir.dialects.hopper.types import BindName

    assert isinstance(kernel, KernelOp)
    maps = [bind for bind in kernel.binds if bind.kind.data == BindName.MAP.value]
    return tensors[maps[0].tensor.data].shape[-2]


def check_exact(
    kernel: Kernel,
    program: Source,
    m: int | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    inputs: Sequence[torch.Tensor] | None = None,
) -> None:
    """
    T0: on small integers and power-of-two scales the result equals that of the reference in every element.

    `m`: M, where the program leaves it open. `inputs`: such data, one tensor per argument. `AssertionError` names the
    first element that differs (0 and -0 do not).
    """
    from gemmir.backends.reference import exact_inputs, run

    module, op = _module(program)
    tensors = list(exact_inputs(module, m, seed, device).values()) if inputs is None else list(inputs)
    expected = run(module, tensors)
    assert isinstance(expected, torch.Tensor)
    got = kernel(*tensors)
    _shapes(got, expected)
    same = (got == expected) | (torch.isnan(got) & torch.isnan(expected)) | ~_written(op, tensors)
    _compare(got, expected, same, f"exact data, seed {seed}: {_describe(module)}")


def check_bits(
    kernel: Kernel,
    program: Source,
    m: int | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    inputs: Sequence[torch.Tensor] | None = None,
) -> None:
    """
    T1: the result has the bits of the model, on `inputs` (one tensor per argument) or on random data.

    `UnsupportedError` (GMR-U001) for programs without a bit model; `AssertionError` names the first difference.
    """
    from gemmir.backends.reference import random_inputs

    module, op = _module(program)
    tensors = list(random_inputs(module, m, seed, device).values()) if inputs is None else list(inputs)
    expected = model_of(op, tensors)
    got = kernel(*tensors)
    width = {2: torch.int16, 4: torch.int32}[expected.element_size()]
    _shapes(got, expected)
    same = (got.contiguous().view(width) == expected.view(width)) | ~_written(op, tensors)
    data = f"random data, seed {seed}" if inputs is None else "given data"
    _compare(got, expected, same, f"{data}: {_describe(module)}")


def model_of(op: ProductOp, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    What the bit model says of `op`, the only one of its function, given one tensor per argument of the function.

    Elements that no group writes are zero.
    """
    from gemmir.backends.reference.groups import products_of, result_shape
    from gemmir.backends.reference.interpreter import operands_of
    from gemmir.dialects.gemm import problem_of

    problem, operands = problem_of(op), operands_of(op, _by_value(op, tensors))
    shape, dtype = result_shape(problem.grouping, operands), getattr(torch, problem.d.torch_name)
    result = torch.zeros(shape, dtype=dtype, device=operands.a.device)
    for group, product, part in products_of(problem, operands):
        result[group.in_result] = _model_of_one(product, part.a, part.b, part.scale_a, part.scale_b, part.c)
    return result


def _model_of_one(
    problem: GemmProblem,
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor | None,
    scale_b: torch.Tensor | None,
    c: torch.Tensor | None = None,
) -> torch.Tensor:
    """The bit model of one product: in torch on a GPU, in NumPy on the CPU."""
    if a.is_cuda:
        return torch_model.gemm_model(problem, a, b, scale_a, scale_b, c)
    left, right = (None if scale is None else scale.numpy() for scale in (scale_a, scale_b))
    bits = numpy_model(problem, raw_bits(a), raw_bits(b), left, right, None if c is None else raw_bits(c))
    return torch.from_numpy(bits.view(f"i{problem.d.bytes}")).view(getattr(torch, problem.d.torch_name))


def _written(op: ProductOp, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Which elements of the result `op` writes."""
    from gemmir.backends.reference.groups import written
    from gemmir.backends.reference.interpreter import operands_of

    return written(op.grouping, operands_of(op, _by_value(op, tensors)))


def check_bound(
    kernel: Kernel,
    program: Source,
    m: int | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    inputs: Sequence[torch.Tensor] | None = None,
) -> None:
    """
    T2: every element lies within the bound derived for it, on `inputs` or on random data; epilogues are carried along.

    `AssertionError` names the element that uses up most of its bound.
    """
    from gemmir.backends.reference import exact_and_bound_of, random_inputs, worst_element

    module, op = _module(program)
    tensors = list(random_inputs(module, m, seed, device).values()) if inputs is None else list(inputs)
    worst = worst_element(kernel(*tensors), *exact_and_bound_of(op, _by_value(op, tensors)))
    if not worst.holds:
        raise AssertionError(f"out of its bound: {worst}\n  seed {seed}: {_describe(module)}")


def _module(program: Source) -> tuple[ModuleOp, ProductOp]:
    from gemmir.compiler import module_of
    from gemmir.dialects.gemm import the_matmul

    module = module_of(program)
    return module, the_matmul(module)


def _by_value(op: ProductOp, tensors: Sequence[torch.Tensor]) -> dict[SSAValue, torch.Tensor]:
    block = op.parent_block()
    assert block is not None
    values: dict[SSAValue, torch.Tensor] = dict(zip(block.args, tensors, strict=True))
    return values


def _describe(module: ModuleOp) -> str:
    from gemmir.dialects.gemm import problem_of, schedule_of, the_matmul

    op = the_matmul(module)
    chosen = {name: value for name, value in asdict(schedule_of(op)).items() if value is not None}
    return f"{problem_of(op)}, " + (f"schedule {chosen}" if chosen else "any schedule")


def _shapes(got: torch.Tensor, expected: torch.Tensor) -> None:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise AssertionError(
            f"the result is {tuple(got.shape)} of {got.dtype}, expected {tuple(expected.shape)} of {expected.dtype}"
        )


def _compare(got: torch.Tensor, expected: torch.Tensor, same: torch.Tensor, context: str) -> None:
    """Rows of results of several groups are counted through all of them."""
    if bool(same.all()):
        return
    got, expected = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (got, expected))
    wrong = ~same.reshape(got.shape)
    first = int(wrong.reshape(-1).to(torch.uint8).argmax())
    row, column = divmod(first, got.shape[1])
    rows = wrong.any(dim=1).nonzero().reshape(-1)
    columns = wrong.any(dim=0).nonzero().reshape(-1)
    raise AssertionError(
        f"{int(wrong.sum())} of {wrong.numel()} elements differ, in rows {int(rows[0])}..{int(rows[-1])} and columns "
        f"{int(columns[0])}..{int(columns[-1])}\n"
        f"  first: [{row}, {column}] is {_value(got, row, column)}, expected {_value(expected, row, column)}\n"
        f"  {context}"
    )


def _value(tensor: torch.Tensor, row: int, column: int) -> str:
    element = tensor[row : row + 1, column : column + 1].cpu()
    digits = 2 * tensor.element_size()
    return f"{float(element):.9g} (0x{int(raw_bits(element)[0, 0]):0{digits}x})"
