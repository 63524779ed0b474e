"""Cache files that are damaged, strange or planted are never used."""

import hashlib
import os
import pickle
import random
from pathlib import Path

import pytest

import gemmir
from gemmir import cache_files
from gemmir.cache import Cache
from tests.cache.entries import ENTRY, KEY, OTHER, stored_bytes, warnings_in
from tests.gpu.problems import fp8_text


def regions(data: bytes) -> dict[str, range]:
    """Where each part of an entry lies."""
    header = 24 + int.from_bytes(data[16:24], "little")
    end = len(data) - 32
    ends = {"magic": (0, 16), "length": (16, 24), "header": (24, header), "payload": (header, end), "hash": (end, None)}
    return {name: range(start, len(data) if stop is None else stop) for name, (start, stop) in ends.items()}


def test_every_flipped_bit_is_noticed_and_repaired(folder: Path):
    """1000 of the bits of each part of the file, or all that it has."""
    path, data = stored_bytes(folder)
    rng = random.Random(1)
    found = {"detected": 0, "repaired": 0}
    tried = 0
    for name, places in regions(data).items():
        bits = [8 * place + bit for place in places for bit in range(8)]
        assert bits, name
        for bit in rng.sample(bits, min(1000, len(bits))):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            tried += 1
            found["detected"] += Cache(folder).get(KEY) is None and not path.exists()
            found["repaired"] += Cache(folder).put(KEY, ENTRY) and path.read_bytes() == data
    assert tried == 128 + 64 + 1000 + 1000 + 256
    assert found == {"detected": tried, "repaired": tried}


def test_every_truncation_is_noticed_and_repaired(folder: Path):
    """Each length around the ends of the parts, each block of a disk, and a file that is too long."""
    path, data = stored_bytes(folder)
    ends = [place for places in regions(data).values() for place in (places.start, places.stop)]
    near = {end + step for end in ends for step in range(-40, 41)} | set(range(0, len(data), 512))
    lengths = sorted(length for length in near if 0 <= length < len(data))
    detected = repaired = 0
    for length in [*lengths, None]:
        path.write_bytes(data + b"\0" if length is None else data[:length])
        detected += Cache(folder).get(KEY) is None and not path.exists()
        repaired += Cache(folder).put(KEY, ENTRY) and Cache(folder).get(KEY) == ENTRY
    assert len(lengths) > 200
    assert (detected, repaired) == (len(lengths) + 1, len(lengths) + 1)


def test_a_damaged_entry_is_compiled_again(caplog: pytest.LogCaptureFixture):
    text = fp8_text(256, 128)
    kernel = gemmir.compile(text)
    (stored,) = Cache().entries()
    first = Cache().get(stored.key)
    assert first is not None
    path = Cache().path_of(stored.key)
    assert path is not None
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert gemmir.compile(text).cubin == kernel.cubin
    again = Cache().get(stored.key)  # its log says how long the compiler took
    assert again is not None
    assert (again.payload, again.header["facts"]) == (kernel.cubin, first.header["facts"])
    assert warnings_in(caplog) == [f"removed a damaged entry of the kernel cache: {path.name}"]


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


def test_a_directory_in_the_place_of_an_entry(folder: Path, caplog: pytest.LogCaptureFixture):
    path, _ = stored_bytes(folder)
    path.unlink()
    path.mkdir()
    cache = Cache(folder)
    assert (cache.get(KEY), cache.put(KEY, ENTRY), cache.get(KEY)) == (None, False, ENTRY)
    assert ["is a directory" in m for m in warnings_in(caplog)] == [True]
