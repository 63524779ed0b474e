"""The kinds of result of `gemmir compile`: each level of IR, CUDA, PTX, machine code and its manifest, as bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.cli.diagnostics import UsageError
from gemmir.errors import ToolMissingError

if TYPE_CHECKING:
    from gemmir.backends.cuda.nvrtc import Compiled
    from gemmir.cli.watchers import IRFolder, Times
    from gemmir.compiler import Lowered

IR_LEVELS = ("gemm", "schedule", "hopper")


class Artefacts:
    """
    What `lowered` is on its way to `target`; each is made when it is first asked for, on the clock `times`.

    What is made of the source is also left in `folder`, code that is refused included: there it can be looked at.
    """

    def __init__(self, lowered: Lowered, target: str, times: Times, folder: IRFolder | None = None):
        self.lowered = lowered
        self.target = target
        self.times = times
        self.folder = folder

    def of(self, kind: str) -> bytes:
        """One kind of result. Raises UsageError for a level above that of the input, and CompileError."""
        if kind in IR_LEVELS:
            return self._ir(kind)
        if kind == "cuda":
            return self.lowered.source.encode()
        if kind == "manifest":
            return self._manifest()
        if kind == "ptx":
            return self._ptx()
        compiled = self.compiled  # refused code is no result, in any form
        return compiled.cubin if kind == "cubin" else self._sass()

    def bundle(self, output: str) -> Path:
        """Write the kernel as a folder that runs without gemmir's compiler; BundleError if it cannot be."""
        from gemmir import bundle
        from gemmir.backends.cuda.nvrtc import library_path
        from gemmir.kernel import CompiledKernel

        lowered = self.lowered
        assert lowered.manifest is not None
        compiled = self.compiled
        kernel = CompiledKernel(lowered.manifest, lowered.source, compiled.cubin, compiled.log, lowered.ir, None)
        return bundle.write_bundle(kernel, output, nvrtc=library_path().name)

    @cached_property
    def compiled(self) -> Compiled:
        """The machine code with the compiler's log; a kernel that spills or whose WGMMAs were serialised is refused."""
        from gemmir.backends.cuda.compiler_log import check_log

        compiled = self._unchecked
        if self.folder is not None:
            self._leave(compiled, self.folder)
        check_log(compiled.log)
        return compiled

    @cached_property
    def _unchecked(self) -> Compiled:
        from gemmir.backends.cuda.nvrtc import compile_cubin

        with self.times.stage("NVRTC, to cubin"):
            return compile_cubin(self.lowered.source, self.target)

    def _leave(self, compiled: Compiled, folder: IRFolder) -> None:
        folder.keep("ptx", compiled.ptx.encode())
        folder.keep("cubin", compiled.cubin)
        folder.keep("log", (compiled.log.rstrip("\n") + "\n").encode())
        with suppress(ToolMissingError):
            folder.keep("sass", self._sass())

    def _ir(self, level: str) -> bytes:
        if (text := self.lowered.ir.get(level)) is None:
            above = ", ".join(self.lowered.ir)
            raise UsageError(f"--emit {level}: the input is below that level already ({above})")
        return (text.rstrip("\n") + "\n").encode()

    def _manifest(self) -> bytes:
        text = "{}" if self.lowered.manifest is None else self.lowered.manifest.to_json()
        return (json.dumps(json.loads(text), indent=2) + "\n").encode()

    def _ptx(self) -> bytes:
        """That of the machine code if there is any; else PTX alone, in a fraction of the time."""
        from gemmir.backends.cuda.nvrtc import compile_ptx

        if "_unchecked" in self.__dict__:
            return self.compiled.ptx.encode()
        with self.times.stage("NVRTC, to PTX"):
            ptx = compile_ptx(self.lowered.source, self.target).encode()
        if self.folder is not None:
            self.folder.keep("ptx", ptx)
        return ptx

    @cached_property
    def disassembly(self) -> str:
        from gemmir.backends.cuda.sass import disassemble

        code = self._unchecked.cubin
        with self.times.stage("disassembling"):
            return disassemble(code, encodings=True)

    def check(self, conditions: Sequence[str]) -> None:
        """CompileError (GMR-C002) if the machine code meets one of `conditions`."""
        from gemmir.backends.cuda.code_conditions import check_conditions

        if conditions:
            check_conditions(conditions, self.compiled.log, self.disassembly)

    def _sass(self) -> bytes:
        """The machine code as text, each instruction followed by how it is scheduled."""
        from gemmir.backends.cuda.sass_words import annotate

        return annotate(self.disassembly).encode()
