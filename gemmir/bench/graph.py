"""
Layers back to back in a captured CUDA graph, as in decoding.

Each layer has weights of its own, which so come from DRAM, and the same activations. All write one result, each only
after the one before, so that what the last one leaves shows whether they kept their order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from gemmir.bench.check import fault_of
from gemmir.bench.grouped_peers import maker_for
from gemmir.bench.peers import Inputs, Maker, Peer, Refusal, prepared, reason
from gemmir.bench.report import GraphTimes, PeerResult
from gemmir.bench.timing import Launch, Timing, keep_busy

if TYPE_CHECKING:
    import torch

    from gemmir.bench.grouped import AnyCase
    from gemmir.kernel import CompiledKernel
    from gemmir.problem import GemmProblem

LAYERS = 32
REPLAYS = 20
WARM_REPLAYS = 3
PEERS_IN_GRAPHS = ("cublas",)
PLAIN, OVERLAP = "", "overlap"
"""Names of gemmir's own graphs; no peer has them."""
LAYER_SEED = 1000
"""The first layer has the inputs that the case is measured on alone, of another seed."""
WEIGHT_SHARE = 0.5
"""Of the memory that is free. The rest is for making them, in float32, and for peers."""


def measure_graph(
    case: AnyCase,
    problem: GemmProblem,
    kernel: CompiledKernel,
    peers: Sequence[Peer],
    inputs: Inputs,
    out: torch.Tensor,
    layers: int,
    repeats: int,
) -> GraphTimes:
    """
    Check, then time, `layers` layers in a graph: gemmir's, the same with overlap, and those of `PEERS_IN_GRAPHS`.

    `kernel` has been launched before: nothing can be loaded during capture. `inputs` are those of the first layer; all
    results go to `out`.
    """
    stack = layers_of(case, inputs, layers, free_bytes())
    count, held = different(stack)
    replays = {PLAIN: captured([partial(kernel, *layer.values(), out=out) for layer in stack])}
    if kernel.manifest.waits:
        launches = [partial(kernel, *layer.values(), out=out, overlap=True) for layer in stack]
        replays[OVERLAP] = captured(launches)
    for name, replay in replays.items():
        out.fill_(math.nan)
        replay()
        if (fault := fault_of(problem, stack[-1], out)) is not None:
            where = f"last of {layers} layers in a graph{' with overlap' if name else ''}"
            return GraphTimes(layers, count, held, None, None, f"{where}: {fault}")

    results: dict[str, PeerResult] = {}
    for peer in peers:
        make = maker_for(peer, case) if peer.name in PEERS_IN_GRAPHS else None
        if make is None:
            continue
        try:
            replays[peer.name] = peer_replay(make, stack)
        except Refusal as refusal:
            results[peer.name] = PeerResult(None, str(refusal))
    timings = replays_in_turn(replays, layers, repeats)
    plain, overlap = timings.pop(PLAIN), timings.pop(OVERLAP, None)
    results |= {name: PeerResult(timing) for name, timing in timings.items()}
    return GraphTimes(layers, count, held, plain, overlap, "", results)


def layers_of(case: AnyCase, inputs: Inputs, layers: int, free: int) -> list[Inputs]:
    """
    The tensors of each layer: x, xs and index, as far as there are any, of `inputs`; weights, and their scales, of its
    own, those of all groups.

    Where `free` bytes of memory hold no weights for all of them, layers take in turn those that there are.
    """
    from gemmir.bench.inputs import inputs_of

    each = weight_bytes(inputs)
    count = max(1, min(layers, int(WEIGHT_SHARE * free) // each))
    made = [inputs]
    device = inputs["x"].device
    for layer in range(1, count):
        drawn = inputs_of(case, LAYER_SEED + layer, device)
        made.append(inputs | {name: drawn[name] for name in ("w", "ws") if name in drawn})
    return [made[layer % count] for layer in range(layers)]


def weight_bytes(inputs: Inputs) -> int:
    """Bytes of a layer's weights with their scales."""
    return sum(inputs[name].nbytes for name in ("w", "ws") if name in inputs)


def different(stack: Sequence[Inputs]) -> tuple[int, int]:
    """How many different weights there are in `stack`, and their bytes."""
    found = {layer["w"].data_ptr(): layer for layer in stack}
    return len(found), sum(map(weight_bytes, found.values()))


def peer_replay(make: Maker, stack: Sequence[Inputs]) -> Launch:
    """A peer's layers in a graph; `Refusal` if it cannot do one of them, or not during capture."""
    launches = [prepared(make, layer) for layer in stack]
    try:
        return captured(launches)
    except Exception as error:
        raise Refusal(f"in a graph: {reason(error)}") from error


def captured(launches: Sequence[Launch]) -> Launch:
    """What replays these launches as one CUDA graph."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    return graph.replay


def free_bytes() -> int:
    """Memory of the GPU that is free, torch's cache included."""
    import torch

    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def replays_in_turn(replays: dict[str, Launch], layers: int, repeats: int) -> dict[str, Timing]:
    """Times of a layer by name, in microseconds: a series of each, then the next series of each."""
    series: dict[str, list[tuple[float, ...]]] = {name: [] for name in replays}
    for _ in range(repeats):
        for name, replay in replays.items():
            series[name].append(tuple(layer_us(replay, layers)))
    return {name: Timing(tuple(found)) for name, found in series.items()}


def layer_us(replay: Launch, layers: int, replays: int = REPLAYS) -> list[float]:
    """
    Microseconds of one of `layers` layers in each of `replays` replays back to back, by CUDA events between them.

    A share of what the GPU needs to begin a graph is in each. It sleeps until all replays are queued, so that none
    waits for the host; as many go before, so that the clock has settled.
    """
    for _ in range(WARM_REPLAYS):
        replay()
    host, _ = replay_times(replay, replays, 0.0)
    _, seconds = replay_times(replay, replays, 1.5 * host)
    return [found * 1e6 / layers for found in seconds]


def replay_times(replay: Launch, count: int, sleep: float) -> tuple[float, list[float]]:
    """Seconds of the host for queueing all replays, and of the GPU for each, after it has slept for `sleep` seconds."""
    import torch

    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    began = time.perf_counter()
    keep_busy(sleep)
    events[0].record()
    for event in events[1:]:
        replay()
        event.record()
    host = time.perf_counter() - began
    events[-1].synchronize()
    return host, [first.elapsed_time(second) / 1e3 for first, second in pairwise(events)]
