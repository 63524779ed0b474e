"""`gemmir cache`: where compiled kernels are kept, what is there, and how to empty it."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime

HELP = "show or empty the kernel cache: path, ls, clear"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["path", "ls", "clear"], help="print its path, list its kernels, remove them")


def execute(args: argparse.Namespace) -> int:
    """Raises CacheError (GMR-K001) if the cache cannot be used at all."""
    from gemmir.cache import Cache

    cache = Cache(required=args.action == "clear")
    write = sys.stdout.write
    if args.action == "path":
        write(f"{cache.directory or 'no cache: GEMMIR_CACHE=0, or no home directory'}\n")
    elif args.action == "clear":
        write(f"{cache.clear()} kernels removed\n")
    else:
        entries = cache.entries()
        for entry in entries:
            used = datetime.fromtimestamp(entry.last_used, UTC).strftime("%Y-%m-%d %H:%M")
            write(f"{entry.key[:16]}  {entry.size:>9,} bytes  used {used}  {cache.source_path(entry.key) or ''}\n")
        write(f"{len(entries)} kernels, {sum(entry.size for entry in entries):,} bytes\n")
    return 0
