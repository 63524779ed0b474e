"""DeepGEMM's helpers for measuring, none of which gemmir has."""

from __future__ import annotations

from gemmir.compat.deep_gemm.missing import TESTING, refusing

__getattr__ = refusing(__name__, TESTING)
