"""`gemmir cache`: path, ls, show, clear."""

import json
import os
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pytest

import gemmir
from gemmir.backends.cuda import quantize
from gemmir.backends.cuda.compiler_log import read_log
from gemmir.backends.cuda.nvrtc import version
from gemmir.cache import Cache
from gemmir.cache_files import Entry
from gemmir.cache_keys import digest
from gemmir.cli.cache import age, duration, moment
from gemmir.cli.main import main
from gemmir.program import Program

Output = pytest.CaptureFixture[str]
NVRTC = "{}.{}".format(*version())
SMALL = 16 + 8 + len(json.dumps({"key": "0" * 64, "header": {}})) + 100 + 32
"""Bytes of an entry that `put` makes: magic, length, header, payload, hash."""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


@pytest.fixture
def kernel(directory: Path) -> gemmir.CompiledKernel:
    """A kernel that is in the cache."""
    p = Program("layer")
    a, b = p.input("x", (None, 256), "bf16"), p.input("w", (256, 128), "bf16")
    p.output(p.matmul(a, b).cast("bf16"))
    return gemmir.compile(p)


def put(name: str, age_seconds: float = 0.0, **header: object) -> str:
    """An entry, last used so long ago."""
    key = digest({"source": name})
    assert Cache().put(key, Entry(header, b"\0" * 100))  # type: ignore[arg-type]
    path = Cache().path_of(key)
    assert path is not None
    os.utime(path, (time.time() - age_seconds,) * 2)
    return key


def run(capsys: Output, *arguments: str, code: int = 0) -> str:
    """What the command prints."""
    assert main(["cache", *arguments]) == code
    return capsys.readouterr().out


# ------------------------------------------------------------ path


def test_path_is_below_the_directory_that_is_set(directory: Path, capsys: Output):
    assert run(capsys, "path") == f"{directory / 'v1'}\n"
    assert not directory.exists()


