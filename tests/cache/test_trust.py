"""Whom the kernel cache trusts, where it lies, and what the environment may say."""

import os
import pwd
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmir import cache_settings
from gemmir.cache import Cache, Removed
from gemmir.cache_settings import CAPACITY_BYTES, capacity, default_directory
from gemmir.errors import CacheError
from tests.cache.entries import ENTRY, KEY, OTHER, names_in, stored_bytes, warnings_in

STRANGER = 54321


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `path` belong to somebody else, who is not root: really, where that is allowed."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, -1)
        return
    owned_by(STRANGER, monkeypatch, path)


def owned_by(user: int, monkeypatch: pytest.MonkeyPatch, path: Path | None = None) -> None:
    """Let `path`, or all that is opened, seem to belong to `user`."""
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        if path is not None and os.readlink(f"/proc/self/fd/{descriptor}") != str(path):
            return status
        times = {name: getattr(status, name) for name in ("st_atime_ns", "st_mtime_ns")}
        return os.stat_result((*status[:4], user, *status[5:]), times)

    monkeypatch.setattr(os, "fstat", fstat)


def test_modes_are_private(folder: Path):
    previous = os.umask(0)
    try:
        path, _ = stored_bytes(folder)
        Cache(folder).put(KEY, ENTRY, source="// text")
    finally:
        os.umask(previous)
    paths = (folder, folder / "v1", path, path.with_suffix(".cu"))
    assert [stat.S_IMODE(os.stat(p).st_mode) for p in paths] == [0o700, 0o700, 0o600, 0o600]
    assert names_in(folder) == [".cu", ".kernel"]


def test_a_linked_directory_is_not_read(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    Cache(folder).put(KEY, ENTRY)
    link = tmp_path / "link"
    link.symlink_to(folder)
    cache = Cache(link)
    assert (cache.get(KEY), cache.get(KEY), cache.put(OTHER, ENTRY)) == (None, None, False)
    assert ["link is a symbolic link" in m for m in warnings_in(caplog)] == [True]
    assert Cache(folder).get(OTHER) is None


def test_a_linked_schema_is_not_read(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    Cache(folder).put(KEY, ENTRY)
    (folder / "v1").rename(tmp_path / "elsewhere")
    (folder / "v1").symlink_to(tmp_path / "elsewhere")
    assert Cache(folder).get(KEY) is None
    assert ["v1 is a symbolic link" in m for m in warnings_in(caplog)] == [True]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o722, 0o702])
@pytest.mark.parametrize("which", ["base", "schema"])
def test_a_directory_that_others_can_write_is_not_read(
    folder: Path, caplog: pytest.LogCaptureFixture, mode: int, which: str
):
    Cache(folder).put(KEY, ENTRY)
    (folder if which == "base" else folder / "v1").chmod(mode)
    cache = Cache(folder)
    assert (cache.get(KEY), cache.put(OTHER, ENTRY), cache.entries()) == (None, False, ())
    assert ["can be written by others" in m for m in warnings_in(caplog)] == [True]
    assert not (folder / "v1" / f"{OTHER}.kernel").exists()


@pytest.mark.parametrize("which", ["base", "schema"])
def test_a_directory_of_another_user_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, which: str
):
    Cache(folder).put(KEY, ENTRY)
    give_away(folder if which == "base" else folder / "v1", monkeypatch)
    cache = Cache(folder)
    assert (cache.get(KEY), cache.put(OTHER, ENTRY), cache.clear()) == (None, False, Removed(0, 0))
    assert ["belongs to another user" in m for m in warnings_in(caplog)] == [True]
    with pytest.raises(CacheError, match=r"GMR-K001.*another user"):
        cache.check()


def test_an_entry_of_another_user_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path, _ = stored_bytes(folder)
    give_away(path, monkeypatch)
    assert Cache(folder).get(KEY) is None


def test_what_root_has_written_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Root could replace Python itself. A cache in an image of a container belongs to root."""
    Cache(folder).put(KEY, ENTRY)
    owned_by(0, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert Cache(folder).get(KEY) == ENTRY


def test_a_linked_entry_is_not_read(folder: Path, tmp_path: Path):
    path, data = stored_bytes(folder)
    (tmp_path / "elsewhere").write_bytes(data)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert Cache(folder).get(KEY) is None
    assert Cache(folder).put(KEY, ENTRY)
    assert (path.is_symlink(), (tmp_path / "elsewhere").read_bytes()) == (False, data)


def test_an_entry_that_others_can_write_is_not_read(folder: Path):
    path, _ = stored_bytes(folder)
    path.chmod(0o666)
    assert Cache(folder).get(KEY) is None


def test_a_fifo_does_not_hang(folder: Path):
    path, _ = stored_bytes(folder)
    path.unlink()
    os.mkfifo(path, 0o600)
    assert Cache(folder).get(KEY) is None


# ------------------------------------------------------------ where it lies


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home directory, and nothing else in the environment."""
    for name in ("GEMMIR_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_where_it_lies_by_default(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert Cache().directory == home / ".cache" / "gemmir" / "v1"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert Cache().directory == home / ".cache" / "gemmir" / "v1"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache().directory == tmp_path / "xdg" / "gemmir" / "v1"
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path / "named"))
    assert Cache().directory == tmp_path / "named" / "v1"


