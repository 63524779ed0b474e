"""DeepGEMM's helpers for tests."""

from __future__ import annotations

from gemmir.compat.deep_gemm.missing import TESTING, refusing
from gemmir.compat.deep_gemm.testing.numeric import calc_diff, count_bytes

__all__ = ["calc_diff", "count_bytes"]

__getattr__ = refusing(__name__, TESTING)
