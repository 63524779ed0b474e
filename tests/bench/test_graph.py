"""Layers in a CUDA graph, on a stand-in for the GPU: whose weights they have, what is checked, what is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch

from gemmir.backends.cuda.driver import DeviceInfo
from gemmir.backends.reference import run
from gemmir.bench import graph, measure
from gemmir.bench import inputs as inputs_module
from gemmir.bench.cases import Case
from gemmir.bench.graph import REPLAYS, captured, different, layer_us, layers_of, measure_graph, weight_bytes
from gemmir.bench.grouped import AnyCase, GroupedCase
from gemmir.bench.inputs import Inputs, inputs_of
from gemmir.bench.peers import PEERS, Peer
from gemmir.bench.report import GraphTimes, PeerResult
from gemmir.bench.timing import Timing
from gemmir.compiler import lower
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.ir_text import parse_module
from gemmir.manifest import Manifest

FP8, BF16 = Case("f8E4M3FN", 5, 128, 256), Case("bf16", 5, 128, 256)
MASKED = GroupedCase("f8E4M3FN", "counts", 2, 5, 128, 256)
BATCH = GroupedCase("bf16", "batch", 2, 5, 128, 256)
PLENTY = 1 << 40
START_US = 6.0
"""What this GPU needs to begin a graph."""


@dataclass
class Gpu:
    """
    `torch.cuda` as far as graphs are timed with it, with a clock of its own in microseconds.

    Work that is submitted takes its time, and is done, at once; during capture it is only noted. `backwards`: replays
    do the work of a graph in the wrong order.
    """

    now: float = 0.0
    noted: list[tuple[float, Callable[[], object]]] | None = None
    backwards: bool = False
    log: list[str] = field(default_factory=list[str])

    def submit(self, us: float, work: Callable[[], object]) -> None:
        if self.noted is not None:
            self.noted.append((us, work))
            return
        self.now += us
        work()

    @contextmanager
    def capture(self, graph: Graph) -> Iterator[None]:
        self.noted = []
        try:
            yield
        finally:
            graph.work, self.noted = self.noted, None

    def sleep(self, cycles: int) -> None:
        assert cycles > 0
        self.log.append("sleep")
        self.now += cycles

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        patch.setattr(torch.cuda, "graph", self.capture)
        patch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self))
        patch.setattr(torch.cuda, "synchronize", lambda: None)
        patch.setattr(torch.cuda, "_sleep", self.sleep)
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        patch.setattr(torch.cuda, "mem_get_info", lambda: (PLENTY, PLENTY))


@dataclass
class Graph:
    gpu: Gpu
    work: list[tuple[float, Callable[[], object]]] = field(default_factory=list[tuple[float, Callable[[], object]]])

    def replay(self) -> None:
        self.gpu.log.append("replay")
        self.gpu.now += START_US
        for us, work in self.work[::-1] if self.gpu.backwards else self.work:
            self.gpu.submit(us, work)


@dataclass
class Event:
    gpu: Gpu
    at: float = math.nan

    def record(self) -> None:
        self.gpu.log.append("event")
        self.at = self.gpu.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds."""
        return (other.at - self.at) / 1e3


@cache
def manifest_of(case: AnyCase) -> Manifest:
    """Of the kernel that is chosen for a case."""
    manifest = (lower(case.text, m=case.m) if isinstance(case, Case) else lower(case.text)).manifest
    assert manifest is not None
    return manifest


class Kernel:
    """The reference as a kernel of 10 us, or 8 us with overlap; `wrong`: with overlap, its result is."""

    def __init__(self, gpu: Gpu, case: AnyCase, waits: bool = True, wrong: bool = False):
        self.manifest = replace(manifest_of(case), waits=waits)
        self.gpu, self.wrong = gpu, wrong
        self.module = parse_module(case.text)
        self.launched: list[tuple[bool, int]] = []
        """Whether with overlap, and the address of the weights."""
        self.results: dict[int, torch.Tensor] = {}

    def __call__(self, *tensors: torch.Tensor, out: torch.Tensor, overlap: bool = False) -> None:
        where = tensors[2 if len(tensors) > 3 else 1].data_ptr()
        if where not in self.results:
            result = run(self.module, tensors)
            assert isinstance(result, torch.Tensor)
            self.results[where] = result
        self.launched.append((overlap, where))
        fault = 100.0 if self.wrong and overlap else 0.0
        self.gpu.submit(8.0 if overlap else 10.0, lambda: out.copy_(self.results[where] + fault))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    found = Gpu()
    found.install(monkeypatch)
    return found


