"""The rules of the order in which tiles are visited, and of what L2 keeps of their operands."""

from __future__ import annotations

from gemmir.problem import GemmProblem
from gemmir.rule import Violation
from gemmir.schedule import Evict, Schedule
from gemmir.target import Target


def raster(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """Groups of 1 to 64 tile rows or columns."""
    if s.raster_group is None or 1 <= s.raster_group <= 64:
        return None
    return Violation("GMR-S003", f"raster group of {s.raster_group}", "1 <= group <= 64", "use group = 8")


def evict(problem: GemmProblem, s: Schedule, target: Target) -> Violation | None:
    """What the CTAs of a cluster share is loaded without a cache hint."""
    cluster_m, cluster_n = s.cluster_m or 1, s.cluster_n or 1
    if cluster_m * cluster_n == 1 or s.evict in (None, Evict.NEITHER):
        return None
    what = f"evict = {s.evict.value} in clusters of {cluster_m}x{cluster_n} tiles"
    return Violation("GMR-S004", what, "what a cluster shares is loaded without cache hints", "use evict = neither")
