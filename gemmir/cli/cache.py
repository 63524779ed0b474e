"""`gemmir cache`: where compiled kernels are kept, what is there, what one of them is, and how to remove them."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gemmir.cli.diagnostics import say

if TYPE_CHECKING:
    from gemmir.cache import Cache, Stored
    from gemmir.cli.cache_facts import Facts

HELP = "the kernel cache: where it is, what is in it, what one kernel is, and how to empty it"

KEY_DIGITS = 12
"""Digits of a key that are shown: enough to tell a million kernels apart."""
LAST_SECOND = 253402300799
"""Of the year 9999."""
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,6})([mhdw])", re.ASCII)


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show Python tracebacks")
        return sub

    add("path", "print the directory of the cache")
    ls = add("ls", "list the kernels, those used last first")
    show = add("show", "show one kernel: shapes, launch, resources, decisions, source")
    show.add_argument("key", metavar="KEY", help="its key, or the first digits of it")
    for sub in (ls, show):
        sub.add_argument("--json", action="store_true", help="JSON, for programs")
    clear = add("clear", "remove kernels: all of them, unless told otherwise")
    clear.add_argument(
        "--older-than", metavar="AGE", type=duration, default=0, help="those not used for so long: 90m, 12h, 30d, 4w"
    )
    clear.add_argument("--keep", metavar="N", type=count, default=0, help="all but the N that were used last")


def execute(args: argparse.Namespace) -> int:
    """Raises CacheError: GMR-K001 if the cache cannot be used at all, GMR-K002 if a key names no one kernel."""
    actions = {"path": _path, "ls": _ls, "show": _show, "clear": _clear}
    actions[args.action](args)
    return 0


def duration(text: str) -> int:
    """Seconds of a duration such as 30d."""
    if (found := _DURATION.fullmatch(text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no age such as 90m, 12h, 30d or 4w")
    return int(found[1]) * _UNITS[found[2]]


def count(text: str) -> int:
    """A number of kernels."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no number of kernels")
    return int(text)


def _opened(*, writable: bool = False) -> Cache:
    """The cache, even where GEMMIR_CACHE=0 keeps compilations from it."""
    from gemmir.cache import Cache
    from gemmir.cache_settings import default_directory

    cache = Cache(default_directory(), required=writable)
    cache.check()
    return cache


def _path(args: argparse.Namespace) -> None:
    from gemmir.cache_settings import switched_off
    from gemmir.cli.cache_facts import printable

    sys.stdout.write(f"{printable(str(_opened().directory))}\n")
    if switched_off():
        say("GEMMIR_CACHE=0: kernels are compiled without it")


def _ls(args: argparse.Namespace) -> None:
    from gemmir.cli.cache_facts import printable

    cache = _opened()
    entries = [(stored, _facts(cache, stored)) for stored in cache.entries()]
    write = sys.stdout.write
    if args.json:
        write(json.dumps([_summary(stored, facts) for stored, facts in entries], indent=2) + "\n")
        return
    if entries:
        write(f"{'KEY':{KEY_DIGITS}} {'SIZE':>6} {'MADE':>4} {'USED':>4} NVRTC  KERNEL\n")
    for stored, facts in entries:
        made, used = age(stored.made), age(stored.last_used)
        size, nvrtc = f"{-(-stored.size // 1024):,}K", facts.nvrtc or "?"
        write(f"{stored.key[:KEY_DIGITS]} {size:>6} {made:>4} {used:>4} {nvrtc:5}  {printable(facts.title)}\n")
    total = sum(stored.size for stored, _ in entries)
    write(f"{_kernels(len(entries))}, {total:,} of at most {cache.capacity_bytes:,} bytes\n")


def _show(args: argparse.Namespace) -> None:
    from gemmir.cli.cache_facts import printable

    cache = _opened()
    key = cache.find(args.key)
    stored = next(stored for stored in cache.entries() if stored.key == key)
    facts = _facts(cache, stored)
    if args.json:
        sys.stdout.write(json.dumps({**_summary(stored, facts), **facts.details()}, indent=2) + "\n")
        return
    lines = [
        facts.title,
        f"  key        {key}",
        f"  made       {moment(stored.made)} by gemmir {facts.gemmir or '?'} with NVRTC {facts.nvrtc or '?'}",
        f"  used       {moment(stored.last_used)}",
        f"  size       {stored.size:,} bytes",
        f"  file       {cache.path_of(key)}",
        f"  source     {facts.source_path or 'not written'}",
        *facts.lines(),
    ]
    sys.stdout.write("\n".join(map(printable, lines)) + "\n")


def _clear(args: argparse.Namespace) -> None:
    removed = _opened(writable=True).clear(args.keep, args.older_than)
    sys.stdout.write(f"{_kernels(removed.kernels)} removed, {removed.size:,} bytes\n")


def _facts(cache: Cache, stored: Stored) -> Facts:
    """What an entry says about itself; looking at it is no use of it."""
    from gemmir.cli.cache_facts import Facts

    return Facts(cache.get(stored.key, touch=False), cache.source_path(stored.key))


def _summary(stored: Stored, facts: Facts) -> dict[str, object]:
    found: dict[str, object] = {"key": stored.key, "entry": facts.entry, "name": facts.name, "size": stored.size}
    found |= {"made": moment(stored.made), "last_used": moment(stored.last_used)}
    return found | {"nvrtc": facts.nvrtc, "gemmir": facts.gemmir, "damaged": facts.damaged}


def _kernels(number: int) -> str:
    return f"{number} kernel{'' if number == 1 else 's'}"


def age(then: float) -> str:
    """How long ago that was, in one number: 5m, 47h, 12d."""
    seconds = max(0.0, time.time() - then)
    for unit, limit in (("m", 3600.0), ("h", 48 * 3600.0), ("d", float("inf"))):
        if seconds < limit:
            return f"{int(seconds // _UNITS[unit])}{unit}"
    raise AssertionError("no time is beyond all limits")


def moment(seconds: float) -> str:
    """A time in UTC, as ISO 8601 has it; years beyond its four digits, which a broken clock may give, are cut off."""
    return datetime.fromtimestamp(int(min(max(seconds, 0.0), LAST_SECOND)), UTC).isoformat()
