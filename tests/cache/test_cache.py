"""The kernel cache: what it keeps, what goes first, and what is removed."""

import json
import os
import stat
import time
from pathlib import Path

import pytest

from gemmir import cache_files
from gemmir.cache import MAX_IN_MEMORY, Cache, Removed
from gemmir.cache_files import Entry
from gemmir.cache_keys import digest
from tests.cache.entries import ENTRY, KEY, OTHER, names_in, stored_bytes

KEYS = [digest({"key": str(i)}) for i in range(4)]


def put(cache: Cache, *keys: str) -> None:
    """Kernels of 1000 bytes: the first was used 1000 s ago, the others 1000 s earlier each."""
    for age, key in enumerate(keys, 1):
        cache.put(key, Entry({}, b"x" * 1000))
        used_before(cache, key, 1000 * age)


def used_before(cache: Cache, key: str, seconds: float) -> None:
    path = cache.path_of(key)
    assert path is not None
    os.utime(path, (time.time() - seconds, path.stat().st_mtime))


def keys_in(cache: Cache) -> set[str]:
    return {stored.key for stored in cache.entries()}


def test_an_entry_comes_back_in_another_cache(folder: Path):
    assert Cache(folder).get(KEY) is None
    assert Cache(folder).put(KEY, ENTRY) is True
    assert Cache(folder).get(KEY) == ENTRY
    assert Cache(folder).get(OTHER) is None
    assert Cache(folder).get(KEY, "call") is None


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", "a/" * 32])
def test_only_digests_are_keys(folder: Path, key: str):
    for use in (Cache(folder).get, Cache(folder).path_of, Cache(folder).source_path):
        with pytest.raises(ValueError, match="64 hexadecimal"):
            use(key)


def test_a_source_lies_beside_its_entry(folder: Path):
    cache = Cache(folder)
    cache.put(KEY, ENTRY, source="// text\n")
    path = cache.source_path(KEY)
    assert path is not None
    assert (path.read_text(), path.name, stat.S_IMODE(path.stat().st_mode)) == ("// text\n", f"{KEY}.cu", 0o600)
    assert cache.source_path(OTHER) is None
    assert cache.get(KEY) == ENTRY
    assert cache.entries()[0].size == len(cache_files.encode(KEY, ENTRY) or b"") + 8


def test_the_file_is_what_its_description_says(folder: Path):
    path, data = stored_bytes(folder)
    assert data.startswith(b"gemmir kernel 1\n")
    length = int.from_bytes(data[16:24], "little")
    assert json.loads(data[24 : 24 + length]) == {"key": KEY, "header": ENTRY.header}
    assert data[24 + length : -32] == ENTRY.payload
    assert path.name == f"{KEY}.kernel"


def test_entries_are_listed_by_last_use(folder: Path):
    cache = Cache(folder)
    cache.put(KEY, ENTRY)
    cache.put(OTHER, ENTRY)
    cache.put(digest({"call": "one"}), Entry({"kernel": KEY}, b""), "call")
    os.utime(cache.path_of(OTHER) or "", (1000.0, 2000.0))
    first, second = cache.entries()
    assert (first.key, second.key, second.last_used, second.made) == (KEY, OTHER, 1000.0, 2000.0)
    assert first.size == len(cache_files.encode(KEY, ENTRY) or b"")


def test_looking_is_no_use(folder: Path):
    cache = Cache(folder)
    put(cache, KEY)
    before = cache.entries()
    assert cache.get(KEY, touch=False) == Entry({}, b"x" * 1000)
    assert cache.entries() == before
    cache.get(KEY)
    assert cache.entries()[0].last_used > before[0].last_used + 900
    assert cache.entries()[0].made == before[0].made


# ------------------------------------------------------------ room


def test_the_least_recently_used_entry_goes_first(folder: Path):
    size = len(cache_files.encode(KEY, Entry({}, b"x" * 1000)) or b"")
    cache = Cache(folder, capacity_bytes=3 * size + 100)
    put(cache, KEYS[2], KEYS[1], KEYS[0])
    assert cache.get(KEYS[0]) is not None  # it was used longest ago, and now is the last
    cache.put(KEYS[3], Entry({}, b"x" * 1000))
    assert keys_in(cache) == {KEYS[0], KEYS[2], KEYS[3]}


def test_a_source_goes_with_its_entry(folder: Path):
    cache = Cache(folder, capacity_bytes=1)
    cache.put(KEY, ENTRY, source="// text")
    cache.put(OTHER, ENTRY, source="// text")
    assert sorted(p.name for p in (folder / "v1").iterdir()) == [f"{OTHER}.cu", f"{OTHER}.kernel"]


def test_the_newest_kernel_stays_however_large(folder: Path):
    cache = Cache(folder, capacity_bytes=10)
    put(cache, KEY, OTHER)
    cache.put(KEYS[0], ENTRY)
    cache.put(digest({"call": "one"}), Entry({"kernel": KEYS[0]}, b""), "call")
    assert keys_in(cache) == {KEYS[0]}
    assert names_in(folder) == [".kernel"], "calls count too"


