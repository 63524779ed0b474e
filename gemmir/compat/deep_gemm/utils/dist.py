"""DeepGEMM's helpers for processes, none of which gemmir has."""

from __future__ import annotations

from gemmir.compat.deep_gemm.missing import HELPERS, refusing

__getattr__ = refusing(__name__, HELPERS)
