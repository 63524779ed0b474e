"""
CUDA C++ to PTX and cubin, in this process, with NVRTC 13.x. Needs neither a GPU nor a driver.

Sources are whole: they include nothing, so nothing on this machine but the library itself decides what comes out.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import site
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gemmir.backends.cuda.apart import TimeIsUpError, apart
from gemmir.backends.cuda.elf import build_id_of
from gemmir.compile_time import VARIABLE, compile_timeout
from gemmir.errors import CompileError, ToolMissingError
from gemmir.records import dataclass
from gemmir.target import SM_90A, find_target

T = TypeVar("T")

OLDEST = (13, 0)
MAX_SOURCE_BYTES = 1 << 20
MAX_LOG_BYTES = 4096
OPTIONS = ("--std=c++17", "--ptxas-options=-v", "-diag-suppress=177", "--no-cache")
"""
Beside the architecture. 177: a function of the prelude that this kernel does not use. No cache: where there is a
driver, NVRTC remembers binaries, and gives a remembered one without the log that says whether it spills.
"""

_SONAME = "libnvrtc.so.13"
_WHEEL_FOLDERS = ("nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib")
_FILE_NAME = b"kernel.cu"
# Patterns are compiled on first use: a process that finds its kernels in the cache needs none.
_COMMENT = r"(?s)/\*.*?\*/|//[^\n]*"
_DIRECTIVE = r"(?m)^[ \t]*(?:#|%:)\s*(include(?:_next)?|import|embed|line|\d+)\b|\b(__has_(?:include|embed))\b"
_TRIGRAPH = r"\?\?[=/'()!<>-]"
_DEVICE_VARIABLE = r"(?m)^__device__ \w+ (\w+);$"
"""Of the device, which the host may look for: NVRTC keeps the name of what it is told of."""
_PATH = r"(?<![\w.*/])/(?:[^\s/:'\"()]+/)+([^\s/:'\"()]+)"


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel's machine code, what the compiler said (`compiler_log.check_log` reads it), and the PTX in between."""

    cubin: bytes
    log: str
    ptx: str = ""


