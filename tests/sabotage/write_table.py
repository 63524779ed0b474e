"""Puts the table of faults into docs/proof.md: `python -m tests.sabotage.write_table`."""

from __future__ import annotations

from pathlib import Path

from tests.sabotage.faults import table

PROOF = Path(__file__).parents[2] / "docs" / "proof.md"
BEGIN, END = "<!-- faults: begin -->\n", "\n<!-- faults: end -->"


def main() -> None:
    text = PROOF.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PROOF.write_text(head + BEGIN + table() + END + tail)


if __name__ == "__main__":
    main()
