"""
From a program to a kernel: passes, proof of fit, CUDA source, cubin.

`lower` goes as far as CUDA source and needs xDSL only; `compile` adds NVRTC and the cache, and needs no GPU. A kernel
that is in the cache is found without importing xDSL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal, TypeAlias

from gemmir.cache import Cache, is_key
from gemmir.cache_files import Entry, Json
from gemmir.cache_keys import canonical, digest, recorded, sources_digest, xdsl_version
from gemmir.errors import InputError
from gemmir.kernel import CompiledKernel
from gemmir.manifest import Manifest
from gemmir.records import dataclass
from gemmir.target import SM_90A, find_target
from gemmir.watchdog_limit import watchdog_limit

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp
    from xdsl.passes import ModulePass

    from gemmir.decisions import Terms
    from gemmir.pipeline import Observer
    from gemmir.program import Program

Source: TypeAlias = "Program | str | Path | ModuleOp"
Level = Literal["gemm", "schedule", "hopper", "cuda"]
LEVELS: tuple[Level, ...] = ("gemm", "schedule", "hopper", "cuda")
"""From what is computed to how: the problem, the problem with its schedule, the kernel, its CUDA source."""

PROOF = "hopper-check-sync"
"""The pass that changes nothing."""

logger = logging.getLogger("gemmir.compiler")


@dataclass
class Lowered:
    """
    A program on its way down.

    `ir` has the text of each level that was reached ("gemm", "schedule", "hopper"). `source` and `manifest` are there
    if it went to "cuda".
    """

    module: ModuleOp
    ir: dict[str, str] = field(default_factory=dict[str, str])
    source: str = ""
    manifest: Manifest | None = None
    decisions: tuple[str, ...] = ()
    schedule: str = ""
    """The schedule attribute as text; "" where the program came in as a kernel."""


def compile(
    source: Source,
    *,
    target: str = SM_90A.name,
    pipeline: str | None = None,
    m: int | None = None,
    cache: bool = True,
    chaos: bool = False,
    watchdog_ms: int | None = None,
) -> CompiledKernel:
    """
    Compile a program to a kernel for `target`; needs no GPU and no CUDA toolkit.

    `source` is a `Program`, IR text, the path of a `.mlir` file, or a module. `pipeline` replaces the usual passes. `m`
    is the M to choose the schedule for where the program leaves it open: the kernel serves every M. Of a program with
    `counts` it is how many rows of a group are expected to count. Kernels are kept on
    disk unless `cache` is False. With `chaos` the kernel sleeps at random before everything that synchronises, which
    must not change a bit of its results (see `CompiledKernel.reseed`); it is slow, and for tests only.

    `watchdog_ms`: a wait at a barrier of the kernel that lasts longer, in milliseconds, ends it, and the next call
    raises `DeviceLostError` (GMR-D010), which says who waited where. 0: no watchdog; None: what GEMMIR_WATCHDOG_MS
    says, by default 0. Results have the same bits with it, a little later.

    Raises `IRError`, `UnsupportedError`, `ScheduleError`, `SyncError` or `CompileError`; `InputError` for an option.
    """
    find_target(target)
    limit = watchdog_limit(watchdog_ms)
    facts = {
        "program": _key_text(source),
        "pipeline": pipeline or "",
        "m": "" if m is None else str(m),
        "chaos": str(chaos),
        "watchdog": str(limit),
        **_tools(target),
    }

    def build() -> Entry:
        lowered = lower(source, target=target, pipeline=pipeline, m=m, watchdog_ms=limit or 0)
        if chaos:
            _print(lowered, target, limit, checked=True, chaos=True)
        if _key_text(source) != facts["program"]:  # what came out may be of either
            raise InputError("GMR-I005", f"{source!s:.100}: it changed while it was compiled", fix="compile it again")
        return _compiled(lowered, target, facts)

    if not cache:
        return _kernel(build())
    store, key = Cache(), digest(facts)
    return _kernel(_found_or_built(store, key, facts, build), store, key)


def compile_call(call: object, program: Callable[[], Program]) -> CompiledKernel:
    """
    The kernel of `program()`, a program that `call` and nothing else decides.

    `call` is made of what `gemmir.cache_keys.canonical` knows. For each call the cache holds the key of its kernel, in
    an entry that is checked like those of kernels: where both are there, neither the program nor xDSL is needed.
    Errors are those of `program()` and of `compile`.
    """
    limit = watchdog_limit()
    plain = {"pipeline": "", "m": "", "chaos": str(False), "watchdog": str(limit), **_tools(SM_90A.name)}
    asked = {"call": canonical(call), **plain}
    store, name = Cache(), digest(asked)
    known = store.get(name, "call")
    if known is not None and known.header.get("facts") == recorded(asked):
        key = str(known.header.get("kernel"))
        if is_key(key) and (entry := store.found(key, plain)) is not None:
            return _kernel(entry, store, key)
    source = program()
    facts = {"program": _key_text(source), **plain}
    key = digest(facts)
    entry = _found_or_built(
        store, key, facts, lambda: _compiled(lower(source, watchdog_ms=limit or 0), SM_90A.name, facts)
    )
    store.put(name, Entry({"kernel": key, "facts": recorded(asked)}, b""), "call")
    return _kernel(entry, store, key)


def _tools(target: str) -> dict[str, str]:
    """What else a kernel depends on: the code that makes it, here and in other packages, and for what."""
    from gemmir.backends.cuda.nvrtc import build_id

    return {"target": target, "gemmir": sources_digest(), "xdsl": xdsl_version(), "nvrtc": build_id()}


def lower(
    source: Source,
    *,
    target: str = SM_90A.name,
    pipeline: str | None = None,
    m: int | None = None,
    until: Level = "cuda",
    observer: Observer | None = None,
    watchdog_ms: int | None = None,
) -> Lowered:
    """
    Take a program down to level `until`; arguments as for `compile`.

    `observer` is told of each pass: the IR before the first and after each, and how long it took.

    IR that is at a lower level already is taken from there.
    """
    from gemmir.decisions import collect
    from gemmir.ir_text import verify_module
    from gemmir.pipeline import Observer, parse_pipeline, run_passes

    find_target(target)
    limit = watchdog_limit(watchdog_ms)
    told = Observer() if observer is None else observer
    module = module_of(source)
    _expect(module, m)
    lowered = Lowered(module)
    level = _level(module)
    text = lowered.ir[level] = str(module)
    passes = _passes_until(parse_pipeline(pipeline), until)
    if level == "hopper":
        passes = tuple(p for p in passes if p.name.startswith("hopper-"))

    def after(pass_: ModulePass, module: ModuleOp) -> None:
        nonlocal began, text
        seconds = perf_counter() - began
        text = text if pass_.name == PROOF else str(module)
        lowered.schedule = _schedule_text(module) or lowered.schedule
        lowered.ir["gemm" if pass_.name == "gemm-canonicalize" else _level(module)] = text
        told.ran(pass_, text, seconds)
        began = perf_counter()

    told.starts(passes, text)
    began = perf_counter()
    with collect() as decisions:
        run_passes(module, passes, after)
    lowered.decisions = tuple(f"{d.by}: {d}" for d in decisions)
    lowered.ir.setdefault("schedule", lowered.ir.get("gemm", ""))
    if until == "cuda":
        verify_module(module)
        began = perf_counter()
        _print(lowered, target, limit, checked=bool(passes) and passes[-1].name == PROOF)
        told.printed(lowered.source, perf_counter() - began)
    return lowered


def cost_terms(lowered: Lowered) -> tuple[Terms, ...]:
    """What the cost model makes of what was lowered to level "schedule", and of the best with another tile."""
    from gemmir.dialects.gemm import problem_of, schedule_of, the_matmul
    from gemmir.passes.cost_terms import compared

    matmul = the_matmul(lowered.module)
    return compared(problem_of(matmul), schedule_of(matmul))


def fastest_split_k(source: Source, m: int | None = None) -> int:
    """
    In how many parts K is summed fastest, by the cost model, for M = `m`, or for what the program expects.

    `Program.matmul(split_k=...)` takes it; results then depend on M, if only in their last bits.
    """
    from gemmir.dialects.gemm import problem_of, the_matmul
    from gemmir.passes.split_choice import fastest_split_k as fastest

    module = module_of(source)
    _expect(module, m)
    return fastest(problem_of(the_matmul(module)))


def module_of(source: Source) -> ModuleOp:
    """A verified module of one's own: what is done to it does not show in `source`."""
    from xdsl.dialects.builtin import ModuleOp

    from gemmir.ir_text import parse_module, verify_module
    from gemmir.program import Program

    if isinstance(source, Program):
        return source.module
    if isinstance(source, str | Path):
        path = _path(source)
        return parse_module(str(source)) if path is None else parse_module(_read(path), str(path))
    if not isinstance(source, ModuleOp):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            "GMR-I005",
            f"a program of type {type(source).__name__}",
            rule="a program is a gemmir.Program, IR text, a path or a ModuleOp",
        )
    verify_module(source)
    return source.clone()


