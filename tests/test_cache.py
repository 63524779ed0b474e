"""The kernel cache: what it keeps, what it refuses to read, and what it survives."""

import errno
import json
import logging
import multiprocessing
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir import cache as cache_module
from gemmir import cache_files
from gemmir.cache import Cache, Entry, digest, sources_digest
from gemmir.errors import CacheError

KEY = digest({"name": "a kernel"})
OTHER = digest({"name": "another"})
ENTRY = Entry({"manifest": "{}", "log": "ptxas", "n": 3, "nested": [1, None, {"a": 1.5}]}, bytes(range(256)) * 40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


@pytest.fixture(autouse=True)
def warn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_warned", set())


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "gemmir.cache" and r.levelno == logging.WARNING]


def stored_bytes(folder: Path) -> tuple[Path, bytes]:
    cache = Cache(folder)
    cache.put(KEY, ENTRY)
    path = cache.path_of(KEY)
    assert path is not None
    return path, path.read_bytes()


def test_an_entry_comes_back_in_another_cache(folder: Path):
    assert Cache(folder).get(KEY) is None
    assert Cache(folder).put(KEY, ENTRY) is True
    assert Cache(folder).get(KEY) == ENTRY
    assert Cache(folder).get(OTHER) is None


def test_modes_are_private(folder: Path):
    cache = Cache(folder)
    cache.put(KEY, ENTRY)
    path = cache.path_of(KEY)
    assert path is not None
    assert [stat.S_IMODE(os.stat(p).st_mode) for p in (folder, folder / "v1", path)] == [0o700, 0o700, 0o600]
    assert sorted(p.name for p in (folder / "v1").iterdir()) == [path.name]


def test_where_it_lies_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path / "named"))
    assert Cache().directory == tmp_path / "named" / "v1"
    monkeypatch.delenv("GEMMIR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache().directory == tmp_path / "xdg" / "gemmir" / "v1"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Cache().directory == tmp_path / "home" / ".cache" / "gemmir" / "v1"


def test_switched_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("GEMMIR_CACHE", "0")
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path / "kernels"))
    cache = Cache()
    assert (cache.put(KEY, ENTRY), cache.get(KEY), cache.write_source(KEY, "x"), cache.directory) == (
        False,
        None,
        None,
        None,
    )
    with cache.lock(KEY) as held:
        assert held is False
    assert list(tmp_path.iterdir()) == []


def test_no_home(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.delenv("GEMMIR_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    cache = Cache()
    assert cache.directory is None
    assert cache.put(KEY, ENTRY) is False
    with pytest.raises(CacheError, match=r"GMR-K001.*no home"):
        Cache(required=True)


# ------------------------------------------------------------ keys


def test_a_key_is_stable():
    """Also across processes and versions of Python: what is cached stays findable."""
    assert digest({"b": b"\x00", "a": "x"}) == digest({"a": "x", "b": b"\x00"})
    assert digest({"a": "x"}) == "95b9b56f15a21a38900cd73a1e127d6f7646bf6fe5c8877c7db2fca660d1146b"


FIELDS = st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.binary(max_size=4), max_size=3)


@given(FIELDS, FIELDS)
def test_two_mappings_never_share_a_key(first: dict[str, str | bytes], second: dict[str, str | bytes]):
    assert (digest(first) == digest(second)) == (first == second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": "bc"}, {"ab": "c"}),
        ({"a": "1", "b": "2"}, {"a": "1b2"}),
        ({"a": "x"}, {"a": b"x"}),
        ({}, {"": ""}),
    ],
)
def test_neighbouring_mappings_differ(first: dict[str, str | bytes], second: dict[str, str | bytes]):
    assert digest(first) != digest(second)


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", "a/" * 32])
def test_only_digests_are_keys(folder: Path, key: str):
    with pytest.raises(ValueError, match="64 hexadecimal"):
        Cache(folder).get(key)


def test_the_digest_of_the_sources_covers_all_code():
    root = Path(cache_module.__file__).parent
    files = {os.path.relpath(p, root) for p in cache_module._source_files(str(root))}
    assert {"cache.py", "errors.py", "backends/cuda/nvrtc.py", "backends/cuda/prelude.cuh"} <= files
    assert any(name.startswith("passes/") for name in files)
    assert not any("__pycache__" in name for name in files)
    assert len(sources_digest()) == 64


def test_the_digest_of_the_sources_is_fast():
    def seconds() -> float:
        sources_digest.cache_clear()
        start = time.process_time()
        sources_digest()
        return time.process_time() - start

    assert min(seconds() for _ in range(30)) < 3e-3


