"""Ctrl-C at random moments: heard at once, nothing is left over, and the next call works."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemmir import preparing
from gemmir.backends.cuda import nvrtc
from gemmir.backends.cuda.apart import TimeIsUpError, apart, left_behind
from gemmir.bench.cases import Case
from gemmir.compile_time import compile_timeout
from gemmir.errors import CompileError, InputError

ROOT = Path(__file__).resolve().parents[1]
SOURCE = 'extern "C" __global__ void k(float* x) { x[0] = 1.0f; }\n'
TIMES = int(os.environ.get("GEMMIR_INTERRUPTS", "5"))
"""Compilations that are interrupted, and half as many commands: 500 each night."""
SEED = int(os.environ.get("GEMMIR_INTERRUPTS_SEED", "0"))


def hear_interrupts() -> None:
    """As a program in the foreground does; what a shell starts with `&` ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def interrupts_are_heard() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_compilation_may_be_interrupted_at_any_moment(tmp_path: Path):
    command = [sys.executable, "-m", "tests.interrupted", str(tmp_path), str(TIMES), str(SEED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    found = json.loads(done.stdout)
    assert found["faults"] == [], command
    assert found["early"] >= TIMES // 2, "most come while the kernel is made"


@pytest.mark.parametrize("number", range(max(2, TIMES // 2)))
def test_a_command_may_be_interrupted_at_any_moment(number: int, tmp_path: Path):
    """It writes its file whole or not at all, and leaves none beside it."""
    case, output = Case("bf16", 4096, 4096, 4096), tmp_path / "out"
    (tmp_path / "layer.mlir").write_text(case.text)
    output.mkdir()
    seconds = random.Random(SEED + number).uniform(0.0, 2.0)
    command = [sys.executable, "-m", "gemmir", "compile", str(tmp_path / "layer.mlir"), "--m", "4096"]
    process = subprocess.Popen(
        [*command, "--emit", "cubin", "-o", f"{output}/kernel.cubin"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - start < 2.0, "NVRTC is not waited for"
    # Before `main` runs, Python itself answers, and ends by the signal.
    assert process.returncode in (0, 130, -signal.SIGINT), (seconds, said)
    names = [path.name for path in output.iterdir()]
    assert names in ([["kernel.cubin"]] if process.returncode == 0 else [[], ["kernel.cubin"]])
    for path in output.iterdir():
        assert path.read_bytes().startswith(b"\x7fELF")
        assert path.stat().st_size > 10_000


def test_an_interrupt_while_nvrtc_compiles_is_heard_before_it_is_done(monkeypatch: pytest.MonkeyPatch):
    """The call goes on in its thread; the next one is not kept waiting."""
    release, begun = threading.Event(), threading.Event()

    def slow(*_: object) -> Any:
        begun.set()
        release.wait(30.0)
        return (0,)

    def interrupt() -> None:
        begun.wait(30.0)
        os.kill(os.getpid(), signal.SIGINT)

    bindings: Any = nvrtc._nvrtc()
    threading.Thread(target=interrupt).start()
    with monkeypatch.context() as patch:
        patch.setattr(bindings, "nvrtcCompileProgram", slow)
        with pytest.raises(KeyboardInterrupt):
            nvrtc.compile_cubin(SOURCE)
    assert left_behind()
    assert nvrtc.compile_cubin(SOURCE).cubin.startswith(b"\x7fELF")
    release.set()
    wait_for_the_last()


def wait_for_the_last() -> None:
    deadline = time.monotonic() + 30.0
    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left_behind()


def test_what_fails_apart_fails_here():
    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        apart(fail)
    assert apart(lambda: 3) == 3


def test_a_compilation_that_takes_too_long(monkeypatch: pytest.MonkeyPatch):
    release = threading.Event()
    with pytest.raises(TimeIsUpError):
        apart(lambda: release.wait(30.0), 0.01)
    monkeypatch.setenv("GEMMIR_COMPILE_TIMEOUT", "1")
    bindings: Any = nvrtc._nvrtc()
    with monkeypatch.context() as patch:
        patch.setattr(bindings, "nvrtcCompileProgram", lambda *_: (release.wait(30.0), (0,))[1])
        with pytest.raises(CompileError, match=r"GMR-C006: NVRTC is not done after 1 s with 56 characters") as error:
            nvrtc.compile_cubin(SOURCE)
    assert "GEMMIR_COMPILE_TIMEOUT" in (error.value.fix or "")
    release.set()
    wait_for_the_last()
    assert nvrtc.compile_cubin(SOURCE).cubin


def test_how_long_a_compilation_may_take(monkeypatch: pytest.MonkeyPatch):
    assert compile_timeout() == 300
    for text, seconds in (("0", None), ("7", 7), ("86400", 86400), ("", 300)):
        monkeypatch.setenv("GEMMIR_COMPILE_TIMEOUT", text)
        assert compile_timeout() == seconds
    for text in ("-1", "1.5", "soon", "86401", "9" * 40, "\u0663"):
        monkeypatch.setenv("GEMMIR_COMPILE_TIMEOUT", text)
        with pytest.raises(InputError, match="GMR-I009: GEMMIR_COMPILE_TIMEOUT="):
            compile_timeout()


def test_preparing_is_left_at_once(monkeypatch: pytest.MonkeyPatch):
    """What waits for its turn is not begun."""
    release, begun = threading.Event(), []

    def make(call: object) -> Any:
        begun.append(call)
        if len(begun) == 1:
            raise KeyboardInterrupt
        release.wait(30.0)
        return None

    monkeypatch.setattr(preparing, "kernel_of", make)
    calls: Any = [*range(20)]
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        preparing._make(calls, None, 2, False)
    assert time.monotonic() - start < 10.0
    release.set()
    time.sleep(0.05)
    assert len(begun) <= 3
