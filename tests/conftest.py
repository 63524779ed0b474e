"""What all tests share: hypothesis profiles, and GPU tests only where there is a Hopper GPU."""

import gc
import os

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker for each core: more threads in it would spin while others wait. Torch and NumPy read this when imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("dev", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else os.environ.get("HYPOTHESIS_PROFILE", "dev"))

_deselected = pytest.StashKey[int]()


def hopper_gpu() -> bool:
    """Whether torch sees a GPU of compute capability 9.0."""
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu") is not None]
    if not on_gpu or hopper_gpu():
        return
    items[:] = [item for item in items if item.get_closest_marker("gpu") is None]
    config.hook.pytest_deselected(items=on_gpu)
    config.stash[_deselected] = len(on_gpu)


def pytest_report_collectionfinish(config: pytest.Config) -> str:
    count = config.stash.get(_deselected, 0)
    return f"gpu: {count} tests deselected, no Hopper GPU" if count else ""


def pytest_collection_finish() -> None:
    """Thousands of tests and all that they import stay to the end: no collection need look at them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the kernel cache of a test apart from the user's and from other tests'."""
    monkeypatch.setenv("GEMMIR_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
