"""The kernel cache where processes are killed, disks are full and calls fail: results stay right, and nobody stops."""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gemmir.cache import STALE_SECONDS, Cache
from gemmir.cache_files import Entry
from gemmir.errors import CacheError
from tests.cache.entries import ENTRY, KEY, OTHER, names_in, warnings_in
from tests.cache.faults import CALLS, Fault, at_call, failing, nothing, watched
from tests.cache.work import found_or_built, kernel_of, key_of

ROOT = Path(__file__).resolve().parents[2]
CODES = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ESTALE, errno.EBUSY, errno.EIO]
NAME = "a kernel"


def program(name: str, *args: object) -> dict[str, list[str]]:
    """What a program of this folder prints; it must succeed."""
    command = [sys.executable, "-m", f"tests.cache.{name}", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("scenario", "least"), [("empty", 80), ("damaged", 90), ("full", 90)])
def test_a_process_that_is_killed_leaves_nothing_wrong(tmp_path: Path, scenario: str, least: int):
    """At each of its calls: the next process finds the whole entry or none, is not kept waiting, and tidies up."""
    found = program("kill_everywhere", tmp_path / "places", scenario)
    assert found["faults"] == []
    assert len(found["calls"]) >= least
    assert {"open", "flock", "write", "fsync", "replace", "unlink", "close", "listdir"} <= set(found["calls"])


# ------------------------------------------------------------ calls that fail


def keep(folder: Path) -> None:
    """All that the compiler does about a kernel, twice; the result is right."""
    for _ in range(2):
        assert found_or_built(folder, NAME) == kernel_of(NAME)
    Cache(folder).put(OTHER, Entry({"kernel": key_of(NAME)}, b""), "call")
    Cache(folder).source_path(key_of(NAME))


def after(folder: Path) -> None:
    """All is well again, and nothing is left over."""
    keep(folder)
    Cache(folder).put(KEY, ENTRY)
    assert Cache(folder).get(KEY) == ENTRY
    assert set(names_in(folder)) <= {".kernel", ".cu", ".call"}


@pytest.mark.parametrize("code", CODES, ids=[errno.errorcode[code] for code in CODES])
def test_any_call_may_fail_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int):
    with watched(nothing) as calls:
        keep(tmp_path / "rehearsal")
    assert len(calls) > 90
    for number, name in enumerate(calls):
        folder = tmp_path / str(number)
        caplog.clear()
        descriptors = len(os.listdir("/proc/self/fd"))
        with watched(at_call(number, failing(code))):
            keep(folder)
        assert len(warnings_in(caplog)) <= 1, (number, name, warnings_in(caplog))
        assert len(os.listdir("/proc/self/fd")) == descriptors, (number, name)
        after(folder)


def always(wanted: str, fault: Fault) -> Fault:
    def fail(function: Callable[..., object], name: str, args: tuple[object, ...]) -> None:
        if name == wanted:
            fault(function, name, args)

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.ENOSYS, errno.ENOLCK, errno.ESTALE])
@pytest.mark.parametrize("name", sorted({name for _, name in CALLS}))
def test_a_call_may_always_fail(folder: Path, caplog: pytest.LogCaptureFixture, name: str, code: int):
    """Also from the start: no lock, no time, no list, no directory, no write."""
    with watched(always(name, failing(code))):
        keep(folder)
    assert len(warnings_in(caplog)) <= 1, warnings_in(caplog)
    after(folder)


def interrupt(function: Callable[..., object], name: str, args: tuple[object, ...]) -> None:
    if name != "close":
        raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path):
    """At each call; the next use does not wait for a lock that nobody holds."""
    with watched(nothing) as calls:
        keep(tmp_path / "rehearsal")
    interrupted = 0
    for number in range(len(calls)):
        descriptors = len(os.listdir("/proc/self/fd"))
        try:
            with watched(at_call(number, interrupt)):
                keep(tmp_path / str(number))
        except KeyboardInterrupt:
            interrupted += 1
        assert len(os.listdir("/proc/self/fd")) == descriptors, (number, calls[number])
        with Cache(tmp_path / str(number)).lock(key_of(NAME), timeout=1.0) as held:
            assert held
        after(tmp_path / str(number))
    assert interrupted > 70


def test_a_compilation_that_fails_gives_back_its_lock(folder: Path):
    cache = Cache(folder)
    for error in (MemoryError, KeyboardInterrupt, CacheError):
        with pytest.raises(error), cache.lock(KEY) as held:  # noqa: PT012
            assert held
            raise error if error is not CacheError else CacheError("GMR-K001", "anything")
        with cache.lock(KEY, timeout=0.0) as again:
            assert again
    assert names_in(folder) == []


# ------------------------------------------------------------ disks


@pytest.mark.parametrize("size", [0, 10, 1000, 11_000])
def test_a_disk_that_becomes_full(folder: Path, caplog: pytest.LogCaptureFixture, size: int):
    """A real one: files cannot grow beyond `size` bytes. The entry needs 10 400, with 2 000 more for its source."""
    source = "// text\n" * 1500
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        assert Cache(folder).put(KEY, ENTRY, source=source) is False
        assert Cache(folder).put(OTHER, ENTRY, source=source) is False
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(warnings_in(caplog)) == 1
    assert Cache(folder).get(KEY) == ENTRY, "from memory"
    assert (Cache(folder).entries(), names_in(folder)) == ((), [])
    assert Cache(folder).put(KEY, ENTRY, source=source)