# ------------------------------------------------------------ whom to trust


def test_a_linked_directory_is_not_read(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    Cache(folder).put(KEY, ENTRY)
    link = tmp_path / "link"
    link.symlink_to(folder)
    cache = Cache(link)
    assert (cache.get(KEY), cache.get(KEY), cache.put(OTHER, ENTRY)) == (None, None, False)
    assert ["link is a symbolic link" in m for m in warnings_in(caplog)] == [True]
    assert Cache(folder).get(OTHER) is None


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722, 0o702])
@pytest.mark.parametrize("which", ["base", "schema"])
def test_a_directory_that_others_can_write_is_not_read(
    folder: Path, caplog: pytest.LogCaptureFixture, mode: int, which: str
):
    Cache(folder).put(KEY, ENTRY)
    (folder if which == "base" else folder / "v1").chmod(mode)
    cache = Cache(folder)
    assert (cache.get(KEY), cache.write_source(KEY, "x"), cache.entries()) == (None, None, ())
    assert ["can be written by others" in m for m in warnings_in(caplog)] == [True]


def test_a_directory_of_another_user_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    Cache(folder).put(KEY, ENTRY)
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(folder).st_uid + 1)
    assert Cache(folder).get(KEY) is None


def test_a_linked_entry_is_not_read(folder: Path, tmp_path: Path):
    path, data = stored_bytes(folder)
    (tmp_path / "elsewhere").write_bytes(data)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert Cache(folder).get(KEY) is None


def test_an_entry_that_others_can_write_is_not_read(folder: Path):
    path, _ = stored_bytes(folder)
    path.chmod(0o666)
    assert Cache(folder).get(KEY) is None


def test_a_fifo_does_not_hang(folder: Path):
    path, _ = stored_bytes(folder)
    path.unlink()
    os.mkfifo(path, 0o600)
    assert Cache(folder).get(KEY) is None


# ------------------------------------------------------------ disks that fail


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("where", ["mkstemp", "fsync", "replace"])
def test_a_failing_put_keeps_the_entry_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, where: str
):
    def fails(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    cache = Cache(folder)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile if where == "mkstemp" else os, where, fails)
        assert cache.put(KEY, ENTRY) is False
        assert cache.put(OTHER, ENTRY) is False
    assert cache.get(KEY) == ENTRY
    assert Cache(folder).get(KEY) is None
    assert list((folder / "v1").iterdir()) == []
    assert [os.strerror(code).lower() in m for m in warnings_in(caplog)] == [True]


