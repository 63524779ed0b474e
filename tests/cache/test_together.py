"""Many processes and threads on one kernel cache: each kernel is compiled once, and nobody fails or hangs."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmir import cache_locks
from gemmir.cache import Cache
from gemmir.cache_locks import ThreadLocks
from tests.cache.entries import ENTRY, KEY, OTHER, names_in
from tests.cache.faults import failing, watched
from tests.cache.test_faults import ROOT, always, program
from tests.cache.work import found_or_built, kernel_of, key_of


@pytest.mark.parametrize(("processes", "kernels"), [(8, 20), (64, 20)])
def test_processes_that_start_together_compile_each_kernel_once(tmp_path: Path, processes: int, kernels: int):
    found = program("start_together", tmp_path, processes, kernels, 0.05)
    assert found["ended"] == [0] * processes
    assert Counter(found["compiled"]) == {f"kernel {i}": 1 for i in range(kernels)}
    assert found["left"] == [".cu"] * kernels + [".kernel"] * kernels


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS"])
def test_without_locks_some_compile_twice_and_nobody_fails(tmp_path: Path, code: str):
    found = program("start_together", tmp_path, 32, 20, 0.01, code)
    assert found["ended"] == [0] * 32
    assert set(found["compiled"]) == {f"kernel {i}" for i in range(20)}
    assert 20 < len(found["compiled"]) <= 32 * 20
    assert found["left"] == [".cu"] * 20 + [".kernel"] * 20


def test_the_real_compiler_is_asked_once_for_each_kernel(tmp_path: Path):
    found = program("compile_together", tmp_path, 64)
    assert found["ended"] == [0] * 64
    assert sorted(Counter(found["log"]).values()) == [1, 1]
    assert sorted(Counter(found["cubins"]).values()) == [64, 64]


# ------------------------------------------------------------ threads


def in_threads(actions: list[Callable[[], object]]) -> None:
    failures: list[BaseException] = []

    def run(action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


@pytest.mark.parametrize("kernels", [1, 32])
@pytest.mark.parametrize("disk", ["whole", "without locks", "none"])
def test_threads_compile_each_kernel_once(folder: Path, kernels: int, disk: str):
    """Wherever it is kept: on disk, on one whose files cannot be locked, or in memory."""
    if disk == "none":
        folder.write_text("a file where the folder should be")
    log = folder.parent / "log"

    def use(number: int) -> None:
        name = f"kernel {number % kernels}"
        assert found_or_built(folder, name, log, 0.01) == kernel_of(name)

    with watched(always("flock" if disk == "without locks" else "", failing(errno.ENOLCK))):
        in_threads([lambda number=number: use(number) for number in range(32)])
    assert Counter(log.read_text().splitlines()) == {f"kernel {i}": 1 for i in range(kernels)}


def test_ten_thousand_rounds_end(folder: Path):
    """Of 32 threads and 4 keys: no deadlock, never two at once, and nothing is kept of keys that nobody holds."""
    locks, inside = ThreadLocks(), Counter[str]()

    def use(number: int) -> None:
        for turn in range(10_000 // 32):
            key = f"{(number + turn) % 4}"
            with locks.hold(key, 30.0) as held:
                inside[key] += 1
                assert (held, inside[key]) == (True, 1)
                inside[key] -= 1

    in_threads([lambda number=number: use(number) for number in range(32)])
    assert locks._shared == {}  # pyright: ignore[reportPrivateUsage]


# ------------------------------------------------------------ locks


@pytest.mark.parametrize("who", ["thread", "process"])
def test_waiting_for_a_lock_ends(folder: Path, monkeypatch: pytest.MonkeyPatch, who: str):
    cache = Cache(folder)
    with cache.lock(KEY) as held:
        assert held
        if who == "process":  # another process has thread locks of its own
            monkeypatch.setattr("gemmir.cache._threads", ThreadLocks())
        start = time.monotonic()
        with Cache(folder).lock(KEY, timeout=0.05) as second:
            assert second is False
        assert 0.05 <= time.monotonic() - start < 5
        with Cache(folder).lock(OTHER, timeout=0.0) as other:
            assert other
    with cache.lock(KEY, timeout=0.0) as again:
        assert again
    assert names_in(folder) == []


def test_whoever_waits_goes_on_when_the_owner_dies(folder: Path):
    """The lock goes with the process; what waited takes the same file over, and removes it."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom gemmir.cache import Cache\n"
        "with Cache(Path(sys.argv[1])).lock(sys.argv[2]) as held:\n"
        "    print(held, flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(folder), KEY]
    owner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "True\n"
    threading.Timer(0.1, lambda: owner.send_signal(signal.SIGKILL)).start()
    with Cache(folder).lock(KEY, timeout=20.0) as held:
        assert held
    assert owner.wait() == -signal.SIGKILL
    assert names_in(folder) == []


