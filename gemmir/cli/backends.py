"""Where `gemmir run` computes: the kernel on the GPU, the kernel in the simulator, or the reference."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gemmir.cli.diagnostics import UsageError

if TYPE_CHECKING:
    import torch
    from xdsl.dialects.builtin import ModuleOp

    from gemmir.dialects.hopper import KernelOp
    from gemmir.manifest import TensorSpec

BACKENDS = ("auto", "cuda", "simulator", "reference")
WARM_LAUNCHES = 10
MOST_SIMULATED = 4 * 10**9
"""Multiply-adds that `auto` simulates: up to two minutes."""
SIMULATED_RATE = 30e6
"""Multiply-adds that the simulator does in a second, at least: of BF16. Of FP8 they are about 150e6."""


@dataclass(frozen=True, slots=True)
class Options:
    """
    How to lower the program, as for `gemmir.compile`; `seed` draws the order of a simulated run.

    Only a kernel on a GPU has a watchdog: the simulator tells of a hang by itself.
    """

    target: str = "sm_90a"
    pipeline: str | None = None
    m: int | None = None
    seed: int = 0
    watchdog_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    A result, what computed it, and how long one call took.

    `on_gpu`: the time is that of a kernel. `note`: what a person should know about the choice of backend.
    """

    result: torch.Tensor
    where: str
    seconds: float
    on_gpu: bool = False
    note: str = ""


def run_on(backend: str, module: ModuleOp, inputs: dict[str, torch.Tensor], options: Options) -> Outcome:
    """Run `module` on the backend of that name, with one tensor per argument; `auto` picks one."""
    if backend == "reference":
        return on_reference(module, inputs)
    if backend == "simulator":
        return on_simulator(lowered_kernel(module, options), inputs, rows_in(module, inputs), options.seed)
    if backend == "cuda":
        return on_gpu(module, inputs, options)
    return on_best(module, inputs, options)


def has_hopper() -> bool:
    """Whether torch sees a GPU that gemmir's kernels run on."""
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def on_best(module: ModuleOp, inputs: dict[str, torch.Tensor], options: Options) -> Outcome:
    """The GPU, else the simulator, else the reference; a note says why it is not the GPU."""
    from gemmir.errors import UnsupportedError

    try:
        kernel = lowered_kernel(module, options)
    except UnsupportedError as error:
        if error.code != "GMR-U001":
            raise
        note = f"the reference, since there is no kernel for this program: {error.code}: {error.what}"
        return replace(on_reference(module, inputs), note=note)
    if has_hopper():
        return on_gpu(module, inputs, options)
    rows = rows_in(module, inputs)
    work = multiply_adds(kernel, rows)
    if work <= MOST_SIMULATED:
        note = "the simulator, since there is no Hopper GPU: the kernel itself, bit for bit"
        return replace(on_simulator(kernel, inputs, rows, options.seed), note=note)
    minutes = work / SIMULATED_RATE / 60
    note = (
        f"the reference, since there is no Hopper GPU and the simulator would take up to {minutes:.0f} minutes "
        f"({work:.1e} multiply-adds); --backend simulator runs it all the same"
    )
    return replace(on_reference(module, inputs), note=note)


def lowered_kernel(module: ModuleOp, options: Options) -> KernelOp:
    """The proven kernel of `module`. Raises `UnsupportedError` where there is none, and what lowering raises."""
    from gemmir.backends.cuda.target import the_kernel
    from gemmir.compiler import lower

    lowered = lower(module, target=options.target, pipeline=options.pipeline, m=options.m, until="hopper")
    return the_kernel(lowered.module)


def multiply_adds(kernel: KernelOp, m: int) -> int:
    """At most what the kernel's tiles compute with this M, padding included: the simulator's time goes with it."""
    from gemmir.problem import Grouping

    tile_m = kernel.tile.m.data * kernel.cluster.m.data
    tile_n = kernel.tile.n.data * kernel.cluster.n.data
    groups = 1 if kernel.groups is None else kernel.groups.value.data
    contiguous = kernel.grouping is not None and Grouping(kernel.grouping.data.value).contiguous
    tall = -(-m // tile_m) + groups - 1 if contiguous else -(-m // tile_m) * groups
    tiles = tall * -(-kernel.columns.value.data // tile_n)
    return tiles * tile_m * tile_n * kernel.depth.value.data


def rows_in(module: ModuleOp, inputs: dict[str, torch.Tensor]) -> int:
    """M: the rows of A, or of one matrix of it. Raises `InputError` for tensors that the program does not take."""
    from gemmir.backends.reference.interpreter import check_inputs
    from gemmir.cli.inputs import arguments_of, function_of
    from gemmir.dialects.gemm import the_matmul

    op = the_matmul(module)
    check_inputs(function_of(op), list(inputs.values()))
    return next(inputs[argument.name].shape[-2] for argument in arguments_of(op) if argument.role == "a")


def on_reference(module: ModuleOp, inputs: dict[str, torch.Tensor]) -> Outcome:
    """The meaning of the gemm dialect, on the CPU."""
    from gemmir.backends.reference import run

    start = time.perf_counter()
    result = run(module, list(inputs.values()))
    if isinstance(result, tuple):
        raise UsageError(f"the program returns {len(result)} tensors; run takes programs that return one")
    return Outcome(result, "the CPU (reference)", time.perf_counter() - start)


def on_simulator(kernel: KernelOp, inputs: dict[str, torch.Tensor], m: int, seed: int = 0) -> Outcome:
    """The kernel's own IR, run on the CPU; `seed` draws in which order its roles and its asynchronous work go on."""
    from gemmir.backends.simulator import simulate

    start = time.perf_counter()
    result = simulate(kernel, list(inputs.values()), m, seed=seed)
    return Outcome(result, "the CPU (simulator)", time.perf_counter() - start)


def on_gpu(module: ModuleOp, inputs: dict[str, torch.Tensor], options: Options) -> Outcome:
    """Compile, launch once for the result, then a few times for the clock."""
    import torch

    from gemmir.compiler import compile
    from gemmir.device_sync import synchronize

    kernel = compile(
        module,
        target=options.target,
        pipeline=options.pipeline,
        m=options.m,
        watchdog_ms=options.watchdog_ms,
    )
    kernel.prepare()
    specs = kernel.manifest.inputs
    tensors = [laid_out(spec, tensor.cuda()) for spec, tensor in zip(specs, inputs.values(), strict=True)]
    result = kernel(*tensors)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(WARM_LAUNCHES):
        kernel(*tensors, out=result)
    end.record()
    synchronize()  # which says more of a kernel that fails than torch does
    seconds = start.elapsed_time(end) / 1e3 / WARM_LAUNCHES
    return Outcome(result, torch.cuda.get_device_name(), seconds, on_gpu=True)


def laid_out(spec: TensorSpec, tensor: torch.Tensor) -> torch.Tensor:
    """The same values in the order of memory that the kernel wants."""
    from gemmir.scales import align_scales

    if spec.free_strides or tensor.dim() < 2:
        return tensor
    if spec.order == tuple(range(tensor.dim())):
        return tensor.contiguous()
    return align_scales(tensor) if spec.dtype == "f32" else tensor.mT.contiguous().mT
