"""`gemmir run`: execute a program on the GPU or on the CPU, and check every element of its result."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.cli.compile import add_compiler_arguments, positive
from gemmir.cli.diagnostics import UsageError
from gemmir.cli.sources import FILE_HELP, read_module

if TYPE_CHECKING:
    import torch
    from xdsl.dialects.builtin import ModuleOp

    from gemmir.dialects.gemm import MatmulOp
    from gemmir.manifest import TensorSpec

HELP = "run a program on random or given tensors, and check the result"
WARM_LAUNCHES = 10


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=FILE_HELP + " (default: stdin)")
    parser.add_argument("--shape", type=shape_of, metavar="M=4096", help="M, where the program leaves it open")
    parser.add_argument(
        "--backend",
        choices=["auto", "cuda", "reference"],
        default="auto",
        help="auto: cuda if there is a Hopper GPU, else reference (torch on the CPU)",
    )
    parser.add_argument("--inputs", type=Path, metavar="FILE", help="tensors by argument name: .npz or .safetensors")
    parser.add_argument("--output", type=Path, metavar="FILE.npz", help="write the result, as array `output`")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random inputs (default: 0)")
    parser.add_argument(
        "--check", action="store_true", help="compare each element with the exact product, within the derived bound"
    )
    add_compiler_arguments(parser)


def shape_of(text: str) -> int:
    """M out of `M=4096`."""
    name, _, value = text.partition("=")
    if name.strip().upper() != "M":
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: only M can be open; write M=4096")
    return positive(value.strip())


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result, what computed it, and how long one call took; `kernel`: it was a kernel of gemmir."""

    result: torch.Tensor
    where: str
    seconds: float
    kernel: bool


def execute(args: argparse.Namespace) -> int:
    from gemmir.backends.reference import random_inputs
    from gemmir.cli.check import check_result
    from gemmir.cli.inputs import arguments_of, load_inputs, save_output
    from gemmir.dialects.gemm import problem_of, the_matmul

    module = read_module(args.file)
    op = the_matmul(module)
    if args.inputs is None:
        inputs = random_inputs(module, rows_of(op, args.shape), args.seed)
    else:
        inputs = load_inputs(args.inputs, arguments_of(op))
    outcome = run_on(args.backend, module, inputs, args)
    write = sys.stdout.write
    write(f"problem  {problem_of(op)}\n")
    write(f"result   {'x'.join(map(str, outcome.result.shape))} {problem_of(op).d}, by {outcome.where}\n")
    write(f"time     {duration(outcome.seconds)}{rate(op, outcome)}\n")
    if args.output is not None:
        save_output(args.output, outcome.result)
        write(f"output   {args.output}\n")
    if not args.check:
        return 0
    verdict = check_result(op, inputs, outcome.result)
    state = "every element is within its bound" if verdict.holds else "FAILED, an element is out of its bound"
    write(f"check    {state}; worst {verdict}\n")
    return 0 if verdict.holds else 1


def rows_of(op: MatmulOp, asked: int | None) -> int:
    """M: what the program fixes, else what is asked for, else what the program expects."""
    from gemmir.dialects.gemm import problem_of

    problem = problem_of(op)
    if problem.m is not None and asked not in (None, problem.m):
        raise UsageError(f"--shape M={asked}: the program fixes M = {problem.m}")
    return asked or problem.rows


def run_on(backend: str, module: ModuleOp, inputs: dict[str, torch.Tensor], args: argparse.Namespace) -> Outcome:
    """Run `module` on the backend called `backend`; `auto` picks one."""
    import torch

    if backend == "auto":
        hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
        backend = "cuda" if hopper else "reference"
    options = {"target": args.target, "pipeline": args.pipeline, "m": args.m}
    return on_gpu(module, inputs, **options) if backend == "cuda" else on_cpu(module, inputs)


def on_cpu(module: ModuleOp, inputs: dict[str, torch.Tensor]) -> Outcome:
    from gemmir.backends.reference import run

    start = time.perf_counter()
    result = run(module, list(inputs.values()))
    if isinstance(result, tuple):
        raise UsageError(f"the program returns {len(result)} tensors; run takes programs that return one")
    return Outcome(result, "the CPU (reference)", time.perf_counter() - start, kernel=False)


def on_gpu(
    module: ModuleOp,
    inputs: dict[str, torch.Tensor],
    target: str = "sm_90a",
    pipeline: str | None = None,
    m: int | None = None,
) -> Outcome:
    """Compile, launch once for the result, then a few times for the clock."""
    import torch

    from gemmir.compiler import compile

    kernel = compile(module, target=target, pipeline=pipeline, m=m)
    kernel.prepare()
    specs = kernel.manifest.inputs
    tensors = [laid_out(spec, tensor.cuda()) for spec, tensor in zip(specs, inputs.values(), strict=True)]
    result = kernel(*tensors)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(WARM_LAUNCHES):
        kernel(*tensors, out=result)
    end.record()
    end.synchronize()
    seconds = start.elapsed_time(end) / 1e3 / WARM_LAUNCHES
    return Outcome(result, torch.cuda.get_device_name(), seconds, kernel=True)


def laid_out(spec: TensorSpec, tensor: torch.Tensor) -> torch.Tensor:
    """The same values in the order of memory that the kernel wants."""
    from gemmir.scales import align_scales

    if spec.free_strides or tensor.dim() != 2:
        return tensor
    if spec.order == (0, 1):
        return tensor.contiguous()
    return align_scales(tensor) if spec.dtype == "f32" else tensor.t().contiguous().t()


def duration(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def rate(op: MatmulOp, outcome: Outcome) -> str:
    """Arithmetic per second, where the time is that of a kernel."""
    from gemmir.dialects.gemm import problem_of

    problem = problem_of(op)
    flops = 2 * outcome.result.shape[0] * problem.n * problem.k
    return f", {flops / outcome.seconds / 1e12:.0f} TFLOP/s" if outcome.kernel else ""
