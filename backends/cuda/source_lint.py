"""
The last look at CUDA source before a compiler sees it: it says nothing but what gemmir itself has words for.

No string of the IR reaches the source, by construction of the printer. This does not rely on that. The head of a source
is made of sections of the prelude, verbatim; every word of the kernel is one of C++ that the printer uses, one that the
prelude has, or a name that the writer mints.
"""

from __future__ import annotations

import re
from itertools import product

from gemmir.backends.cuda.prelude import sections
from gemmir.backends.cuda.wgmma import multiply_name, wgmma_wrapper
from gemmir.backends.cuda.writer import NAMES
from gemmir.dtypes import DTYPES
from gemmir.errors import CompileError

MAX_BYTES = 1 << 20
MAX_INT = 2**31 - 1
MAX_WGMMAS = 2
"""Shapes of WGMMA in a kernel: the last columns may be computed in narrower tiles."""

WORDS = frozenset(
    "__align__ __cluster_dims__ __grid_constant__ __launch_bounds__ __ldg __shared__ __syncthreads __syncwarp auto "
    "else extern false smem staging true".split()
)
"""Words of C++ and of the kernel's frame that no section of the prelude has."""

_ALLOWED = re.compile(r"[\n -~]*")
_JOINED = re.compile(r"\\\n|\?\?|%:|<:|:>|<%|%>")
"""What would change how the lines after it are read: continued lines, trigraphs, digraphs."""

_KERNEL = '\nextern "C" __global__ '
_ENTRY = re.compile(r"gemm_[a-z0-9]+_[a-z0-9]+_[a-z0-9_]+")
_COMMENT = re.compile(r"//[^\n]*")
_CONSTANT = re.compile(r"constexpr (?:int|float) [A-Za-z_]\w* = [-+0-9.eEx]+f?;")
_WORD = re.compile(r"(?<!\w)[A-Za-z_]\w*")
_WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<n>\d{1,3})k\d+\.f32\.(?P<a>\w+)\.(?P<b>\w+) ")
_NUMBERED = re.compile(r"_\d+$")
_UNROLL = re.compile(r"^#pragma unroll 1$", re.MULTILINE)
_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")
_FORBIDDEN = re.compile(r"[\"'#\\`@$]")


def lint(source: str, entry: str) -> None:
    """Raise `CompileError` (GMR-C005) unless `source` is one that the printer can have made, of the kernel `entry`."""
    if len(source) > MAX_BYTES:
        raise _refused(f"{len(source)} bytes of source", f"at most {MAX_BYTES}")
    if _ALLOWED.fullmatch(source) is None:
        raise _refused("a character that is not printable ASCII", "source is ASCII")
    if (found := _JOINED.search(source)) is not None:
        raise _refused(f"{found[0]!r}", "no line is continued, and no character is spelled by others")
    head, kernel, body = source.rpartition(_KERNEL)
    if not kernel or _ENTRY.fullmatch(entry) is None:
        raise _refused(f"no kernel {entry!r:.60}", "a source has one kernel, named after its schedule")
    known = _check_head(head)
    _check_numbers(_COMMENT.sub("", body), *_CONSTANT.findall(head))
    _check_body(_COMMENT.sub("", body), known | {entry})


def _check_head(head: str) -> set[str]:
    """The words of the sections that `head` is made of, with comments and constants between them."""
    known: set[str] = set()
    for text in [*(section.text for section in sections().values()), *_wrappers(head)]:
        if text in head:
            head = head.replace(text, "", 1)
            known |= set(_WORD.findall(text))
    for line in head.splitlines():
        if line and _COMMENT.fullmatch(line) is None and _CONSTANT.fullmatch(line) is None:
            raise _refused(f"{line[:60]!r} before the kernel", "there are sections of the prelude, and constants")
        known |= set(_WORD.findall(line)) if _CONSTANT.fullmatch(line) else set()
    return known


def _check_numbers(*texts: str) -> None:
    """Those of the kernel and of the constants before it are `int`s of C++: none becomes another on its way."""
    for found in (found[0] for text in texts for found in _NUMBER.finditer(text)):
        if len(found) > len(str(MAX_INT)) or int(found) > MAX_INT:
            raise _refused(f"the number {found[:40]}", f"numbers are at most {MAX_INT}")


def _wrappers(head: str) -> list[str]:
    """The texts that the wrappers of the WGMMAs in `head` may have."""
    texts: list[str] = []
    for found in list(_WGMMA.finditer(head))[:MAX_WGMMAS]:
        a, b = (next((d for d in DTYPES.values() if d.ptx == name), None) for name in (found["a"], found["b"]))
        if a is None or b is None:
            continue
        columns = int(found["n"])
        for *panels, first in product((False, True), repeat=3):
            texts.append(wgmma_wrapper(a, b, columns, *panels, name=multiply_name(columns, first)))
    return texts


def _check_body(body: str, known: set[str]) -> None:
    if (found := _FORBIDDEN.search(_UNROLL.sub("", body))) is not None:
        raise _refused(f"{found[0]!r} in the kernel", "a kernel has no strings and no directives")
    for word in dict.fromkeys(_WORD.findall(body)):
        if word not in known and word not in WORDS and _NUMBERED.sub("", word) not in NAMES | {"v"}:
            raise _refused(f"the word {word[:60]!r}", "every word is one of gemmir's")


def _refused(what: str, rule: str) -> CompileError:
    return CompileError("GMR-C005", what, rule=rule, fix="report it: gemmir must not print such source")
