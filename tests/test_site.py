"""The documentation: references are what the code says, examples run, and the site builds without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gemmir.reference_pages import pages
from gemmir.universe import GEMMIR_UNIVERSE, PASSES
from tests import tutorial_page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", ["ir.md", "passes.md"])
def test_references_are_current(name: str):
    """Else: python -m gemmir.reference_pages docs/reference"""
    assert (DOCS / "reference" / name).read_text() == pages()[name]


def test_everything_is_described():
    ir, passes = pages()["ir.md"], pages()["passes.md"]
    for name in ("gemm", "hopper"):
        dialect = GEMMIR_UNIVERSE.all_dialects[name]()
        for thing in (*dialect.operations, *dialect.attributes):
            section = re.search(rf"^### `{re.escape(thing.name)}`\n\n(.+)$", ir, re.MULTILINE)
            assert section is not None, thing.name
            assert len(section[1]) >= 12, thing.name
            assert "Helper for Enum" not in section[1], thing.name
    assert re.findall(r"^## `(.+)`$", passes, re.MULTILINE) == [*PASSES]


def test_the_quick_start_runs(capsys: pytest.CaptureFixture[str]):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "quickstart.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "quickstart.md", "exec"), names)
    assert len(blocks) == 3
    assert tuple(names["y"].shape) == (8, 256)  # type: ignore[attr-defined]
    assert "gemm-select-family" in capsys.readouterr().out


def test_the_tutorial_prints_what_its_commands_print():
    """Else: python -m tests.tutorial_page"""
    page = tutorial_page.PAGE.read_text()
    assert page == tutorial_page.refreshed(page)
    assert page.count("```diff") == 7
    assert page.count("\nGMR-") == 3


def test_limits_are_those_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    limits = re.search(r"\n## Limits\n\n(.*?)\n\n## ", readme, re.DOTALL)
    assert limits is not None
    assert limits[1].replace("](docs/", "](") in (DOCS / "limits.md").read_text()


def test_the_site_builds_and_every_link_leads_somewhere(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    built = {page.relative_to(tmp_path / "site").with_suffix("") for page in (tmp_path / "site").rglob("*.html")}
    sources = {page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.md")}
    assert sources <= built
