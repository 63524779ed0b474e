"""
The default dense FP8 kernel, as it is printed, without the wrappers it uses: to be read, and to show what changes.

    python -m tests.backends.cuda.test_golden        writes the file anew
"""

from __future__ import annotations

from pathlib import Path

from gemmir.bench.cases import Case
from gemmir.compiler import lower

GOLDEN = Path(__file__).parent / "golden" / "fp8_4096x7168x2048.cu"
CASE = Case("f8E4M3FN", 4096, 7168, 2048)


def kernel_text() -> str:
    """The kernel from its first constant on, with the two lines that head the source."""
    source = lower(CASE.text, m=CASE.m).source
    head, body = source.split("\n\n", 1)[0], source[source.index("\nconstexpr int N") :]
    return f"{head}\n{body}"


def test_the_default_kernel_reads_as_the_golden_file_shows() -> None:
    assert kernel_text() == GOLDEN.read_text(encoding="ascii")


def test_the_default_kernel_is_short_and_explains_itself() -> None:
    lines = kernel_text().splitlines()
    assert len(lines) <= 350
    assert sum(line.strip().startswith("//") for line in lines) >= 12, "a comment at what has a reason"


if __name__ == "__main__":
    GOLDEN.write_text(kernel_text(), encoding="ascii")
