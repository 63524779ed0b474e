"""Text that would be code in CUDA source, in every place that takes a string: refused, or without any effect on it."""

import re
from functools import cache

import pytest

import gemmir
from gemmir.compiler import lower
from gemmir.errors import GemmirError, InputError

M = 64

CODE = (
    "evil",
    "x(){} __global__ void pwn(",
    "*/ int pwn; /*",
    "// pwn",
    '}; asm volatile("trap;"); {',
    "#include </etc/passwd>",
    "#pragma unroll 4096",
    "#define float double",
    '#line 1 "pwn.cu"',
    '_Pragma("once")',
    '__asm__("exit;")',
    'R"(pwn)"',
    "'\\''",
    "\\",
    "??/",
    "??=define N 1",
    "%:define N 1",
    "<% int pwn; %>",
    "\\u007b\\N{LATIN SMALL LETTER A}",
    "%s%n%x{0}{self.__class__}",
    "${HOME}$(id)`id`",
    "../../../etc/passwd",
    "sm_90a; rm",
    "smem",
    "__launch_bounds__(1, 1)",
)
WRAPPERS = (
    "{}",
    "\n{}\n",
    "\\\n{}",
    '"{}"',
    "a\u202e{}\u2066",
    "\u0430{}",
    "\r{}\r\n",
    "{}\0",
    "\u2028{}\x85",
    "\f\v\x1b[31m{}",
)
PAYLOADS = tuple(wrapper.replace("{}", code) for code in CODE for wrapper in WRAPPERS)

STRINGS = """\
builtin.module @{p} attributes {{{p} = {p}, "b" = {{{p} = [{p}, @{p}]}}}} {{
  func.func @{p}(%a: tensor<?x64xbf16>, %b: tensor<64x64xbf16>) -> tensor<?x64xbf16> attributes {{{p} = {p}}} {{
    %d = gemm.matmul %a, %b : (tensor<?x64xbf16>, tensor<64x64xbf16>) -> tensor<?x64xbf16> loc({p}:1:1)
    func.return %d : tensor<?x64xbf16> loc({p})
  }} loc({p}:2:3)
}}
"""
"""A program; `{p}`: a string."""

NAMES = {
    "function": "func.func @P(%a: tensor<?x64xbf16>, %b: tensor<64x64xbf16>) -> tensor<?x64xbf16> {\n  R\n}",
    "argument": "func.func @f(%P: tensor<?x64xbf16>, %b: tensor<64x64xbf16>) -> tensor<?x64xbf16> {\n  R\n}",
    "comment": "// P\nfunc.func @f(%a: tensor<?x64xbf16>, %b: tensor<64x64xbf16>) -> tensor<?x64xbf16> {\n  R\n}",
}
PRODUCT = """%d = gemm.matmul %a, %b : (tensor<?x64xbf16>, tensor<64x64xbf16>) -> tensor<?x64xbf16>
  func.return %d : tensor<?x64xbf16>"""


def quoted(text: str) -> str:
    """`text` as a string of the IR: what is not printable ASCII as escapes of its bytes."""
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02X}" for b in text.encode())
    return '"' + "".join(plain) + '"'


def with_strings(payload: str) -> str:
    return STRINGS.format(p=quoted(payload))


def with_name(slot: str, payload: str) -> str:
    text = NAMES[slot].replace("P", payload, 1)
    return text.replace("R", PRODUCT.replace("%a", f"%{payload}") if slot == "argument" else PRODUCT)


@cache
def harmless() -> str:
    return lower(with_strings("f"), m=M).source


@cache
def kernel() -> str:
    return lower(with_strings("f"), m=M).ir["hopper"]


def reaches_source(text: str) -> bool:
    """Whether the program is compiled; if so to the same bytes as with a harmless name."""
    try:
        source = lower(text, m=None if "hopper.kernel" in text else M).source
    except GemmirError:
        return False
    assert source == harmless()
    return True


def test_there_are_enough_payloads():
    assert len(set(PAYLOADS)) >= 200


@pytest.mark.parametrize("wrapper", range(len(WRAPPERS)))
def test_strings_of_a_program_do_not_reach_the_source(wrapper: int):
    compiled = [reaches_source(with_strings(payload)) for payload in PAYLOADS[wrapper :: len(WRAPPERS)]]
    assert len(compiled) == len(CODE)
    assert all(compiled) or not WRAPPERS[wrapper].isascii(), "what is quoted is only a name"


@pytest.mark.parametrize("slot", NAMES)
def test_names_of_a_program_do_not_reach_the_source(slot: str):
    compiled = sum(reaches_source(with_name(slot, payload)) for payload in PAYLOADS)
    assert 0 < compiled < len(PAYLOADS), "some are names, some no IR"


def test_strings_of_a_kernel_do_not_reach_the_source():
    text = kernel()
    for old in ("@f", '"a"', '"b"', '"out"'):
        assert old in text
    for payload in PAYLOADS[:: len(WRAPPERS)]:
        name = quoted(payload)
        changed = text.replace("@f", f"@{name}").replace('"a"', name).replace('"b"', name).replace('"out"', name)
        assert reaches_source(changed)


@pytest.mark.parametrize("name", ["evil", "asm", "goto", "N", "__global__", "__launch_bounds__", "$x", "a.b", "a-b"])
def test_names_of_values_of_a_kernel_become_numbers(name: str):
    def source(name: str) -> str:
        return lower(re.sub(r"%(total0|ring_a|full|k|out)\b", rf"%{name}_of_\1", kernel())).source

    assert source(name) == source("harmless") != harmless()


def test_names_of_a_builder_are_identifiers():
    for payload in PAYLOADS[1:]:
        if payload.isascii() and payload.isidentifier():
            continue
        with pytest.raises(InputError, match="identifier"):
            gemmir.Program(payload)
        with pytest.raises(InputError, match="identifier"):
            gemmir.Program("f").input(payload, (None, 64), "bf16")


@pytest.mark.parametrize("option", ["target", "pipeline"])
def test_options_do_not_reach_the_source(option: str):
    for payload in PAYLOADS:
        with pytest.raises(GemmirError):
            lower(with_strings("f"), m=M, **{option: payload})  # type: ignore[arg-type]


def test_words_of_a_builder_are_from_lists():
    p = gemmir.Program("f")
    a, b = p.input("a", (None, 64), "bf16"), p.input("b", (64, 64), "bf16")
    for payload in PAYLOADS:
        for options in ({"recipe": payload}, {"a_major": payload}, {"schedule": {payload: 1}}):
            with pytest.raises(InputError):
                p.matmul(a, b, **options)  # type: ignore[arg-type]
        with pytest.raises(InputError):
            p.input("c", (None, 64), payload)