def test_a_directory_that_is_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        cache = Cache(folder)
        assert cache.put(KEY, ENTRY) is False
        assert cache.get(KEY) == ENTRY
    assert len(warnings_in(caplog)) == 2, "one for each directory"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_required_cache_that_cannot_be_used_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match=r"GMR-K001.*not a directory"):
        Cache(tmp_path / "file", required=True)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(CacheError, match=r"GMR-K001.*written by others"):
        Cache(tmp_path / "open", required=True)

    def read_only(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkstemp", read_only)
    with pytest.raises(CacheError, match=r"GMR-K001.*read-only"):
        Cache(tmp_path / "fine", required=True)


def test_a_required_cache_that_works(folder: Path):
    cache = Cache(folder, required=True)
    assert cache.put(KEY, ENTRY)
    assert [s.key for s in cache.entries()] == [KEY]
    assert sorted(p.suffix for p in (folder / "v1").iterdir()) == [".kernel"]


def test_a_killed_writer_leaves_no_entry(folder: Path):
    """Killed just before the rename: the next process finds nothing, and sweeps up later."""
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom gemmir.cache import Cache, Entry\n"
        "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Cache(Path(sys.argv[1])).put(sys.argv[2], Entry({}, b'x' * 1000))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder), KEY], cwd=Path(__file__).parents[1])
    assert done.returncode == -9
    assert Cache(folder).get(KEY) is None
    (left,) = (folder / "v1").iterdir()
    assert left.suffix == ".part"
    old = time.time() - 2 * cache_module.STALE_SECONDS
    os.utime(left, (old, old))
    Cache(folder).put(KEY, ENTRY)
    assert [p.suffix for p in (folder / "v1").iterdir()] == [".kernel"]


# ------------------------------------------------------------ many at once


def _put_and_get(folder: Path, number: int, keys: list[str]) -> int:
    cache, compiled = Cache(folder), 0
    for key in keys:
        with cache.lock(key) as held:
            assert held
            if cache.get(key) is None:
                compiled += 1
                time.sleep(0.005)
                assert cache.put(key, Entry({"key": key}, key.encode() * 100))
        found = cache.get(key)
        assert found is not None, number
        assert found.payload == key.encode() * 100
    return compiled


def test_one_process_compiles_and_the_others_wait(folder: Path):
    keys = [digest({"key": str(i)}) for i in range(10)]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        compiled = pool.starmap(_put_and_get, [(folder, i, keys) for i in range(4)])
    assert sum(compiled) == len(keys)
    assert len(Cache(folder).entries()) == len(keys)


def test_one_thread_compiles_and_the_others_wait(folder: Path):
    keys = [digest({"key": str(i)}) for i in range(4)]
    compiled: list[int] = []
    threads = [threading.Thread(target=lambda i=i: compiled.append(_put_and_get(folder, i, keys))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert (len(compiled), sum(compiled)) == (8, len(keys))


def test_waiting_for_a_lock_ends(folder: Path):
    cache = Cache(folder)
    with cache.lock(KEY) as held:
        assert held
        start = time.monotonic()
        with Cache(folder).lock(KEY, timeout=0.05) as second:
            assert second is False
        assert time.monotonic() - start < 5
    with cache.lock(KEY, timeout=0) as again:
        assert again


def test_without_file_locks_the_caller_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(cache_files.fcntl, "flock", fails)
    with Cache(folder).lock(KEY) as held:
        assert held is False


# ------------------------------------------------------------ housekeeping


def test_the_least_recently_used_entry_goes_first(folder: Path):
    size = len(cache_files.encode(KEY, Entry({}, b"x" * 1000)))
    cache = Cache(folder, capacity_bytes=3 * size + 100)
    keys = [digest({"key": str(i)}) for i in range(4)]
    for age, key in enumerate(reversed(keys[:3])):
        cache.put(key, Entry({}, b"x" * 1000))
        path = cache.path_of(key)
        assert path is not None
        os.utime(path, (time.time() - 1000 - age, path.stat().st_mtime))
    assert cache.get(keys[0]) is not None  # keys[0] has just been used, keys[1] was before keys[2]
    os.utime(cache.path_of(keys[2]) or "", (time.time() - 5000, time.time()))
    cache.put(keys[3], Entry({}, b"x" * 1000))
    assert {s.key for s in cache.entries()} == {keys[0], keys[1], keys[3]}


def test_the_newest_entry_stays_however_large(folder: Path):
    cache = Cache(folder, capacity_bytes=10)
    cache.put(KEY, ENTRY)
    cache.put(OTHER, ENTRY)
    assert [s.key for s in cache.entries()] == [OTHER]


def test_a_source_lies_beside_its_entry(folder: Path):
    cache = Cache(folder)
    cache.put(KEY, ENTRY)
    path = cache.write_source(KEY, "// text\n")
    assert path is not None
    assert (path.read_text(), path.name, stat.S_IMODE(path.stat().st_mode)) == ("// text\n", f"{KEY}.cu", 0o600)
    assert cache.source_path(KEY) == path
    assert cache.source_path(OTHER) is None
    assert cache.get(KEY) == ENTRY


def test_clear(folder: Path):
    cache = Cache(folder)
    for key in (KEY, OTHER):
        cache.put(key, ENTRY)
        cache.write_source(key, "x")
        with cache.lock(key):
            pass
    assert cache.clear() == 2
    assert (cache.get(KEY), cache.entries(), list((folder / "v1").iterdir())) == (None, (), [])


def test_entries_are_listed_by_last_use(folder: Path):
    cache = Cache(folder)
    cache.put(KEY, ENTRY)
    cache.put(OTHER, ENTRY)
    os.utime(cache.path_of(OTHER) or "", (1000.0, 1000.0))
    assert [s.key for s in cache.entries()] == [KEY, OTHER]
    assert cache.entries()[1].last_used == 1000.0
    assert cache.entries()[0].size == len(cache_files.encode(KEY, ENTRY))


def test_the_file_is_what_its_description_says(folder: Path):
    path, data = stored_bytes(folder)
    assert data.startswith(b"gemmir kernel 1\n")
    length = int.from_bytes(data[16:24], "little")
    assert json.loads(data[24 : 24 + length]) == {"key": KEY, "header": ENTRY.header}
    assert data[24 + length : -32] == ENTRY.payload
    assert path.name == f"{KEY}.kernel"
