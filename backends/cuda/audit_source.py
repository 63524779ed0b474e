"""Reads printed CUDA back: which synchronisation it has, where, and under which condition."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Call:
    """
    One synchronising instruction.

    `where` are the role and loops that it is in, `guard` the condition on it, `ptx` the instruction, `details` what
    distinguishes it: storage by its offset, immediate numbers, `parity` or `parity^1`; `+1` for the next position in
    the ring.
    """

    where: tuple[str, ...]
    guard: str
    ptx: str
    details: tuple[str, ...]

    def __str__(self) -> str:
        inside = " / ".join(self.where) or "the frame"
        guard = f" if {self.guard}" if self.guard else ""
        return f"{self.ptx} {' '.join(self.details)}{guard} in {inside}"


_PTX = (
    r"(?:griddepcontrol|mbarrier|st\.async|cp\.async\.bulk|wgmma|fence|bar|barrier|setmaxnreg|stmatrix"
    r"|[ls][dt]\.shared\.v2|ld\.shared(?=\.b32))"
    r"\.[\w.:]*\w"
)
_DEFINITION = re.compile(r"^(?:template <[^\n]*>\s)?DEVICE \w+ (\w+)\(", re.MULTILINE)
_TIMES = re.compile(r"for \(int \w+ = 0; \w+ < (\d+);")
_BASE = re.compile(r"const u32 (\w+) = smem(?: \+ (\d+))?;")
_STATEMENT = re.compile(
    r"(?:if \((?P<guard>.*)\) )?(?:for \((?P<loop>[^)]*)\) )?(?P<name>\w+)(?:<(?P<types>[^>]*)>)?\((?P<arguments>.*)\);"
)
_TILES = re.compile(r"for \((?:(Tail)?Tiles<|auto tiles = )")
_FIRST_TILE = re.compile(
    r"if \(Tiles<[^>]*> tiles\(\w+\); (?:\w+|\(\w+ \|\| gridDim\.x <= (\d+)\)) && "
    r"(warp == \d+) && lane == 0 && !tiles\.done\(\)\)"
)
_FIRST_ROW = re.compile(r"if \((?!lane\b|rank\b|warp\b)\w+ == 0\)")
_LIST = re.compile(r"const GroupTiles<.*, (?:true|false)(?:, (\d+), (\d+))?> \w+\(groups\);")
_EXIT = re.compile(r"if \(\w+\.none\(\)\) return;")
_K_BLOCKS = re.compile(r"for \(int (\w+) = (\d+); \1 < (\w+(?: - \d+)?); (?:\+\+\1|\1 \+= (\d+))\)")
_BLOCK = re.compile(r"(?:\} )?(?:else )?if \((.*)\)")
_NEXT = re.compile(r"const auto (\w+) = \w+\.next\(\);")
_CURSOR = re.compile(r"(\w+)\.(?:stage|parity)")
_COUNT = re.compile(r"int \w+ = 0; \w+ < (\d+)")
_PART = re.compile(r" \+ \(?(rank(?: \^ 1| [/%] \d+\) \* \d+)?)")
_NUMBER = re.compile(r"\d+")
_PEERS = re.compile(r"\d+ << rank [/%].*|lane < \d+ \? .*")
"""Which CTAs of a cluster of two rows and two columns."""
_LAST = re.compile(r"(?:\w+ \+ (\d+) < (\w+(?: - \d+)?) \|\| )?!tiles\.last\(\)")
_ONLY = re.compile(r"\w+ == (\d+)")
EXIT = "exit without a tile"
_PLAIN = {"__syncthreads": ("bar.sync 0",), "__syncwarp": ("warp.sync",)}


@lru_cache(maxsize=16)
def instructions(prelude: str) -> dict[str, tuple[str, ...]]:
    """Synchronising PTX of every function in `prelude`, what it calls included: `x4` where a loop repeats it."""
    starts = list(_DEFINITION.finditer(prelude))
    names = "|".join(dict.fromkeys(match[1] for match in starts))
    token = re.compile(rf"(?<![\w.:])({_PTX})|\b({names})(?:<[^;]*?>)?\(")
    found: dict[str, tuple[str, ...]] = dict(_PLAIN)
    for match in starts:
        body = _body(prelude, match.start())[match.end() - match.start() :]
        times = _TIMES.search(body)
        suffix = f" x{times[1]}" if times is not None else ""
        inside: list[str] = []
        for ptx, name in token.findall(body):
            inside += [ptx] if ptx else found.get(name, ())
        found[match[1]] = tuple(text + suffix for text in inside)
    return found


def _body(text: str, start: int) -> str:
    """A function: one line, or up to the brace that ends it in the first column."""
    line_end = text.find("\n", text.index("DEVICE", start))
    if text[:line_end].endswith("}"):
        return text[start:line_end]
    return text[start : text.find("\n}", start)]


def calls_of(source: str) -> list[Call]:
    """All synchronising instructions of the kernel in `source`, in order."""
    head, _, body = source.partition('\nextern "C"')
    reader = _Reader(instructions(head))
    for line in body.split("\n"):
        reader.line(line.strip())
    return reader.calls


class _Reader:
    """Keeps track of blocks while it reads the body of a kernel line by line."""

    def __init__(self, known: dict[str, tuple[str, ...]]):
        self.known = known
        self.calls: list[Call] = []
        self.bases: dict[str, int] = {"smem": 0}
        self.ahead: set[str] = set()
        """Names of positions one after another."""
        self.dealt = ""
        """Tiles that a list of groups' deals out at a time."""
        self.blocks: list[tuple[str, str]] = []
        """Open blocks: what `where` and what `guard` gain by each."""

    def line(self, line: str) -> None:
        if line.startswith("}"):
            self.blocks.pop()
        if line.endswith("{"):
            self.blocks.append(self.opened(line.removesuffix("{").strip()))
        elif (dealt := _LIST.fullmatch(line)) is not None:
            self.dealt = f"{dealt[1] or 1}x{dealt[2] or 1} tiles"
        elif _EXIT.fullmatch(line) is not None:
            self.calls.append(Call((), "", EXIT, (self.dealt,)))
        elif (base := _BASE.fullmatch(line)) is not None:
            self.bases[base[1]] = int(base[2] or 0)
        elif (following := _NEXT.fullmatch(line)) is not None:
            self.ahead.add(following[1])
        elif line.endswith(");") and (statement := _STATEMENT.fullmatch(line)) is not None:
            self.statement(statement)

    def opened(self, head: str) -> tuple[str, str]:
        if (tiles := _TILES.match(head)) is not None:
            return "tail tiles" if tiles[1] else "tiles", ""
        if (first := _FIRST_TILE.match(head)) is not None:
            return f"{first[2]}, up to {first[1] or 0} CTAs, first tile", ""
        if _FIRST_ROW.fullmatch(head) is not None:
            return "first row of tiles", ""
        if (loop := _K_BLOCKS.match(head)) is not None:
            return f"k {loop[2]} to {_end(loop[3])} step {loop[4] or 1}", ""
        if head.endswith("else"):
            return "else", ""
        if (condition := _BLOCK.match(head)) is not None:
            role = condition[1].startswith(("warp ", "rank "))
            return (condition[1], "") if role else ("", _guard(condition[1]))
        return "", ""

    def statement(self, found: re.Match[str]) -> None:
        ptx = self.known.get(found["name"])
        if not ptx:
            return
        where = tuple(place for place, _ in self.blocks if place)
        guards = [guard for _, guard in self.blocks if guard] + ([_guard(found["guard"])] if found["guard"] else [])
        times = _COUNT.match(found["loop"] or "")
        details = [f"<{found['types']}>"] if found["types"] else []
        details += [detail for argument in found["arguments"].split(", ") if (detail := self.detail(argument))]
        if times is not None:
            details.append(f"x{times[1]}")
        self.calls += [Call(where, " && ".join(guards), text, tuple(details)) for text in ptx]

    def detail(self, argument: str) -> str:
        """What of an argument is compared: storage, parity, a number."""
        name, cursor = argument.partition(" ")[0], _CURSOR.search(argument)
        ahead = "+1" if cursor is not None and cursor[1] in self.ahead else ""
        if name in self.bases:
            constant = argument.rpartition(" + ")[2]
            offset = int(constant) if constant.isdecimal() else 0
            part = _PART.search(argument)
            return f"@{self.bases[name] + offset}{ahead}{'' if part is None else ' ' + part[1]}"
        if argument.endswith(".parity"):
            return f"parity{ahead}"
        if argument.endswith(".parity ^ 1"):
            return f"parity^1{ahead}"
        return argument if _NUMBER.fullmatch(argument) or _PEERS.fullmatch(argument) else ""


def _end(text: str) -> str:
    """Where a loop ends, without the name of a variable: each tile may have its own number of k-blocks."""
    return text if text.isdecimal() else "count" + text[len(text.partition(" ")[0]) :]


def _guard(condition: str) -> str:
    """A condition without the names of variables."""
    if (last := _LAST.fullmatch(condition)) is not None:
        return f"not the last {last[1]} of {_end(last[2])}" if last[1] else "not the last"
    if condition in ("lane == 0", "threadIdx.x == 0"):
        return condition
    if (only := _ONLY.fullmatch(condition)) is not None:
        return f"warpgroup {only[1]}"
    return condition