def test_a_lock_file_that_is_replaced_holds_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever has locked a file that does not go by its name any more, locks again."""
    Cache(folder).put(KEY, ENTRY)
    real, tried = cache_locks._wait_for, [0]  # pyright: ignore[reportPrivateUsage]

    def wait_for(descriptor: int, deadline: float) -> bool | None:
        if not tried[0]:
            (folder / "v1" / f"{KEY}.lock").unlink()
        tried[0] += 1
        return real(descriptor, deadline)

    monkeypatch.setattr(cache_locks, "_wait_for", wait_for)
    with Cache(folder).lock(KEY) as held:
        assert (held, tried) == (True, [2])
        assert names_in(folder) == [".kernel", ".lock"]
    assert names_in(folder) == [".kernel"]


def test_a_process_forked_off_meanwhile_keeps_no_lock(folder: Path):
    """Neither the file's, which it has open too, nor those of threads that it has not got."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom gemmir.cache import Cache\n"
        "cache, key = Cache(Path(sys.argv[1])), sys.argv[2]\n"
        "with cache.lock(key):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        time.sleep(3.0)\n"
        "        with cache.lock(key, timeout=20.0) as held:\n"
        "            os._exit(0 if held else 1)\n"
        "start = time.monotonic()\n"
        "with cache.lock(key, timeout=20.0) as held:\n"
        "    print(held, time.monotonic() - start < 2.0, flush=True)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    command = [sys.executable, "-c", code, str(folder), KEY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "0"]


def test_those_who_wait_do_not_wait_for_a_process_forked_off_meanwhile(folder: Path):
    """It has the file open, too; they are on the same file, which is not there any more when they get it."""
    code = (
        "import os, sys, threading, time\nfrom gemmir.cache_locks import file_lock\n"
        "folder, got = os.open(sys.argv[1], os.O_RDONLY), []\n"
        "def wait():\n"
        "    with file_lock('a.lock', folder, 5.0) as held:\n"
        "        got.append((held, time.monotonic()))\n"
        "thread = threading.Thread(target=wait)\n"
        "with file_lock('a.lock', folder, 5.0):\n"
        "    thread.start()\n"
        "    time.sleep(0.1)\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(4.0)\n"
        "        os._exit(0)\n"
        "    start = time.monotonic()\n"
        "thread.join()\n"
        "print(got[0][0], got[0][1] - start < 3.0, os.listdir(sys.argv[1]))\n"
    )
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True True []\n", done.stderr


def test_a_lock_file_is_removed_before_it_is_free(folder: Path):
    """Somebody else would have it otherwise, while the next one made a new file."""
    free: list[bool] = []

    def look(function: Callable[..., object], name: str, args: tuple[object, ...]) -> None:
        if name == "unlink" and args[0] == f"{KEY}.lock":
            descriptor = os.open(folder / "v1" / f"{KEY}.lock", os.O_RDWR)
            free.append(cache_locks._wait_for(descriptor, 0.0) is True)  # pyright: ignore[reportPrivateUsage]
            os.close(descriptor)

    with watched(look), Cache(folder).lock(KEY) as held:
        assert held
    assert free == [False]


def test_found_in_the_meantime(folder: Path):
    """What another process has compiled while this one waited is not compiled again."""
    log = folder.parent / "log"
    cache = Cache(folder)
    waiting = threading.Thread(target=lambda: found_or_built(folder, "kernel", log))
    with cache.lock(key_of("kernel")) as held:
        assert held
        waiting.start()
        time.sleep(0.05)
        cache.put(key_of("kernel"), kernel_of("kernel"))
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    assert not os.path.exists(log)