def compile_cubin(source: str, target: str = SM_90A.name) -> Compiled:
    """
    Compile `source` for `target`.

    `CompileError` with the compiler's words if it fails (GMR-C001), or if it takes longer than
    `gemmir.compile_time.compile_timeout` says (GMR-C006); `ToolMissingError` (GMR-C003) without NVRTC. Ctrl-C is heard
    at once, while the compiler goes on in a thread of its own, as it cannot be stopped.
    """
    options = (f"--gpu-architecture={find_target(target).name}", *OPTIONS)

    def made(nvrtc: Any, program: Any) -> Compiled:
        cubin = _fetch(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        return Compiled(cubin, _log(nvrtc, program), _ptx(nvrtc, program))

    return _of_compiled(source, options, made)


def compile_ptx(source: str, target: str = SM_90A.name) -> str:
    """The PTX of `source`; errors as in `compile_cubin`."""
    architecture = find_target(target).name.replace("sm_", "compute_")
    return _of_compiled(source, (f"--gpu-architecture={architecture}", *OPTIONS), _ptx)


def check_syntax(source: str, target: str = SM_90A.name) -> None:
    """Parse and type-check `source`, about 30 times faster than compiling it; errors as in `compile_cubin`."""
    options = (f"--gpu-architecture={find_target(target).name}", "--fdevice-syntax-only", *OPTIONS)
    _of_compiled(source, options, lambda nvrtc, program: None)


def version() -> tuple[int, int]:
    """Version of the NVRTC in use, e.g. (13, 0)."""
    return _version(_nvrtc())


def build_id() -> str:
    """
    What tells the NVRTC in use from any other: the build id that its linker wrote into it; without, size and time.

    Part of a kernel's cache key, so it neither loads the library nor imports the bindings if it can help it.
    """
    path = library_path()
    if (found := build_id_of(path)) is not None:
        return f"{path.name} {found}"
    status = path.stat()
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"


def library_path() -> Path:
    """The file of the NVRTC in use, or that would be: the one already loaded, else a wheel's, else the toolkit's."""
    if (loaded := _loaded_path()) is not None:
        return loaded
    for folder in _wheel_folders():
        if os.path.isfile(path := os.path.join(folder, _SONAME)):
            return Path(path)
    try:
        pathfinder: Any = importlib.import_module("cuda.pathfinder")
        return Path(pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path)
    except (ImportError, RuntimeError) as error:
        raise _not_found(error) from error


def _wheel_folders() -> list[str]:
    """Where wheels put NVRTC, by the ways of CUDA 13 first."""
    roots = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return [os.path.join(root, folder) for folder in _WHEEL_FOLDERS for root in roots]


def preload(directory: Path) -> None:
    """
    Use the NVRTC in `directory` (the folder of `libnvrtc.so.13`) in this process; call it before anything compiles.

    NOTE: the bindings look in site-packages, not along PYTHONPATH, but use a library that is already loaded.
    """
    wanted = directory.resolve() / _SONAME
    if (loaded := _loaded_path()) is not None and not loaded.samefile(wanted):
        raise ToolMissingError(
            "GMR-C003",
            "another NVRTC is already loaded",
            rule="a process uses one NVRTC",
            fix="call preload before anything compiles",
        )
    try:
        # NOTE: NVRTC opens its builtins by name alone, and finds them only if they are loaded or beside a wheel's.
        for builtins in sorted(directory.resolve().glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(wanted), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise _missing(f"no {_SONAME} that loads in the given folder") from error


def lint_source(source: str) -> None:
    """
    Refuse a source that could pull in other text or hide what it says; `CompileError` (GMR-C001).

    Gemmir prints no such source: this is the last look at what untrusted IR has become.
    """
    if (size := len(source)) > MAX_SOURCE_BYTES:
        raise _unclean(f"the source has {size} characters", f"at most {MAX_SOURCE_BYTES}")
    if not source.isascii() or "\0" in source:
        raise _unclean("the source has characters beyond ASCII", "CUDA source is printable ASCII")
    if (found := re.search(_TRIGRAPH, source)) is not None:
        raise _unclean(f"the source holds the trigraph {found.group()}", "no trigraphs")
    spliced = re.sub(_COMMENT, " ", source.replace("\\\r\n", "").replace("\\\n", ""))
    if (found := re.search(_DIRECTIVE, spliced)) is not None:
        raise _unclean(f"the source holds #{found.group(1) or found.group(2)}", "a source includes nothing")


def _unclean(what: str, rule: str) -> CompileError:
    return CompileError("GMR-C001", what, rule=rule, fix="report this as a defect of the CUDA printer")


def _not_found(error: Exception) -> ToolMissingError:
    """Where it was looked for, what lies there instead, and what came of the search behind that."""
    lines = [f"NVRTC is not installed; {_SONAME} was looked for"]
    for folder in _wheel_folders():
        others = sorted(path.name for path in Path(folder).glob("libnvrtc.so.*"))
        lines.append(f"in {folder}, which {'has ' + ', '.join(others) if others else 'has none'}")
    lines += ["by cuda.pathfinder and the loader:", *str(error)[:MAX_LOG_BYTES].splitlines()]
    return _missing("\n    ".join(lines))


def _missing(what: str) -> ToolMissingError:
    return ToolMissingError(
        "GMR-C003",
        what,
        rule=f"NVRTC {OLDEST[0]}.{OLDEST[1]} or a newer {OLDEST[0]}.x compiles the kernels",
        fix='pip install "nvidia-cuda-nvrtc>=13.0.88,<14"',
    )


def _nvrtc() -> Any:
    """`cuda.bindings.nvrtc` over a library that is new enough."""
    try:
        nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
        found = _version(nvrtc)
    except ImportError as error:
        raise ToolMissingError(
            "GMR-C003", "the package cuda.bindings is not installed", fix='pip install "cuda-python>=13.3,<14"'
        ) from error
    except RuntimeError as error:  # how the bindings say that there is no library
        raise _not_found(error) from error
    if found < OLDEST:
        raise _missing(f"NVRTC {found[0]}.{found[1]} is too old{_in_use()}")
    if found[0] != OLDEST[0]:
        raise _missing(f"NVRTC {found[0]}.{found[1]} is of another major version{_in_use()}")
    return nvrtc


def _in_use() -> str:
    """Of which file that is said."""
    return "" if (path := _loaded_path()) is None else f": {path}"


def _version(nvrtc: Any) -> tuple[int, int]:
    status, major, minor = nvrtc.nvrtcVersion()
    _check(nvrtc, status)
    return (int(major), int(minor))


def _check(nvrtc: Any, status: Any) -> None:
    if int(status) != 0:
        raise CompileError("GMR-C001", f"NVRTC failed: {status.name}")


def _of_compiled(source: str, options: Sequence[str], read: Callable[[Any, Any], T]) -> T:
    """What `read` makes of the bindings and a compiled program: all that NVRTC does, in a thread that can be left."""
    lint_source(source)
    nvrtc, seconds = _nvrtc(), compile_timeout()

    def work() -> T:
        with _compiled(nvrtc, source, options) as program:
            return read(nvrtc, program)

    try:
        return apart(work, seconds)
    except TimeIsUpError:
        raise CompileError(
            "GMR-C006",
            f"NVRTC is not done after {seconds} s with {len(source)} characters of source",
            rule=f"a kernel compiles in at most {seconds} s; NVRTC goes on in a thread until it is done",
            fix=f"smaller blocks or a shorter program; on a machine that is very slow, set {VARIABLE}",
        ) from None


@contextmanager
def _compiled(nvrtc: Any, source: str, options: Sequence[str]) -> Generator[Any]:
    """A compiled program, which is destroyed on leaving."""
    status, program = nvrtc.nvrtcCreateProgram(source.encode("ascii"), _FILE_NAME, 0, None, None)
    _check(nvrtc, status)
    try:
        for name in re.findall(_DEVICE_VARIABLE, source):
            _check(nvrtc, nvrtc.nvrtcAddNameExpression(program, f"&{name}".encode())[0])
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        if status == nvrtc.nvrtcResult.NVRTC_ERROR_COMPILATION:
            raise _failed(_log(nvrtc, program))
        if int(status) != 0:
            raise _failed(f"{status.name}\n{_log(nvrtc, program)}")
        yield program
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _failed(log: str) -> CompileError:
    return CompileError(
        "GMR-C001",
        f"NVRTC refused the source\n{readable_log(log)}",
        fix="report this as a defect, with `gemmir compile --emit cuda`",
    )


def readable_log(log: str) -> str:
    """A compiler's log for people: at most 4 KiB, file names without their folders."""
    text = re.sub(_PATH, r"\1", log).strip()
    if len(text) <= MAX_LOG_BYTES:
        return text
    return text[:MAX_LOG_BYTES] + f"\n... ({len(text) - MAX_LOG_BYTES} more characters)"


def _log(nvrtc: Any, program: Any) -> str:
    return _fetch(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace").rstrip("\0")


def _ptx(nvrtc: Any, program: Any) -> str:
    # NOTE: the bytes end in a NUL, which ptxas takes for an unexpected end of file.
    return _fetch(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).rstrip(b"\0").decode()


def _fetch(size_of: Callable[[Any], Any], read: Callable[[Any, bytearray], Any], program: Any) -> bytes:
    """What NVRTC hands out in two calls, its size and its bytes."""
    status, size = size_of(program)
    if int(status) != 0:
        raise CompileError("GMR-C001", f"NVRTC failed: {status.name}")
    data = bytearray(size)
    (status,) = read(program, data)
    if int(status) != 0:
        raise CompileError("GMR-C001", f"NVRTC failed: {status.name}")
    return bytes(data)


def _loaded_path() -> Path | None:
    """The file of an NVRTC that this process has loaded, whoever did."""
    try:
        ctypes.CDLL(_SONAME, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None
    return next(_mapped(f"/{_SONAME}"), None)


def _mapped(suffix: str) -> Iterator[Path]:
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            if (name := line.rstrip("\n")).endswith(suffix):
                yield Path(name[name.index("/") :])
