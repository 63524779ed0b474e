"""A cache of one's own for each test, that has not warned yet and remembers nothing."""

from pathlib import Path

import pytest

from gemmir import cache, cache_settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


@pytest.fixture(autouse=True)
def warn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_warned", set())
    monkeypatch.setattr(cache, "_memories", {})
    monkeypatch.setattr(cache_settings, "_warned", set())
