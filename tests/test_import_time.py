"""`import gemmir` is cheap: nothing heavy is loaded, and it costs milliseconds."""

import json
import resource
import subprocess
import sys

import pytest

HEAVY = ("xdsl", "torch", "numpy", "cuda")
BUDGET_SECONDS = 0.030


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `code`."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def seconds(code: str) -> float:
    """Processor time of a fresh interpreter: what else the machine does must not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "code",
    [
        "import gemmir",
        "import gemmir; gemmir.quantize, gemmir.dequantize",
        "import gemmir.errors, gemmir.schedule, gemmir.legality, gemmir.manifest",
        "import gemmir.cli.main as m; m.make_parser().format_help()",
    ],
)
def test_nothing_heavy_is_loaded(code: str):
    assert loaded_by(code).isdisjoint(HEAVY)


def test_products_of_tensors_load_what_tensors_are_made_with_and_nothing_else():
    code = "import gemmir; gemmir.matmul, gemmir.grouped_matmul, gemmir.batched_matmul, gemmir.prepare"
    assert loaded_by(code) & set(HEAVY) <= loaded_by("import torch")


def test_every_public_name_is_listed_and_unknown_ones_are_refused():
    import gemmir

    assert set(gemmir.__all__) <= set(dir(gemmir))
    with pytest.raises(AttributeError, match="no attribute 'gemm'"):
        _ = gemmir.gemm  # type: ignore[attr-defined]


def test_import_takes_milliseconds_over_bare_python():
    # The least of several: processor time too is longer beside others, which share the core or its caches.
    runs = range(15)
    extra = min(seconds("import gemmir") for _ in runs) - min(seconds("pass") for _ in runs)
    assert extra <= BUDGET_SECONDS, f"import gemmir costs {extra * 1e3:.1f} ms"