def peer(gpu: Gpu, name: str, seen: list[int], fails_in_capture: bool = False) -> Peer:
    """One of 12 us a launch; `seen`: the weights that it was made for."""

    def make(inputs: Inputs) -> Callable[[], object]:
        seen.append(inputs["w"].data_ptr())

        def launch() -> None:
            if fails_in_capture and gpu.noted is not None:
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            gpu.submit(12.0, lambda: None)

        return launch

    return Peer(name, "", make, make)


def measured(case: AnyCase, kernel: Kernel, peers: list[Peer], layers: int = 4, repeats: int = 1) -> GraphTimes:
    inputs = inputs_of(case, 1, "cpu")
    out = torch.zeros(case.result_shape, dtype=torch.bfloat16)
    problem = problem_of(the_matmul(parse_module(case.text)))
    return measure_graph(case, problem, kernel, peers, inputs, out, layers, repeats)  # type: ignore[arg-type]


def each(us: float, layers: int = 4) -> Timing:
    return Timing((((pytest.approx(us + START_US / layers),) * REPLAYS),))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", [FP8, BF16, MASKED], ids=str)
def test_layers_have_weights_of_their_own_and_the_same_activations(case: Case):
    inputs = inputs_of(case, 1, "cpu")
    stack = layers_of(case, inputs, 4, PLENTY)
    assert stack[0] is inputs
    assert all(list(layer) == list(inputs) for layer in stack), "kernels take them in this order"
    shared = {name for name in inputs if len({layer[name].data_ptr() for layer in stack}) == 1}
    assert shared == {"x", "xs", "index"} & set(inputs)
    for name in set(inputs) - shared:
        assert len({layer[name].float().sum().item() for layer in stack}) == 4
    groups, pitch = ((), ()) if isinstance(case, Case) else ((case.groups,), (256 * 128,))
    assert {(layer["w"].shape, layer["w"].stride()) for layer in stack} == {((*groups, 256, 128), (*pitch, 1, 256))}
    again = layers_of(case, inputs, 4, PLENTY)
    assert all(torch.equal(a["w"].float(), b["w"].float()) for a, b in zip(stack, again, strict=True))
    assert different(stack) == (4, 4 * weight_bytes(inputs))
    assert weight_bytes(inputs) == (2 * 256 * 128 if case is BF16 else case.weights * (256 * 128 + 2 * 4))


@pytest.mark.parametrize(
    ("room", "expected"), [(7, [0, 1, 2, 0, 1]), (2, [0] * 5), (1, [0] * 5), (10, [0, 1, 2, 3, 4])]
)
def test_where_memory_is_short_layers_take_weights_in_turn(room: int, expected: list[int]):
    """Half of the memory that is free is for weights."""
    inputs = inputs_of(BF16, 1, "cpu")
    stack = layers_of(BF16, inputs, 5, room * weight_bytes(inputs))
    known = list(dict.fromkeys(layer["w"].data_ptr() for layer in stack))
    assert [known.index(layer["w"].data_ptr()) for layer in stack] == expected
    assert different(stack) == (len(set(expected)), len(set(expected)) * weight_bytes(inputs))


@pytest.mark.parametrize("case", [FP8, BF16], ids=str)
def test_layers_are_timed_without_and_with_overlap_and_those_of_cublas(case: Case, gpu: Gpu):
    kernel, seen, others = Kernel(gpu, case), list[int](), list[int]()
    found = measured(case, kernel, [peer(gpu, "cublas", seen), peer(gpu, "deep_gemm", others)])
    assert (found.layers, found.weights, found.fault) == (4, 4, "")
    assert (found.plain, found.overlap) == (each(10.0), each(8.0))
    assert found.peers == {"cublas": PeerResult(each(12.0))}
    assert [overlap for overlap, _ in kernel.launched] == [False] * 4 + [True] * 4
    weights = [where for _, where in kernel.launched]
    assert len(set(weights)) == 4
    assert weights[:4] == weights[4:] == seen
    assert others == []
    assert found.ratio("cublas") == pytest.approx((12 + 1.5) / (10 + 1.5))
    assert found.ratio("cublas", overlap=True) == pytest.approx((12 + 1.5) / (8 + 1.5))


def test_layers_of_masked_groups_are_timed_and_have_no_peer(gpu: Gpu):
    kernel = Kernel(gpu, MASKED)
    found = measured(MASKED, kernel, [peer(gpu, "cublas", []), peer(gpu, "deep_gemm", [])], layers=2)
    assert (found.layers, found.weights, found.weight_bytes) == (2, 2, 2 * 2 * (256 * 128 + 2 * 4))
    assert (found.plain, found.overlap, found.fault, found.peers) == (each(10.0, 2), each(8.0, 2), "", {})
    assert [overlap for overlap, _ in kernel.launched] == [False] * 2 + [True] * 2


