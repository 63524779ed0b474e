"""
A program: many processes start together on a cold cache and want the same kernels, each in an order of its own.

    python -m tests.cache.start_together FOLDER PROCESSES KERNELS SECONDS [ERRNO]

Each compilation takes SECONDS. With ERRNO files cannot be locked. Prints as JSON what was compiled, how the processes
ended, and what lies in the cache.
"""

import errno
import fcntl
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.cache.work import found_or_built, kernel_of


def use(folder: Path, names: list[str], log: Path, seconds: float) -> None:
    for name in names:
        assert found_or_built(folder, name, log, seconds) == kernel_of(name)


def together(actions: list[Callable[[], None]]) -> list[int]:
    """Do each action in a process of its own, all from the same moment on; their exit statuses."""
    ready, go = os.pipe()
    children: list[int] = []
    for action in actions:
        if (child := os.fork()) == 0:
            os.close(go)
            os.read(ready, 1)  # until the parent closes the other end
            try:
                action()
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        children.append(child)
    os.close(go)
    os.close(ready)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def without_locks(code: int) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    fcntl.flock = flock


def main(folder: Path, processes: int, kernels: int, seconds: float) -> None:
    log = folder / "log"
    names = [f"kernel {number}" for number in range(kernels)]
    orders = [random.Random(number).sample(names, kernels) for number in range(processes)]
    start = time.monotonic()
    ended = together([lambda order=order: use(folder / "kernels", order, log, seconds) for order in orders])
    report = {
        "compiled": sorted(log.read_text().splitlines()),
        "ended": ended,
        "left": sorted(path.suffix for path in (folder / "kernels" / "v1").iterdir()),
        "seconds": time.monotonic() - start,
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    if len(sys.argv) > 5:
        without_locks(getattr(errno, sys.argv[5]))
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
