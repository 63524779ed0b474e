"""
What decides the bits of a result, and nothing else does.

A WGMMA sums 32 bytes of K in one step whose order does not matter; instructions follow one another in ascending K.
With `promote_every` set, each such stretch of K starts from zero in the tensor core and is then added to the result on
the CUDA cores as `fma(partial, scale_a * scale_b, total)`, with every operation rounded to nearest even in float32.
With `split_k` K falls into parts of equally many k-blocks (128 bytes of K; as if it went on with zeros), each summed
so from zero; the float32 sums of the parts are then added in ascending order. Tile sizes, stages, clusters, raster
and the number of warpgroups never change a bit.
"""

from __future__ import annotations

from gemmir.records import dataclass


@dataclass(frozen=True, slots=True)
class NumericsSpec:
    """
    `promote_every`: elements of K between promotions to float32, or None to accumulate in the tensor core only.

    `instruction_k`: elements of K that one instruction sums (32 for FP8, 16 for BF16 and FP16).

    `split_k`: parts of K that are summed by themselves (see `gemmir.problem.GemmProblem.parts`).
    """

    instruction_k: int
    promote_every: int | None = None
    split_k: int = 1

    def __str__(self) -> str:
        every = "none" if self.promote_every is None else str(self.promote_every)
        parts = f", split_k = {self.split_k}" if self.split_k > 1 else ""
        return f"instruction_k = {self.instruction_k}, promote_every = {every}{parts}"
