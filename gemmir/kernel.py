"""A compiled kernel: everything that can be looked at, and, on a GPU, called."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gemmir.errors import InputError
from gemmir.manifest import Manifest
from gemmir.records import dataclass

if TYPE_CHECKING:
    import torch

    from gemmir.backends.cuda.launch import Launcher
    from gemmir.calls import Ready
    from gemmir.guards import Facts


@dataclass
class CompiledKernel:
    """
    A GEMM kernel for sm_90a.

    Call it with one CUDA tensor per argument of the program, in order; shapes are those of the program (A: M x K,
    B: K x N), with any M. `manifest.inputs` says which memory order each needs. It launches on torch's current stream
    and returns without waiting.
    """

    manifest: Manifest
    source: str
    """The CUDA C++ that was compiled."""
    cubin: bytes
    log: str
    """What the CUDA compiler said: registers, shared memory."""
    texts: dict[str, str]
    source_path: Path | None
    """Where the source lies on disk, if it is cached."""
    key: str = ""
    """Of its entry in the cache, where it has one: `gemmir cache show KEY`."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def decisions(self) -> tuple[str, ...]:
        """What each pass chose, why, and what came second."""
        return self.manifest.decisions

    def ir(self, level: str = "hopper") -> str:
        """The IR at "gemm" (what is computed), "schedule" (with every choice made) or "hopper" (the kernel)."""
        if (text := self.texts.get(level)) is None:
            raise InputError(
                "GMR-I009", f"level {level[:40]!r}", rule="one of " + ", ".join(self.texts), fix="use 'hopper'"
            )
        return text

    @cached_property
    def _launcher(self) -> Launcher:
        from gemmir.backends.cuda.launch import Launcher

        return Launcher(self.manifest, self.cubin, self.source, self.key)

    def launcher(self) -> Launcher:
        """What loads and launches the kernel; made on first use."""
        if (made := self.__dict__.get("_launcher")) is not None:
            return made
        with self._lock:
            return self._launcher

    def reseed(self, seed: int) -> None:
        """Choose the delays of later calls of a kernel that was compiled with `chaos=True`; 0 <= seed < 2^32."""
        self.launcher().seed.value = seed

    def prepare(self, device: torch.device | str | int | None = None) -> None:
        """Load the kernel into a device (torch's current one), so that calls only launch; needed before capture."""
        self.launcher().prepare(device)

    def __call__(self, *tensors: torch.Tensor, out: torch.Tensor | None = None, overlap: bool = False) -> torch.Tensor:
        """
        Launch. Returns `out`, or a new row-major M x N tensor of the program's result type.

        `overlap`: the kernel may start while the one before it on the stream ends, if it is one that waits for that one
        by itself before it reads or writes memory (`manifest.waits`; kernels for few rows do). No result depends on it.

        Raises `InputError` before anything is launched if a tensor does not fit, `DeviceError` without a Hopper GPU.
        """
        return self.launcher()(tensors, out, overlap)

    def ready(self, tensors: Sequence[torch.Tensor], given: bool, overlap: bool, facts: Facts | None) -> Ready:
        """
        A call, checked and packed, that only has to be made; errors as for a call.

        `tensors` are those of a call, with `out` last if it is `given`; `facts` what `gemmir.guards.facts_of` says.
        """
        return self.launcher().ready(tensors, given, overlap, facts)