@pytest.mark.parametrize("case", [BF16, BATCH], ids=str)
def test_the_peer_of_bf16_multiplies_in_a_graph(case: AnyCase, gpu: Gpu):
    """torch.mm, or torch.bmm, itself; on the CPU it takes no time of this clock."""
    found = measured(case, Kernel(gpu, case), [PEERS["cublas"]], layers=2)
    assert found.peers == {"cublas": PeerResult(each(0.0, 2))}


def test_repeats_are_series_in_turn(gpu: Gpu):
    found = measured(BF16, Kernel(gpu, BF16), [], layers=2, repeats=3)
    for timing in (found.plain, found.overlap):
        assert timing is not None
        assert [len(samples) for samples in timing.series] == [REPLAYS] * 3


def test_a_wrong_result_with_overlap_is_found_and_nothing_is_timed(gpu: Gpu):
    seen: list[int] = []
    found = measured(BF16, Kernel(gpu, BF16, wrong=True), [peer(gpu, "cublas", seen)])
    assert found.fault.startswith("last of 4 layers in a graph with overlap: out of its bound in a sample: ")
    assert (found.plain, found.overlap, found.peers, seen) == (None, None, {}, [])
    assert "event" not in gpu.log


def test_layers_in_the_wrong_order_are_found(gpu: Gpu):
    gpu.backwards = True
    found = measured(BF16, Kernel(gpu, BF16), [])
    assert found.fault.startswith("last of 4 layers in a graph: out of its bound in a sample: ")


def test_a_graph_that_does_nothing_is_found(gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(graph, "captured", lambda _: lambda: None)
    found = measured(BF16, Kernel(gpu, BF16), [])
    assert "640 of 640 elements are not finite, or were never written" in found.fault


def test_a_kernel_that_does_not_wait_is_not_launched_with_overlap(gpu: Gpu):
    kernel = Kernel(gpu, BF16, waits=False)
    found = measured(BF16, kernel, [])
    assert (found.plain, found.overlap) == (each(10.0), None)
    assert not any(overlap for overlap, _ in kernel.launched)


def test_a_peer_that_cannot_be_captured_refuses(gpu: Gpu):
    found = measured(BF16, Kernel(gpu, BF16), [peer(gpu, "cublas", [], fails_in_capture=True)])
    reason = "in a graph: operation not permitted when stream is capturing"
    assert found.peers == {"cublas": PeerResult(None, reason)}
    assert found.plain == each(10.0)


def test_capture_launches_nothing_and_a_replay_everything_in_order(gpu: Gpu):
    done: list[int] = []
    launches = [lambda number=number: gpu.submit(1.0, lambda: done.append(number)) for number in range(3)]
    replay = captured(launches)
    assert done == []
    replay()
    replay()
    assert done == [0, 1, 2] * 2


def test_replays_are_queued_behind_a_sleep_that_is_not_timed(gpu: Gpu):
    replay = captured([lambda: gpu.submit(10.0, lambda: None)] * 8)
    assert layer_us(replay, 8, replays=3) == pytest.approx([10.0 + START_US / 8] * 3)
    series = ["event", *["replay", "event"] * 3]
    assert gpu.log == ["replay"] * 3 + series + ["sleep", *series]


@pytest.mark.parametrize(("case", "layers"), [(FP8, 0), (FP8, 3), (MASKED, 3)], ids=str)
def test_a_case_has_a_graph_where_one_was_asked_for(
    layers: int, case: AnyCase, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
):
    full = torch.full
    monkeypatch.setattr(inputs_module, "inputs_of", lambda case, seed, _: inputs_of(case, seed, "cpu"))
    monkeypatch.setattr(torch, "full", lambda shape, value, dtype, device: full(shape, value, dtype=dtype))
    monkeypatch.setattr(measure, "kernel_us", lambda launch, launches, *_: [5.0] * launches)
    info, options = DeviceInfo("NVIDIA H200", 132, (9, 0), 232448), measure.Options(launches=2, layers=layers)
    kernel = Kernel(gpu, case)
    row = measure.measure(case, kernel, [peer(gpu, "cublas", [])], options, info)  # type: ignore[arg-type]
    assert row.timing == Timing(((5.0, 5.0),))
    assert row.faults == ()
    if not layers:
        assert row.graph is None
        return
    assert row.graph is not None
    assert (row.graph.layers, row.graph.plain, row.graph.overlap) == (3, each(10.0, 3), each(8.0, 3))
