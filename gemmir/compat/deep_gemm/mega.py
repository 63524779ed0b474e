"""DeepGEMM's fused mixtures of experts, none of which gemmir has."""

from __future__ import annotations

from gemmir.compat.deep_gemm.missing import MEGA, refusing

__getattr__ = refusing(__name__, MEGA)
