"""Ten thousand mutated IR texts: a typed error or a module, in bounded time and memory. A million by GEMMIR_FUZZ."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.fuzz.mutations import corpus, mutated

ROOT = Path(__file__).resolve().parents[2]
TEXTS = int(os.environ.get("GEMMIR_FUZZ", "10000"))
PROCESSES = os.cpu_count() or 1
MAX_SECONDS = 2.0
"""Of processor time for one text: parsing it, and for some passes, proof and printing."""
MAX_BYTES = 512 << 20


def test_mutated_texts_raise_typed_errors_only():
    share = -(-TEXTS // PROCESSES)
    command = [sys.executable, "-m", "tests.fuzz.read_many"]
    children = [
        subprocess.Popen(
            [*command, str(i * share), str(min(share, TEXTS - i * share))], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for i in range(PROCESSES)
    ]
    reports = [json.loads(child.communicate()[0]) for child in children]
    assert [child.returncode for child in children] == [0] * PROCESSES
    found = sum((Counter(report["found"]) for report in reports), Counter())
    assert [report["wrong"] for report in reports] == [[]] * PROCESSES
    assert max(report["slowest"][0] for report in reports) < MAX_SECONDS, reports
    assert max(report["bytes"] for report in reports) < MAX_BYTES, reports
    assert sum(found.values()) == TEXTS
    assert found["IRError"] > 0.8 * TEXTS, found
    assert min(found["right"], found["lowered"]) > 0, "some texts are still right"


def test_texts_are_the_same_every_time():
    assert [mutated(number) for number in range(50)] == [mutated(number) for number in range(50)]
    assert len({mutated(number) for number in range(200)}) > 190
    assert len(corpus()) == 14
