"""What an entry of the kernel cache says about its kernel, for people and for programs; also if it says little."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmir.errors import CompileError
from gemmir.manifest import Manifest, TensorSpec

if TYPE_CHECKING:
    from gemmir.backends.cuda.compiler_log import Resources
    from gemmir.cache_files import Entry

SHOWN = 100
"""Characters of what a kernel depends on that people are shown, of each fact."""


class Facts:
    """
    What is known of a kernel in the cache.

    An entry that is damaged, or was made by a gemmir whose manifests were other ones, has no manifest; nor has one of a
    kernel that is no product.
    """

    def __init__(self, entry: Entry | None, source: Path | None):
        header: dict[str, Any] = {} if entry is None else entry.header
        self.damaged = entry is None
        self.source_path = None if source is None else str(source)
        self.manifest = _manifest(header.get("manifest"))
        self._entry = _text(header.get("entry"))
        self._resources = _resources(header.get("log"))
        made_by = header.get("made_by")
        tools: dict[str, Any] = made_by if isinstance(made_by, dict) else {}
        self.gemmir, self.nvrtc = _text(tools.get("gemmir")), _text(tools.get("nvrtc"))
        depends = header.get("facts")
        self.depends: dict[str, Any] = depends if isinstance(depends, dict) else {}

    @property
    def entry(self) -> str | None:
        """The kernel's entry point."""
        return self._entry if self.manifest is None else self.manifest.entry

    @property
    def name(self) -> str | None:
        """The name of its function in the IR."""
        return None if self.manifest is None else self.manifest.name

    @property
    def title(self) -> str:
        """One line that says what it is."""
        if self.damaged:
            return "damaged: it will be compiled again"
        return self.entry or "of another version of gemmir"

    def details(self) -> dict[str, object]:
        """Everything, as JSON can hold it."""
        return {
            "source_path": self.source_path,
            "manifest": None if self.manifest is None else json.loads(self.manifest.to_json()),
            "resources": None if self._resources is None else asdict(self._resources),
            "depends_on": self.depends,
        }

    def lines(self) -> list[str]:
        """Everything but what a list of kernels says, in lines."""
        lines = [] if self.manifest is None else _launch(self.manifest)
        if (used := self._resources) is not None:
            spilled = used.spill_stores + used.spill_loads
            lines.append(f"  registers  {used.registers} a thread at launch; {spilled} bytes spilled")
            lines.append(f"  barriers   {used.barriers} named")
        if self.manifest is not None:
            lines += ["tensors", *(f"  {_tensor(t)}" for t in (*self.manifest.inputs, self.manifest.output))]
            lines += ["schedule", f"  {self.manifest.schedule or 'none: it came in as a kernel'}"]
            lines += ["decisions", *(f"  {decision}" for decision in self.manifest.decisions or ("none",))]
        if self.depends:
            lines += ["depends on", *(f"  {name}: {_short(value)}" for name, value in sorted(self.depends.items()))]
        return lines


def printable(text: str) -> str:
    """`text` as a terminal may show it: names come from IR, and paths need not be text; what is neither is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _manifest(text: object) -> Manifest | None:
    try:
        return Manifest.from_json(text) if isinstance(text, str) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _resources(log: object) -> Resources | None:
    from gemmir.backends.cuda.compiler_log import read_log

    try:
        return read_log(log) if isinstance(log, str) else None
    except CompileError:
        return None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _launch(manifest: Manifest) -> list[str]:
    cluster = f"cluster {manifest.cluster_m} x {manifest.cluster_n}"
    if manifest.split_k > 1:
        cluster += f", K in {manifest.split_k} parts"
    groups = "" if manifest.grouping == "none" else f", {manifest.groups} groups by {manifest.grouping}"
    return [
        f"  computes   {manifest.name}: M x {manifest.n} x {manifest.k}{groups}, for {manifest.target}",
        f"  blocks     {manifest.block_m} x {manifest.block_n}, {cluster}",
        f"  launch     {manifest.threads} threads, {manifest.shared_bytes:,} bytes of shared memory",
    ]


def _tensor(tensor: TensorSpec) -> str:
    shape = " x ".join("M" if extent is None else str(extent) for extent in tensor.shape) or "scalar"
    order = "any strides" if tensor.free_strides else f"order {tensor.order}"
    return f"{tensor.name}: {shape} {tensor.dtype}, {order}"