def test_path_while_the_cache_is_switched_off(directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    monkeypatch.setenv("GEMMIR_CACHE", "0")
    assert main(["cache", "path"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{directory / 'v1'}\n"
    assert "GEMMIR_CACHE=0" in err


def test_path_shows_bytes_that_are_no_text(directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(directory / os.fsdecode(b"caf\xe9\n")))
    assert run(capsys, "path") == f"{directory}/caf\\udce9\\n/v1\n"


@pytest.mark.parametrize("action", ["path", "ls", "show 00", "clear"])
def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output, action: str):
    monkeypatch.delenv("GEMMIR_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    assert main(["cache", *action.split()]) == 1
    assert "error[GMR-K001]: " in capsys.readouterr().err


@pytest.mark.parametrize("action", ["path", "ls", "show 00", "clear"])
def test_a_directory_that_others_can_write_is_an_error(directory: Path, capsys: Output, action: str):
    directory.mkdir()
    directory.chmod(0o777)
    assert main(["cache", *action.split()]) == 1
    assert "kernels can be written by others" in capsys.readouterr().err


# ------------------------------------------------------------ ls


def test_an_empty_cache_lists_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output):
    assert run(capsys, "ls") == "0 kernels, 0 of at most 1,073,741,824 bytes\n"
    monkeypatch.setenv("GEMMIR_CACHE_MAX", "5K")
    assert run(capsys, "ls") == "0 kernels, 0 of at most 5,120 bytes\n"
    assert run(capsys, "ls", "--json") == "[]\n"


def test_kernels_are_listed_by_last_use(kernel: gemmir.CompiledKernel, capsys: Output):
    other = put("other", 5 * 86400)
    (stored, _) = Cache().entries()
    head, first, second, total = run(capsys, "ls").splitlines()
    assert head.split() == ["KEY", "SIZE", "MADE", "USED", "NVRTC", "KERNEL"]
    assert first.split() == [stored.key[:12], f"{-(-stored.size // 1024)}K", "0m", "0m", NVRTC, kernel.manifest.entry]
    assert second.split()[:5] == [other[:12], "1K", "5d", "5d", "?"]
    assert second.endswith("of another version of gemmir")
    assert total == f"2 kernels, {stored.size + SMALL:,} of at most 1,073,741,824 bytes"
    assert all(len(line) <= 80 for line in (head, first, second, total))
    assert Cache().entries()[1].last_used < time.time() - 86400, "a list is no use"


def test_a_damaged_kernel_is_listed_as_such_and_left(directory: Path, capsys: Output):
    path = Cache().path_of(put("one"))
    assert path is not None
    path.write_bytes(b"damaged")
    assert "damaged: it will be compiled again" in run(capsys, "ls")
    assert json.loads(run(capsys, "ls", "--json"))[0]["damaged"] is True
    assert path.read_bytes() == b"damaged"


def test_a_list_for_programs(kernel: gemmir.CompiledKernel, capsys: Output):
    (stored,) = Cache().entries()
    (found,) = json.loads(run(capsys, "ls", "--json"))
    assert datetime.fromisoformat(found.pop("made")).timestamp() == int(stored.made)
    assert datetime.fromisoformat(found.pop("last_used")).timestamp() == int(stored.last_used)
    assert found == {
        "key": stored.key,
        "entry": kernel.manifest.entry,
        "name": "layer",
        "size": stored.size,
        "nvrtc": NVRTC,
        "gemmir": gemmir.__version__,
        "damaged": False,
    }


def test_a_cache_that_is_switched_off_can_be_looked_at(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
):
    put("one")
    monkeypatch.setenv("GEMMIR_CACHE", "0")
    assert run(capsys, "ls").startswith("KEY")
    assert run(capsys, "clear") == f"1 kernel removed, {SMALL} bytes\n"


# ------------------------------------------------------------ show


def test_one_kernel_is_shown(kernel: gemmir.CompiledKernel, capsys: Output):
    (stored,) = Cache().entries()
    manifest = kernel.manifest
    lines = run(capsys, "show", stored.key[:5]).splitlines()
    assert lines[0] == manifest.entry
    assert lines[1] == f"  key        {stored.key}"
    text = "\n".join(lines)
    for part in (
        f"gemmir {gemmir.__version__} with NVRTC {NVRTC}",
        f"  source     {kernel.source_path}",
        "  computes   layer: M x 128 x 256, for sm_90a",
        f"  blocks     {manifest.block_m} x {manifest.block_n}, cluster {manifest.cluster_m} x {manifest.cluster_n}",
        f"  launch     {manifest.threads} threads, {manifest.shared_bytes:,} bytes of shared memory",
        f"  registers  {read_log(kernel.log).registers} a thread at launch; 0 bytes spilled",
        "  x: M x 256 bf16, order (0, 1)\n  w: 256 x 128 bf16, order (1, 0)\n",
        f"schedule\n  {manifest.schedule}\n",
        "  xdsl: 0.74.0",
    ):
        assert part in text
    at = lines.index("decisions") + 1
    assert tuple(line[2:] for line in lines[at : at + len(kernel.decisions)]) == kernel.decisions


def test_one_kernel_for_programs(kernel: gemmir.CompiledKernel, capsys: Output):
    (stored,) = Cache().entries()
    found = json.loads(run(capsys, "show", stored.key, "--json"))
    assert found["manifest"] == json.loads(kernel.manifest.to_json())
    assert found["resources"] == asdict(read_log(kernel.log))
    assert found["source_path"] == str(kernel.source_path)
    assert digest(found["depends_on"]) == found["key"] == stored.key


def test_what_an_entry_does_not_say_is_not_shown(directory: Path, capsys: Output):
    key = put("one", manifest="{}", log="", made_by=3, facts=[])
    lines = run(capsys, "show", key).splitlines()
    assert lines[0] == "of another version of gemmir"
    assert lines[2].endswith("by gemmir ? with NVRTC ?")
    assert lines[-1] == "  source     not written"
    found = json.loads(run(capsys, "show", key, "--json"))
    assert (found["manifest"], found["resources"], found["depends_on"]) == (None, None, {})


def test_nothing_in_an_entry_commands_the_terminal(directory: Path, capsys: Output):
    key = put("one", facts={"program": "\x1b[2J\r\n\u202e" + "x" * 200})
    line = run(capsys, "show", key).splitlines()[-1]
    assert line.startswith("  program: \\x1b[2J\\r\\n\\u202exxx")
    assert line.endswith("... (207 characters)")


@pytest.mark.parametrize("key", ["", "zz", "0" * 64, "../../etc/passwd", "A"])
def test_an_unknown_key_is_an_error(directory: Path, capsys: Output, key: str):
    put("one")
    assert main(["cache", "show", key]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error[GMR-K002]: no kernel has key {key!r}")
    assert "fix: gemmir cache ls" in error


def test_a_key_of_several_kernels_is_an_error(directory: Path, capsys: Output):
    keys = sorted(put(str(number)) for number in range(40))
    digit = next(digit for digit in "0123456789abcdef" if sum(key[0] == digit for key in keys) > 1)
    several = [key for key in keys if key[0] == digit]
    assert main(["cache", "show", digit]) == 1
    error = capsys.readouterr().err
    assert f"GMR-K002]: {len(several)} kernels have keys that begin with {digit}: {several[0][:16]}, " in error


# ------------------------------------------------------------ clear


def test_clear_says_how_much_it_has_removed(kernel: gemmir.CompiledKernel, capsys: Output):
    put("other")
    size = sum(stored.size for stored in Cache().entries())
    assert run(capsys, "clear") == f"2 kernels removed, {size:,} bytes\n"
    assert Cache().entries() == ()
    assert run(capsys, "clear") == "0 kernels removed, 0 bytes\n"


@pytest.mark.parametrize(
    ("options", "left"),
    [("--older-than 3d", 3), ("--older-than 30h", 2), ("--older-than 4w", 4), ("--keep 1", 1), ("--keep 9", 4)],
)
def test_some_kernels_may_stay(directory: Path, capsys: Output, options: str, left: int):
    keys = [put(str(days), days * 86400 + 60) for days in range(4)]
    removed = 4 - left
    assert run(capsys, "clear", *options.split()).startswith(f"{removed} kernel{'' if removed == 1 else 's'} removed, ")
    assert [stored.key for stored in Cache().entries()] == keys[:left]


@pytest.mark.parametrize("options", ["--older-than 3", "--older-than d", "--older-than -1d", "--keep x", "--keep -1"])
def test_options_that_mean_nothing_are_wrong_usage(directory: Path, capsys: Output, options: str):
    put("one")
    with pytest.raises(SystemExit) as stop:
        main(["cache", "clear", *options.split()])
    assert stop.value.code == 2
    assert len(Cache().entries()) == 1


def test_clear_without_a_directory_that_can_be_written_is_an_error(directory: Path, capsys: Output):
    directory.write_text("a file where the folder should be")
    assert main(["cache", "clear"]) == 1
    assert capsys.readouterr().err.startswith("error[GMR-K001]: ")


# ------------------------------------------------------------ times, and help


@pytest.mark.parametrize(
    ("ago", "expected"),
    [
        (0, "0m"),
        (59, "0m"),
        (-999, "0m"),
        (3599, "59m"),
        (3600, "1h"),
        (172_000, "47h"),
        (172_801, "2d"),
        (1e9, "11574d"),
    ],
)
def test_ages_in_one_number(monkeypatch: pytest.MonkeyPatch, ago: float, expected: str):
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert age(2e9 - ago) == expected


def test_durations_and_moments():
    assert [duration(text) for text in ("90m", "12h", "30d", "4w")] == [5400, 43200, 2_592_000, 2_419_200]
    assert moment(0.9) == "1970-01-01T00:00:00+00:00"
    assert moment(1e18) == "9999-12-31T23:59:59+00:00"
    assert moment(-5.0) == "1970-01-01T00:00:00+00:00"


@pytest.mark.parametrize("action", ["", "path", "ls", "show", "clear"])
def test_help_fits_a_terminal(capsys: Output, monkeypatch: pytest.MonkeyPatch, action: str):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main(["cache", *action.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0
    assert lines[0].startswith(f"usage: gemmir cache {action}".rstrip())
    assert max(map(len, lines)) <= 80


def test_a_kernel_that_quantises_is_listed_by_its_name(directory: Path, capsys: pytest.CaptureFixture[str]):
    kind = quantize.KINDS[0]
    quantize.compiled(kind)
    (kernel,) = json.loads(run(capsys, "ls", "--json"))
    assert kernel["entry"] == kind.entry
    shown = run(capsys, "show", kernel["key"])
    assert shown.startswith(f"{kind.entry}\n")
    assert f"quantize: {kind.entry}" in shown
