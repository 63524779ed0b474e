"""
Other libraries' kernels for the same product, on the same tensors.

A peer takes the tensors of a case by name (see `gemmir.bench.inputs`) and returns what launches it. What it cannot do
it refuses by raising, then or when it is first launched. Here are those of dense products; `grouped_peers` has the
others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemmir.bench.timing import Launch
from gemmir.dtypes import DTYPES

if TYPE_CHECKING:
    import torch

Inputs = dict[str, "torch.Tensor"]
Maker = Callable[[Inputs], Launch]
MAX_REASON = 200


class Refusal(Exception):
    """This peer cannot compute this case; says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """`what` it is, for people; `make` is None where it has nothing dense for that kind of element type."""

    name: str
    what: str
    make_fp8: Maker | None
    make_plain: Maker | None

    def maker(self, dtype: str) -> Maker | None:
        return self.make_fp8 if DTYPES[dtype].is_fp8 else self.make_plain


def cublas_per_tensor(inputs: Inputs) -> Launch:
    """cuBLASLt with one scale for each operand and fast accumulation: less work than 1x128 and 128x128 scales."""
    import torch

    x, w = inputs["x"], inputs["w"]
    one = torch.ones((), device=x.device)
    return lambda: torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
        x, w, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def cublas_block_wise(inputs: Inputs) -> Launch:
    """cuBLASLt with 1x128 and 128x128 scales."""
    import torch

    functional: Any = torch.nn.functional
    if not hasattr(functional, "scaled_mm"):
        raise Refusal(f"torch {torch.__version__} has no torch.nn.functional.scaled_mm")
    x, w = inputs["x"], inputs["w"]
    scale_a, scale_b = block_wise_scales(inputs["xs"], inputs["ws"])
    kind = functional.ScalingType
    return lambda: functional.scaled_mm(
        x, w, scale_a, kind.BlockWise1x128, scale_b, kind.BlockWise128x128, output_dtype=torch.bfloat16
    )


def block_wise_scales(xs: torch.Tensor, ws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The scales as cuBLASLt reads them: of A (M, K/128) with strides (1, M), of B (L, N/128) with strides (1, L).

    L is K/128 rounded up to a multiple of 4; the rows that this adds are zero and belong to no element.
    """
    blocks_k, blocks_n = ws.shape
    padded = ws.new_zeros((blocks_n, -(-blocks_k // 4) * 4))
    padded[:, :blocks_k] = ws.t()
    rows_fastest = xs.new_empty((blocks_k, xs.shape[0])).copy_(xs.t())
    return rows_fastest.t(), padded.t()


def cublas_plain(inputs: Inputs) -> Launch:
    """cuBLASLt or cuBLAS, whichever torch takes."""
    import torch

    x, w = inputs["x"], inputs["w"]
    return lambda: torch.mm(x, w)


def deep_gemm_fp8(inputs: Inputs) -> Launch:
    """DeepGEMM with the same scales; those of A lie as it wants them already."""
    function, out = deep_gemm_function("fp8_gemm_nt"), _result(inputs)
    a = (inputs["x"], inputs["xs"])
    b = (inputs["w"].t(), inputs["ws"].t().contiguous())
    return lambda: function(a, b, out)


def deep_gemm_plain(inputs: Inputs) -> Launch:
    function, out = deep_gemm_function("bf16_gemm_nt"), _result(inputs)
    x, w = inputs["x"], inputs["w"].t()
    return lambda: function(x, w, out)


def deep_gemm_function(name: str) -> Callable[..., object]:
    """`Refusal` where it is not installed, or has no such function."""
    try:
        module: Any = importlib.import_module("deep_gemm")
    except ImportError as error:
        raise Refusal(f"deep_gemm cannot be imported: {error}") from error
    if not hasattr(module, name):
        raise Refusal(f"this deep_gemm has no {name}")
    return getattr(module, name)


def _result(inputs: Inputs) -> torch.Tensor:
    import torch

    x, w = inputs["x"], inputs["w"]
    return torch.empty((x.shape[0], w.shape[1]), dtype=torch.bfloat16, device=x.device)


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("cublas", "cuBLASLt; FP8: one scale per tensor, fast accumulation", cublas_per_tensor, cublas_plain),
        Peer("cublas-block", "cuBLASLt; FP8: 1x128 and 128x128 scales", cublas_block_wise, None),
        Peer("deep_gemm", "DeepGEMM; FP8: 1x128 and 128x128 scales", deep_gemm_fp8, deep_gemm_plain),
        Peer("torch", "torch._grouped_mm, BF16 groups by offs only", None, None),
    )
}


def prepared(make: Maker, inputs: Inputs) -> Launch:
    """What launches a peer, once it has run; `Refusal` with one line if it cannot do this case, whatever it raises."""
    import torch

    try:
        launch = make(inputs)
        launch()
        torch.cuda.synchronize()
    except Exception as error:
        raise Refusal(reason(error)) from error
    return launch


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0].strip()
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 3] + "..."
