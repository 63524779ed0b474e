"""Keys of the kernel cache: what differs never shares one, and what is equal does, in every process."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gemmir
from gemmir import cache_keys, compiler
from gemmir.backends.cuda import elf, nvrtc
from gemmir.cache import Cache
from gemmir.cache_keys import LONGEST_RECORDED, canonical, digest, recorded, source_files, sources_digest, xdsl_version
from gemmir.problem import Grouping
from gemmir.product_calls import Call, Parts
from tests.gpu.problems import fp8_text

TEXT = fp8_text(512, 384)
ROOT = Path(__file__).resolve().parents[2]


def test_a_key_is_stable():
    """Also across processes and versions of Python: what is cached stays findable."""
    assert digest({"b": b"\x00", "a": "x"}) == digest({"a": "x", "b": b"\x00"})
    assert digest({"a": "x"}) == "95b9b56f15a21a38900cd73a1e127d6f7646bf6fe5c8877c7db2fca660d1146b"


VALUES = st.text(max_size=4) | st.binary(max_size=4)
FACTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3)


@given(FACTS, FACTS)
def test_two_mappings_never_share_a_key(first: dict[str, str | bytes], second: dict[str, str | bytes]):
    assert (digest(first) == digest(second)) == (first == second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": "bc"}, {"ab": "c"}),
        ({"a": "1", "b": "2"}, {"a": "1b2"}),
        ({"a": "x"}, {"a": b"x"}),
        ({}, {"": ""}),
        ({"a": "\ud800"}, {"a": "\ud801"}),
    ],
)
def test_neighbouring_mappings_differ(first: dict[str, str | bytes], second: dict[str, str | bytes]):
    assert digest(first) != digest(second)


def test_the_digest_of_the_sources_covers_all_code():
    root = Path(cache_keys.__file__).parent
    files = {os.path.relpath(p, root) for p in source_files(str(root))}
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

    assert min(seconds() for _ in range(30)) < 2e-2, "0.003 on an idle machine"


def test_the_version_of_xdsl_is_found_without_importing_it():
    program = (
        "import sys\nfrom gemmir.cache_keys import xdsl_version\nprint(xdsl_version(), 'xdsl' in sys.modules)\n"
        "from importlib.metadata import version\nprint(version('xdsl'))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    found, imported, expected = done.stdout.split()
    assert (found, imported) == (expected, "False")


def test_the_version_of_xdsl_comes_from_its_metadata_where_folders_do_not_say(monkeypatch: pytest.MonkeyPatch):
    known = xdsl_version()
    monkeypatch.setattr(cache_keys, "find_spec", lambda name: None)
    xdsl_version.cache_clear()
    assert xdsl_version() == known
    xdsl_version.cache_clear()


# ------------------------------------------------------------ what a kernel depends on


def key_of(compile_text: str = TEXT, **options: object) -> str:
    before = {stored.key for stored in Cache().entries()}
    gemmir.compile(compile_text, **options)  # type: ignore[arg-type]
    (key,) = {stored.key for stored in Cache().entries()} - before
    return key


@pytest.mark.parametrize("tool", ["build_id", "sources_digest", "xdsl_version"])
def test_another_version_of_what_makes_kernels_gives_another_key(monkeypatch: pytest.MonkeyPatch, tool: str):
    """Two versions of NVRTC, of gemmir's code and of xDSL each."""
    first = key_of()
    module = nvrtc if tool == "build_id" else compiler
    with monkeypatch.context() as patch:
        patch.setattr(module, tool, lambda: "another version")
        second = key_of()
    assert first != second
    gemmir.compile(TEXT)
    assert len(Cache().entries()) == 2


