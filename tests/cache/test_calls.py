"""Calls that find their kernel by what they are: without a program, without xDSL, and never a wrong one."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gemmir
from gemmir import compiler
from gemmir.backends.cuda import nvrtc
from gemmir.cache import Cache, Kind
from gemmir.cache_files import Entry
from gemmir.compiler import compile_call
from gemmir.problem import Grouping
from gemmir.product_calls import Call, Parts, program_of
from gemmir.program import Program
from tests.cache.entries import names_in, warnings_in
from tests.cache.test_faults import ROOT, program

BF16 = torch.bfloat16
CALL = Call(Grouping.NONE, (("a", (None, 256), BF16), ("b", (256, 128), BF16)), None, ("k", "k"), BF16, None)
OTHER = replace(CALL, result=torch.float32)


def kernel(call: Call, asked: list[Call] | None = None) -> gemmir.CompiledKernel:
    def build() -> Program:
        if asked is not None:
            asked.append(call)
        return program_of(call)

    return compile_call(call, build)


def call_files() -> list[Path]:
    directory = Cache().directory
    assert directory is not None
    return sorted(directory.glob("*.call"))


def found(key: str, kind: Kind) -> Entry:
    entry = Cache().get(key, kind)
    assert entry is not None
    return entry


@pytest.fixture
def cubin() -> bytes:
    """The machine code of `CALL`, which is in the cache."""
    return kernel(CALL).cubin


def test_a_call_finds_its_kernel(cubin: bytes):
    asked: list[Call] = []
    again = kernel(CALL, asked)
    assert (again.cubin, asked) == (cubin, [])
    assert again.source_path is not None
    assert again.source_path.read_text() == again.source


def test_a_call_and_its_program_share_an_entry(cubin: bytes):
    assert gemmir.compile(program_of(CALL)).cubin == cubin
    assert len(Cache().entries()) == 1
    assert kernel(replace(CALL, parts=Parts(1))).cubin == cubin
    assert len(Cache().entries()) == 1, "another call, the same program"
    assert len(call_files()) == 2


def test_another_call_has_another_kernel(cubin: bytes):
    asked: list[Call] = []
    assert kernel(OTHER, asked).cubin != cubin
    assert asked == [OTHER]
    assert kernel(CALL).cubin == cubin


@pytest.mark.parametrize("tool", ["build_id", "sources_digest", "xdsl_version"])
def test_a_call_that_other_tools_have_answered_is_asked_again(cubin: bytes, monkeypatch: pytest.MonkeyPatch, tool: str):
    monkeypatch.setattr(nvrtc if tool == "build_id" else compiler, tool, lambda: "another version")
    asked: list[Call] = []
    kernel(CALL, asked)
    kernel(CALL, asked)
    assert asked == [CALL]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def swap(path: Path) -> None:
    """Put the answer to another call in its place."""
    kernel(OTHER)
    (other,) = set(call_files()) - {path}
    os.replace(other, path)


def rewrite(**changes: object) -> Callable[[Path], None]:
    """Another header, with a hash that fits."""

    def change(path: Path) -> None:
        header = dict(found(path.stem, "call").header)
        header |= changes  # type: ignore[arg-type]
        Cache().put(path.stem, Entry(header, b""), "call")

    return change


def other_facts(path: Path) -> None:
    kernel(OTHER)
    (other,) = set(call_files()) - {path}
    header = found(path.stem, "call").header
    Cache().put(path.stem, Entry({**header, "facts": found(other.stem, "call").header["facts"]}, b""), "call")


@pytest.mark.parametrize(
    "harm",
    [
        damage,
        swap,
        Path.unlink,
        rewrite(kernel="0" * 64),
        rewrite(kernel="../../kernel"),
        rewrite(kernel=None),
        rewrite(kernel=[1]),
        rewrite(facts={}),
        other_facts,
    ],
    ids=["damaged", "swapped", "gone", "dangling", "no key", "null", "list", "no facts", "other facts"],
)
def test_an_answer_that_does_not_fit_is_replaced(cubin: bytes, harm: Callable[[Path], None]):
    (path,) = call_files()
    harm(path)
    asked: list[Call] = []
    assert (kernel(CALL, asked).cubin, kernel(CALL, asked).cubin) == (cubin, cubin)
    assert asked == [CALL]


def test_a_damaged_kernel_is_compiled_again(cubin: bytes, caplog: pytest.LogCaptureFixture):
    (stored,) = Cache().entries()
    damage(Cache().path_of(stored.key) or Path())
    asked: list[Call] = []
    assert kernel(CALL, asked).cubin == cubin
    assert asked == [CALL]
    assert ["removed a damaged entry" in m for m in warnings_in(caplog)] == [True]


@pytest.mark.parametrize(("name", "value"), [("target", "sm_90"), ("gemmir", "other code"), ("chaos", "True")])
def test_a_kernel_of_other_facts_is_no_answer(cubin: bytes, name: str, value: str):
    """Should an answer ever name one."""
    (stored,) = Cache().entries()
    entry = found(stored.key, "kernel")
    facts = entry.header["facts"]
    assert isinstance(facts, dict)
    Cache().put(stored.key, Entry({**entry.header, "facts": {**facts, name: value}}, b"other code"))
    assert kernel(CALL).cubin == cubin


def test_without_a_cache_every_call_is_compiled(monkeypatch: pytest.MonkeyPatch, cubin: bytes):
    monkeypatch.setenv("GEMMIR_CACHE", "0")
    asked: list[Call] = []
    result = kernel(CALL, asked)
    assert (result.cubin, result.source_path, asked) == (cubin, None, [CALL])


def test_what_is_no_call_is_refused():
    with pytest.raises(TypeError, match="no canonical text"):
        compile_call(object(), lambda: program_of(CALL))
    assert Cache().entries() == ()


IN_A_NEW_PROCESS = """
import json, sys
import torch
before = set(sys.modules)
import gemmir
gemmir.matmul
from gemmir import ops
from gemmir.product_calls import Call, Parts
from gemmir.problem import Grouping
fp8, f32, bf16 = torch.float8_e4m3fn, torch.float32, torch.bfloat16
tensors = ("a", (None, 512), fp8), ("b", (512, 256), fp8), ("scale_a", (None, 4), f32), ("scale_b", (4, 2), f32)
recipe = "block_wise_1x128", "block_wise_128x128"
call = Call(Grouping.NONE, tensors, recipe, ("k", "k"), bf16, 16, True, Parts(None, {invariant}))
kernel = ops.kernel_of(call)
print(json.dumps([sorted(set(sys.modules) - before), kernel.manifest.entry, len(kernel.cubin)]))
"""


@pytest.mark.parametrize("invariant", [True, False])
def test_a_new_process_finds_its_kernel_without_xdsl(invariant: bool):
    """After `import torch`, up to the machine code; without the cost model, the rules and the program too."""
    code = IN_A_NEW_PROCESS.format(invariant=invariant)
    here: dict[str, Call] = {}
    exec(code.partition("kernel = ")[0], here)
    cold = kernel(here["call"])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported, entry, size = json.loads(done.stdout)
    assert (entry, size) == (cold.manifest.entry, len(cold.cubin))
    assert "gemmir.cache" in imported
    assert not any(name.split(".")[0] in ("xdsl", "cuda") for name in imported)
    heavy = {"program", "legality", "matmul_rules", "expression", "tile", "pipeline", "decisions"}
    assert {f"gemmir.{name}" for name in heavy}.isdisjoint(imported)


# ------------------------------------------------------------ caches that can only be read


def test_a_cache_that_was_filled_beforehand_is_used():
    """By somebody who cannot write it: hits say nothing, misses compile and warn once, nothing is changed."""
    with tempfile.TemporaryDirectory() as place:  # every user can go there, unlike to pytest's own folders
        os.chmod(place, 0o755)
        found = program("read_only", Path(place) / "kernels")
    assert found["hit"] == [0, 0], "kernels that were compiled, and warnings"
    assert found["hit of a program"] == [0, 0], "which nobody has called yet"
    assert found["two misses of one"] == [1, 1], "the second one comes from memory"
    assert found["miss of another"] == [2, 1]
    assert found["damaged"] == [3, 2]
    assert ["permission denied" in w for w in found["warnings"]] == [True, False]
    assert "ignored a damaged entry" in found["warnings"][1]
    assert (found["unchanged"], found["equal"], found["path"]) == (True, True, "None")


def test_a_file_in_the_place_of_the_directory(folder: Path, caplog: pytest.LogCaptureFixture):
    folder.mkdir()
    (folder / "v1").write_text("not a directory")
    cache = Cache(folder)
    assert [cache.put(str(n) * 64, Entry({}, b"")) for n in range(3)] == [False] * 3
    assert ["v1 is not a directory" in m for m in warnings_in(caplog)] == [True]
    (folder / "v1").unlink()
    assert cache.put("0" * 64, Entry({}, b""))
    assert names_in(folder) == [".kernel"]
