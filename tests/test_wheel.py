"""The wheel: built, installed in a fresh environment, and used from somewhere else."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "01_down_proj.mlir"
ELF_MAGIC = b"\x7fELF"


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git holds, so that nothing else of the checkout can slip in."""
    work = tmp_path_factory.mktemp("wheel")
    tree = work / "tree"
    for room in ("gemmir", "passes", "backends"):
        shutil.copytree(ROOT / room, tree / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", work, tree, cwd=work)
    (built,) = work.glob("gemmir-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The folder of programs of a fresh environment that has the wheel installed.

    Its dependencies are links to those of this environment: nothing is downloaded.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    (packages,) = (home / "lib").glob("python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", packages, wheel, cwd=home)
    for dependency in Path(sysconfig.get_path("purelib")).iterdir():
        if "gemmir" not in dependency.name and dependency.suffix != ".pth" and dependency.name != "__pycache__":
            (packages / dependency.name).symlink_to(dependency)
    (home / "bin" / "gemmir").write_text((packages / "bin" / "gemmir").read_text())
    return home / "bin"


def test_the_wheel_holds_gemmir_and_nothing_else_at_the_top(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gemmir"}
    assert "gemmir/py.typed" in names


def test_the_wheel_holds_every_module_as_a_real_file(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.endswith((".py", ".cuh"))}
        assert all(archive.getinfo(name).external_attr >> 28 != 0o12 for name in held), "a link in the wheel"
    rooms = {"gemmir": "gemmir", "passes": "gemmir/passes", "backends": "gemmir/backends"}
    expected = {
        f"{inside}/{path.relative_to(ROOT / room)}"
        for room, inside in rooms.items()
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".cuh") and not any(p.is_symlink() for p in path.parents)
    }
    assert held == expected


def test_the_installed_command_compiles_an_example(installed: Path, tmp_path: Path):
    shutil.copy(EXAMPLE, tmp_path / "layer.mlir")
    env = {**os.environ, "GEMMIR_CACHE_DIR": str(tmp_path / "cache")}
    python = installed / "python"
    where = run(python, "-c", "import gemmir, gemmir.passes; print(gemmir.__file__)", cwd=tmp_path, env=env)
    assert str(installed.parent) in where, "the checkout was imported, not the wheel"
    run(
        python, installed / "gemmir", "compile", "layer.mlir", "--emit", "cubin", "-o", "k.cubin", cwd=tmp_path, env=env
    )
    assert (tmp_path / "k.cubin").read_bytes().startswith(ELF_MAGIC)


def test_the_installed_dialects_are_known_to_xdsl_opt(installed: Path, tmp_path: Path):
    code = "from xdsl.xdsl_opt_main import xDSLOptMain as M; import sys; M(args=sys.argv[1:]).run()"
    out = run(installed / "python", "-c", code, EXAMPLE, "-p", "gemm-canonicalize", cwd=tmp_path)
    assert "gemm.matmul" in out
