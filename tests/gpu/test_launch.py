"""Launching on a Hopper GPU: streams, threads, devices, graphs, outputs, and what happens after a fault."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import gemmir
from gemmir import ops
from gemmir.backends.reference.data import random_inputs
from gemmir.errors import CaptureError, InputError
from gemmir.ir_text import parse_module
from tests.gpu.problems import fp8_text

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
N, K, ROWS = 1024, 1024, 300
TEXT = fp8_text(N, K)
SLEEP_CYCLES = 50_000_000
"""About 30 ms: longer than any launch takes to be issued."""


@functools.cache
def kernel() -> gemmir.CompiledKernel:
    return gemmir.compile(TEXT, m=ROWS, cache=False)


def fresh_kernel() -> gemmir.CompiledKernel:
    """One that no device has loaded yet."""
    shared = kernel()
    return gemmir.CompiledKernel(shared.manifest, shared.source, shared.cubin, shared.log, shared.texts, None)


@functools.cache
def inputs(seed: int = 1, device: str = "cuda:0") -> tuple[torch.Tensor, ...]:
    """x, xs, w, ws."""
    return tuple(random_inputs(parse_module(TEXT), ROWS, seed, device).values())


@functools.cache
def expected(seed: int = 1) -> torch.Tensor:
    result = kernel()(*inputs(seed))
    torch.cuda.synchronize()
    assert result.isfinite().all()
    return result


def rows(m: int) -> tuple[torch.Tensor, ...]:
    """The first `m` rows of the inputs, in place."""
    x, xs, w, ws = inputs()
    return (x[:m], xs[:m], w, ws)


# ------------------------------------------------------------ streams


def test_it_runs_on_the_current_stream() -> None:
    """Inputs arrive late on a side stream: only a launch on that stream sees them."""
    x, xs, w, ws = inputs(2)
    wanted = expected(2)
    late, stream = torch.zeros_like(x), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP_CYCLES)
        late.copy_(x)
        result = kernel()(late, xs, w, ws)
    assert not stream.query(), "the launch did not wait"
    stream.synchronize()
    assert torch.equal(result, wanted)


def test_streams_of_their_own_at_once() -> None:
    streams = [torch.cuda.Stream() for _ in range(4)]
    wanted = [expected(seed) for seed in range(4)]
    arguments = [inputs(seed) for seed in range(4)]
    torch.cuda.synchronize()
    results: list[list[torch.Tensor]] = [[], [], [], []]
    for _ in range(10):
        for stream, given, made in zip(streams, arguments, results, strict=True):
            with torch.cuda.stream(stream):
                made.append(kernel()(*given))
    torch.cuda.synchronize()
    for made, right in zip(results, wanted, strict=True):
        assert all(torch.equal(result, right) for result in made)


# ------------------------------------------------------------ other M, other outputs


@pytest.mark.parametrize("m", [1, 2, 63, 64, 65, 127, 128, 129, 256, 299, 300])
def test_another_m(m: int) -> None:
    """The same kernel, and the same bits whatever rows are around."""
    assert torch.equal(kernel()(*rows(m)), expected()[:m])


def test_no_rows() -> None:
    result = kernel()(*rows(0))
    assert (tuple(result.shape), result.dtype, result.device.type) == ((0, N), torch.bfloat16, "cuda")
    out = torch.empty(0, N, dtype=torch.bfloat16, device="cuda")
    assert kernel()(*rows(0), out=out) is out


def test_an_output_of_the_callers() -> None:
    out = torch.full((ROWS, N), float("nan"), dtype=torch.bfloat16, device="cuda")
    assert kernel()(*inputs(), out=out) is out
    assert torch.equal(out, expected())


def test_an_output_inside_a_larger_tensor() -> None:
    """What lies around it stays as it was."""
    around = torch.full((ROWS + 2, N + 64), -7.0, dtype=torch.bfloat16, device="cuda")
    out = around[1:-1, 32:-32]
    kernel()(*inputs(), out=out)
    assert torch.equal(out, expected())
    out.fill_(-7.0)
    assert (around == -7.0).all()


def test_outputs_that_do_not_fit() -> None:
    x, xs, w, ws = inputs()
    right = torch.empty(ROWS, N, dtype=torch.bfloat16, device="cuda")
    inside_x = x.view(torch.bfloat16).reshape(-1)[: 100 * N].view(100, N)
    for code, arguments, out in (
        ("GMR-I001", inputs(), right.float()),
        ("GMR-I002", inputs(), right[1:]),
        ("GMR-I003", inputs(), torch.empty(ROWS, N + 1, dtype=torch.bfloat16, device="cuda")[:, :-1]),
        ("GMR-I004", inputs(), right.cpu()),
        ("GMR-I006", inputs(), torch.empty(N, ROWS + 4, dtype=torch.bfloat16, device="cuda").t()[:ROWS]),
        ("GMR-I008", (x[:100], xs[:100], w, ws), inside_x),
    ):
        with pytest.raises(InputError) as error:
            kernel()(*arguments, out=out)
        assert error.value.code == code
    assert torch.equal(kernel()(*inputs()), expected())


def test_tensors_that_move() -> None:
    """New addresses every time, more than are remembered: nothing stale is used."""
    x, xs, w, ws = inputs()
    kept = [x.clone() for _ in range(300)]
    for i, moved in enumerate(kept):
        if i % 30 == 0:
            moved.zero_()
        result = kernel()(moved, xs, w, ws)
        wanted = torch.zeros_like(expected()) if i % 30 == 0 else expected()
        assert torch.equal(result, wanted)


# ------------------------------------------------------------ threads and devices


def test_a_thread_that_has_made_no_cuda_call() -> None:
    """It has no context yet; everything was allocated elsewhere. Then with an output at another address."""
    outs = [torch.zeros(ROWS, N, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
    wanted, given = expected(), inputs()
    torch.cuda.synchronize()
    for out in outs:
        thread = threading.Thread(target=lambda out=out: kernel()(*given, out=out))
        thread.start()
        thread.join(timeout=60)
        torch.cuda.synchronize()
        assert torch.equal(out, wanted)


def test_two_threads() -> None:
    """Each with its own stream, data and M, through one kernel that neither has loaded."""
    shared = fresh_kernel()
    wanted = [expected(seed) for seed in (1, 2)]
    arguments = [inputs(seed) for seed in (1, 2)]
    wrong: list[str] = []
    done: list[int] = []
    torch.cuda.synchronize()

    def work(number: int) -> None:
        x, xs, w, ws = arguments[number]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for i in range(200):
                m = ROWS - (i * (number + 1)) % 7
                result = shared(x[:m], xs[:m], w, ws)
                if not torch.equal(result, wanted[number][:m]):
                    wrong.append(f"thread {number}, launch {i}, M = {m}")
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert (sorted(done), wrong) == ([0, 1], [])


def test_threads_that_call_products_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ones and different ones, which no thread has called: each is compiled once, all bits are right."""
    a, w = (torch.randn(rows, 512, device="cuda").bfloat16() for rows in (300, 256))
    calls = [functools.partial(gemmir.matmul, a[:m], w[:n].t(), split_k=1) for m in (9, 300) for n in (128, 256)]
    wanted = [call() for call in calls]
    made: list[object] = []
    make = ops.kernel_of._make
    monkeypatch.setattr(ops.kernel_of, "_make", lambda call: (made.append(call), make(call))[1])
    ops.kernel_of.cache_clear()
    ops.forget()
    start, wrong, done = threading.Barrier(8), [], []
    torch.cuda.synchronize()

    def work(first: int) -> None:
        start.wait(60)
        with torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(100):
                number = (first + turn) % len(calls)
                if not torch.equal(calls[number](), wanted[number]):
                    wrong.append(number)
        done.append(first)

    threads = [threading.Thread(target=work, args=(number // 2,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=240)
    assert (sorted(done), wrong) == ([0, 0, 1, 1, 2, 2, 3, 3], [])
    assert len(made) == len(set(made)) == len(calls)


def test_every_device() -> None:
    """Called with tensors on each device while the first is current, which it stays."""
    shared = fresh_kernel()
    for index in range(torch.cuda.device_count()):
        result = shared(*(tensor.to(f"cuda:{index}") for tensor in inputs()))
        assert (result.device.index, torch.cuda.current_device()) == (index, 0)
        assert torch.equal(result.cpu(), expected().cpu())


def test_devices_that_are_mixed() -> None:
    x, xs, w, ws = inputs()
    with pytest.raises(InputError, match=r"GMR-I004: tensors on cuda:0: x, xs, ws; cpu: w"):
        kernel()(x, xs, w.cpu(), ws)


# ------------------------------------------------------------ graphs


def test_capture_and_replay() -> None:
    mine = tuple(tensor.clone() for tensor in inputs(1))
    prepared = fresh_kernel()
    prepared.prepare()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = prepared(*mine)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(result, expected(1))
    for tensor, other in zip(mine, inputs(2), strict=True):
        tensor.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(result, expected(2))


def test_a_first_call_during_capture_is_refused_and_spoils_nothing() -> None:
    cold, given = fresh_kernel(), inputs()
    value = torch.ones(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(CaptureError) as error:
            cold(*given)
        doubled = value * 2
    assert error.value.code == "GMR-D005"
    graph.replay()
    torch.cuda.synchronize()
    assert doubled.tolist() == [2.0] * 4
    assert torch.equal(cold(*given), expected())


# ------------------------------------------------------------ costs


def test_calls_leave_no_memory_behind() -> None:
    given = inputs()
    for _ in range(10):
        kernel()(*given)
    gc.collect()  # what tests before this one left
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(1000):
        kernel()(*given)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


# ------------------------------------------------------------ after a fault, after a fork

FAULTY = """
import os, sys, torch
from gemmir.backends.cuda.launch import Launcher
from gemmir.backends.cuda.nvrtc import compile_cubin
from gemmir.errors import DeviceLostError
from gemmir.manifest import Manifest, PointerParam, TensorSpec

source = 'extern "C" __global__ void __launch_bounds__(128, 1) k(int* x) { x[1ll << 42] = 1; }'
manifest = Manifest(
    name="faulty", entry="k", target="sm_90a", inputs=(TensorSpec("x", "bf16", (None, 8), (0, 1)),),
    output=TensorSpec("out", "bf16", (None, 8), (0, 1)), params=(PointerParam(0),), n=8, k=8, block_m=64, block_n=64,
    cluster_m=1, cluster_n=1, threads=128, shared_bytes=1024, balanced=False, schedule="",
)
launcher = Launcher(manifest, compile_cubin(source).cubin)
x = torch.zeros(4, 8, dtype=torch.bfloat16, device="cuda")
out = torch.zeros_like(x)
launcher([x], out)
try:
    torch.cuda.synchronize()
except RuntimeError as error:
    print("torch:", "illegal memory access" in str(error))
for _ in range(2):
    try:
        launcher([x], out)
    except DeviceLostError as error:
        print(error.code)
sys.stdout.flush()
os._exit(0)  # what torch tears down would meet the fault again
"""

FORKED = """
import os, sys, torch
import gemmir
from gemmir import ops
from gemmir.backends.reference.data import random_inputs
from gemmir.errors import DeviceError
from gemmir.ir_text import parse_module

text = sys.stdin.read()
kernel = gemmir.compile(text, cache=False)
inputs = tuple(random_inputs(parse_module(text), 8, 1, "cuda").values())
kernel(*inputs)
torch.cuda.synchronize()
child = os.fork()
if child == 0:
    try:
        kernel(*inputs)
    except DeviceError as error:
        os._exit(6 if error.code == "GMR-D006" else 1)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
kernel(*inputs)
torch.cuda.synchronize()
"""


def run_apart(program: str, text: str = "") -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_after_a_fault() -> None:
    """In a process of its own: ours is unharmed."""
    assert run_apart(FAULTY) == ["torch: True", "GMR-D004", "GMR-D004"]
    assert torch.equal(kernel()(*inputs()), expected())


def test_after_a_fork() -> None:
    assert run_apart(FORKED, TEXT) == ["6"]
