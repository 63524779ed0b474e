"""docs/command.md and the parsers say the same."""

import re

import pytest

from gemmir.cli.parsers import EXAMPLES
from tests.cli.command_page import PAGE, TABLE, updated
from tests.cli.test_help import OURS

HEADING = re.compile(r"^##+ (gemmir .+)$", re.MULTILINE)


def sections() -> dict[str, str]:
    """The text below the heading of each command."""
    _, *parts = HEADING.split(PAGE.read_text())
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_options_are_current():
    """If not: python -m tests.cli.command_page"""
    assert updated(PAGE.read_text()) == PAGE.read_text()


def test_every_command_has_a_section_with_its_options_and_its_example():
    assert list(sections()) == [prog for prog in OURS if prog != "gemmir"]
    for prog, text in sections().items():
        assert f"\n```\n{EXAMPLES[prog]}\n```\n" in text, prog
        tables = [match[1] for match in TABLE.finditer(text)]
        assert tables == ([] if prog in ("gemmir opt", "gemmir cache", "gemmir cache path") else [prog])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("(default: cuda) |\n", "(default: ptx) |\n"), ("| `--diff` |", "| `--novel` |"), ("{zero,read}", "{zero}")],
)
def test_a_table_that_is_out_of_date_is_noticed(right: str, wrong: str):
    page = PAGE.read_text()
    assert page.count(right) == 1
    assert updated(page.replace(right, wrong)) == page


def test_every_exit_code_is_explained():
    codes = re.findall(r"^\| ([0-9]+) \| .+ \|$", PAGE.read_text(), re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "130"]
