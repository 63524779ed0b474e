"""
What a kernel that hung says of itself, and how the host hears it.

A kernel that is compiled with a watchdog has other waits in its prelude (`prelude_watchdog.cuh`): who waits at an
mbarrier for too long writes where into memory of the host, and ends the kernel. That memory outlives the context.
"""

from __future__ import annotations

import re
from ctypes import c_uint32
from typing import Any

from gemmir.backends.cuda import driver
from gemmir.records import dataclass

REPORTS, WORDS = 256, 8
"""Room of a record, as the prelude has it: reports, and words of 32 bits of each."""
_UNIT_NS = 1 << 20
_MOST_SHOWN = 16
_LIMIT = re.compile(r"^constexpr int WATCHDOG_MS = (\d+);$", re.MULTILINE)
_STORAGE = re.compile(r"^ *const u32 (\w+) = smem(?: \+ (\d+))?;$", re.MULTILINE)
_BARRIERS = re.compile(r"\bi < (\d+); \+\+i\) mbarrier_init\((\w+) \+ i \* 8,")
_ROLE = re.compile(r"^ *(?:\} else )?if \(warp (<|==) (\d+)[^\n]*\{$|^ *\} else \{$", re.MULTILINE)
_CALLED = re.compile(r"// (\w+ \w+): ")


@dataclass(frozen=True, slots=True)
class Report:
    """
    One warp that waited for too long: number of its CTA, its own, and how long in milliseconds.

    The barrier lies `offset` bytes into dynamic shared memory; `parity` is that of the phase which did not end.
    """

    cta: int
    warp: int
    offset: int
    parity: int
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Barriers:
    """An array of mbarriers of 8 bytes each, `offset` bytes into shared memory."""

    name: str
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class Role:
    """Warps `first` to before `end` and what the source calls them."""

    name: str
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Watched:
    """What of the source of a kernel its reports are read by; the first role that has a warp is its own."""

    limit_ms: int
    barriers: tuple[Barriers, ...]
    roles: tuple[Role, ...]

    def barrier(self, offset: int) -> str:
        """Which barrier lies there, by the name that it has in the source."""
        for array in self.barriers:
            if 0 <= offset - array.offset < 8 * array.count:
                return f"{array.name}[{(offset - array.offset) // 8}]"
        return f"shared memory + {offset}"

    def role(self, warp: int) -> str:
        return next((f" ({role.name})" for role in self.roles if role.first <= warp < role.end), "")

    def line(self, report: Report) -> str:
        """A report, to be read by people."""
        who = f"warp {report.warp}{self.role(report.warp)}"
        where = f"{self.barrier(report.offset)}, whose phase of parity {report.parity} does not end"
        return f"{who} waits at {where}: {report.milliseconds} ms"


def watched(source: str) -> Watched | None:
    """What the source of a kernel says of its watchdog; None if it has none."""
    if (limit := _LIMIT.search(source)) is None:
        return None
    at = {name: int(offset or 0) for name, offset in _STORAGE.findall(source)}
    barriers = tuple(Barriers(name, at[name], int(count)) for count, name in _BARRIERS.findall(source) if name in at)
    return Watched(int(limit[1]), barriers, _roles(source))


def _roles(source: str) -> tuple[Role, ...]:
    """Of each block of warps the words that its first comment begins with; single warps first."""
    found: list[Role] = []
    for head in _ROLE.finditer(source):
        called = _CALLED.search("".join(source[head.end() :].lstrip("\n").splitlines(keepends=True)[:2]))
        if called is not None and head[1] is not None:
            number = int(head[2])
            first, end = (number, number + 1) if head[1] == "==" else (0, number)
            found.append(Role(called[1].lower(), first, end))
    return tuple(sorted(found, key=lambda role: role.end - role.first))


class Record:
    """Memory of the host that the kernel `name` reports to. It is never freed: a kernel may write at any time."""

    def __init__(self, name: str, watched: Watched, memory: Any):
        self.name = name
        self.watched = watched
        self._words = memory

    def reports(self) -> list[Report]:
        """Those that are complete, in the order in which they were made."""
        rows = (self._words[i * WORDS : (i + 1) * WORDS] for i in range(REPORTS))
        return [Report(*row[1:5], row[5] * _UNIT_NS // 1_000_000) for row in rows if row[0] == 1]

    def lines(self) -> list[str]:
        """What happened, for people; nothing if nothing did. All of the CTA that reported first, a count of others."""
        reports = self.reports()
        if not reports:
            return []
        of_first = [report for report in reports if report.cta == reports[0].cta]
        others = {report.cta for report in reports} - {reports[0].cta}
        shown = list(dict.fromkeys(f"  {self.watched.line(report)}" for report in of_first))[:_MOST_SHOWN]
        head = f"the watchdog ended {self.name}, which waited for more than {self.watched.limit_ms} ms in CTA"
        full = " or more" if len(reports) == REPORTS else ""
        rest = [f"  so do warps of {len(others)}{full} other CTAs"] if others else []
        return [f"{head} {reports[0].cta}:", *shown, *rest]


records: list[Record] = []
"""Of every kernel with a watchdog that this process has loaded."""


def attach(module: Any, name: str, watched: Watched) -> Record:
    """Give the kernel `name`, just loaded as `module` into the current context, where to report; `DeviceError`."""
    cuda = driver.bindings()
    flags = cuda.CU_MEMHOSTALLOC_PORTABLE | cuda.CU_MEMHOSTALLOC_DEVICEMAP
    host = int(driver.checked(cuda.cuMemHostAlloc(REPORTS * WORDS * 4, flags), "cuMemHostAlloc"))
    words = (c_uint32 * (REPORTS * WORDS)).from_address(host)
    for i in range(REPORTS):
        words[i * WORDS] = 0
    seen = int(driver.checked(cuda.cuMemHostGetDevicePointer(host, 0), "cuMemHostGetDevicePointer"))
    variable, _ = driver.checked(cuda.cuModuleGetGlobal(module, b"watchdog"), "cuModuleGetGlobal")
    driver.checked(cuda.cuMemcpyHtoD(variable, seen.to_bytes(8, "little"), 8), "cuMemcpyHtoD")
    record = Record(name, watched, words)
    records.append(record)
    return record


def barks() -> list[str]:
    """What the watchdogs of this process have reported, for people; nothing if none has."""
    return [line for record in records for line in record.lines()]
