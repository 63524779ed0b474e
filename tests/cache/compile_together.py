"""
A program: several processes start together on a cold cache and compile the same calls, with the real compiler.

    python -m tests.cache.compile_together FOLDER PROCESSES

Prints as JSON which kernels the CUDA compiler was asked for, how the processes ended, and what machine code they had.
"""

import hashlib
import json
import sys
from pathlib import Path

from gemmir.backends.cuda import nvrtc
from gemmir.compiler import compile_call, lower
from gemmir.problem import Grouping
from gemmir.product_calls import Call, program_of
from gemmir.program import Program
from tests.cache.start_together import together
from tests.cache.work import note

CALLS = [
    Call(Grouping.NONE, (("a", (None, 256), "bf16"), ("b", (256, n), "bf16")), None, ("k", "k"), "bf16", None)
    for n in (128, 256)
]


def program(call: Call) -> Program:
    return program_of(call)


def main(folder: Path, processes: int) -> None:
    real = nvrtc.compile_cubin

    def compile_cubin(source: str, *args: str) -> nvrtc.Compiled:
        note(folder / "log", hashlib.sha256(source.encode()).hexdigest())
        return real(source, *args)

    nvrtc.compile_cubin = compile_cubin
    for call in CALLS:
        lower(program(call), until="schedule")  # imports, once for all

    def use() -> None:
        for call in CALLS:
            kernel = compile_call(call, lambda call=call: program(call))
            note(folder / "cubins", hashlib.sha256(kernel.cubin).hexdigest())

    ended = together([use] * processes)
    logs = {name: (folder / name).read_text().split() for name in ("log", "cubins")}
    sys.stdout.write(json.dumps({"ended": ended, **logs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
