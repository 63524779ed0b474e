"""Bundles on disk: what is written, what is read back, and every way in which one can be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gemmir import load_bundle
from gemmir.backends.cuda.c_header import argument_names, c_name, print_header
from gemmir.cli.main import main
from gemmir.errors import BundleError, UnsupportedError
from gemmir.manifest import TensorSpec
from tests.backends.cuda.cuda_doubles import MANIFEST
from tests.bundle.host_compiler import build

ROOT = Path(__file__).resolve().parents[2]
LAYER = ROOT / "examples" / "03_o_proj_bf16.mlir"
NAMES = {"bundle.json", "o_proj.cubin", "o_proj.h", "o_proj.cu"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "o_proj"
    assert main(["compile", str(LAYER), "--emit", "bundle", "-o", f"{path}/"]) == 0
    return path


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def description(path: Path) -> dict[str, Any]:
    return json.loads((path / "bundle.json").read_text())


def test_what_is_written(written: Path):
    assert {p.name for p in written.iterdir()} == NAMES
    assert {p.name for p in written.parent.iterdir()} == {"o_proj"}
    data = description(written)
    for name, facts in data["files"].items():
        content = (written / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert (data["format"], data["schema"], data["workspace_bytes"]) == ("gemmir bundle", 1, 0)
    assert {m["dtype"] for m in data["tensor_maps"]} == {"CU_TENSOR_MAP_DATA_TYPE_BFLOAT16"}
    assert data["kernel"]["decisions"]


def test_what_is_read_back(written: Path):
    kernel = load_bundle(written)
    assert kernel.cubin == (written / "o_proj.cubin").read_bytes()
    assert kernel.source == (written / "o_proj.cu").read_text()
    assert json.loads(kernel.manifest.to_json()) == description(written)["kernel"]


def test_reading_imports_neither_xdsl_nor_torch(written: Path):
    code = f"import gemmir, sys; gemmir.load_bundle({str(written)!r}); print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint({"xdsl", "torch", "numpy", "cuda"})


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = description(path)
    change(data)
    (path / "bundle.json").write_text(json.dumps(data))


def as_link(path: Path) -> None:
    target = path.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


def renamed(name: str) -> Callable[[Path], None]:
    return lambda p: edit(p, lambda d: d["files"].update({name: {"sha256": "", "bytes": 0}}))


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no directory": ("GMR-B001", shutil.rmtree),
    "a link to a bundle": ("GMR-B001", as_link),
    "no manifest": ("GMR-B001", lambda p: (p / "bundle.json").unlink()),
    "no cubin": ("GMR-B001", lambda p: (p / "o_proj.cubin").unlink()),
    "a linked cubin": ("GMR-B001", lambda p: as_link(p / "o_proj.cubin")),
    "a linked manifest": ("GMR-B001", lambda p: as_link(p / "bundle.json")),
    "a pipe": ("GMR-B001", lambda p: ((p / "o_proj.cu").unlink(), os.mkfifo(p / "o_proj.cu"))),
    "a path": ("GMR-B001", renamed("../o_proj.cubin")),
    "an absolute path": ("GMR-B001", renamed("/etc/passwd")),
    "a dot": ("GMR-B001", renamed("..")),
    "not JSON": ("GMR-B001", lambda p: (p / "bundle.json").write_text("{")),
    "not an object": ("GMR-B001", lambda p: (p / "bundle.json").write_text("[]")),
    "deep JSON": ("GMR-B001", lambda p: (p / "bundle.json").write_text("[" * 200_000)),
    "a large manifest": ("GMR-B001", lambda p: (p / "bundle.json").write_text(" " * (1 << 20) + "{}")),
    "no kernel": ("GMR-B001", lambda p: edit(p, lambda d: d.pop("kernel"))),
    "no files": ("GMR-B001", lambda p: edit(p, lambda d: d.pop("files"))),
    "no role": ("GMR-B001", lambda p: edit(p, lambda d: d["roles"].pop("cubin"))),
    "another grid": ("GMR-B001", lambda p: edit(p, lambda d: d["grid"].update(rows=1))),
    "a negative size": ("GMR-B001", lambda p: edit(p, lambda d: d["kernel"].update(block_m=-1))),
    "a size in words": ("GMR-B001", lambda p: edit(p, lambda d: d["kernel"].update(threads="many"))),
    "a tensor too far": ("GMR-B001", lambda p: edit(p, lambda d: d["kernel"]["params"][0].update(tensor=9))),
    "another target": ("GMR-B001", lambda p: edit(p, lambda d: d["kernel"].update(target="sm_80"))),
    "another schema": ("GMR-B003", lambda p: edit(p, lambda d: d.update(schema=2))),
    "a flipped bit": ("GMR-B002", lambda p: flip(p / "o_proj.cubin")),
    "a short header": ("GMR-B002", lambda p: (p / "o_proj.h").write_text("")),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(damage: str, copy: Path):
    code, harm = DAMAGE[damage]
    harm(copy)
    with pytest.raises(BundleError, match=code):
        load_bundle(copy)


def test_a_bundle_is_replaced_and_nothing_else_is(copy: Path, written: Path, capsys: pytest.CaptureFixture[str]):
    command = ["compile", str(LAYER), "--emit", "bundle", "-o", str(copy)]
    flip(copy / "o_proj.cubin")
    assert main(command) == 0
    assert (copy / "o_proj.cubin").read_bytes() == (written / "o_proj.cubin").read_bytes()
    (copy / "notes.txt").write_text("mine")
    assert main(command) == 1
    assert "GMR-B001" in capsys.readouterr().err
    (copy / "bundle.json").unlink()
    assert main(command) == 1
    assert (copy / "notes.txt").read_text() == "mine"
    assert {p.name for p in copy.parent.iterdir()} == {copy.name}


@pytest.mark.parametrize("arguments", [["bundle"], ["bundle,cuda", "-o", "x/"]])
def test_a_bundle_needs_a_folder_of_its_own(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["compile", str(LAYER), "--emit", *arguments]) == 2
    assert "--emit bundle -o DIR/" in capsys.readouterr().err


@pytest.mark.parametrize("name", ['x"; int y', "a/*", "a\nb", "int main", "x__y", "_X", "é", "a" * 200, "", "x\\"])
def test_names_from_ir_reach_c_only_as_identifiers(name: str):
    manifest = replace(MANIFEST, name=name, inputs=(TensorSpec(name, "bf16", (None, 8), (0, 1)), *MANIFEST.inputs[1:]))
    assert c_name(manifest) == "kernel"
    assert argument_names(manifest)[0] == "in_0"
    assert print_header(manifest) == print_header(
        replace(manifest, name="kernel", inputs=(replace(manifest.inputs[0], name="_"), *manifest.inputs[1:]))
    )


def test_keywords_stand_behind_a_prefix(tmp_path: Path):
    inputs = (replace(MANIFEST.inputs[0], name="for"), *MANIFEST.inputs[1:])
    (tmp_path / "k.h").write_text(print_header(replace(MANIFEST, name="class", inputs=inputs)))
    (tmp_path / "k.c").write_text('#include "k.h"\nint unused;\n')
    build("c", tmp_path / "k.c", tmp_path / "k.o", "-c")


@pytest.mark.parametrize("field", ["n", "k"])
def test_a_kernel_that_is_never_launched_has_no_bundle(field: str):
    with pytest.raises(UnsupportedError, match="GMR-U001"):
        print_header(replace(MANIFEST, **{field: 0}))


def test_the_example_compiles_and_links(written: Path, tmp_path: Path):
    library = build("c", Path(__file__).parent / "fake_cuda.c", tmp_path / "libcuda.so.1", "-shared", "-fPIC")
    options = ("-I", str(written), str(library), f"-Wl,-rpath,{tmp_path}")
    program = build("c++", ROOT / "examples" / "bundle" / "main.cpp", tmp_path / "run_bundle", *options)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stderr.split()[0]) == (2, "usage:")
    done = subprocess.run([program, written / "o_proj.cubin"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "cuInit: CUDA_ERROR_NO_DEVICE\n")
