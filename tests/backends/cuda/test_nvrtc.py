"""Compiling with NVRTC: what comes out, what is refused, and how it is said."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gemmir.backends.cuda import nvrtc
from gemmir.backends.cuda.elf import build_id_of
from gemmir.errors import CompileError, ToolMissingError, UnsupportedError
from tests.backends.cuda.oldest_nvrtc import OLDEST, ROOT

KERNEL = 'extern "C" __global__ void __launch_bounds__(128, 1) k(float* x) { x[threadIdx.x] *= 2.0f; }\n'


FOLDERS = ["installed", *([OLDEST] if OLDEST else [])]


def run_with(folder: str, program: str) -> list[str]:
    """The lines that `program` prints in a process of its own, with the NVRTC of `folder`."""
    head = "from pathlib import Path\nfrom gemmir.backends.cuda import nvrtc\n"
    if folder != "installed":
        head += f"nvrtc.preload(Path({str(Path(folder) / 'nvidia/cu13/lib')!r}))\n"
    command = [sys.executable, "-c", head + program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_cubin_and_its_log():
    compiled = nvrtc.compile_cubin(KERNEL)
    assert compiled.cubin.startswith(b"\x7fELF")
    assert "Compiling entry function 'k' for 'sm_90a'" in compiled.log
    assert "\0" not in compiled.log


def test_the_same_source_gives_the_same_cubin():
    assert nvrtc.compile_cubin(KERNEL).cubin == nvrtc.compile_cubin(KERNEL).cubin


def test_ptx_ends_without_nul():
    ptx = nvrtc.compile_ptx(KERNEL)
    assert ".target sm_90a" in ptx
    assert ".visible .entry k(" in ptx
    assert ptx.rstrip().endswith("}")
    assert "\0" not in ptx


def test_syntax_alone():
    assert nvrtc.check_syntax(KERNEL) is None
    with pytest.raises(CompileError, match=r"GMR-C001(.|\n)*undefined_name"):
        nvrtc.check_syntax(KERNEL.replace("2.0f", "undefined_name"))


def test_an_error_quotes_the_compiler():
    with pytest.raises(CompileError) as error:
        nvrtc.compile_cubin(KERNEL.replace("2.0f", "undefined_name"))
    assert error.value.code == "GMR-C001"
    assert 'kernel.cu(1): error: identifier "undefined_name" is undefined' in error.value.what


def test_a_long_log_is_cut():
    source = "".join(f'extern "C" __global__ void k{i}() {{ missing{i}(); }}\n' for i in range(200))
    with pytest.raises(CompileError) as error:
        nvrtc.compile_cubin(source)
    assert len(error.value.what) < nvrtc.MAX_LOG_BYTES + 200
    assert error.value.what.endswith("more characters)")


def test_a_log_names_no_folders():
    log = "/home/me/project/kernel.cu(3): error: a / b\n/usr/lib/x.h: note, see /a/b.\nfloat c = a/b/c; // x"
    assert nvrtc.readable_log(log) == "kernel.cu(3): error: a / b\nx.h: note, see b.\nfloat c = a/b/c; // x"


def test_wrong_targets():
    for compile_ in (nvrtc.compile_cubin, nvrtc.compile_ptx, nvrtc.check_syntax):
        with pytest.raises(UnsupportedError, match="GMR-U002"):
            compile_(KERNEL, "sm_90")
    with pytest.raises(UnsupportedError, match="GMR-U002"):
        nvrtc.compile_cubin(KERNEL, "sm_90a --include-path=/")


@pytest.mark.parametrize(
    "line",
    [
        '#include "x.h"',
        "#include <cuda.h>",
        "  #  include <x>",
        "# /* hidden */ include <x>",
        "#inc\\\nlude <x>",
        "#inc\\\r\nlude <x>",
        "%:include <x>",
        "#include_next <x>",
        "#embed <x>",
        '#line 3 "x"',
        '# 3 "x"',
        "#if __has_include(<x>)\n#endif",
        "#if __has_embed(<x>)\n#endif",
        "??=include <x>",
        'char c[] = "what??!";',
        "// caf\u00e9",
        "// nul \0",
    ],
)
def test_sources_that_are_refused(line: str):
    with pytest.raises(CompileError, match="GMR-C001"):
        nvrtc.lint_source(KERNEL + line + "\n")
    with pytest.raises(CompileError, match="GMR-C001"):
        nvrtc.compile_cubin(KERNEL + line + "\n")


@pytest.mark.parametrize(
    "line",
    [
        "#pragma unroll",
        "#define X 1",
        "// what #include would do",
        "/* #line */",
        "int f(int a) { return a ? 1 : 2; }",
        "#define A(x) \\\n  x",
        "#ifdef X\n#endif",
    ],
)
def test_sources_that_are_fine(line: str):
    nvrtc.lint_source(KERNEL + line + "\n")


def test_the_size_of_a_source_is_limited():
    nvrtc.lint_source(" " * nvrtc.MAX_SOURCE_BYTES)
    with pytest.raises(CompileError, match="1048577 characters"):
        nvrtc.lint_source(" " * (nvrtc.MAX_SOURCE_BYTES + 1))


def test_the_version_is_one_that_is_supported():
    assert (13, 0) <= nvrtc.version() < (14, 0)


def test_the_ptx_of_machine_code_is_that_of_a_compile_to_ptx():
    assert nvrtc.compile_cubin(KERNEL).ptx == nvrtc.compile_ptx(KERNEL)


def test_the_build_id_is_that_of_the_library_in_use():
    before = nvrtc.build_id()
    nvrtc.version()
    path = nvrtc.library_path()
    assert path.name == "libnvrtc.so.13"
    assert nvrtc.build_id() == before == f"libnvrtc.so.13 {build_id_of(path)}"


def test_without_one_the_build_id_is_size_and_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nvrtc, "build_id_of", lambda path: None)
    status = nvrtc.library_path().stat()
    assert nvrtc.build_id() == f"libnvrtc.so.13 {status.st_size} {status.st_mtime_ns}"


def test_the_build_id_loads_nothing():
    program = (
        "import sys\nfrom gemmir.backends.cuda import nvrtc\nnvrtc.build_id()\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('cuda', 'torch', 'numpy', 'xdsl')))\n"
        "print(sum('libnvrtc' in line for line in open('/proc/self/maps')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "0"]


def missing_library(name: str) -> object:
    class Bindings:
        def nvrtcVersion(self) -> tuple[int, int, int]:
            raise RuntimeError("libnvrtc.so.13 not found")

    return Bindings()


def test_without_a_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nvrtc.importlib, "import_module", missing_library)
    with pytest.raises(ToolMissingError, match=r"GMR-C003(.|\n)*nvidia-cuda-nvrtc"):
        nvrtc.compile_cubin(KERNEL)


def test_without_the_bindings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(ToolMissingError, match=r"GMR-C003(.|\n)*cuda-python"):
        nvrtc.compile_cubin(KERNEL)


def test_without_a_library_there_is_no_build_id(monkeypatch: pytest.MonkeyPatch):
    class Pathfinder:
        def load_nvidia_dynamic_lib(self, name: str) -> object:
            raise RuntimeError(name)

    monkeypatch.setattr(nvrtc, "_loaded_path", lambda: None)
    monkeypatch.setattr(nvrtc, "_WHEEL_FOLDERS", ())
    monkeypatch.setattr(nvrtc.importlib, "import_module", lambda name: Pathfinder())
    with pytest.raises(ToolMissingError, match="GMR-C003"):
        nvrtc.build_id()


@pytest.mark.parametrize("has_pathfinder", [True, False])
def test_where_it_was_looked_for_is_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_pathfinder: bool):
    """A wheel of CUDA 12, as those of torch for CUDA 12 bring along, is named."""
    (old := tmp_path / "nvidia/cuda_nvrtc/lib").mkdir(parents=True)
    (old / "libnvrtc.so.12").write_bytes(b"")

    class Pathfinder:
        def load_nvidia_dynamic_lib(self, name: str) -> object:
            raise RuntimeError(f'Failure finding "{name}"\n  No such file: conda')

    def load(name: str) -> Pathfinder:
        if not has_pathfinder:
            raise ImportError("No module named 'cuda.pathfinder'")
        return Pathfinder()

    monkeypatch.setattr(nvrtc, "_loaded_path", lambda: None)
    monkeypatch.setattr(nvrtc.site, "getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(nvrtc.site, "ENABLE_USER_SITE", False)
    monkeypatch.setattr(nvrtc.importlib, "import_module", load)
    with pytest.raises(ToolMissingError, match="GMR-C003: NVRTC is not installed") as error:
        nvrtc.library_path()
    searched = ['Failure finding "nvrtc"', "  No such file: conda"]
    assert error.value.what.split("\n    ") == [
        "NVRTC is not installed; libnvrtc.so.13 was looked for",
        f"in {tmp_path / 'nvidia/cu13/lib'}, which has none",
        f"in {old}, which has libnvrtc.so.12",
        "by cuda.pathfinder and the loader:",
        *(searched if has_pathfinder else ["No module named 'cuda.pathfinder'"]),
    ]
    assert error.value.fix == 'pip install "nvidia-cuda-nvrtc>=13.0.88,<14"'


@pytest.mark.parametrize(("version", "what"), [((12, 9), "is too old"), ((14, 0), "is of another major version")])
def test_with_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], what: str):
    class Result:
        name = "NVRTC_SUCCESS"

        def __int__(self) -> int:
            return 0

    class Bindings:
        def nvrtcVersion(self) -> tuple[Result, int, int]:
            return (Result(), *version)

    monkeypatch.setattr(nvrtc.importlib, "import_module", lambda name: Bindings())
    monkeypatch.setattr(nvrtc, "_loaded_path", lambda: Path("lib/libnvrtc.so"))
    said = "GMR-C003: NVRTC {}.{} {}: lib/libnvrtc.so".format(*version, what)
    with pytest.raises(ToolMissingError, match=re.escape(said)) as error:
        nvrtc.compile_cubin(KERNEL)
    assert "13.0 or a newer 13.x" in (error.value.rule or "")
    assert "nvidia-cuda-nvrtc" in (error.value.fix or "")


def test_a_program_is_destroyed_whatever_happens(monkeypatch: pytest.MonkeyPatch):
    from cuda.bindings import nvrtc as bindings

    events: list[str] = []

    class Spy:
        nvrtcResult = bindings.nvrtcResult

        def __getattr__(self, name: str) -> object:
            if name in ("nvrtcCreateProgram", "nvrtcDestroyProgram"):
                events.append(name)
            return getattr(bindings, name)

    monkeypatch.setattr(nvrtc.importlib, "import_module", lambda name: Spy())
    nvrtc.compile_cubin(KERNEL)
    with pytest.raises(CompileError):
        nvrtc.compile_cubin(KERNEL + "x")
    assert events == ["nvrtcCreateProgram", "nvrtcDestroyProgram"] * 2


def test_another_library_cannot_be_preloaded_later(tmp_path: Path):
    nvrtc.version()
    (tmp_path / "libnvrtc.so.13").write_bytes(b"")
    with pytest.raises(ToolMissingError, match="another NVRTC is already loaded"):
        nvrtc.preload(tmp_path)
    nvrtc.preload(nvrtc.library_path().parent)


def test_preloading_from_a_folder_without_nvrtc(tmp_path: Path):
    program = (
        f"from pathlib import Path\nfrom gemmir.backends.cuda import nvrtc\nnvrtc.preload(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "GMR-C003: no libnvrtc.so.13 that loads" in done.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_supported_version(folder: str):
    said = run_with(
        folder,
        "from gemmir.backends.cuda.elf import toolkit_of\n"
        f"c = nvrtc.compile_cubin({KERNEL!r})\nprint(nvrtc.version(), c.cubin[:4], toolkit_of(c.cubin))\n"
        "print(nvrtc.library_path())\n"
        f"nvrtc.check_syntax({KERNEL!r})\np = nvrtc.compile_ptx({KERNEL!r})\nprint('.entry k' in p, c.ptx == p)",
    )
    version = (13, 0) if folder == OLDEST else nvrtc.version()
    path = Path(folder) / "nvidia/cu13/lib/libnvrtc.so.13" if folder == OLDEST else nvrtc.library_path()
    assert said == [f"{version} b'\\x7fELF' {version}", str(path), "True True"]
