"""The table of codes, the classes, the source and docs/errors.md say the same."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmir import errors
from gemmir.cli.main import main
from gemmir.error_codes import ERROR_CODES
from gemmir.errors import GemmirError
from gemmir.errors_page import page

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"GMR-[A-Z]\d{3}")
CLASSES = {v.__name__: v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, GemmirError)}
CARRIERS = {"Violation": "ScheduleError", "Fault": "InputError"}
"""What carries a code to where the error of a class is raised."""


def calls_with_codes() -> Iterator[tuple[str, str, str]]:
    """Each call in the source with a code among its arguments: where, what is called, the code."""
    files = [p for room in ("gemmir", "passes", "backends") for p in sorted((ROOT / room).rglob("*.py"))]
    for path in files:
        if path.name == "error_codes.py" or any(parent.is_symlink() for parent in path.parents):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                codes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                yield from ((f"{path}:{node.lineno}", name, code) for code in codes if CODE.fullmatch(code))


def test_the_page_is_what_the_table_makes():
    assert (ROOT / "docs" / "errors.md").read_text() == page(), "run: python -m gemmir.errors_page docs/errors.md"


def test_every_code_is_raised_and_as_the_class_that_the_table_says():
    raised: dict[str, list[str]] = defaultdict(list)
    for where, name, code in calls_with_codes():
        assert code in ERROR_CODES, f"{where}: {code} is not in gemmir/error_codes.py"
        kind = CARRIERS.get(name, name)
        if kind in CLASSES:
            assert kind == ERROR_CODES[code].raised_as, f"{where}: {code} is raised as {kind}"
            raised[code].append(where)
    assert raised.keys() == ERROR_CODES.keys(), "each code of the table is raised somewhere"


def test_every_class_has_a_code_and_every_code_a_title_of_its_own():
    assert {entry.raised_as for entry in ERROR_CODES.values()} == CLASSES.keys() - {"GemmirError"}
    assert len({entry.title for entry in ERROR_CODES.values()}) == len(ERROR_CODES)
    assert all(CODE.fullmatch(code) for code in ERROR_CODES)


@pytest.mark.parametrize("asked", ["GMR-I003", "i003"])
def test_the_command_says_what_a_code_means(asked: str, capsys: pytest.CaptureFixture[str]):
    assert main(["errors", asked]) == 0
    entry = ERROR_CODES["GMR-I003"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"GMR-I003: {entry.title}"
    assert lines[-1] == f"  fix: {entry.fix}"


def test_the_command_lists_all_codes(capsys: pytest.CaptureFixture[str]):
    assert main(["errors"]) == 0
    assert [line[:8] for line in capsys.readouterr().out.splitlines()] == list(ERROR_CODES)


def test_the_command_does_not_know_a_code_that_does_not_exist(capsys: pytest.CaptureFixture[str]):
    assert main(["errors", "GMR-Z999"]) == 2
    assert "gemmir errors" in capsys.readouterr().err