def test_options_are_facts_and_facts_stand_in_the_entry():
    keys = [key_of(), key_of(m=16), key_of(chaos=True)]
    assert len(set(keys)) == 3
    found = [Cache().get(key) for key in keys]
    facts = [entry.header["facts"] for entry in found if entry is not None]
    assert [f["m"] for f in facts] == ["", "16", ""]  # type: ignore[index]
    assert [f["chaos"] for f in facts] == ["False", "False", "True"]  # type: ignore[index]
    assert {f["nvrtc"] for f in facts} == {nvrtc.build_id()}  # type: ignore[index]
    assert all(digest(f) == key for f, key in zip(facts, keys, strict=True))  # type: ignore[arg-type]


def test_an_entry_with_other_facts_is_compiled_anew():
    """Even under the right key: should SHA-256 ever fail."""
    key = key_of()
    cache = Cache()
    entry = cache.get(key)
    assert entry is not None
    entry.header["facts"] = {**entry.header["facts"], "m": "17"}  # type: ignore[dict-item]
    cache.put(key, type(entry)(entry.header, b"not the machine code"))
    assert gemmir.compile(TEXT).cubin.startswith(b"\x7fELF")
    assert cache.get(key) != entry


def test_long_facts_are_recorded_by_their_digest():
    long = "x" * (LONGEST_RECORDED + 1)
    kept = recorded({"short": "y" * LONGEST_RECORDED, "long": long, "other": long[:-1] + "z"})
    assert kept["short"] == "y" * LONGEST_RECORDED
    assert str(kept["long"]).startswith("sha256:")
    assert kept["long"] != kept["other"]
    assert recorded({"long": long}).items() <= kept.items()


# ------------------------------------------------------------ calls as text


CALL = Call(
    Grouping.NONE,
    (("a", (None, 384), torch.float8_e4m3fn), ("b", (384, 512), torch.float8_e4m3fn)),
    ("row_wise", "row_wise"),
    ("k", "k"),
    torch.bfloat16,
    16,
)


@pytest.mark.parametrize(
    "change",
    [
        {"grouping": Grouping.BATCH},
        {"tensors": (("a", (1, 384), torch.float8_e4m3fn), ("b", (384, 512), torch.float8_e4m3fn))},
        {"tensors": (("a", (None, 384), torch.float8_e5m2), ("b", (384, 512), torch.float8_e4m3fn))},
        {"recipe": None},
        {"majors": ("m", "k")},
        {"result": torch.float16},
        {"expected_m": None},
        {"few_rows": True},
        {"parts": Parts(1)},
        {"parts": Parts(None, False)},
    ],
)
def test_calls_that_differ_have_different_texts(change: dict[str, object]):
    assert canonical(replace(CALL, **change)) != canonical(CALL)  # type: ignore[arg-type]


def test_the_text_of_a_call_is_stable():
    assert canonical((Grouping.OFFS, None, True, 1, "1", torch.int32, Parts())) == (
        '[{"Grouping":"OFFS"},null,true,1,"1",{"dtype":"torch.int32"},{"Parts":{"wanted":null,"batch_invariant":true}}]'
    )


@dataclass
class Holder:
    what: object


@pytest.mark.parametrize("value", [object(), 1.5, [1], {"a": 1}, b"x", Holder(object()), Holder, torch.zeros(1)])
def test_what_has_no_canonical_text_is_refused(value: object):
    with pytest.raises(TypeError, match="has no canonical text"):
        canonical(value)


# ------------------------------------------------------------ the build id of a library


def test_a_library_is_told_by_its_build_id(tmp_path: Path):
    """Not by its time: machines that have the same NVRTC share a cache."""
    found = elf.build_id_of(nvrtc.library_path())
    assert found is not None
    assert len(bytes.fromhex(found)) >= 8
    assert nvrtc.build_id() == f"libnvrtc.so.13 {found}"


@pytest.mark.parametrize("kept", [0, 4, 63, 64, 100, 119])
def test_what_is_no_library_has_no_build_id(tmp_path: Path, kept: int):
    path = tmp_path / "library"
    with nvrtc.library_path().open("rb") as file:
        path.write_bytes(file.read(kept))
    assert elf.build_id_of(path) is None
    path.write_bytes(b"\x7fELF\x01" + bytes(200))
    assert elf.build_id_of(path) is None