@pytest.mark.parametrize("value", [None, "", "relative"])
def test_without_a_home_in_the_environment_the_user_has_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
):
    if value is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", value)
    user = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user if uid == os.geteuid() else None)
    assert default_directory() == Path(user.pw_dir) / ".cache" / "gemmir"


def no_such_user(uid: int) -> None:
    raise KeyError(uid)


@pytest.mark.parametrize("missing", ["home", "user"])
def test_no_home(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, missing: str
):
    """A home directory that is missing is not made."""
    if missing == "home":
        monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    else:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(pwd, "getpwuid", no_such_user)
    cache = Cache()
    assert (cache.directory, cache.get(KEY), cache.put(KEY, ENTRY), cache.get(KEY)) == (None, None, False, ENTRY)
    assert cache.entries() == ()
    assert ["no home" in m for m in warnings_in(caplog)] == [True]
    with pytest.raises(CacheError, match=r"GMR-K001.*no home"):
        Cache(required=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_process_with_rights_of_others_ignores_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path / "planted"))
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert default_directory() == Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache" / "gemmir"


def test_a_relative_directory_follows_a_directory_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "gone").mkdir()
    monkeypatch.setenv("GEMMIR_CACHE_DIR", "kernels")
    monkeypatch.chdir(tmp_path)
    assert Cache().directory == tmp_path / "kernels" / "v1"
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert Cache().directory is None


@pytest.mark.parametrize("name", ["k" * 250, os.fsdecode(b"caf\xe9 \xff"), "with a\nnewline"])
def test_strange_names_of_directories(tmp_path: Path, name: str):
    assert Cache(tmp_path / name).put(KEY, ENTRY)
    assert Cache(tmp_path / name).get(KEY) == ENTRY


def test_a_name_that_is_too_long(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cache = Cache(tmp_path / ("k" * 300))
    assert (cache.get(KEY), cache.put(KEY, ENTRY), cache.get(KEY)) == (None, False, ENTRY)
    assert ["file name too long" in m for m in warnings_in(caplog)] == [True]


# ------------------------------------------------------------ switches


def test_switched_off(monkeypatch: pytest.MonkeyPatch, folder: Path):
    monkeypatch.setenv("GEMMIR_CACHE", "0")
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(folder))
    cache = Cache()
    assert (cache.put(KEY, ENTRY), cache.get(KEY), cache.source_path(KEY), cache.directory) == (False, None, None, None)
    with cache.lock(KEY) as held, cache.lock(KEY) as again:  # nobody waits for what will not be kept
        assert (held, again) == (False, False)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", CAPACITY_BYTES), ("0", 0), ("1000", 1000), ("4K", 4096), ("500M", 500 << 20), ("2G", 2 << 30)],
)
def test_the_largest_size_may_be_set(monkeypatch: pytest.MonkeyPatch, value: str, expected: int):
    monkeypatch.setenv("GEMMIR_CACHE_MAX", value)
    assert capacity() == expected


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("GEMMIR_CACHE_MAX", "1 GB", capacity),
        ("GEMMIR_CACHE_MAX", "-1", capacity),
        ("GEMMIR_CACHE_MAX", "٣", capacity),
        ("GEMMIR_CACHE", "off", cache_settings.switched_off),
    ],
)
def test_a_value_that_means_nothing_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str, read: Callable[[], int]
):
    monkeypatch.delenv(name, raising=False)
    default = read()
    monkeypatch.setenv(name, value)
    assert (read(), read()) == (default, default)
    assert [f"{name}={value}" in m for m in warnings_in(caplog)] == [True]


def test_the_page_names_every_variable():
    page = Path(__file__).resolve().parents[2] / "docs" / "cache.md"
    variables = re.findall(r"\b(?:GEMMIR|XDG)_[A-Z_]+", Path(cache_settings.__file__).read_text())
    assert len(set(variables)) == 4
    assert set(variables) <= set(re.findall(r"`([A-Z_]+)(?:=0)?`", page.read_text()))
