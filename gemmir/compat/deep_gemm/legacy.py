"""DeepGEMM's kernels for A100, none of which gemmir has."""

from __future__ import annotations

from gemmir.compat.deep_gemm.missing import LEGACY, refusing_all

__getattr__ = refusing_all(__name__, LEGACY)