def _path(source: str | Path) -> Path | None:
    if isinstance(source, Path):
        return source
    return Path(source) if source.endswith(".mlir") and "\n" not in source else None


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise InputError("GMR-I005", f"{path}: {error.strerror}", fix="pass the path of a .mlir file") from None


def _key_text(source: Source) -> str:
    from gemmir.program import Program

    if isinstance(source, Program):
        return "program " + source.key()
    if isinstance(source, str | Path):
        path = _path(source)
        return "text " + (str(source) if path is None else _read(path))
    return "text " + str(source)


def _level(module: ModuleOp) -> str:
    from gemmir.dialects.gemm import ProductOp
    from gemmir.dialects.hopper import KernelOp

    if any(isinstance(op, KernelOp) for op in module.body.block.ops):
        return "hopper"
    scheduled = any(isinstance(op, ProductOp) and op.schedule is not None for op in module.walk())
    return "schedule" if scheduled else "gemm"


def _schedule_text(module: ModuleOp) -> str:
    from gemmir.dialects.gemm import ProductOp

    found = [str(op.schedule) for op in module.walk() if isinstance(op, ProductOp) and op.schedule is not None]
    return found[0] if found else ""


def _expect(module: ModuleOp, m: int | None) -> None:
    """Record for which M the schedule is to be chosen."""
    if m is None:
        return
    from xdsl.dialects.builtin import IntegerAttr, i64

    from gemmir.dialects.gemm import ProductOp
    from gemmir.problem import Grouping

    if not isinstance(m, int) or m < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError("GMR-I009", f"m = {m}", rule="the M to choose a schedule for is at least 1", fix="leave m out")
    for op in module.walk():
        if isinstance(op, ProductOp) and (op.info().m is None or op.grouping is Grouping.COUNTS):
            op.expect = IntegerAttr(m, i64)