@contextmanager
def mounted(place: Path, options: str) -> Generator[bool]:
    """A small file system of its own at `place`; yields whether it could be mounted."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    done = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", str(place)], check=True)


def test_a_small_disk_and_one_that_is_read_only(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Where mounting is allowed; what else is tested here goes without."""
    large = Entry({}, bytes(40_000))
    with mounted(tmp_path / "disk", "size=64k,mode=700") as done:
        if not done:
            pytest.skip("mounting takes root's rights")
        cache = Cache(tmp_path / "disk" / "kernels")
        assert cache.put(KEY, large)
        assert cache.put(OTHER, large) is False
        assert ["no space left" in m for m in warnings_in(caplog)] == [True]
        assert (cache.get(KEY), cache.get(OTHER)) == (large, large)
        assert names_in(tmp_path / "disk" / "kernels") == [".kernel"]
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        used = cache.entries()[0].last_used
        assert Cache(tmp_path / "disk" / "kernels").get(KEY) == large
        assert cache.entries()[0].last_used == used
        assert cache.clear().kernels == 0
        with pytest.raises(CacheError, match=r"GMR-K001.*read-only"):
            Cache(tmp_path / "disk" / "kernels", required=True)


def test_a_directory_that_is_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert Cache(folder).put(KEY, ENTRY) is False
        assert Cache(folder).get(KEY) == ENTRY
    assert len(warnings_in(caplog)) == 2, "one for each directory"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_required_cache_that_cannot_be_used_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match=r"GMR-K001.*not a directory"):
        Cache(tmp_path / "file", required=True)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(CacheError, match=r"GMR-K001.*written by others"):
        Cache(tmp_path / "open", required=True)
    with pytest.raises(CacheError, match=r"GMR-K001.*read-only"), watched(always("write", failing(errno.EROFS))):
        Cache(tmp_path / "fine", required=True).put(KEY, ENTRY)
    with pytest.raises(CacheError, match=r"GMR-K001.*too many open files"), watched(at_call(9, failing(errno.EMFILE))):
        Cache(tmp_path / "other", required=True)


def test_a_required_cache_that_works(folder: Path):
    cache = Cache(folder, required=True)
    assert cache.put(KEY, ENTRY)
    assert [s.key for s in cache.entries()] == [KEY]
    assert names_in(folder) == [".kernel"]


# ------------------------------------------------------------ leftovers where files cannot be locked


@pytest.mark.parametrize(("age", "left"), [(0.5, [".kernel", ".lock", ".part"]), (1.5, [".kernel"])])
def test_without_locks_leftovers_are_told_by_their_age(folder: Path, age: float, left: list[str]):
    Cache(folder).put(OTHER, ENTRY)
    now = os.stat(folder).st_mtime
    for name in (f"{OTHER}.lock", f"{OTHER}.kernel.00.part"):
        (folder / "v1" / name).touch(mode=0o600)
        os.utime(folder / "v1" / name, (now - age * STALE_SECONDS,) * 2)
    with watched(always("flock", failing(errno.ENOLCK))):
        Cache(folder).put(OTHER, ENTRY)
    assert names_in(folder) == left


def test_a_source_without_a_kernel_goes_in_time(folder: Path):
    Cache(folder).put(OTHER, ENTRY)
    stray = folder / "v1" / f"{KEY}.cu"
    stray.touch(mode=0o600)
    Cache(folder).put(OTHER, ENTRY)
    assert stray.exists(), "its kernel may be on its way"
    os.utime(stray, (0, 0))
    Cache(folder).put(OTHER, ENTRY)
    assert names_in(folder) == [".kernel"]


def test_what_is_being_written_is_not_swept(folder: Path):
    """The temporary file of a writer is locked, whatever its age."""
    Cache(folder).put(OTHER, ENTRY)
    seen: list[list[str]] = []

    def sweep(function: Callable[..., object], name: str, args: tuple[object, ...]) -> None:
        if name == "replace" and not seen:
            seen.append(names_in(folder))
            os.utime(next((folder / "v1").glob("*.part")), (0, 0))
            Cache(folder).put(OTHER, ENTRY)
            seen.append(names_in(folder))

    with watched(sweep):
        assert Cache(folder).put(KEY, ENTRY)
    assert seen == [[".kernel", ".part"], [".kernel", ".part"]]
    assert Cache(folder).get(KEY) == ENTRY


def test_a_writer_whose_file_was_swept_begins_again(folder: Path):
    """Between the making of its temporary file and its lock."""
    Cache(folder).put(OTHER, ENTRY)
    taken = [0]

    def sweep(function: Callable[..., object], name: str, args: tuple[object, ...]) -> None:
        if name == "flock" and not taken[0]:
            taken[0] += 1
            for path in (folder / "v1").glob("*.part"):
                path.unlink()

    with watched(sweep):
        assert Cache(folder).put(KEY, ENTRY)
    assert taken == [1]
    assert Cache(folder).get(KEY) == ENTRY
    assert names_in(folder) == [".kernel", ".kernel"]


def test_a_disk_that_locks_every_new_file_is_not_asked_for_ever(folder: Path, caplog: pytest.LogCaptureFixture):
    Cache(folder).put(OTHER, ENTRY)
    with watched(always("flock", failing(errno.EAGAIN))):
        assert Cache(folder).put(KEY, ENTRY) is False
    assert ["locked by somebody else" in m for m in warnings_in(caplog)] == [True]
    assert names_in(folder) == [".kernel"]


def test_temporary_files_lie_beside_what_they_become(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Not in /tmp: a file is renamed within one file system only, and others can write there."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: pytest.fail("/tmp was asked for"))
    names: list[object] = []

    def note(function: Callable[..., object], name: str, args: tuple[object, ...]) -> None:
        names.extend(args[:1] if name == "replace" else ())

    with watched(note):
        Cache(folder).put(KEY, ENTRY, source="// text")
    assert [str(name).rpartition(".")[2] for name in names] == ["part", "part"]
    assert all(os.sep not in str(name) for name in names)
