"""No string that someone else wrote reaches CUDA source: it is refused, or the source is what it is without it."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import pytest

import gemmir
from gemmir.backends.cuda import source_lint
from gemmir.bench.cases import Case
from gemmir.compiler import Lowered, lower
from gemmir.errors import CompileError, GemmirError, InputError

CASE = Case("f8E4M3FN", 64, 256, 512)

PIECES = (
    'asm volatile("trap;");',
    "__global__ void evil() {}",
    "#include </etc/passwd>",
    '#include "/etc/passwd"',
    "#define mbarrier_wait(a, b)",
    "#pragma nv_diag_suppress 177",
    "#line 1 \\",
    "*/ evil(); /*",
    "// evil",
    "evil(); //\\",
    "??/",
    "%:define N 0",
    "<% evil %>",
    '_Pragma("once")',
    'R"(evil)"',
    "'\\x41'",
    "\\u0041",
    "{0.__class__}",
    "%s%n%p",
    "${N}",
    "../../../../tmp/evil",
    "\u202eevil\u202c",
    "m\u0430trix",
    "evil\u2028evil",
    "ring_a = 0; v_1",
)
AROUND = ("{}", "x{}", "{}\n", "\n{}\n", "x\r{}", "{0}{0}", "map_a){{{}}}", ");{}(")
PAYLOADS = tuple(around.format(piece) for piece, around in itertools.product(PIECES, AROUND))


def quoted(text: str) -> str:
    """As a string of IR text, each byte spelled."""
    return '"' + "".join(f"\\{byte:02X}" for byte in text.encode()) + '"'


@cache
def harmless() -> Lowered:
    return lower(CASE.text, m=64)


def comes_out(text: object, **options: object) -> str | None:
    """The CUDA source of a program, or None if it is refused as anything wrong is."""
    try:
        return lower(text, **options).source  # type: ignore[arg-type]
    except GemmirError as error:
        message, code = str(error), error.code
    assert all(c.isprintable() or c == "\n" for c in message), "a message that a terminal might obey"
    assert code != "GMR-C005", "caught by the last look only"
    return None


def test_there_are_two_hundred():
    assert len(set(PAYLOADS)) == 200


@pytest.mark.parametrize("piece", range(len(PIECES)))
def test_names_and_strings_of_a_program(piece: int):
    """The function's name, and strings that the module and the function carry."""
    text = harmless().ir["schedule"]
    assert (text.count("builtin.module {"), text.count("@layer(")) == (1, 1)
    for payload in PAYLOADS[piece * len(AROUND) : (piece + 1) * len(AROUND)]:
        name = quoted(payload)
        hostile = text.replace("@layer(", f"@{name}(").replace(
            "builtin.module {",
            f"builtin.module @{name} attributes {{a = {name}, {name} = {name}, b = [{name}], c = {{d = {name}}}}} {{",
            1,
        )
        hostile = hostile.rstrip().removesuffix("}") + f"}} loc({name}:2:3)\n"
        assert comes_out(hostile) in (None, harmless().source), payload
        assert comes_out(text.replace("@layer(", f"@{name}(")) == harmless().source, payload


@pytest.mark.parametrize("piece", range(len(PIECES)))
def test_names_and_labels_of_a_kernel(piece: int):
    """The kernel's name, and the labels of its tensors."""
    text = harmless().ir["hopper"]
    assert text.count("@layer ") == text.count('"xs"') == text.count('"out"') == 1
    payload = PAYLOADS[piece * len(AROUND) + piece % len(AROUND)]
    name = quoted(payload)
    hostile = text.replace("@layer ", f"@{name} ").replace('"xs"', name).replace('"out"', name)
    wanted = (harmless().source,) if payload.isascii() else (harmless().source, None)
    assert comes_out(hostile) in wanted, payload


