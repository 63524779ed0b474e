"""
Bundles: a compiled kernel as a directory that needs no compiler, for Python, C and C++.

A bundle holds `bundle.json` (all that a launcher must know), the cubin, its CUDA source, and a C header with the launch
code. Reading one imports neither xDSL nor torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from gemmir import __version__
from gemmir.bundle_files import (
    FILE_NAME,
    MANIFEST,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    opened,
    publish,
    read,
)
from gemmir.bundle_files import unreadable as _unreadable
from gemmir.dtypes import DTYPES
from gemmir.errors import BundleError, UnsupportedError
from gemmir.kernel import CompiledKernel
from gemmir.layouts import Swizzle
from gemmir.manifest import Manifest, PointerParam, StrideParam, TensorMapParam, TensorSpec
from gemmir.problem import Grouping
from gemmir.schedule import MAY_BE_NONE
from gemmir.target import SM_90A, find_target

FORMAT = "gemmir bundle"
SCHEMA = 1
_MAX = 2**31 - 1
_ROLES: tuple[str, ...] = ("cubin", "header", "source")


def write_bundle(kernel: CompiledKernel, path: str | Path, *, nvrtc: str) -> Path:
    """
    Write `kernel` as the directory `path`, which `nvrtc` (a version, for people) compiled; that path.

    The directory appears whole or not at all. One that exists is replaced if it is a bundle and holds nothing else, or
    is empty. `BundleError` (GMR-B001) if it is anything else or cannot be written, `UnsupportedError` (GMR-U001) for a
    kernel that is never launched (N or K of 0).
    """
    from gemmir.backends.cuda.c_header import c_name, print_header

    path = Path(path)
    header = print_header(kernel.manifest)
    name = c_name(kernel.manifest)
    contents = {
        f"{name}.cubin": kernel.cubin,
        f"{name}.h": header.encode("ascii"),
        f"{name}.cu": kernel.source.encode(),
    }
    roles = dict(zip(_ROLES, contents, strict=True))
    text = json.dumps(_description(kernel.manifest, contents, roles, nvrtc), indent=2, sort_keys=True) + "\n"
    publish(path, {**contents, MANIFEST: text.encode()}, _is_replaced(path))
    return path


def load_bundle(path: str | Path) -> CompiledKernel:
    """
    The kernel of the bundle at `path`, ready to be called; needs no compiler, and no GPU until it is called.

    Every file is checked before anything touches a device. `BundleError`: GMR-B001 if the directory or a file is
    missing, is a link, is too large or has an illegal name, or the manifest is malformed; GMR-B002 if a file is not the
    one that the manifest describes; GMR-B003 if another version of gemmir wrote it.
    """
    path = Path(path)
    with opened(path) as directory:
        data = _read_description(path, read(path, directory, MANIFEST, MAX_MANIFEST_BYTES))
        contents = {name: read(path, directory, name, MAX_FILE_BYTES) for name in data["files"]}
    for name, content in contents.items():
        _check_file(path, name, content, data["files"][name])
    manifest = _manifest(path, data)
    roles = data["roles"]
    return CompiledKernel(manifest, contents[roles["source"]].decode(), contents[roles["cubin"]], "", {}, None)


def _description(manifest: Manifest, contents: dict[str, bytes], roles: dict[str, str], nvrtc: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "gemmir": __version__,
        "nvrtc": nvrtc,
        "kernel": json.loads(manifest.to_json()),
        "grid": asdict(manifest.grid_rule),
        "tensor_maps": [_map(manifest, param) for param in manifest.params if isinstance(param, TensorMapParam)],
        "workspace_bytes": 0,
        "roles": roles,
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in contents.items()
        },
    }


def _map(manifest: Manifest, param: TensorMapParam) -> dict[str, Any]:
    """What `cuTensorMapEncodeTiled` is told beside addresses, extents and strides, by the driver's names."""
    spec = manifest.output if param.tensor < 0 else manifest.inputs[param.tensor]
    return {
        "tensor": spec.name,
        "box": [*param.box, 1] if len(spec.shape) == 3 else [*param.box],
        "dtype": f"CU_TENSOR_MAP_DATA_TYPE_{DTYPES[spec.dtype].tma}",
        "swizzle": f"CU_TENSOR_MAP_SWIZZLE_{Swizzle(param.swizzle).tma}",
    }


