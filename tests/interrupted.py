"""
A program: SIGINT at random moments of compilations, and what went wrong, as JSON.

    python -m tests.interrupted FOLDER TIMES SEED

After each: no file is left over, no thread goes on for ever, and the next call compiles the kernel that it should.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import gemmir
from gemmir.backends.cuda.apart import NAME
from gemmir.bench.cases import Case
from gemmir.cache import Cache

CASE = Case("bf16", 64, 512, 512)
LATEST_SECONDS = 1.0
"""After which Ctrl-C is heard, on a machine that does much else: NVRTC alone takes a third of that, at least."""


class Interrupter:
    """Sends one SIGINT after a delay in seconds; `sent` is when."""

    def __init__(self, delay: float):
        self.sent = 0.0
        self.timer = threading.Timer(delay, self._send)

    def _send(self) -> None:
        self.sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)


def compiled() -> bytes:
    return gemmir.compile(CASE.text, m=CASE.m).cubin


def interrupted(delay: float) -> tuple[float, bool]:
    """How late the interrupt was heard, in seconds; and whether it came before the kernel was there."""
    interrupter, early = Interrupter(delay), True
    try:
        interrupter.timer.start()
        compiled()
        early = False
        interrupter.timer.join()
        time.sleep(60.0)
    except KeyboardInterrupt:
        return time.monotonic() - interrupter.sent, early
    raise AssertionError("nobody was interrupted")


def settle() -> bool:
    """Wait for what goes on in threads; whether it ends."""
    for thread in threading.enumerate():
        if thread.name == NAME or isinstance(thread, threading.Timer):
            thread.join(60.0)
    return not any(thread.name == NAME for thread in threading.enumerate())


def main(folder: Path, times: int, seed: int) -> dict[str, object]:
    os.environ["GEMMIR_CACHE_DIR"] = str(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with `&` ignores it
    drawn, faults, late, early = random.Random(seed), [], [], 0
    compiled()
    Cache().clear()
    start = time.monotonic()
    expected = compiled()
    seconds = time.monotonic() - start
    for number in range(times):
        Cache().clear()
        descriptors = len(os.listdir("/proc/self/fd"))
        heard, before = interrupted((number + drawn.random()) / times * seconds)
        late.append(heard)
        early += before
        left = [path.name for path in folder.rglob("*") if path.suffix in (".part", ".lock")]
        ended = settle()
        after = len(os.listdir("/proc/self/fd"))
        if left or not ended or after != descriptors or heard > LATEST_SECONDS:
            faults.append(f"{number}: files {left}, ended {ended}, descriptors {descriptors} {after}, {heard:.3f} s")
        if compiled() != expected:
            faults.append(f"{number}: another kernel")
    return {"faults": faults, "late": max(late), "early": early, "seconds": seconds}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