def test_the_environment_says_how_much_room_there_is(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GEMMIR_CACHE_MAX", "3K")
    cache = Cache(folder)
    put(cache, *KEYS[:2])
    cache.put(KEYS[2], Entry({}, b"x" * 1000))
    assert keys_in(cache) == {KEYS[2], KEYS[0]}


def test_an_entry_that_is_too_large_stays_in_memory(folder: Path):
    cache = Cache(folder)
    large = Entry({"text": "x" * cache_files.MAX_HEADER_BYTES}, b"")
    assert cache.put(KEY, large) is False
    assert (cache.get(KEY), Cache(folder).get(KEY), cache.entries()) == (large, large, ())
    with pytest.raises(ValueError, match="JSON"):
        cache.put(KEY, Entry({"number": float("nan")}, b""))


def test_memory_has_room_for_the_newest(tmp_path: Path):
    (tmp_path / "file").write_text("where the folder should be")
    keys = [digest({"key": str(i)}) for i in range(MAX_IN_MEMORY + 2)]
    for key in keys:
        assert Cache(tmp_path / "file").put(key, Entry({}, b"")) is False
    found = [Cache(tmp_path / "file").get(key) is not None for key in keys]
    assert found == [False] * 2 + [True] * MAX_IN_MEMORY


@pytest.mark.parametrize("skew", [-10.0 * 365 * 86400, 10.0 * 365 * 86400])
def test_clocks_may_be_wrong(folder: Path, skew: float):
    """Files of other years are entries like others; what has no owner is told by its lock, not by its age."""
    cache = Cache(folder)
    put(cache, KEY)
    left = [folder / "v1" / name for name in (f"{KEY}.kernel.0.part", f"{OTHER}.lock", f"{KEY}.kernel")]
    for path in left:
        path.touch(mode=0o600)
        os.utime(path, (time.time() + skew, time.time() + skew))
    cache.put(OTHER, ENTRY)
    assert cache.get(KEY) == Entry({}, b"x" * 1000)
    assert names_in(folder) == [".kernel", ".kernel"]


# ------------------------------------------------------------ removing


def test_clear_removes_everything(folder: Path):
    cache = Cache(folder)
    for key in (KEY, OTHER):
        cache.put(key, ENTRY, source="x")
        cache.put(key, Entry({"kernel": key}, b""), "call")
        (folder / "v1" / f"{key}.lock").touch()
        (folder / "v1" / f"{key}.kernel.1234.part").touch()
    size = sum(stored.size for stored in cache.entries())
    assert cache.clear() == Removed(2, size)
    assert (cache.get(KEY), cache.entries(), list((folder / "v1").iterdir())) == (None, (), [])
    assert cache.clear() == Removed(0, 0)


@pytest.mark.parametrize(
    ("keep", "unused_for", "left"),
    [(0, 0, 0), (3, 0, 3), (9, 0, 4), (0, 2500, 2), (0, 9999, 4), (1, 2500, 2), (3, 2500, 3), (0, 1, 0)],
)
def test_some_kernels_may_stay(folder: Path, keep: int, unused_for: float, left: int):
    """Those that were used last, and those that were used lately."""
    cache = Cache(folder)
    put(cache, *KEYS)
    for key in KEYS:
        cache.put(key, Entry({"kernel": key}, b""), "call")
    assert cache.clear(keep, unused_for).kernels == 4 - left
    assert [stored.key for stored in cache.entries()] == KEYS[:left]
    assert [cache.get(key, "call") is not None for key in KEYS] == [i < left for i in range(4)]


def test_what_is_no_entry_by_its_name_is_left_alone(folder: Path):
    cache = Cache(folder, capacity_bytes=1)
    cache.put(KEY, ENTRY)
    strange = {"notes.kernel", ".kernel", f"{KEY}.kernel.old", "notes.call", "readme"}
    for name in strange:
        (folder / "v1" / name).write_text("mine")
        os.utime(folder / "v1" / name, (0, 0))
    cache.put(OTHER, ENTRY)
    assert keys_in(cache) == {OTHER}
    assert cache.clear().kernels == 1
    assert {path.name for path in (folder / "v1").iterdir()} == strange


def test_clear_leaves_what_others_hold(folder: Path):
    cache = Cache(folder)
    with cache.lock(KEY) as held:
        assert held
        cache.clear()
        assert names_in(folder) == [".lock"]
    assert names_in(folder) == []


def test_a_model_keeps_the_same(folder: Path):
    """Random puts, gets, damage, looks and clears beside a dict that does them right."""
    import random

    rng = random.Random(7)
    cache, model = Cache(folder), dict[str, Entry]()
    for step in range(600):
        key = rng.choice(KEYS)
        path = cache.path_of(key)
        assert path is not None
        match rng.choice(["put", "put", "get", "look", "flip", "cut", "remove", "keep one"]):
            case "put":
                model[key] = Entry({"step": step}, rng.randbytes(rng.randrange(200)))
                assert cache.put(key, model[key])
            case "get":
                assert cache.get(key) == model.get(key)
            case "look":
                assert cache.get(key, touch=False) == model.get(key)
            case "flip" if key in model:
                data = bytearray(path.read_bytes())
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                path.write_bytes(data)
                assert cache.get(key) is None
                del model[key]
            case "cut" if key in model:
                path.write_bytes(path.read_bytes()[: rng.randrange(40)])
                assert (cache.get(key, touch=False), path.exists(), cache.get(key)) == (None, True, None)
                del model[key]
            case "remove" if key in model:
                path.unlink()
                del model[key]
            case "keep one":
                last = next((stored.key for stored in cache.entries()), None)
                assert cache.clear(keep=1).kernels == max(0, len(model) - 1)
                model = {key: entry for key, entry in model.items() if key == last}
            case _:
                continue
        assert keys_in(cache) == set(model)