def _is_replaced(path: Path) -> bool:
    """Whether a bundle lies at `path`; refuse everything else that does, but an empty directory."""
    if not path.is_symlink() and not path.exists():
        return False
    with opened(path) as directory:
        present = {entry.name for entry in path.iterdir()}
        if not present:
            return True
        fix = "choose a new directory, or remove that one yourself"
        if MANIFEST not in present:
            raise _unreadable(path, "exists and is no bundle", fix)
        known = _read_description(path, read(path, directory, MANIFEST, MAX_MANIFEST_BYTES))["files"]
        if strangers := sorted(present - {MANIFEST, *known}):
            raise _unreadable(path, f"holds {strangers[0][:80]!r}, which is not of the bundle", fix)
    return True


def _read_description(path: Path, text: bytes) -> dict[str, Any]:
    """`bundle.json` with its schema, names and digests checked for their form."""
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise _unreadable(path / MANIFEST, "is not JSON") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _unreadable(path / MANIFEST, "is not of a bundle")
    if data.get("schema") != SCHEMA:
        raise BundleError(
            "GMR-B003",
            f"{path}: schema {str(data.get('schema'))[:40]}",
            rule=f"gemmir {__version__} reads schema {SCHEMA}",
            fix="write the bundle again with this version",
        )
    files, roles = data.get("files"), data.get("roles")
    if not isinstance(files, dict) or not isinstance(roles, dict) or len(files) > MAX_FILES:
        raise _unreadable(path / MANIFEST, "has no table of files and roles")
    for name, facts in files.items():
        if FILE_NAME.fullmatch(name) is None or not isinstance(facts, dict):
            raise _unreadable(path / MANIFEST, f"names the file {name[:80]!r}")
    if sorted(roles) != sorted(_ROLES) or not all(isinstance(name, str) and name in files for name in roles.values()):
        raise _unreadable(path / MANIFEST, "gives no file for a role")
    return data


def _check_file(path: Path, name: str, content: bytes, facts: dict[str, Any]) -> None:
    found = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    if facts != found:
        raise BundleError(
            "GMR-B002",
            f"{path / name}: {len(content)} bytes, SHA-256 {found['sha256']}",
            rule=f"{MANIFEST} describes another file",
            fix="copy the bundle again, or write it again",
        )


def _manifest(path: Path, data: dict[str, Any]) -> Manifest:
    """The kernel's manifest, with every number in its range: the launcher trusts it."""
    try:
        manifest = Manifest.from_json(json.dumps(data["kernel"]))
        _check_manifest(manifest)
        if asdict(manifest.grid_rule) != data["grid"]:
            raise ValueError("the rule of the grid is not that of the kernel")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UnsupportedError) as error:
        raise _unreadable(path / MANIFEST, f"does not describe a kernel ({str(error)[:100]})") from None


def _check_manifest(manifest: Manifest) -> None:
    find_target(manifest.target)
    Grouping(manifest.grouping)
    for field in fields(manifest):
        value = getattr(manifest, field.name)
        if field.type == "int":
            least = 0 if field.name in MAY_BE_NONE else 1
            _expect(type(value) is int and least <= value <= _MAX, field.name)
        elif field.type in ("str", "bool"):
            _expect(type(value) is (str if field.type == "str" else bool), field.name)
    _expect(manifest.threads <= 1024 and manifest.shared_bytes <= SM_90A.shared_bytes, "threads and shared_bytes")
    behind = manifest.tail_after * manifest.block_n
    _expect((behind > 0) == (manifest.tail_n > 0) and behind < max(manifest.n, 1), "tail_after")
    _expect(manifest.entry.isascii() and manifest.entry.isidentifier(), "entry")
    for spec in (*manifest.inputs, manifest.output):
        _check_tensor(spec)
    for param in manifest.params:
        if isinstance(param, TensorMapParam | PointerParam | StrideParam):
            _expect(type(param.tensor) is int and -1 <= param.tensor < len(manifest.inputs), "params")
        if isinstance(param, TensorMapParam):
            Swizzle(param.swizzle)
            _expect(len(param.box) == 2 and all(type(b) is int and 0 < b <= 256 for b in param.box), "box")
        if isinstance(param, StrideParam):
            spec = manifest.output if param.tensor < 0 else manifest.inputs[param.tensor]
            _expect(type(param.dimension) is int and 0 <= param.dimension < len(spec.shape), "dimension")


def _check_tensor(spec: TensorSpec) -> None:
    _expect(isinstance(spec.name, str) and spec.dtype in DTYPES, "dtype")  # pyright: ignore[reportUnnecessaryIsInstance]
    _expect(len(spec.shape) <= 3 and sorted(spec.order) == list(range(len(spec.shape))), "order")
    _expect(all(d is None or (type(d) is int and 0 <= d <= _MAX) for d in spec.shape), "shape")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"illegal {what}")
