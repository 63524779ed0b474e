"""One case after the other: check gemmir's kernel, then time it and its peers in turn."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.bench.cases import Case
from gemmir.bench.check import fault_of
from gemmir.bench.floor import floor_us
from gemmir.bench.flush import FLUSHES
from gemmir.bench.graph import measure_graph
from gemmir.bench.grouped import AnyCase
from gemmir.bench.grouped_peers import maker_for
from gemmir.bench.peers import Peer, Refusal, cublas_per_tensor, prepared
from gemmir.bench.report import Calibration, PeerResult, Row
from gemmir.bench.timing import LAUNCHES, REST_SECONDS, Launch, Timing, hot_us, kernel_us
from gemmir.dtypes import DTYPES
from gemmir.errors import DeviceError, InputError

if TYPE_CHECKING:
    from gemmir.backends.cuda.driver import DeviceInfo
    from gemmir.kernel import CompiledKernel

SEED = 1
CALIBRATION = Case("f8E4M3FN", 4096, 7168, 2048)
"""For cuBLASLt with one scale per tensor, in a run that has no dense rows to tell how fast the machine is."""
DRIVER_VERSION = Path("/sys/module/nvidia/version")
PEER_PACKAGES = ("nvidia-cublas", "nvidia-cublas-cu12", "deep_gemm")
"""Their versions are named where they are installed; a torch of one's own may have cuBLAS from a toolkit."""


@dataclass(frozen=True, slots=True)
class Options:
    """
    `launches` of a series, `repeats`: series of each kernel, in turn with its peers; `hot`: also back to back.

    `flush`: how L2 is emptied, one of `FLUSHES`. `layers`: of a graph that is timed, too; 0: none is.
    """

    launches: int = LAUNCHES
    repeats: int = 1
    hot: bool = False
    rest: float = REST_SECONDS
    flush: str = FLUSHES[0]
    layers: int = 0


def require_gpu() -> DeviceInfo:
    """The first GPU, if it is a Hopper and torch can use it; else `DeviceError` (GMR-D001, GMR-D002)."""
    from gemmir.backends.cuda.driver import require_hopper

    info = require_hopper(0)
    import torch

    if torch.cuda.is_available():
        return info
    raise DeviceError(
        "GMR-D001",
        f"torch {torch.__version__} sees no GPU",
        rule="tensors are made and timed by torch",
        fix="install a CUDA build of torch; `gemmir doctor` shows what is here",
    )


def machine(info: DeviceInfo) -> dict[str, str]:
    """The device and the versions of what the figures depend on."""
    import torch

    import gemmir
    from gemmir.backends.cuda import nvrtc
    from gemmir.backends.cuda.driver import bindings, checked

    cuda: int = checked(bindings().cuDriverGetVersion(), "cuDriverGetVersion")
    module = DRIVER_VERSION.read_text().strip() + " " if DRIVER_VERSION.is_file() else ""
    found = {
        "device": f"{info.name} ({info.sms} SMs)",
        "driver": f"{module}for CUDA {cuda // 1000}.{cuda % 1000 // 10}",
        "nvrtc": "{}.{}".format(*nvrtc.version()),
        "torch": torch.__version__,
        "gemmir": gemmir.__version__,
    }
    for name in PEER_PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def calibrate(options: Options) -> Calibration:
    """Time cuBLASLt on `CALIBRATION`."""
    from gemmir.bench.inputs import inputs_of

    try:
        launch = prepared(cublas_per_tensor, inputs_of(CALIBRATION, SEED, "cuda"))
    except Refusal as refusal:
        return Calibration(CALIBRATION, "cublas", PeerResult(None, str(refusal)))
    return Calibration(CALIBRATION, "cublas", PeerResult(in_turn({"": launch}, options)[""]))


def measure(case: AnyCase, kernel: CompiledKernel, peers: Sequence[Peer], options: Options, info: DeviceInfo) -> Row:
    """
    Check and time one case on random data.

    `InputError` (GMR-I007) if it does not fit the GPU's memory; a peer that refuses is told in its result.
    """
    import torch

    floor = floor_us(case, info.name, info.sms)
    try:
        return _measure(case, kernel, peers, options, floor)
    except torch.OutOfMemoryError as error:
        raise InputError(
            "GMR-I007",
            f"{case} does not fit the memory of {info.name}",
            rule="operands, result and 512 MB to flush L2 with are held at once",
            fix="measure a smaller shape",
        ) from error


def _measure(
    case: AnyCase, kernel: CompiledKernel, peers: Sequence[Peer], options: Options, floor: float | None
) -> Row:
    import torch

    from gemmir.backends.reference.checks import torch_dtype
    from gemmir.bench.inputs import inputs_of
    from gemmir.dialects.gemm import problem_of, the_matmul
    from gemmir.ir_text import parse_module

    problem = problem_of(the_matmul(parse_module(case.text)))
    inputs = inputs_of(case, SEED, "cuda")
    dtype = torch_dtype(DTYPES[kernel.manifest.output.dtype])
    out = torch.full(case.result_shape, torch.nan, dtype=dtype, device="cuda")
    tensors = tuple(inputs.values())
    kernel(*tensors, out=out)
    manifest = kernel.manifest
    if (fault := fault_of(problem, inputs, out)) is not None:
        return Row(case, manifest.entry, manifest.schedule, floor, None, fault)

    launches: dict[str, Launch] = {"": lambda: kernel(*tensors, out=out)}
    results: dict[str, PeerResult] = {}
    for peer in peers:
        if (make := maker_for(peer, case)) is None:
            continue
        try:
            launches[peer.name] = prepared(make, inputs)
        except Refusal as refusal:
            results[peer.name] = PeerResult(None, str(refusal))
    timings = in_turn(launches, options)
    ours = timings.pop("")
    results |= {name: PeerResult(timing) for name, timing in timings.items()}
    ordered = {peer.name: results[peer.name] for peer in peers if peer.name in results}
    graph = None
    if options.layers:
        graph = measure_graph(case, problem, kernel, peers, inputs, out, options.layers, options.repeats)
    return Row(case, manifest.entry, manifest.schedule, floor, ours, "", ordered, graph)


def in_turn(launches: dict[str, Launch], options: Options) -> dict[str, Timing]:
    """Times by name: a series of each, then the next series of each, so that a drift of the machine meets them all."""
    series: dict[str, list[tuple[float, ...]]] = {name: [] for name in launches}
    for _ in range(options.repeats):
        for name, launch in launches.items():
            series[name].append(tuple(kernel_us(launch, options.launches, options.rest, options.flush)))
    hot = {name: hot_us(launch) if options.hot else None for name, launch in launches.items()}
    return {name: Timing(tuple(found), hot[name]) for name, found in series.items()}
