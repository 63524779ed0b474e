"""`gemmir bench`: time kernels on a Hopper GPU, next to cuBLASLt, DeepGEMM and torch in the same process."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.bench.cases import DTYPES, SETS, Case, GroupedShape, Shape, parse_shape, parse_shapes, program_text
from gemmir.bench.flush import FLUSHES
from gemmir.bench.graph import LAYERS, REPLAYS
from gemmir.bench.grouped import (
    ALL_GROUPED,
    DENSE_WITH_GROUPS,
    GROUPED_SETS,
    GROUPINGS,
    AnyCase,
    GroupedCase,
    grouped_sets,
    schedule_from,
)
from gemmir.bench.peers import PEERS
from gemmir.bench.timing import LAUNCHES, REST_SECONDS
from gemmir.cli.compile import positive
from gemmir.cli.destinations import check_destination, write_whole
from gemmir.cli.diagnostics import UsageError, say
from gemmir.decode import DECODE_ROWS, decode_split_k
from gemmir.errors import InputError

if TYPE_CHECKING:
    from gemmir.backends.cuda.driver import DeviceInfo
    from gemmir.bench.measure import Options
    from gemmir.bench.report import Report, Row
    from gemmir.kernel import CompiledKernel

HELP = "time kernels on a Hopper GPU, next to cuBLASLt, DeepGEMM and torch"
DETAILS = f"""
GPU time of the kernels alone, by torch's profiler: the median of {LAUNCHES}
launches on random data, L2 flushed before each (--flush), {REST_SECONDS} s of rest before
each series; what a call puts on the GPU is added up. --hot adds launches back
to back, without rest or flush. The schedule is the one that the passes choose,
without measuring.

--graph adds layers in a captured CUDA graph, as in decoding: the same
activations, weights (and their scales) of each layer's own, so that they come
from DRAM. Time of a layer: that of a replay, by CUDA events, over the number of
layers; the median of {REPLAYS} replays back to back, without rest or flush. gemmir's
kernels are timed without and with overlap, where a kernel may start while the
one before it ends and ask for its first weights, which that one does not write,
but waits for it before it reads or writes anything else. Of peers, cublas is
timed in such a graph; of groups it has BF16 batches only.

Products of 33 to 63 and of 65 to 127 rows are compared with those of 64 and 128
rows of the same N and K, where a run has those as well, as one of --set between
has: the last table has the ratios of their times, above 1 where fewer rows cost
more.

Before a kernel is timed its result is checked: it is filled with NaN first and
must come out finite everywhere, and 64 rows times 4 blocks of 128 columns must
lie within the bound that is derived for each element. Of a graph, the result of
the last layer is. Peers are not checked. A wrong result is not timed; the exit
code is then 1.

