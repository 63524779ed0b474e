"""What only a device can show of the cases of tests/failure_modes.py."""

from __future__ import annotations

import pytest
import torch

import gemmir
from gemmir.errors import OutOfMemoryError
from gemmir.target import MOST_EXTENT

pytestmark = pytest.mark.gpu


def test_more_than_2_31_elements() -> None:
    """Of A and of the result, at whose ends lie the rows that are compared."""
    m, n, k = 300_000, 7296, 7296
    a = torch.zeros(m, k, dtype=torch.bfloat16, device="cuda")
    rows = torch.tensor([0, 1, 147_168, m - 2, m - 1], device="cuda")
    a[rows] = torch.randn(5, k, device="cuda").bfloat16()
    w = torch.randn(n, k, device="cuda").bfloat16()
    assert a.numel() > 2**31 < m * n
    result = gemmir.matmul(a, w.t())
    assert torch.equal(result[rows], gemmir.matmul(a[rows], w.t(), expected_m=4096, split_k=1))
    others = torch.ones(m, dtype=torch.bool, device="cuda")
    others[rows] = False
    assert not bool(result[others].any())


def test_no_memory_for_a_result() -> None:
    """Of 256 GiB: an error with the bytes, as torch's own, after which the same product of fewer rows is computed."""
    m, n, k = 1 << 20, 1 << 17, 64
    a, w = (torch.ones(rows, k, dtype=torch.bfloat16, device="cuda") for rows in (m, n))
    gemmir.matmul(a[:300], w.t())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError) as caught:
            gemmir.matmul(a, w.t())
        assert isinstance(caught.value, OutOfMemoryError)
        assert f"out: {2 * m * n} bytes on cuda:0" in caught.value.what
        assert "bytes are free" in caught.value.what
    del caught
    assert torch.cuda.memory_allocated() == before
    assert bool((gemmir.matmul(a[:300], w.t()) == k).all())


def test_as_many_rows_as_there_may_be() -> None:
    """69 GB: the last tile ends just below 2^31."""
    a = torch.zeros(MOST_EXTENT, 8, dtype=torch.bfloat16, device="cuda")
    rows = torch.tensor([0, 1, 2**30, MOST_EXTENT - 2, MOST_EXTENT - 1], device="cuda")
    a[rows] = torch.randn(5, 8, device="cuda").bfloat16()
    w = torch.randn(8, 8, device="cuda").bfloat16()
    result = gemmir.matmul(a, w.t())
    assert torch.equal(result[rows], gemmir.matmul(a[rows], w.t(), expected_m=4096, split_k=1))
    result[rows] = 0.0
    assert not any(bool(part.any()) for part in result.split(2**28))