def _passes_until(passes: tuple[ModulePass, ...], until: Level) -> tuple[ModulePass, ...]:
    """The passes that lead to level `until`."""
    if until == "gemm":
        return tuple(p for p in passes if p.name == "gemm-canonicalize")
    if until == "schedule":
        return tuple(p for p in passes if p.name.startswith("gemm-") and p.name != "gemm-lower-to-hopper")
    return passes


def _print(lowered: Lowered, target: str, limit: int | None, *, checked: bool, chaos: bool = False) -> None:
    """Prove (unless `checked` just now), print, and compare what was printed with what was proven."""
    from gemmir.backends.cuda.audit import audit_source
    from gemmir.backends.cuda.describe import describe
    from gemmir.backends.cuda.printer import print_kernel
    from gemmir.backends.cuda.source_lint import lint
    from gemmir.backends.cuda.target import the_kernel
    from gemmir.passes.sync.check import check_kernel

    kernel = the_kernel(lowered.module)
    if not checked:
        check_kernel(kernel)
    printed = print_kernel(kernel, chaos, limit)
    lint(printed.source, printed.entry)
    audit_source(kernel, printed.source)
    lowered.source = printed.source
    lowered.manifest = describe(kernel, printed.entry, target, lowered.schedule, lowered.decisions, chaos)


def _compiled(lowered: Lowered, target: str, facts: Mapping[str, str]) -> Entry:
    """Compile the CUDA source; the entry holds all that a `CompiledKernel` shows, and the facts that it depends on."""
    from gemmir import __version__
    from gemmir.backends.cuda.compiler_log import check_log
    from gemmir.backends.cuda.nvrtc import compile_cubin, version

    compiled = compile_cubin(lowered.source, target)
    looks_for_faults = facts["chaos"] == str(True) or facts["watchdog"] != str(None)
    resources = check_log(compiled.log, may_spill=looks_for_faults)
    assert lowered.manifest is not None
    logger.info("%s: %d registers", lowered.manifest.entry, resources.registers)
    header: dict[str, Json] = {
        "facts": recorded(facts),
        "made_by": {"gemmir": __version__, "nvrtc": "{}.{}".format(*version())},
        "manifest": lowered.manifest.to_json(),
        "source": lowered.source,
        "log": compiled.log,
        "ir": {level: text for level, text in lowered.ir.items()},
    }
    return Entry(header, compiled.cubin)


def _found_or_built(store: Cache, key: str, facts: Mapping[str, str], build: Callable[[], Entry]) -> Entry:
    """The entry of `key`; built under the key's lock, so that processes that start together compile once."""
    if (entry := store.found(key, facts)) is not None:
        return entry
    with store.lock(key):
        if (entry := store.found(key, facts)) is not None:
            return entry
        entry = build()
        store.put(key, entry, source=str(entry.header["source"]))
        return entry


def _kernel(entry: Entry, store: Cache | None = None, key: str = "") -> CompiledKernel:
    """What `entry` holds, and where it is kept, if it is."""
    header = entry.header
    ir = header["ir"]
    assert isinstance(ir, dict)
    return CompiledKernel(
        manifest=Manifest.from_json(str(header["manifest"])),
        source=str(header["source"]),
        cubin=entry.payload,
        log=str(header["log"]),
        texts={str(level): str(text) for level, text in ir.items()},
        source_path=None if store is None else store.source_path(key),
        key=key,
    )
