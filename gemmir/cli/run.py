"""`gemmir run`: execute a program on a GPU, in the simulator or by the reference; check each element of its result."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.cli.backends import BACKENDS, Options, run_on
from gemmir.cli.compile import add_compiler_arguments, add_watchdog_argument, positive
from gemmir.cli.destinations import check_destination
from gemmir.cli.diagnostics import UsageError
from gemmir.cli.sources import FILE_HELP, read_module

if TYPE_CHECKING:
    import torch
    from xdsl.ir import SSAValue

    from gemmir.cli.backends import Outcome
    from gemmir.dialects.gemm import ProductOp

HELP = "run a program on random or given tensors, and check the result"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=FILE_HELP + " (default: stdin)")
    parser.add_argument("--shape", type=shape_of, metavar="M=4096", help="M, where the program leaves it open")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="cuda: the kernel, on a Hopper GPU; simulator: the kernel, on the CPU, bit for bit and slowly; reference: "
        "what the program means, by torch on the CPU, without a kernel; auto: the first of them that can do it",
    )
    parser.add_argument("--inputs", type=Path, metavar="FILE", help="tensors by argument name: .npz or .safetensors")
    parser.add_argument("--output", type=Path, metavar="FILE.npz", help="write the result, as array `output`")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the inputs and the simulated order (default: 0)"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare each element with the exact product, within the derived bound"
    )
    add_compiler_arguments(parser)
    add_watchdog_argument(parser)


def shape_of(text: str) -> int:
    """M out of `M=4096`."""
    name, _, value = text.partition("=")
    if name.strip().upper() != "M":
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: only M can be open; write M=4096")
    return positive(value.strip())


def execute(args: argparse.Namespace) -> int:
    from gemmir.backends.reference import random_inputs
    from gemmir.cli.check import check_result
    from gemmir.cli.inputs import arguments_of, load_inputs, save_output
    from gemmir.dialects.gemm import problem_of, the_matmul

    if args.output is not None:
        check_destination(args.output, "--output")
    module = read_module(args.file)
    op = the_matmul(module)
    if args.inputs is None:
        inputs = random_inputs(module, rows_of(op, args.shape), args.seed)
    else:
        inputs = load_inputs(args.inputs, arguments_of(op))
    options = Options(args.target, args.pipeline, args.m, args.seed, args.watchdog_ms)
    outcome = run_on(args.backend, module, inputs, options)
    write = sys.stdout.write
    write(f"problem  {problem_of(op)}\n")
    if outcome.note:
        write(f"backend  {outcome.note}\n")
    write(f"result   {'x'.join(map(str, outcome.result.shape))} {problem_of(op).d}, by {outcome.where}\n")
    write(f"time     {duration(outcome.seconds)}{rate(op, inputs, outcome)}\n")
    if args.output is not None:
        save_output(args.output, outcome.result)
        write(f"output   {args.output}\n")
    if not args.check:
        return 0
    verdict = check_result(op, inputs, outcome.result)
    state = "every element is within its bound" if verdict.holds else "FAILED, an element is out of its bound"
    write(f"check    {state}; worst {verdict}\n")
    return 0 if verdict.holds else 1


def rows_of(op: ProductOp, asked: int | None) -> int:
    """M: what the program fixes, else what is asked for, else what the program expects."""
    from gemmir.dialects.gemm import problem_of

    problem = problem_of(op)
    if problem.m is not None and asked not in (None, problem.m):
        raise UsageError(f"--shape M={asked}: the program fixes M = {problem.m}")
    return asked or problem.rows


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def rate(op: ProductOp, inputs: dict[str, torch.Tensor], outcome: Outcome) -> str:
    """Arithmetic per second, where the time is that of a kernel on a GPU."""
    if not outcome.on_gpu:
        return ""
    from gemmir.backends.reference.groups import groups_of
    from gemmir.backends.reference.interpreter import operands_of
    from gemmir.cli.inputs import function_of
    from gemmir.dialects.gemm import problem_of

    values: dict[SSAValue, torch.Tensor] = dict(zip(function_of(op).args, inputs.values(), strict=True))
    spans = (group.span for group in groups_of(op.grouping, operands_of(op, values)))
    multiplied = sum((span.last - span.first) * (span.k_last - span.k_first) for span in spans)
    return f", {2 * multiplied * problem_of(op).n / outcome.seconds / 1e12:.0f} TFLOP/s"
