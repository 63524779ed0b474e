"""Disassembling, and finding the disassembler."""

import sys
from pathlib import Path

import pytest

from gemmir.backends.cuda import sass
from gemmir.backends.cuda.nvrtc import compile_cubin
from gemmir.errors import CompileError, ToolMissingError

KERNEL = """
extern "C" __global__ void __launch_bounds__(128, 1) k(float* x, int n) {
    __shared__ __align__(8) unsigned long long barrier;
    unsigned address = (unsigned)__cvta_generic_to_shared(&barrier);
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(address));
    float v[100];
    for (int i = 0; i < n; ++i) v[(i * i) % 100] = x[i];
    if (n > 3) x[n] = v[n % 100];
}
"""


def test_opcodes_of_a_kernel():
    text = sass.disassemble(compile_cubin(KERNEL).cubin)
    count = sass.count_opcodes(text)
    assert count["USETMAXREG"] == 1
    assert count["SYNCS"] == 1
    assert count["STL"] >= 1
    assert count["LDL"] >= 1
    assert count["EXIT"] >= 1
    assert count["QGMMA"] == 0
    assert count["P0"] == count["UP0"] == 0


def test_counting_by_stem():
    text = """
        .section .text.k
.L_x_1:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @P0  UTMALDG.2D.MULTICAST [UR8], [UR4], UR6 ;
        /*0020*/             @!UP1 UTMALDG.2D [UR8], [UR4] ;
        /*0030*/              @PT  BRA `(.L_x_1) ;
        /*0040*/             @!PT  QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR4], RZ, !UPT, gsb0 ;
        /*0050*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR4], R24 ;
        /*10060*/                  SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0+URZ], R3 ;
        /* 0x000e */
    // LDL in a comment
"""
    assert sass.count_opcodes(text) == {"LDC": 1, "UTMALDG": 2, "BRA": 1, "QGMMA": 2, "SYNCS": 1}


def test_something_else_than_a_cubin():
    with pytest.raises(CompileError, match="GMR-C001: nvdisasm failed") as error:
        sass.disassemble(b"not an object file")
    assert "/tmp" not in error.value.what


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_order_in_which_a_tool_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wheel = sass.find_tool("nvdisasm")
    assert wheel.name == "nvdisasm"
    triton = executable(tmp_path / "site" / "triton" / "backends" / "nvidia" / "bin" / "nvdisasm")
    (tmp_path / "site" / "triton" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    home = executable(tmp_path / "cuda" / "bin" / "nvdisasm")
    path = executable(tmp_path / "path" / "nvdisasm")
    monkeypatch.setattr(sass, "_in_wheels", lambda name: None)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert sass.find_tool("nvdisasm") == triton
    triton.unlink()
    assert sass.find_tool("nvdisasm") == home
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert sass.find_tool("nvdisasm") == path
    path.unlink()
    with pytest.raises(ToolMissingError, match=r'GMR-C004: nvdisasm(.|\n)*pip install "gemmir\[tools\]"'):
        sass.find_tool("nvdisasm")
    assert "triton" not in sys.modules


def test_a_tool_that_nobody_ships(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ToolMissingError, match="GMR-C004"):
        sass.find_tool("no-such-tool-of-cuda")
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(ToolMissingError, match="GMR-C004"):
        sass.find_tool("no-such-tool-of-cuda")
