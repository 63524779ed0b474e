"""docs/errors.md and gemmir.errors.CODES say the same."""

import re
from pathlib import Path

from gemmir import errors
from gemmir.errors import CODES, GemmirError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "errors.md"


def test_the_page_lists_every_code_with_its_meaning():
    rows = dict(re.findall(r"^\| `(GMR-[A-Z]\d+)` \| (.+?) \| .+ \|$", PAGE.read_text(), re.MULTILINE))
    assert rows == CODES


def test_the_page_lists_every_class():
    raised = {v.__name__ for v in vars(errors).values() if isinstance(v, type) and issubclass(v, GemmirError)}
    named = set(re.findall(r"`(\w+Error)`", PAGE.read_text()))
    assert raised - {"GemmirError"} == named
