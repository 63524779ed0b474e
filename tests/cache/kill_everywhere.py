"""
A program: kill a process at each call that it makes while it keeps a kernel, and look at what the next one finds.

    python -m tests.cache.kill_everywhere FOLDER SCENARIO

Prints as JSON the calls at which a process was killed, and what was wrong afterwards.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from gemmir.cache import Cache
from gemmir.cache_files import Entry
from tests.cache.faults import at_call, kill, nothing, watched
from tests.cache.work import found_or_built, kernel_of, key_of

NAME, OTHER = "a kernel", "another"
CALL = "0" * 64


def empty(folder: Path) -> None:
    """Nothing is there, not even the directory."""


def damaged(folder: Path) -> None:
    """The entry is there, and damaged."""
    found_or_built(folder, NAME)
    path = Cache(folder).path_of(key_of(NAME))
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])


def full(folder: Path) -> None:
    """The cache is full: another kernel has to go."""
    found_or_built(folder, OTHER)
    os.environ["GEMMIR_CACHE_MAX"] = "1"


SCENARIOS = {scenario.__name__: scenario for scenario in (empty, damaged, full)}


def keep(folder: Path) -> None:
    """All that the compiler does about a kernel that it has not got."""
    assert found_or_built(folder, NAME) == kernel_of(NAME)
    Cache(folder).put(CALL, Entry({"kernel": key_of(NAME)}, b""), "call")


def in_a_child(action: Callable[[], None]) -> int:
    """Fork, do it there; the exit status, negative for a signal."""
    if (child := os.fork()) == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def look(folder: Path) -> None:
    """What the next process finds, and what is left when it has done the same."""
    found = Cache(folder).get(key_of(NAME))
    assert found in (None, kernel_of(NAME)), "neither whole nor missing"
    call = Cache(folder).get(CALL, "call")
    assert call is None or call.header == {"kernel": key_of(NAME)}
    with Cache(folder).lock(key_of(NAME), timeout=2.0) as held:
        assert held, "a dead process holds the lock"
    keep(folder)
    assert Cache(folder).get(key_of(NAME)) == kernel_of(NAME)
    left = {path.name for path in (folder / "v1").iterdir()} - {f"{CALL}.call"}  # which goes where the cache is full
    assert left == {f"{key_of(NAME)}.kernel", f"{key_of(NAME)}.cu"}, "garbage"


def main(folder: Path, scenario: Callable[[Path], None]) -> None:
    logging.disable()
    folder.mkdir()
    scenario(folder / "rehearsal")
    with watched(nothing) as calls:
        keep(folder / "rehearsal")
    names = list(calls)
    faults: list[str] = []
    for number, name in enumerate(names):
        place = folder / str(number)
        scenario(place)

        def killed(place: Path = place, number: int = number) -> None:
            with watched(at_call(number, kill)):
                keep(place)

        status = in_a_child(killed)
        if status != -9:
            faults.append(f"{number} {name}: not killed but {status}")
        if in_a_child(lambda place=place: look(place)):
            faults.append(f"{number} {name}: see stderr")
    sys.stdout.write(json.dumps({"calls": names, "faults": faults}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), SCENARIOS[sys.argv[2]])
