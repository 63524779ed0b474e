"""`gemm-balance`: no more clusters than the rounds of tiles need, where a GPU runs into its power limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.bench.cases import program_text
from gemmir.compiler import lower
from gemmir.errors import ScheduleError
from gemmir.target import balanced_clusters

TILE = "block = 128x256x128, warpgroups = 2 along n, turns = false, chunk = 1, cluster = 1x1"


@given(st.integers(1, 20_000), st.integers(1, 132))
def test_as_few_clusters_as_make_the_same_rounds(tiles: int, resident: int) -> None:
    clusters, rounds = balanced_clusters(tiles, resident), -(-tiles // resident)
    assert 1 <= clusters <= min(tiles, resident)
    assert -(-tiles // clusters) == rounds
    assert clusters == 1 or -(-tiles // (clusters - 1)) > rounds


@pytest.mark.parametrize(
    ("m", "n", "k", "balanced"),
    [(4096, 7168, 16384, True), (8192, 8192, 8192, True), (4096, 7168, 2048, False), (4096, 32768, 512, False)],
)
def test_long_tiles_are_balanced(m: int, n: int, k: int, balanced: bool) -> None:
    """Tensor-core cycles of a tile: K / 128 * 128 * 256 / 32."""
    found = lower(program_text(n, k, "f8E4M3FN", schedule=TILE), m=m)
    assert found.manifest is not None
    assert found.manifest.balanced is balanced
    assert ("balanced = true" in found.schedule) is balanced
    (why,) = [decision for decision in found.decisions if decision.startswith("gemm-balance")]
    assert f"busy for {k // 128 * 1024} cycles" in why


def test_what_is_fixed_stays() -> None:
    text = program_text(7168, 16384, "f8E4M3FN", schedule=f"{TILE}, balanced = false")
    found = lower(text, m=4096)
    assert found.manifest is not None
    assert not found.manifest.balanced
    assert not [decision for decision in found.decisions if decision.startswith("gemm-balance")]


def test_rounds_need_tiles() -> None:
    with pytest.raises(ScheduleError, match="the blocks are open") as refused:
        lower(program_text(7168, 2048, "f8E4M3FN"), pipeline="gemm-canonicalize,gemm-select-family,gemm-balance")
    assert refused.value.code == "GMR-S005"
