"""Cache files that are damaged, strange or planted are never used."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest

from gemmir import cache_files
from gemmir.cache import Cache, Entry
from tests.test_cache import ENTRY, KEY, OTHER, stored_bytes, warnings_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


def test_every_flipped_bit_is_noticed_and_the_file_removed(folder: Path):
    path, data = stored_bytes(folder)
    step = max(1, len(data) // 200)
    places = sorted({*range(0, 60), *range(0, len(data), step), *range(len(data) - 33, len(data))})
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert Cache(folder).get(KEY) is None, place
        assert not path.exists()


def test_every_truncation_is_noticed(folder: Path):
    path, data = stored_bytes(folder)
    for length in [*range(0, 80), *range(80, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:length])
        assert Cache(folder).get(KEY) is None, length
        assert not path.exists()
    path.write_bytes(data + b"\0")
    assert Cache(folder).get(KEY) is None


def test_a_damaged_entry_can_be_put_again(folder: Path, caplog: pytest.LogCaptureFixture):
    path, _ = stored_bytes(folder)
    path.write_bytes(b"damaged")
    assert Cache(folder).get(KEY) is None
    assert ["damaged" in m for m in warnings_in(caplog)] == [True]
    assert Cache(folder).put(KEY, ENTRY)
    assert Cache(folder).get(KEY) == ENTRY


def test_an_entry_under_a_wrong_name_is_not_read(folder: Path):
    path, data = stored_bytes(folder)
    planted = path.with_name(f"{OTHER}.kernel")
    planted.write_bytes(data)
    planted.chmod(0o600)
    assert Cache(folder).get(OTHER) is None
    assert not planted.exists()
    assert Cache(folder).get(KEY) == ENTRY


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b'{"key": "KEY"}',
        b'{"key": "KEY", "header": []}',
        b'{"key": "KEY", "header": {}, "more": 1}',
        b'{"key": 1, "header": {}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'"key"',
    ],
)
def test_a_strange_header_with_a_right_hash_is_not_read(folder: Path, header: bytes):
    path, _ = stored_bytes(folder)
    header = header.replace(b"KEY", KEY.encode())
    body = cache_files.MAGIC + cache_files.LENGTH.pack(len(header)) + header + b"payload"
    path.write_bytes(body + hashlib.sha256(body).digest())
    assert Cache(folder).get(KEY) is None


def test_a_header_longer_than_the_file_is_not_read(folder: Path):
    path, _ = stored_bytes(folder)
    for length in (100, cache_files.MAX_HEADER_BYTES + 1, 2**64 - 1):
        body = cache_files.MAGIC + cache_files.LENGTH.pack(length) + b"{}"
        path.write_bytes(body + hashlib.sha256(body).digest())
        assert Cache(folder).get(KEY) is None


def test_a_pickle_is_never_loaded(folder: Path, tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    path, _ = stored_bytes(folder)
    path.write_bytes(pickle.dumps(Trap()))
    assert Cache(folder).get(KEY) is None
    assert not (tmp_path / "executed").exists()


def test_a_header_has_a_limit(folder: Path):
    with pytest.raises(ValueError, match="at most 1048576"):
        Cache(folder).put(KEY, Entry({"text": "x" * cache_files.MAX_HEADER_BYTES}, b""))
    with pytest.raises(ValueError, match="JSON"):
        Cache(folder).put(KEY, Entry({"number": float("nan")}, b""))