def test_text_that_is_pasted_anywhere():
    """Between any two words of a program: almost always refused, and never seen again."""
    text = harmless().ir["schedule"]
    places = [at for at, c in enumerate(text) if c in " (,<"]
    for number, payload in enumerate(PAYLOADS):
        at = places[number * len(places) // len(PAYLOADS)]
        assert comes_out(text[:at] + payload + text[at:]) in (None, harmless().source), payload


def test_names_of_values_become_names_of_ours():
    """Of a value that is not known by its name, only a number is left."""
    text = harmless().ir["hopper"]

    def source(name: str) -> str | None:
        return comes_out(text.replace("%ring_a", f"%{name}"))

    unknown = source("unknown")
    assert unknown is not None
    assert "unknown" not in unknown
    assert "const u32 v = smem;" in unknown
    for name in ("evil", "asm", "__global__", "N", "smem", "define", "v", "trap.evil", "return"):
        assert source(name) == unknown, name
    assert source("ring_a_2") == harmless().source


@pytest.mark.parametrize("payload", PAYLOADS)
def test_names_in_python_are_identifiers(payload: str):
    with pytest.raises(InputError, match="GMR-I009"):
        gemmir.Program(payload)
    program = gemmir.Program("layer")
    with pytest.raises(InputError, match="GMR-I009"):
        program.input(payload, (None, 512), "bf16")
    with pytest.raises(GemmirError):
        lower(CASE.text, pipeline=payload)
    with pytest.raises(GemmirError, match="GMR-U002"):
        lower(CASE.text, target=payload)


def test_words_of_a_builder_are_from_lists():
    p = gemmir.Program("layer")
    a, b = p.input("a", (None, 64), "bf16"), p.input("b", (64, 64), "bf16")
    for payload in PAYLOADS:
        for options in ({"recipe": payload}, {"a_major": payload}, {"schedule": {payload: 1}}):
            with pytest.raises(InputError):
                p.matmul(a, b, **options)  # type: ignore[arg-type]
        with pytest.raises(InputError):
            p.input("c", (None, 64), payload)


@pytest.mark.parametrize("piece", [piece for piece in PIECES if "/" not in piece])
def test_names_of_files_stay_outside(piece: str, tmp_path: Path):
    path = tmp_path / f"{piece}.mlir"
    path.write_text(CASE.text)
    assert lower(path, m=64).source == harmless().source


# ------------------------------------------------------------ the last look


def test_every_payload_is_seen_by_the_last_look():
    source, entry = harmless().source, entry_of()
    source_lint.lint(source, entry)
    words_of_ours = ("// evil", "%s%n%p", "ring_a = 0; v_1")  # or none: the audit compares those with the IR
    for piece, around in itertools.product([piece for piece in PIECES if piece not in words_of_ours], AROUND):
        payload = around.format(piece)
        hostile = source.replace("prefetch_tensormap(map_a);", f"prefetch_tensormap(map_a);\n{payload}\n", 1)
        assert hostile != source
        with pytest.raises(CompileError, match="GMR-C005"):
            source_lint.lint(hostile, entry)


def entry_of() -> str:
    manifest = harmless().manifest
    assert manifest is not None
    return manifest.entry


CHANGES = {
    "a word": ("wgmma_commit();", "wgmma_commit(); printf();"),
    "a wrapper that is not the prelude's": ("DEVICE void mbarrier_init(u32 bar", "DEVICE void mbarrier_init(u32 rab"),
    "a WGMMA of another shape": ("m64n", "m64n1"),
    "a constant": ("constexpr int N = 256;", "constexpr int N = sizeof(int);"),
    "a function before the kernel": ("constexpr int N", "DEVICE void evil() {}\nconstexpr int N"),
    "a second kernel": ("constexpr int N", 'extern "C" __global__ void evil() {}\nconstexpr int N'),
    "an include": ("constexpr int N", "#include <cuda.h>\nconstexpr int N"),
    "a string": ("wgmma_commit();", 'wgmma_commit(); "";'),
    "a continued line": ("// Shared memory", "// Shared \\\n memory"),
    "a tab": ("// Shared", "//\tShared"),
    "a letter": ("// Shared", "// Sh\u0430red"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_the_printer_does_not_print_is_refused(what: str):
    old, new = CHANGES[what]
    assert old in harmless().source
    with pytest.raises(CompileError, match="GMR-C005"):
        source_lint.lint(harmless().source.replace(old, new), entry_of())


def test_a_source_without_end_is_refused():
    with pytest.raises(CompileError, match="GMR-C005: 1048577 bytes"):
        source_lint.lint(" " * ((1 << 20) + 1), entry_of())
    with pytest.raises(CompileError, match="no kernel"):
        source_lint.lint(harmless().source, "evil();")
    with pytest.raises(CompileError, match="no kernel"):
        source_lint.lint("constexpr int N = 1;\n", entry_of())
