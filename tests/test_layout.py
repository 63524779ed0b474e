"""The rules of the tree: who may import whom, how long a file may be, one pass a file."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOMS = ("gemmir", "passes", "backends")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

PLAIN_NAMES = (
    "errors dtypes target layouts numerics problem schedule tile legality decisions manifest matmul_rules ir_gate "
    "segments groups rule loop_legality order_legality stream_legality tail_legality error_codes records"
)
PLAIN = {f"gemmir.{name}" for name in PLAIN_NAMES.split()}
"""Plain data: the standard library and each other, nothing else."""

ABOVE = ("pipeline", "compiler", "kernel", "ops", "torch", "bench", "cli", "universe", "__main__")
FORBIDDEN = {
    "gemmir.dialects": ("gemmir.passes", "gemmir.backends", *(f"gemmir.{name}" for name in ABOVE)),
    "gemmir.passes": ("gemmir.backends", *(f"gemmir.{name}" for name in ABOVE)),
    "gemmir.backends": ("gemmir.passes", *(f"gemmir.{name}" for name in ABOVE)),
}
"""Room -> what it must not know."""

KNOWN_ONLY_BY = {
    "gemmir.passes": ("gemmir.passes", "gemmir.pipeline", "gemmir.compiler", "gemmir.universe"),
    "gemmir.backends": (
        "gemmir.backends",
        "gemmir.pipeline",
        "gemmir.compiler",
        "gemmir.kernel",
        "gemmir.bundle",
        "gemmir.device_sync",
        "gemmir.ops",
        "gemmir.preparing",
        "gemmir.reference_calls",
        "gemmir.quantization",
        "gemmir.torch_ops_fake",
        "gemmir.torch_ops_fake_quantize",
        "gemmir.quantization_checks",
        "gemmir.scales",
        "gemmir.validation",
        "gemmir.universe",
        "gemmir.bench",
        "gemmir.cli",
        "gemmir.testing",
    ),
    "gemmir.compiler": (
        "gemmir",
        "gemmir.testing",
        "gemmir.cli",
        "gemmir.ops",
        "gemmir.product_calls",
        "gemmir.torch",
        "gemmir.compiler",
    ),
    "gemmir.bench": ("gemmir.bench", "gemmir.cli"),
    "gemmir.cli": ("gemmir.cli", "gemmir.__main__"),
}
"""Room -> the only ones that may import it."""


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(p for p in (ROOT / folder).rglob("*.py") if not is_link_path(p))


def is_link_path(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents)


def module_name(path: Path) -> str:
    """The installed name: `passes/x.py` is `gemmir.passes.x`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "gemmir" else ("gemmir", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; `from a import b` counts as `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


MODULES = {module_name(p): imports_of(p) for p in python_files(*SOURCE_ROOMS)}


def test_plain_data_imports_only_the_standard_library():
    for module in sorted(PLAIN & MODULES.keys()):
        foreign = {i for i in MODULES[module] if i.split(".")[0] not in sys.stdlib_module_names}
        bad = {i for i in foreign if not any(inside(i, plain) for plain in PLAIN)}
        assert not bad, f"{module} imports {sorted(bad)}"


def test_plain_data_is_all_there():
    assert PLAIN <= MODULES.keys(), f"gone: {sorted(PLAIN - MODULES.keys())}"


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_a_room_knows_nobody_above_it(room: str):
    for module, imports in MODULES.items():
        if inside(module, room):
            bad = {i for i in imports for above in FORBIDDEN[room] if inside(i, above)}
            assert not bad, f"{module} imports {sorted(bad)}"


@pytest.mark.parametrize("room", sorted(KNOWN_ONLY_BY))
def test_a_room_is_known_only_by_those_that_may(room: str):
    for module, imports in MODULES.items():
        allowed = any(module == by if by == "gemmir" else inside(module, by) for by in KNOWN_ONLY_BY[room])
        bad = {i for i in imports if inside(i, room)}
        assert allowed or not bad, f"{module} imports {sorted(bad)}"


def test_backends_do_not_know_each_other():
    backends = sorted(p.name for p in (ROOT / "backends").iterdir() if p.is_dir() and p.name != "__pycache__")
    for backend in backends:
        others = [f"gemmir.backends.{other}" for other in backends if other != backend]
        for module, imports in MODULES.items():
            if inside(module, f"gemmir.backends.{backend}"):
                bad = {i for i in imports for other in others if inside(i, other)}
                assert not bad, f"{module} imports {sorted(bad)}"


def test_nobody_imports_passes_or_backends_by_their_folder():
    for path in python_files(*SOURCE_ROOMS, "tests", "examples"):
        bad = {i for i in imports_of(path) if inside(i, "passes") or inside(i, "backends")}
        assert not bad, f"{path} imports {sorted(bad)}: say gemmir.passes, gemmir.backends"


@pytest.mark.parametrize("room", ["passes", "backends"])
def test_the_links_lead_to_the_rooms(room: str):
    link = ROOT / "gemmir" / room
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{room}"
    assert link.samefile(ROOT / room)


def test_no_file_is_longer_than_500_lines():
    lengths = {p: len(p.read_text().splitlines()) for p in python_files(*SOURCE_ROOMS, "tests", "examples")}
    lengths |= {p: len(p.read_text().splitlines()) for p in (ROOT / "backends").rglob("*.cu*")}
    too_long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_FILE_LINES}
    assert not too_long


def test_no_function_is_longer_than_60_lines():
    too_long: dict[str, int] = {}
    for path in python_files(*SOURCE_ROOMS):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    too_long[f"{path.relative_to(ROOT)}:{node.name}"] = length
    assert not too_long


def test_a_pass_file_holds_the_one_pass_it_is_named_after():
    for path in python_files("passes"):
        names = list(pass_names(ast.parse(path.read_text())))
        assert names in ([], [path.stem.replace("_", "-")]), f"{path.name} holds {names}"


def pass_names(tree: ast.Module) -> Iterator[str]:
    """The `name = "..."` of every subclass of ModulePass."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any("ModulePass" in ast.unparse(base) for base in node.bases):
            for item in node.body:
                if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "name":
                    assert isinstance(item.value, ast.Constant)
                    yield str(item.value.value)
