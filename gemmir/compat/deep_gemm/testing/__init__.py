"""DeepGEMM's helpers for tests. As there, `bench` is the function, though a module to import from has the name too."""

from __future__ import annotations

from gemmir.compat.deep_gemm.missing import TESTING, refusing
from gemmir.compat.deep_gemm.testing import numeric, utils
from gemmir.compat.deep_gemm.testing.bench import bench
from gemmir.compat.deep_gemm.testing.numeric import calc_diff, count_bytes

__all__ = ["bench", "calc_diff", "count_bytes", "numeric", "utils"]

__getattr__ = refusing(__name__, TESTING)
