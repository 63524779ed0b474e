"""What only a device can show of the cases of tests/failure_modes.py."""

from __future__ import annotations

import pytest
import torch

import gemmir

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
