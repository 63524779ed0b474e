"""
A program: a cache that was filled beforehand and can only be read, as in the image of a container.

    python -m tests.cache.read_only FOLDER

Fills FOLDER, takes the right to write from everybody, becomes an ordinary user if it is root, and compiles. Prints as
JSON what was asked of the CUDA compiler, what was warned of, and what lies in the cache before and after.
"""

import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from gemmir.backends.cuda import nvrtc
from gemmir.cache import Cache
from gemmir.compiler import compile, compile_call
from tests.cache.compile_together import CALLS, program
from tests.gpu.problems import fp8_text

NOBODY = 65534


class Warnings(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def lock_up(folder: Path) -> None:
    """Everybody may read, nobody may write; and no root, to whom that means nothing."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def main(folder: Path) -> None:
    os.environ["GEMMIR_CACHE_DIR"] = str(folder)
    first, second = CALLS
    third = replace(first, expected_m=64)
    text = fp8_text(512, 384)
    for call in CALLS:
        compile_call(call, lambda call=call: program(call))
    compile(program(third))
    path = Cache().path_of(Cache().entries()[1].key)  # that of the second
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])
    compile(text, cache=False)  # imports: not everybody may read this Python
    lock_up(folder)

    asked: list[str] = []
    warnings = Warnings()
    logging.getLogger("gemmir.cache").addHandler(warnings)
    before = sorted(path.name for path in folder.rglob("*"))
    real = nvrtc.compile_cubin
    steps: dict[str, object] = {}

    def compile_cubin(source: str, *args: str) -> nvrtc.Compiled:
        asked.append(source)
        return real(source, *args)

    def step(name: str) -> None:
        steps[name] = [len(asked), len(warnings.texts)]

    nvrtc.compile_cubin = compile_cubin
    compile_call(first, lambda: sys.exit("the program was asked for"))
    step("hit")
    compile_call(third, lambda: program(third))
    step("hit of a program")
    kernels = [compile(text), compile(text)]
    step("two misses of one")
    compile(fp8_text(256, 128))
    step("miss of another")
    compile_call(second, lambda: program(second))
    step("damaged")
    steps |= {"unchanged": sorted(path.name for path in folder.rglob("*")) == before, "warnings": warnings.texts}
    steps |= {"equal": kernels[0].cubin == kernels[1].cubin, "path": str(kernels[0].source_path)}
    sys.stdout.write(json.dumps(steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
