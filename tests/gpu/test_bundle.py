"""Bundles on the GPU: loaded ones give the bits of compiled ones, and the C++ example checks itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from gemmir import compile as compile_kernel
from gemmir import load_bundle
from gemmir.bundle import write_bundle
from gemmir.cli.main import main
from tests.bundle.host_compiler import build

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
LAYER = ROOT / "examples" / "03_o_proj_bf16.mlir"


@pytest.mark.parametrize("m", [1, 100, 513])
def test_a_loaded_bundle_gives_the_same_bits(m: int, tmp_path: Path):
    kernel = compile_kernel(LAYER)
    loaded = load_bundle(write_bundle(kernel, tmp_path / "o_proj", nvrtc="of the test"))
    generator = torch.Generator("cuda").manual_seed(m)
    x, w = (torch.randn(rows, 16384, generator=generator, device="cuda", dtype=torch.bfloat16) for rows in (m, 7168))
    assert torch.equal(loaded(x, w.t()), kernel(x, w.t()))


def test_the_example_finds_every_element_right(tmp_path: Path):
    folder = tmp_path / "o_proj"
    assert main(["compile", str(LAYER), "--emit", "bundle", "-o", str(folder)]) == 0
    options = ("-O2", "-I", str(folder), "-l:libcuda.so.1")
    program = build("c++", ROOT / "examples" / "bundle" / "main.cpp", tmp_path / "run_bundle", *options)
    done = subprocess.run([program, folder / "o_proj.cubin"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"0 of {100 * 7168} elements are wrong\n"), done.stderr