Shapes of four sizes are products of several groups, groups x rows of each x N x
K: --shape 8x256x4096x7168. The same sample is taken of each of 4 groups, and
rows that belong to no group must still be NaN. Runs that have groups time
cuBLASLt once, with one scale per tensor, at 4096x7168x2048, to tell how fast
the machine is.
"""
DENSE_DTYPES = ("f8E4M3FN", "bf16")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{HELP}\n{DETAILS}"
    add = parser.add_argument
    sets = ", ".join(f"{name} ({size_of(name)})" for name in SETS)
    groups = ", ".join(f"{name} ({len(found.shapes)}, {found.grouping.value})" for name, found in GROUPED_SETS.items())
    add(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        choices=[*SETS, ALL_GROUPED, *GROUPED_SETS],
        metavar="NAME",
        help=f"{sets}; of groups {groups}; {ALL_GROUPED}: all of those; default: dense",
    )
    add(
        "--shape",
        action="extend",
        nargs="+",
        default=[],
        type=shape,
        metavar="[GROUPSx]MxNxK",
        help="shapes beside or instead of a set",
    )
    add(
        "--grouping",
        choices=GROUPINGS,
        metavar="FORM",
        help=f"how groups of --shape and --file lie: {', '.join(GROUPINGS)} (default: offs)",
    )
    add("--file", type=Path, metavar="FILE", help="more of them, one a line; # starts a comment")
    add(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        metavar="TYPE",
        help=f"of A: {', '.join(DTYPES)}; FP8 has scales 1x128 and 128x128 (default: f8E4M3FN bf16; masked: f8E4M3FN; "
        "the groups of decode are measured in f8E4M3FN or not at all)",
    )
    what = "; ".join(f"{peer.name}: {peer.what}" for peer in PEERS.values())
    add("--peers", type=peers_of, default=tuple(PEERS), metavar="NAME[,NAME]", help=f"none, or {what} (default: all)")
    add("--schedule", default="", metavar="FIELDS", help="fix a part of it: 'block = 128x256x128, stages = 3'")
    rule = f"as many as gemmir.matmul takes up to M = {DECODE_ROWS}, then 1"
    add("--split-k", type=positive, metavar="N", help=f"parts of K, summed by a CTA each (default: {rule})")
    add("-p", "--pipeline", metavar="PASSES", help="passes instead of the usual ones: a,b{option=1}")
    add("--launches", type=positive, default=LAUNCHES, metavar="N", help=f"of a series (default: {LAUNCHES})")
    add("--repeat", type=positive, default=1, metavar="N", help="series of each kernel, in turn with its peers")
    zero = "zero writes 512 MB and leaves dirty lines, which the kernel must first push out"
    what = f"how L2 is emptied: {zero}; read reads 512 MB and leaves none (default: {FLUSHES[0]})"
    add("--flush", choices=FLUSHES, default=FLUSHES[0], help=what)
    add("--hot", action="store_true", help="time launches back to back as well")
    add("--graph", action="store_true", help="time layers in a captured CUDA graph as well")
    add("--layers", type=positive, metavar="N", help=f"of a graph (default: {LAYERS})")
    add("--json", type=Path, metavar="OUT", help="write every sample, schedule and version")


def size_of(name: str) -> str:
    """What a set of dense products holds, for people."""
    found = f"{len(SETS[name])} shapes"
    if (groups := DENSE_WITH_GROUPS.get(name)) is None:
        return found
    return f"{found} and {len(groups.shapes)} of groups, {groups.grouping.value}"


def shape(text: str) -> Shape | GroupedShape:
    try:
        return parse_shape(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{error.what}: {error.fix}") from None


def peers_of(text: str) -> tuple[str, ...]:
    """The peers in a comma-separated list, each once; `none` is none."""
    names = () if text == "none" else tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0][:40]!r} is not one of {', '.join(PEERS)}, none")
    return names


def execute(args: argparse.Namespace) -> int:
    """0, or 1 if a result was wrong. Raises DeviceError without a Hopper GPU, before anything else is done."""
    from gemmir.bench.measure import require_gpu
    from gemmir.bench.table import table

    info = require_gpu()
    cases = cases_of(args)
    check_layers(args)
    if args.json is not None:
        check_destination(args.json)
    report = run(cases, args, info)
    sys.stdout.write(table(report))
    if args.json is not None:
        say(f"wrote {args.json}")
    return 1 if any(row.faults for row in report.rows) else 0


def cases_of(args: argparse.Namespace) -> list[AnyCase]:
    """
    Every shape that was asked for, once, with every type, those of groups last; the set `dense` if nothing was.

    Raises InputError (GMR-I009) for a bad line of a file, UsageError for a file without a shape, or where there is none
    of groups for --grouping.
    """
    given: list[Shape | GroupedShape] = list(args.shape)
    if args.file is not None:
        given += parse_shapes(args.file.read_text(errors="replace"))
        if not given and not args.set:
            raise UsageError(f"--file {args.file}: no shape in it")
    shapes: list[Shape] = [found for name in args.set for found in SETS.get(name, ())]
    shapes += [found for found in given if len(found) == 3]
    grouped = grouped_cases(args, [found for found in given if len(found) == 4])
    shapes = shapes if shapes or grouped else list(SETS["dense"])
    dtypes = dict.fromkeys(args.dtype or DENSE_DTYPES)
    dense = [Case(dtype, *found, parts_of(args, dtype, found)) for dtype in dtypes for found in dict.fromkeys(shapes)]
    return [*dense, *grouped]


def parts_of(args: argparse.Namespace, dtype: str, shape: Shape) -> int:
    """Parts of K: as many as were asked for, or as `gemmir.matmul` takes."""
    m, n, k = shape
    if args.split_k is not None:
        return args.split_k
    return decode_split_k(n, k, dtype) if m <= DECODE_ROWS else 1


def grouped_cases(args: argparse.Namespace, given: list[GroupedShape]) -> list[GroupedCase]:
    """
    Those of the sets, with the types that a set is for, then those of shapes that were `given`.

    Groups of a dense set stay out where K is to be in parts, which theirs never is.
    """
    if args.grouping is not None and not given:
        raise UsageError(f"--grouping {args.grouping}: no shape of groups, such as --shape 8x256x4096x7168")
    lists = [(found.grouping.value, found.dtypes, found.shapes) for name in args.set for found in grouped_sets(name)]
    lists.append((args.grouping or GROUPINGS[0], DENSE_DTYPES, tuple(given)))
    beside = [DENSE_WITH_GROUPS[name] for name in args.set if name in DENSE_WITH_GROUPS and args.split_k in (None, 1)]
    cases = [
        GroupedCase(dtype, found.grouping.value, *sizes)
        for found in beside
        for dtype in found.dtypes
        if args.dtype is None or dtype in args.dtype
        for sizes in found.shapes
    ]
    cases += [
        GroupedCase(dtype, grouping, *found)
        for grouping, dtypes, shapes in lists
        for dtype in args.dtype or dtypes
        for found in shapes
    ]
    return list(dict.fromkeys(cases))


def check_layers(args: argparse.Namespace) -> None:
    """UsageError for layers without a graph."""
    if args.layers is not None and not args.graph:
        raise UsageError(f"--layers {args.layers}: they are those of --graph")


def run(cases: list[AnyCase], args: argparse.Namespace, info: DeviceInfo) -> Report:
    """
    Compile every case, so that what is refused is refused at once, then measure them one by one.

    What there is so far is written after each, so that a run that is cut short is not lost.
    """
    from gemmir.bench.measure import Options, calibrate, machine, measure
    from gemmir.bench.report import Report

    layers = (args.layers or LAYERS) if args.graph else 0
    options = Options(args.launches, args.repeat, args.hot, flush=args.flush, layers=layers)
    report = Report(datetime.now(UTC).isoformat(timespec="seconds"), machine(info), method_of(options), ())
    peers = [PEERS[name] for name in args.peers]
    with ThreadPoolExecutor() as pool:
        kernels = list(pool.map(partial(compiled, args=args), cases))
    if any(isinstance(case, GroupedCase) for case in cases):
        report = replace(report, calibration=calibrate(options))
    for case, kernel in zip(cases, kernels, strict=True):
        row = measure(case, kernel, peers, options, info)
        report = replace(report, rows=(*report.rows, row))
        say(f"{len(report.rows)} of {len(cases)}: {progress(row)}")
        if args.json is not None:
            write_whole(args.json, report.to_json().encode())
    return report


def method_of(options: Options) -> dict[str, int | float | bool | str]:
    """How it is measured, by the names that people read."""
    found: dict[str, int | float | bool | str] = {"launches": options.launches, "repeats": options.repeats}
    found |= {"rest seconds": options.rest, "flush": options.flush, "hot": options.hot}
    return found | ({"graph layers": options.layers, "graph replays": REPLAYS} if options.layers else {})


def progress(row: Row) -> str:
    """A row in one line, while the others are still to come."""
    if row.timing is None or row.faults:
        return f"{row.case}: WRONG RESULT: {row.faults[0]}"
    ratio = "" if row.worst_ratio is None else f", ratio to the fastest peer {row.worst_ratio:.3f}"
    return f"{row.case}: {row.timing.us:.2f} us{ratio}{graph_progress(row)}, {row.entry}"


def graph_progress(row: Row) -> str:
    if row.graph is None or row.graph.plain is None:
        return ""
    overlap = "" if row.graph.overlap is None else f" ({row.graph.overlap.us:.2f} with overlap)"
    return f", {row.graph.plain.us:.2f} us in a graph{overlap}"


def compiled(case: AnyCase, args: argparse.Namespace) -> CompiledKernel:
    from gemmir.compiler import compile

    if isinstance(case, GroupedCase):
        program = case.program(schedule_from(args.schedule, case), args.split_k or 1)
        return compile(program, pipeline=args.pipeline)
    text = program_text(case.n, case.k, case.dtype, args.schedule, case.split_k)
    return compile(text, pipeline=args.pipeline, m=case.m)
